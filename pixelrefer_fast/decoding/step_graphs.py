"""Steps of the decoder as CUDA graphs: captured once for a bucket of slots and blocks, replayed with one launch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

from pixelrefer_fast.device.graphs import Captured, Capturer, CudaCapturer


class StepGraphs:
    """Captured steps, the least recently used given up when their memory exceeds the limit.

    A step reads and writes the decoder's own state, which stays where it is; a graph has no inputs to fill and its
    result (the logits) is written over by the next replay.

    Args:
        limit_bytes: of device memory that all graphs together may keep.
        capturer: makes the graphs; that of torch.cuda unless given.
    """

    def __init__(self, limit_bytes: int, capturer: Capturer | None = None) -> None:
        self.limit_bytes = limit_bytes
        self._capturer = CudaCapturer() if capturer is None else capturer
        self._graphs: OrderedDict[Hashable, Captured] = OrderedDict()
        self._too_large: set[Hashable] = set()
        self._counts = {"captures": 0, "replays": 0, "evictions": 0, "not_kept": 0}

    def unusable(self, device: torch.device) -> str | None:
        """Why nothing can be captured on this device, or None."""
        return self._capturer.unusable(device)

    def run(self, key: Hashable, step: Callable[[], torch.Tensor], state: dict[str, torch.Tensor]) -> torch.Tensor:
        """`step()`, by replaying its graph, which the first call captures.

        Args:
            key: stands for every number of the host that decides what `step` does.
            step: changes `state`, and nothing else that running it again with the same state would change.
            state: what a capture, which runs the step, has to put back.
        """
        if key in self._too_large:
            self._counts["not_kept"] += 1
            return step()
        if key not in self._graphs:
            self._capture(key, step, state)
            if key in self._too_large:
                return step()
        self._graphs.move_to_end(key)
        captured = self._graphs[key]
        captured.replay()
        self._counts["replays"] += 1
        return captured.output

    def held_bytes(self) -> int:
        """Bytes of device memory that the graphs keep."""
        return sum(graph.held for graph in self._graphs.values())

    def counts(self) -> dict[str, int]:
        """Graphs kept now and their bytes; captures, replays, evictions, and steps of graphs too large to be kept."""
        return {"graphs": len(self._graphs), "held_bytes": self.held_bytes(), **self._counts}

    def clear(self) -> None:
        """Give up all graphs; needed when what they read besides the state (weights, cache) moves."""
        self._graphs.clear()
        self._too_large.clear()

    def _capture(self, key: Hashable, step: Callable[[], torch.Tensor], state: dict[str, torch.Tensor]) -> None:
        before = {name: x.clone() for name, x in state.items()}

        def function(**inputs: torch.Tensor) -> torch.Tensor:
            return step()

        captured = self._capturer.capture(function, state)
        for name, x in state.items():
            x.copy_(before[name])
        self._counts["captures"] += 1
        if captured.held > self.limit_bytes:
            self._too_large.add(key)
            return
        while self.held_bytes() + captured.held > self.limit_bytes:
            self._graphs.popitem(last=False)
            self._counts["evictions"] += 1
        self._graphs[key] = captured
