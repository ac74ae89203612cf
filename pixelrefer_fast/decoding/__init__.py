"""From prompt embeddings to text: packed prefill, a cache in blocks, steps of many sequences at once."""

from pixelrefer_fast.decoding.decoder import Decoder
from pixelrefer_fast.decoding.options import Decoded, Event, FinishReason, Generation, Step, Usage
from pixelrefer_fast.decoding.prefixes import Boundary, PromptEmbeds, prefix_boundaries
from pixelrefer_fast.decoding.sequence import Sequence

__all__ = [
    "Boundary",
    "Decoded",
    "Decoder",
    "Event",
    "FinishReason",
    "Generation",
    "PromptEmbeds",
    "Sequence",
    "Step",
    "Usage",
    "prefix_boundaries",
]
