"""Training: records of the released format, packed batches, the loss, stages."""
