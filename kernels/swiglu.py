"""RMSNorm, the products of gate and up, and SiLU times up in one launch: weights are read once, for up to 64 rows.

A program makes some columns of the result. It needs the whole rows of x for the norm, which are few and stay in the
cache, so each program norms them for itself: that costs less than a launch and writing the normed rows.

Configurations keep clear of wgmma (fewer than 64 rows, or 2 warps): of normed rows in registers Triton 3.6 overwrites
those that a product in flight still reads, as the emulator found. Products of so few rows wait for memory anyway.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pixelrefer_fast.kernels._launch import OPTIONS, CompileCase, configuration, launch, shipped
from pixelrefer_fast.kernels._sizes import cdiv


@triton.jit(do_not_specialize=["count"])
def _swiglu(
    x,  # [count, WIDTH] float
    norm,  # [WIDTH] same dtype
    weight,  # [2 INNER, WIDTH] same dtype
    out,  # [count, INNER] same dtype
    count,
    eps,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    there = (row < count)[:, None]
    own = x + row.to(tl.int64)[:, None] * WIDTH
    column = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    made = (column < INNER)[:, None]
    gates = weight + column.to(tl.int64)[:, None] * WIDTH
    ups = gates + INNER * WIDTH
    c = tl.arange(0, BLOCK_C)
    EVEN: tl.constexpr = WIDTH % BLOCK_C == 0

    squares = tl.zeros([BLOCK_R], tl.float32)
    for at in range(0, WIDTH, BLOCK_C):
        inside = there if EVEN else there & (at + c < WIDTH)[None, :]
        values = tl.load(own + (at + c)[None, :], inside, 0.0).to(tl.float32)
        squares += tl.sum(values * values, 1)
    scale = 1.0 / tl.sqrt(squares / WIDTH + eps)

    gate = tl.zeros([BLOCK_R, BLOCK_I], tl.float32)
    up = tl.zeros([BLOCK_R, BLOCK_I], tl.float32)
    for at in range(0, WIDTH, BLOCK_C):
        within = (at + c < WIDTH)[None, :]
        values = tl.load(own + (at + c)[None, :], there if EVEN else there & within, 0.0).to(tl.float32)
        factor = tl.load(norm + at + c, at + c < WIDTH, 0.0).to(tl.float32)
        normed = (values * scale[:, None] * factor[None, :]).to(out.dtype.element_ty)  # [R, C]
        w_gate = tl.load(gates + (at + c)[None, :], made if EVEN else made & within, 0.0)  # [I, C]
        w_up = tl.load(ups + (at + c)[None, :], made if EVEN else made & within, 0.0)
        gate = tl.dot(normed, w_gate.T, gate, input_precision="ieee")
        up = tl.dot(normed, w_up.T, up, input_precision="ieee")

    result = gate / (1.0 + tl.exp(-gate)) * up
    cells = row.to(tl.int64)[:, None] * INNER + column[None, :]
    tl.store(out + cells, result.to(out.dtype.element_ty), there & (column < INNER)[None, :])


def swiglu(x: torch.Tensor, norm: torch.Tensor, eps: float, weight: torch.Tensor) -> torch.Tensor:
    """As `pixelrefer_fast.ops.swiglu`."""
    count, width = x.shape
    inner = len(weight) // 2
    out = x.new_empty(count, inner)
    name = _name(x.dtype)
    config = configuration(name, count, x.device)
    launch(
        _swiglu,
        name,
        (cdiv(inner, config["BLOCK_I"]), cdiv(count, config["BLOCK_R"])),
        x.contiguous(),
        norm.contiguous(),
        weight.contiguous(),
        out,
        count,
        eps,
        WIDTH=width,
        INNER=inner,
        flops=4 * count * width * inner + 4 * count * (width + inner),
        moved=(x.numel() + norm.numel() + weight.numel() + out.numel()) * x.element_size(),
        **config,
    )
    return out


def _name(dtype: torch.dtype) -> str:
    return "swiglu.product_float32" if dtype == torch.float32 else "swiglu.product"


def compile_cases() -> Iterator[CompileCase]:
    for dtypes in (("fp16", "bf16"), ("fp32",)):
        name = _name(torch.float32 if dtypes == ("fp32",) else torch.float16)
        for device, entry in shipped(name):
            for dtype in dtypes:
                yield CompileCase(
                    kernel=_swiglu,
                    name=name,
                    shape=f"{dtype}, {entry.get('upto', 64)} rows of 1536 to 8960, {device}",
                    signature={
                        **dict.fromkeys(("x", "norm", "weight", "out"), f"*{dtype}"),
                        "count": "i32",
                        "eps": "fp32",
                    },
                    constants={
                        "WIDTH": 1536,
                        "INNER": 8960,
                        **{k: v for k, v in entry.items() if k.startswith("BLOCK")},
                    },
                    options={k: entry[k] for k in OPTIONS},
                )
