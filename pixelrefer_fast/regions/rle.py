"""COCO run-length encoding, validated: hostile counts allocate nothing beyond their own length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pixelrefer_fast.checks.values import is_integer, shown

MAX_TEXT = 2**23
"""Longest compressed counts, in characters, and most runs of uncompressed ones."""


def parse_counts(text: bytes, height: int, width: int) -> np.ndarray:
    """Run lengths (int64) of COCO's compressed counts; they add up to height * width.

    The format (pycocotools, maskApi.c, rleFrString): five bits to a character, lowest first, from "0" on; bit 5 says
    that more follow, bit 4 of the last is the sign; from the fourth run on a number is the difference to the run two
    before.
    """
    if not 0 < len(text) <= MAX_TEXT:
        raise ValueError(f"RLE counts: expected 1 to {MAX_TEXT} characters, got {len(text)}")
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("RLE counts: expected the characters of COCO's compressed form, got others")
    ends = np.flatnonzero(codes & 32 == 0)
    if not len(ends) or ends[-1] != len(codes) - 1:
        raise ValueError("RLE counts: expected complete numbers, the last one is cut off")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("RLE counts: expected numbers of 32 bits, got a longer one")
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * places), starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return check_counts(runs, height, width)


def compress_counts(counts: Sequence[Any] | np.ndarray, height: int, width: int) -> bytes:
    """COCO's compressed form of a list or array (N,) of run lengths that add up to height * width."""
    from pycocotools import mask as coco

    if not 0 < len(counts) <= MAX_TEXT:
        raise ValueError(f"RLE counts: expected 1 to {MAX_TEXT} runs, got {len(counts)}")
    for count in counts:
        if not is_integer(count) or not 0 <= count <= height * width:
            raise ValueError(f"RLE counts: expected integers in 0..{height * width}, got {shown(count)}")
    runs = check_counts(np.array(counts, np.int64), height, width)
    return coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)["counts"]


def compress_mask(mask: np.ndarray) -> bytes:
    """COCO's compressed form of a (H, W) uint8 mask of 0 and 1."""
    from pycocotools import mask as coco

    return coco.encode(np.asfortranarray(mask))["counts"]


def check_counts(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    pixels = height * width
    if runs.min() < 0 or runs.max() > pixels or (total := int(runs.sum())) != pixels:
        got = "negative or longer runs" if runs.min() < 0 or runs.max() > pixels else f"a sum of {total}"
        raise ValueError(f"RLE counts: expected runs that add up to {height}x{width} = {pixels} pixels, got {got}")
    return runs
