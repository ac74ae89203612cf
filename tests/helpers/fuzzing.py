"""Hostile inputs by number: each is made from a seed, read or refused, and counted by what became of it."""

from __future__ import annotations

import os
import resource
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np

LONGEST = 30  # seconds that one input may take
MOST_MEMORY = 2 << 30  # bytes by which the process may grow
MOST_CHARACTERS = 600  # of a message: what is echoed has at most 200, the rest says where and what was expected

Case = Callable[[np.random.Generator], str]
"""Makes an input and hands it over: what became of it, or a ValueError where it was refused."""


class Fuzzer:
    """Runs cases, and keeps the counts of all of them.

    Args:
        seconds: for each case; None: a fixed number of inputs.
        seed: of all inputs.
    """

    def __init__(self, seconds: float | None, seed: int) -> None:
        self.seconds = seconds
        self.seed = seed
        self.table: dict[str, Counter[str]] = {}
        self.failed: dict[str, str] = {}

    @classmethod
    def from_environment(cls) -> Fuzzer:
        seconds = os.environ.get("FUZZ_SECONDS")
        return cls(float(seconds) if seconds else None, int(os.environ.get("FUZZ_SEED", "0")))

    def numbers(self, count: int) -> Iterator[int]:
        """Numbers of the inputs to make: `count`, or as many as there is time for."""
        start, number = time.monotonic(), 0
        while number < count if self.seconds is None else time.monotonic() - start < self.seconds:
            yield number
            number += 1

    def run(
        self, name: str, case: Case, count: int, allowed: tuple[type[Exception], ...] = (ValueError,)
    ) -> Counter[str]:
        """Make `count` inputs and hand each over.

        Args:
            name: of the case, in the table.
            case: what is run.
            count: inputs, unless there is a time.
            allowed: exceptions that refuse an input.

        Raises:
            AssertionError: another exception, a message without end, too much time or memory; it names the input.
        """
        outcomes = self.table.setdefault(name, Counter())
        before = _peak()
        for number in self.numbers(count):
            rng = np.random.default_rng([self.seed, number])
            with self.told(name, f"input {number} of seed {self.seed}"):
                try:
                    with limited(LONGEST), warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        outcomes[case(rng)] += 1
                except allowed as error:
                    if len(str(error)) > MOST_CHARACTERS:
                        raise AssertionError(f"a message of {len(str(error))} characters") from error
                    outcomes["refused"] += 1
                except TimeoutError:
                    raise AssertionError(f"more than {LONGEST} s") from None
                assert _peak() - before < MOST_MEMORY, f"more than {MOST_MEMORY} bytes"
        return outcomes

    @contextmanager
    def told(self, name: str, where: str) -> Iterator[None]:
        """What fails within it is kept with the counts, and becomes an AssertionError that names the input."""
        try:
            yield
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            self.failed[name] = f"{where}: {kind}{str(error)[:300]}"
            raise AssertionError(f"{name}: {self.failed[name]}") from error

    def result(self) -> dict[str, object]:
        """The counts, for a file that `tools/fuzz_page.py` reads."""
        return {"seed": self.seed, "seconds": self.seconds, "inputs": self.table, "failed": self.failed}


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """A TimeoutError when the block takes longer."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, removed, repeated, or cut off."""
    content = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, len(content) + 1))
        size = int(rng.integers(1, 12))
        kind = rng.integers(0, 6)
        if kind == 0:
            del content[at:]
        elif kind == 1:
            del content[at : at + size]
        elif kind == 2:
            content[at:at] = rng.bytes(size)
        elif kind == 3:
            content[at:at] = content[at : at + size]
        elif at < len(content):
            content[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, content[at] ^ (1 << int(rng.integers(8)))]))
    return bytes(content)


ODD_NUMBERS = (0, 1, -1, 2, 7, 0.5, -0.0, 1e-300, 1e300, 1e308, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400)
ODD_FLOATS = (float("nan"), float("inf"), float("-inf"))


class Hostile:
    """Whose text cannot be had, or has no end."""

    def __init__(self, kind: int) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        if self.kind == 0:
            raise RuntimeError("no text")
        return "x" * 10_000_000 if self.kind == 1 else "\x1b[2J\n\x00"


def odd_value(rng: np.random.Generator, depth: int = 3) -> object:
    """Any value that a caller may hand in by mistake or on purpose."""
    kind = int(rng.integers(0, 16 if depth else 11))
    if kind < 4:
        return ODD_NUMBERS[rng.integers(len(ODD_NUMBERS))]
    if kind == 4:
        return ODD_FLOATS[rng.integers(3)]
    if kind == 5:
        return [None, True, False, Ellipsis, object(), int, len][rng.integers(7)]
    if kind == 6:
        return ["", "x", "x" * 100_000, "\ud800", "\x00", "7", "nan", "1,2,3,4"][rng.integers(8)]
    if kind == 7:
        return Hostile(int(rng.integers(3)))
    if kind == 8:
        return [b"", b"\xff" * 9, bytearray(5), memoryview(b"abc"), complex(1, 2), frozenset()][rng.integers(6)]
    if kind == 9:
        return float(rng.normal() * 10.0 ** int(rng.integers(-3, 9)))
    if kind == 10:
        return odd_array(rng)
    if kind in (11, 12):
        return [odd_value(rng, depth - 1) for _ in range(int(rng.integers(0, 6)))]
    if kind == 13:
        return tuple(odd_value(rng, depth - 1) for _ in range(int(rng.integers(0, 6))))
    keys = ["type", "box", "xyxy", "xywh", "size", "counts", "segmentation", "bbox", "masks", "mask", "points", "width"]
    keys += ["polygons", "frames", "boxes", "object_ids", "0", "7", "x", "segments_info", "normalized"]
    chosen = [keys[rng.integers(len(keys))] if rng.random() < 0.9 else int(rng.integers(-2, 9)) for _ in range(3)]
    return {key: odd_value(rng, depth - 1) for key in chosen}


def odd_array(rng: np.random.Generator) -> object:
    """An array or tensor of any dtype, shape, memory and class."""
    import torch

    shape = tuple(int(s) for s in rng.integers(0, 7, int(rng.integers(0, 5))))
    values = rng.normal(size=shape) * 10.0 ** int(rng.integers(-2, 6))
    if rng.random() < 0.3:
        values = rng.random(shape)
    dtypes = [np.float64, np.float32, np.float16, np.int64, np.int8, np.uint8, np.uint16, np.bool_, np.complex64]
    with np.errstate(all="ignore"):
        array = np.asarray(values).astype(dtypes[rng.integers(len(dtypes))])
    kind = int(rng.integers(0, 9))
    if kind == 0 and array.size and array.dtype.kind == "f":
        array.flat[0] = np.nan
    elif kind == 1 and array.ndim == 2:
        return np.matrix(array)
    elif kind == 2:
        return np.ma.MaskedArray(array, rng.random(shape) < 0.5)
    elif kind == 3:
        return array.astype(object)
    elif kind == 4:
        return np.array(["a", "b"])
    elif kind == 5 and array.dtype != np.uint16:
        return torch.from_numpy(np.ascontiguousarray(array))
    elif kind == 6:
        return torch.empty(shape, device="meta") if rng.random() < 0.5 else torch.rand(shape).to(torch.bfloat16)
    elif kind == 7 and array.ndim:
        return np.broadcast_to(array, (3, *shape))[:, ::-1]
    elif kind == 8 and array.ndim == 2:
        return torch.rand(shape).to_sparse()
    return array


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
