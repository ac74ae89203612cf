"""What the kernels of both forms of `infuse` share.

A *row* is a token among all of them, R = M n. A *line* is a query of a group: its members' tokens in the order of
`order`. Head sizes are no powers of two, which Triton's blocks are: a head of 144 is a main part of 128 and a rest of
16.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl

from pixelrefer_fast.kernels._launch import configuration
from pixelrefer_fast.kernels._sizes import next_power_of_2


@triton.jit
def product_added(a, b, total):
    """total + a b.

    float32 has no tensor cores that keep it, and one chain of as many sums as features are wide has twice the error of
    a library's product: there each block is a sum of its own (no plain addition, which the compiler makes a chain
    again).
    """
    narrow: tl.constexpr = a.dtype != tl.float32
    return tl.dot(a, b, total) if narrow else tl.fma(tl.dot(a, b, input_precision="ieee"), 1.0, total)


@triton.jit
def token_rows(
    order,  # [M] i32
    first_place,
    query,  # [M]
    valid,  # [M]
    n,
):
    """Row among all tokens of each query of a group, [M]."""
    objects = tl.load(order + first_place + query // n, mask=valid, other=0).to(tl.int64)
    return objects * n + query % n


@triton.jit
def head_lines(
    groups,  # [G, 4] i32
    n,
    line_blocks,
    HEADS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Group and head of a program, whether it has a line; of its lines, [M]: query and validity."""
    program = tl.program_id(0)
    head = (program // line_blocks) % HEADS
    group = (program // line_blocks // HEADS).to(tl.int64)
    count = tl.load(groups + group * 4 + 1) * n
    query = (program % line_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    return group, head, (program % line_blocks) * BLOCK_M < count, query, query < count


def score_scale(head_dim: int) -> float:
    """Of scores: exponents are of two."""
    return math.log2(math.e) * head_dim**-0.5


@functools.cache
def head_parts(head_dim: int) -> dict[str, int]:
    """A head as a power of two, at least 16 as matrix products need, and what is left of it, 0 for nothing."""
    main = max(16, 1 << (head_dim.bit_length() - 1))
    rest = head_dim - main
    return {"HEAD_MAIN": main, "HEAD_REST": max(16, next_power_of_2(rest)) if rest > 0 else 0}


def configured(name: str, size: int, like: torch.Tensor) -> tuple[str, dict[str, int]]:
    """Name and launch configuration; float32, whose products are no tensor core's, has its own."""
    name += "_float32" if like.dtype == torch.float32 else ""
    return name, configuration(name, size, like.device)
