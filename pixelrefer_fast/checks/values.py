"""Checks of what users hand in, and how messages show it."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

MAX_SHOWN = 120
"""Most characters of a value in a message; the message has as many again to say what was expected."""
MAX_PIXELS = 89_478_485
"""Most pixels of one image, frame or mask: where Pillow begins to warn of decompression bombs (256 MiB of RGB)."""


def is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return is_integer(value) or isinstance(value, (float, np.floating))


def is_finite_number(value: Any) -> bool:
    """Whether a float can hold it: an integer may be too large for one."""
    return is_number(value) and bool(-sys.float_info.max <= value <= sys.float_info.max)


def shown(value: Any) -> str:
    """A text of at most `MAX_SHOWN` characters for any value in a message."""
    try:
        return shortened(reprlib.repr(value))
    except Exception:  # integers beyond Python's limit of digits, objects whose repr fails
        return shortened(f"a value of type {type(value).__name__}")


def shortened(text: str) -> str:
    """A text of at most `MAX_SHOWN` characters: the beginning and the end, which of a path is the file's name."""
    if len(text) <= MAX_SHOWN:
        return text
    half = MAX_SHOWN // 2 - 10
    return f"{text[:half]}...{len(text) - 2 * half} more...{text[-half:]}"[:MAX_SHOWN]


def reason_of(error: BaseException) -> str:
    """What an error says, short: that of the system without the path it repeats, which may be long."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shortened(said or type(error).__name__)


def check_size(height: int, width: int, label: str) -> None:
    """ValueError unless 1 <= height * width <= `MAX_PIXELS`."""
    if height < 1 or width < 1:
        raise ValueError(f"{label}: expected at least one pixel, got a size of {shown(height)}x{shown(width)}")
    if height * width > MAX_PIXELS:
        raise ValueError(f"{label}: expected at most {MAX_PIXELS} pixels, got a size of {shown(height)}x{shown(width)}")


def plain_list(values: Any, label: str) -> list[Any]:
    """A new list of what a list, tuple, range or one-dimensional array or tensor holds."""
    if isinstance(values, (np.ndarray, torch.Tensor)) and values.ndim == 1:
        with labelled(label):
            return numpy_of(values).tolist()
    if isinstance(values, (list, tuple, range)):
        return list(values)
    raise ValueError(f"{label}: expected a list, got {type(values).__name__}")


def numpy_of(array: np.ndarray | torch.Tensor) -> np.ndarray:
    """A NumPy view (or copy, from another device or dtype) of an array or tensor."""
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise ValueError("expected an array without missing values, got a masked array; pass array.filled(0)")
    if isinstance(array, np.ndarray):
        return np.asarray(array)  # of np.matrix and other subclasses only the values: they redefine operations
    try:
        # NumPy has no bfloat16 and no 8-bit floats
        if array.is_floating_point() and array.dtype not in (torch.float16, torch.float32, torch.float64):
            array = array.float()
        return array.detach().cpu().numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:  # sparse, quantized, without storage
        raise ValueError(f"expected a dense tensor with values, got one that has none to copy: {error}") from None


def check_seed(name: str, seed: Any) -> None:
    """Raise a ValueError unless `seed` is None or an integer that a torch generator takes."""
    if seed is None:
        return
    if not is_integer(seed):
        raise ValueError(f"{name}: expected an integer, got {shown(seed)}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"{name}: expected an integer of at most 64 bits, got {shown(seed)}")


@contextmanager
def labelled(name: str) -> Iterator[None]:
    """Put `name` before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
