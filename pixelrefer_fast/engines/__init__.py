"""Engines of others that carry this package's models further: Ray Data, over many GPUs and machines."""
