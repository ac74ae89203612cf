"""Steps of the decoder as CUDA graphs: captured once for a bucket of slots and blocks, replayed with one launch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch

from pixelrefer_fast.device.graphs import Captured, GraphStore


class StepGraphs(GraphStore[Captured]):
    """Captured steps, within a memory limit.

    A step reads and writes the decoder's own state, which stays where it is: a graph has no inputs to fill, and its
    result (the logits) is written over by the next replay.
    """

    def run(self, key: Hashable, step: Callable[[], torch.Tensor], state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """`step()`, by replaying its graph, which the first call captures.

        Args:
            key: stands for every number of the host that decides what `step` does.
            step: changes `state`, and nothing else that running it again with the same state would change.
            state: what a capture, which runs the step, has to put back.

        Raises:
            torch.OutOfMemoryError: there is no memory for the step or its capture.
        """
        graph = self._graph(key, lambda: self._capture(step, state))
        return step() if graph is None else self._replay(graph)

    def _capture(self, step: Callable[[], torch.Tensor], state: Mapping[str, torch.Tensor]) -> Captured:
        before = {name: x.clone() for name, x in state.items()}

        def function(**inputs: torch.Tensor) -> torch.Tensor:
            return step()

        try:
            return self._capturer.capture(function, state)
        finally:
            for name, x in state.items():
                x.copy_(before[name])
