"""From prompt embeddings to text: packed prefill, a cache in blocks, steps of many sequences at once."""

from pixelrefer_fast.decoding.decoder import Decoder
from pixelrefer_fast.decoding.options import Decoded, FinishReason, Generation, Step
from pixelrefer_fast.decoding.prefixes import Boundary, PromptEmbeds, prefix_boundaries
from pixelrefer_fast.decoding.sequence import Sequence

__all__ = [
    "Boundary",
    "Decoded",
    "Decoder",
    "FinishReason",
    "Generation",
    "PromptEmbeds",
    "Sequence",
    "Step",
    "prefix_boundaries",
]
