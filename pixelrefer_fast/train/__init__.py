"""Fine-tuning: samples in the released format, packed batches, the loss, stages."""
