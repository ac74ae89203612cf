"""Requests of every form that a model meets, asked before the first real one, so that all kernels are compiled then."""

from __future__ import annotations

import numpy as np

from pixelrefer_fast.batching.asks import Ask

SIDE = 448  # pixels of the picture
BOXES = (28, 120, 400)  # sides of marked squares: few patches, about as many as an object may have, and more
TOGETHER = 24  # marks of one question: enough for projected keys
SAMPLED = ({"top_k": 5}, {"top_k": 0}, {"top_k": 0, "top_p": 0.9}, {"logprobs": True, "repetition_penalty": 1.1})


def rehearsal() -> list[Ask]:
    """Small, medium and large objects, many of them at once, greedy and sampled."""
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)

    def box(side: int, left: int = 8) -> list[int]:
        return [left, 8, left + side, 8 + side]

    asks = [Ask(picture, None, [box(side)], max_new_tokens=2) for side in BOXES]
    many = [box(BOXES[0] + i, 8 + 12 * i) for i in range(TOGETHER)]
    asks.append(Ask(picture, "<region>" * TOGETHER, many, max_new_tokens=2))
    for options in SAMPLED:
        ask = Ask(picture, None, [box(BOXES[1])], max_new_tokens=2, seed=0)
        ask.options |= {"temperature": 1.0, **options}
        asks.append(ask)
    return asks
