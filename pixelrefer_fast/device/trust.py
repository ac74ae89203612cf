"""Whether a captured computation is used: only if its first replay gave what the eager run on the same inputs gave.

A capture can be wrong without failing: it may have kept an address that was free by the time of the replay, or a number
of the host that should have been read anew. So whoever captures runs the computation eagerly as well, replays the
capture once and hands both results to `confirm`. A capture that does not agree, or that failed, is dropped by
`dropped`: one warning, a count, and the eager path goes on. `counts` is what the doctor shows.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import TypedDict

import torch

# Of the largest value. In float32 what `verify` allows for features and object tokens, in 16 bit as many roundings: the
# vendor's library may choose another algorithm for a capture, which adds in another order.
BAR = 1e-4
ROUNDINGS = 4

log = logging.getLogger("pixelrefer_fast")


class UntrustedCapture(RuntimeError):
    """The first replay of a capture is not what the eager run gave."""


class TrustCounts(TypedDict):
    """What became of the captures of this process.

    Keys:
        bit_for_bit: first replays that gave the eager run's bits.
        within_bar: others, whose difference is rounding.
        dropped: captures that are not used, by reason.
    """

    bit_for_bit: int
    within_bar: int
    dropped: dict[str, int]


_agreed = {"bit_for_bit": 0, "within_bar": 0}
_dropped: Counter[str] = Counter()


def bar(dtype: torch.dtype) -> float:
    """By how much of its largest value a replayed result may differ; integers and bool not at all."""
    if not dtype.is_floating_point:
        return 0.0
    return ROUNDINGS * torch.finfo(dtype).eps if dtype.itemsize == 2 else BAR


def confirm(eager: Mapping[str, torch.Tensor], replayed: Mapping[str, torch.Tensor]) -> None:
    """Raise unless a capture's first replay is the eager run, bit for bit or within `bar`; the host waits for both.

    Args:
        eager: results, and whatever else the run has written, by name; none of it may lie where the replay writes.
        replayed: the same of the replay, on the same inputs.

    Raises:
        UntrustedCapture: another shape or dtype, a value that is finite in only one of them, or one beyond the bar.
    """
    exact = True
    for name, expected in eager.items():
        given = replayed.get(name)
        if given is None or given.shape != expected.shape or given.dtype != expected.dtype:
            found = "nothing" if given is None else f"{tuple(given.shape)} of {given.dtype}"
            raise UntrustedCapture(
                f"its first replay: expected {name} of {tuple(expected.shape)} of {expected.dtype}, got {found}"
            )
        if _same_bits(expected, given):
            continue
        exact = False
        error = _error(expected, given)
        if not error <= bar(expected.dtype):
            raise UntrustedCapture(
                f"its first replay is not what the eager run gave: {name} is off by {error:.1e} of its largest value"
            )
    _agreed["bit_for_bit" if exact else "within_bar"] += 1


def dropped(reason: str) -> None:
    """Say, with one warning, that a capture is not used, and count it."""
    log.warning("graphs: not using one (%s)", reason)
    _dropped[reason] += 1


def counts() -> TrustCounts:
    """What became of the captures of this process so far."""
    return {**_agreed, "dropped": dict(_dropped)}  # type: ignore[typeddict-item]


def _same_bits(expected: torch.Tensor, given: torch.Tensor) -> bool:
    # as bytes: a NaN equals itself, and minus zero is not zero
    return torch.equal(expected.contiguous().view(-1).view(torch.uint8), given.contiguous().view(-1).view(torch.uint8))


def _error(expected: torch.Tensor, given: torch.Tensor) -> float:
    """Largest difference over the largest value; infinite where only one of them is finite or an integer differs."""
    if not expected.dtype.is_floating_point:
        return float("inf")
    wide, other = expected.double(), given.double()
    finite = wide.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return float("inf")
    largest = wide[finite].abs().amax() if finite.any() else wide.new_zeros(())
    furthest = (wide - other)[finite].abs().amax() if finite.any() else wide.new_zeros(())
    return float("inf") if largest == 0 else float(furthest / largest)
