"""Instructions by family. Importing this fills the table of opcodes."""

from . import (
    arithmetic,
    async_copy,
    atomics,
    bits,
    compare,
    control,
    convert,
    floats,
    loads,
    matrix,
    moves,
    warp,
    wgmma,
)

__all__ = [
    "arithmetic",
    "async_copy",
    "atomics",
    "bits",
    "compare",
    "control",
    "convert",
    "floats",
    "loads",
    "matrix",
    "moves",
    "warp",
    "wgmma",
]
