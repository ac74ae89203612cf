"""What each stage of a question computes and moves, from sizes alone: no weights, no pixels, no device.

Every function gives the launches of one stage as `Work`. FLOPs are those that `counters` counts: matrix products,
convolutions and attention, a multiply-add being two, and what Triton kernels declare. Bytes are each launch's inputs
and outputs, each once. There are two kinds of machine: "cuda", where Triton kernels serve the operations that have one,
and "cpu", where PyTorch's definitions serve them, in more launches. `docs/estimating.md` says what is left out.
"""

from __future__ import annotations

from pixelrefer_fast.bench.estimate.costs.language import decode, prefill, step
from pixelrefer_fast.bench.estimate.costs.memory import memory, weights
from pixelrefer_fast.bench.estimate.costs.vision import encoder, infusion, pooling, projector, views
from pixelrefer_fast.bench.estimate.costs.work import Machine, Sizes, Work
from pixelrefer_fast.checkpoint.config import ModelConfig

__all__ = [
    "STAGES",
    "Machine",
    "Sizes",
    "Work",
    "encoder",
    "infusion",
    "memory",
    "pooling",
    "prefill",
    "projector",
    "stages",
    "step",
    "weights",
]

STAGES = ("views", "encoder", "pooling", "infusion", "projector", "prefill", "decode")


def stages(config: ModelConfig, sizes: Sizes, machine: Machine) -> dict[str, list[Work]]:
    """The work of each stage, in order; "infusion" is Lite's."""
    found = {
        "views": views(sizes, machine),
        "encoder": encoder(config, sizes, machine),
        "pooling": pooling(config, sizes, machine),
        "infusion": infusion(config, sizes, machine),
        "projector": projector(config, sizes, machine),
        "prefill": prefill(config, sizes, machine),
        "decode": decode(config, sizes, machine),
    }
    if config.kind == "full":
        del found["infusion"]
    return found
