"""What one question costs a model: tokens, FLOPs of each stage, time and memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pixelrefer_fast.bench.measure import memory, timing
from pixelrefer_fast.bench.run import stages

REPEATS = 3


@dataclass(frozen=True)
class Costs:
    """Of one question.

    Attributes:
        object_tokens, vision_tokens: that the language model sees (vision tokens: Full only, those that were kept).
        prompt_tokens: of the whole prompt, text included.
        answer_tokens: the end token included.
        encoder_flops, region_flops, prefill_flops, decode_flops: a multiply-add is two; of matrix products,
            convolutions and attention, counted while they run. The region stage is the tokenizer, the infusion of
            context (Lite) and the projection of whole images and frames (Full).
        seconds: of the whole call, from opened media to text: the shortest of some, after a first one.
        memory: bytes at the most, weights included. On a CPU of all tensors that are alive at one time (what libraries
            take for themselves is not seen), on a CUDA device what torch has allocated.
    """

    object_tokens: int
    vision_tokens: int
    prompt_tokens: int
    answer_tokens: int
    encoder_flops: int
    region_flops: int
    prefill_flops: int
    decode_flops: int
    seconds: float
    memory: int

    @property
    def flops(self) -> int:
        return self.encoder_flops + self.region_flops + self.prefill_flops + self.decode_flops

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"flops": self.flops}


def measure(
    model: Any, media: Any, question: str, regions: Any, max_new_tokens: int = 512, repeats: int = REPEATS
) -> Costs:
    """The costs of `model.ask(media, question, regions)`, nothing of it being known to the model before.

    Raises:
        ValueError: as `model.ask`.
    """
    with stages.asked(model, media, question, regions, max_new_tokens) as own:
        counted = _counted(own)
        model.decoder.clear()
        with memory.watching(model.device, (*model.parameters(), *model.buffers())) as held:
            own.ask()
        seconds = timing.sample(own.ask, model.device, repeats)
    return Costs(**counted, seconds=min(seconds), memory=held.peak)


def _counted(own: stages.Question) -> dict[str, int]:
    flops = {name: counts.flops for name, counts in stages.count(own)}
    return {
        "object_tokens": len(own.tokens),
        "vision_tokens": 0 if own.scene is None else len(own.scene.tokens),
        "prompt_tokens": len(own.embeds),
        "answer_tokens": len(own.sequence.tokens),
        "encoder_flops": flops["encoder"],
        "region_flops": sum(flops.get(name, 0) for name in ("pooling", "infusion", "projector")),
        "prefill_flops": flops["prefill"],
        "decode_flops": flops["decode"],
    }
