"""A stand-in for the capture of CUDA graphs, which needs no GPU."""

from __future__ import annotations

import torch

from pixelrefer_fast.device.graphs import Function, Inputs

SIZE = 1000  # bytes that a stand-in's graph holds besides its inputs


class Recorded:
    """As a graph does: reads the buffers it was captured with, writes to one output, runs no Python of the caller."""

    def __init__(self, function: Function, inputs: Inputs, held: int) -> None:
        self._function, self._inputs = function, inputs
        self.output = torch.full_like(function(**inputs), torch.nan)
        self.held = held
        self.replays = 0

    def replay(self) -> None:
        self.output.copy_(self._function(**self._inputs))
        self.replays += 1


class Recorder:
    """Captures on a CPU, and keeps what it captured.

    Attributes:
        held: bytes of each graph that it captures.
        error: what a capture raises instead, after the run before it.
        tries: captures begun.
    """

    def __init__(self, held: int = SIZE) -> None:
        self.held = held
        self.error: Exception | None = None
        self.tries = 0
        self.captured: list[Recorded] = []

    def unusable(self, device: torch.device) -> str | None:
        return None if device.type == "cpu" else "a stand-in for the CPU"

    def capture(self, function: Function, inputs: Inputs) -> Recorded:
        self.tries += 1
        if self.error is not None:
            function(**inputs)
            raise self.error
        self.captured.append(Recorded(function, inputs, self.held))
        return self.captured[-1]
