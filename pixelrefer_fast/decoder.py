"""Prompt embeddings -> text; `pixelrefer_fast.decoding` has the parts."""

from pixelrefer_fast.decoding import Decoder, Generation, Step

__all__ = ["Decoder", "Generation", "Step"]
