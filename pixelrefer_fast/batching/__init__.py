"""Many requests at once: planned, packed into batches, encoded and decoded together, from any number of threads."""

from pixelrefer_fast.batching.asks import Answer, Ask, BatchError

__all__ = ["Answer", "Ask", "BatchError"]
