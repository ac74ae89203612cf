"""Steps of the decoder as CUDA graphs: captured by `warmup` for a few numbers of slots, replayed with one launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal, NamedTuple

import torch

from pixelrefer_fast.device import trust
from pixelrefer_fast.device.graphs import Captured, Capturer, CudaCapturer, GraphStore

SIZES = 7  # numbers of slots that are captured: 1 to 64 in powers of two
WHOLE: Final = "whole"
LAYERS: Final = "layers"


class StepKey(NamedTuple):
    """Which step a graph is: of how many slots, and whether the choice of tokens is part of it."""

    slots: int
    kind: Literal["whole", "layers"]


class StepGraphs(GraphStore[Captured]):
    """Captured steps, within a memory limit, in one memory pool: their replays follow each other.

    A step reads and writes the decoder's own state, which stays where it is: a graph has no inputs to fill, and its
    result (the logits) is written over by the next replay, of whatever graph.
    """

    def __init__(self, limit_bytes: int, capturer: Capturer | None = None) -> None:
        super().__init__(limit_bytes, CudaCapturer(one_pool=True) if capturer is None else capturer)

    def capture(self, key: StepKey, step: Callable[[], torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
        """Capture a step unless it was, and keep the graph if its first replay is what the eager step is (`trust`).

        Args:
            key: of the step.
            step: changes `state`, and nothing else that running it again with the same state would change.
            state: is put back afterwards.

        Raises:
            torch.OutOfMemoryError: there is no memory for the step or its capture.
        """
        self._graph(key, lambda: self._captured(step, state))

    def replay(self, key: StepKey) -> torch.Tensor | None:
        """The logits of a step, or None where it was not captured."""
        if key not in self._graphs:
            self._counts["not_kept"] += 1
            return None
        return self._replay(self._graphs[key])

    def _captured(self, step: Callable[[], torch.Tensor], state: Mapping[str, torch.Tensor]) -> Captured:
        before = _copied(state)

        def put_back() -> None:
            for name, x in state.items():
                x.copy_(before[name])

        def function(**inputs: torch.Tensor) -> torch.Tensor:
            return step()

        try:
            logits = step().clone()
            eager = _copied(state) | {"logits": logits}
            put_back()
            captured = self._capturer.capture(function, state)
            put_back()
            captured.replay()
            trust.confirm(eager, _copied(state) | {"logits": captured.output})
        finally:
            put_back()
        return captured


def _copied(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies whose numbers lie side by side; columns of the state do not."""
    return {name: x.clone(memory_format=torch.contiguous_format) for name, x in state.items()}


def captured_sizes(slots: int) -> list[int]:
    """Numbers of slots to capture, the largest first: powers of two, and all of them."""
    sizes = {slots, *(2**i for i in range(slots.bit_length()))}
    return sorted((n for n in sizes if n <= slots), reverse=True)[:SIZES]


def keys_of(slots: int) -> Iterator[StepKey]:
    """All steps that are captured for so many slots, the largest first: at most 14."""
    for size in captured_sizes(slots):
        yield StepKey(size, WHOLE)
        yield StepKey(size, LAYERS)
