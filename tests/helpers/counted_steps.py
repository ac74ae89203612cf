"""A decoding step with the kernels of a device, which are counted and not run, on tensors of a CPU."""

from __future__ import annotations

from typing import Any

import torch
from plain_memory import plain_memory

from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.decoding.qwen import LanguageModel
from pixelrefer_fast.decoding.slots import Entry, Slots
from pixelrefer_fast.device.counters import Counts, counting
from pixelrefer_fast.device.launches import dry_run

CONTEXT = 100  # tokens of each sequence


def counted_step(llm: Any, sequences: int, *options: Generation) -> Counts:
    """Of one step of so many sequences with these options in turn, everything that is looked up once being there."""
    model = LanguageModel(llm, "triton")
    pool = model.new_pool(64, 1 << 30)
    with torch.inference_mode():
        slots = Slots(model, pool, 64, 16, llm.config.vocab_size, [5])
        slots.add(
            [Entry(CONTEXT, 50, pool.allocate(3), [1, 2, 3], options[i % len(options)], 0) for i in range(sequences)]
        )
        with dry_run():
            slots.step(sequences, 3)
        slots.views(sequences)["tokens"].zero_()  # what is not run leaves them as memory was
        with plain_memory(), counting("cpu", dry=True) as counts:
            slots.step(sequences, 3)
    return counts
