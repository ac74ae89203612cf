"""The cost model: FLOPs, bytes, memory and time of a question without running it."""
