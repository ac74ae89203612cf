"""What steps have left in their slots, on its way to the host: sent after each step, read in the same order."""

from __future__ import annotations

from collections import abc, deque
from dataclasses import dataclass

import torch

from pixelrefer_fast.decoding.sequence import Sequence
from pixelrefer_fast.decoding.slots import Slots, StepOutput


@dataclass(frozen=True)
class Readback:
    """The output of a step in host memory, once it has arrived, and the sequences of its rows."""

    output: StepOutput
    sequences: tuple[Sequence, ...]
    arrived: torch.cuda.Event | None


class Readbacks:
    """Outputs that were sent and not read.

    Attributes:
        read: how many were read so far.
    """

    def __init__(self) -> None:
        self.read = 0
        self._sent: deque[Readback] = deque()

    def __len__(self) -> int:
        return len(self._sent)

    def send(self, slots: Slots, sequences: abc.Sequence[Sequence]) -> None:
        """Copy the slots' output, which the next step writes over; nothing waits for the copy."""
        output = slots.output()
        on_device = output.numbers.is_cuda
        numbers, *logprobs = (
            _pinned(x) if on_device else x.clone() for x in (output.numbers, output.logprobs) if x is not None
        )
        arrived = torch.cuda.Event() if on_device else None
        if arrived is not None:
            arrived.record()
        self._sent.append(Readback(StepOutput(numbers, *logprobs or (None,)), tuple(sequences), arrived))

    def next(self, left: int) -> Readback | None:
        """The oldest, with its numbers there; None where it has not arrived and is one of the last `left`."""
        if not self._sent:
            return None
        oldest = self._sent[0]
        if len(self._sent) <= left and (oldest.arrived is None or not oldest.arrived.query()):
            return None
        if oldest.arrived is not None:
            oldest.arrived.synchronize()
        self.read += 1
        return self._sent.popleft()

    def clear(self) -> None:
        """Forget what was not read."""
        self._sent.clear()


def _pinned(x: torch.Tensor) -> torch.Tensor:
    """A tensor of the device on its way to pinned memory."""
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return host.copy_(x, non_blocking=True)
