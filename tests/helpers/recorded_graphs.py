"""A stand-in for the capture of CUDA graphs, which needs no GPU."""

from __future__ import annotations

import torch

from pixelrefer_fast.device.graphs import Run

SIZE = 1000  # bytes that a stand-in's graph holds


class Recorded:
    """As a graph does: reads the tensors it was captured with, writes to one output, runs no Python of the caller."""

    def __init__(self, run: Run, held: int) -> None:
        self.run = run
        self.output = torch.full_like(run(), torch.nan)
        self.held = held
        self.replays = 0

    def replay(self) -> None:
        self.output.copy_(self.run())
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

    def capture(self, run: Run, device: torch.device) -> Recorded:
        self.tries += 1
        if self.error is not None:
            run()
            raise self.error
        self.captured.append(Recorded(run, self.held))
        return self.captured[-1]
