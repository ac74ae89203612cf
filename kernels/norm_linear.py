"""RMSNorm and the product after it in one launch: the weights are read once, for up to 64 rows.

As in `swiglu.py` each program norms the few rows for itself, which stay in the cache, and configurations keep clear of
wgmma (fewer than 64 rows, or 2 warps). A program makes few columns, since queries, keys and values have few.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pixelrefer_fast.kernels._launch import OPTIONS, CompileCase, configuration, launch, shipped
from pixelrefer_fast.kernels._sizes import cdiv


@triton.jit(do_not_specialize=["count"])
def _norm_linear(
    x,  # [count, WIDTH] float
    norm,  # [WIDTH] same dtype
    weight,  # [MADE, WIDTH] same dtype
    bias,  # [MADE] same dtype; unused unless BIASED
    out,  # [count, MADE] same dtype
    count,
    eps,
    WIDTH: tl.constexpr,
    MADE: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    there = (row < count)[:, None]
    own = x + row.to(tl.int64)[:, None] * WIDTH
    column = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    made = (column < MADE)[:, None]
    weights = weight + column.to(tl.int64)[:, None] * WIDTH
    c = tl.arange(0, BLOCK_C)
    EVEN: tl.constexpr = WIDTH % BLOCK_C == 0

    squares = tl.zeros([BLOCK_R], tl.float32)
    for at in range(0, WIDTH, BLOCK_C):
        inside = there if EVEN else there & (at + c < WIDTH)[None, :]
        values = tl.load(own + (at + c)[None, :], inside, 0.0).to(tl.float32)
        squares += tl.sum(values * values, 1)
    scale = 1.0 / tl.sqrt(squares / WIDTH + eps)

    result = tl.zeros([BLOCK_R, BLOCK_O], tl.float32)
    for at in range(0, WIDTH, BLOCK_C):
        within = (at + c < WIDTH)[None, :]
        values = tl.load(own + (at + c)[None, :], there if EVEN else there & within, 0.0).to(tl.float32)
        factor = tl.load(norm + at + c, at + c < WIDTH, 0.0).to(tl.float32)
        normed = (values * scale[:, None] * factor[None, :]).to(out.dtype.element_ty)  # [R, C]
        own_weights = tl.load(weights + (at + c)[None, :], made if EVEN else made & within, 0.0)  # [O, C]
        result = tl.dot(normed, own_weights.T, result, input_precision="ieee")

    if BIASED:
        result += tl.load(bias + column, column < MADE, 0.0).to(tl.float32)[None, :]
    cells = row.to(tl.int64)[:, None] * MADE + column[None, :]
    tl.store(out + cells, result.to(out.dtype.element_ty), there & (column < MADE)[None, :])


def norm_linear(
    x: torch.Tensor, norm: torch.Tensor, eps: float, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """As `pixelrefer_fast.ops.norm_linear`."""
    count, width = x.shape
    made = len(weight)
    out = x.new_empty(count, made)
    name = _name(x.dtype)
    config = configuration(name, count, x.device)
    read = x.numel() + norm.numel() + weight.numel() + (0 if bias is None else bias.numel())
    launch(
        _norm_linear,
        name,
        (cdiv(made, config["BLOCK_O"]), cdiv(count, config["BLOCK_R"])),
        x.contiguous(),
        norm.contiguous(),
        weight.contiguous(),
        norm if bias is None else bias.contiguous(),
        out,
        count,
        eps,
        WIDTH=width,
        MADE=made,
        BIASED=bias is not None,
        flops=2 * count * width * made + 4 * count * width,
        moved=(read + out.numel()) * x.element_size(),
        **config,
    )
    return out


def _name(dtype: torch.dtype) -> str:
    return "norm_linear.product_float32" if dtype == torch.float32 else "norm_linear.product"


def compile_cases() -> Iterator[CompileCase]:
    for dtypes in (("fp16", "bf16"), ("fp32",)):
        name = _name(torch.float32 if dtypes == ("fp32",) else torch.float16)
        for device, entry in shipped(name):
            for dtype in dtypes:
                yield CompileCase(
                    kernel=_norm_linear,
                    name=name,
                    shape=f"{dtype}, {entry.get('upto', 64)} rows of 1536 to 2048, {device}",
                    signature={
                        **dict.fromkeys(("x", "norm", "weight", "bias", "out"), f"*{dtype}"),
                        "count": "i32",
                        "eps": "fp32",
                    },
                    constants={
                        "WIDTH": 1536,
                        "MADE": 2048,
                        "BIASED": True,
                        **{k: v for k, v in entry.items() if k.startswith("BLOCK")},
                    },
                    options={k: entry[k] for k in OPTIONS},
                )
