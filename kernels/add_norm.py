"""Residual sum and the LayerNorm after it: one program a row, which is read once and stays in registers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pixelrefer_fast.kernels._launch import OPTIONS, CompileCase, configuration, launch, shipped
from pixelrefer_fast.kernels._sizes import next_power_of_2


@triton.jit
def _add_norm(
    x,  # [R, D]
    delta,  # [R, D]
    weight,  # [D], only read if NORM
    bias,  # [D], only read if NORM
    summed,  # [R, D]
    normed,  # [R, D], only written if NORM
    eps,
    WIDTH: tl.constexpr,  # D
    NORM: tl.constexpr,
    BLOCK_D: tl.constexpr,  # a power of two, at least D
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)  # [D]
    inside = columns < WIDTH
    cells = row * WIDTH + columns
    total = tl.load(x + cells, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(delta + cells, mask=inside, other=0.0).to(tl.float32)
    rounded = total.to(summed.dtype.element_ty)
    tl.store(summed + cells, rounded, mask=inside)
    if NORM:
        values = rounded.to(tl.float32)  # [D]
        mean = tl.sum(values, 0) / WIDTH
        centred = tl.where(inside, values - mean, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
        scaled = centred * scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
        scaled += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(normed + cells, scaled.to(normed.dtype.element_ty), mask=inside)


def add_norm(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + delta and its LayerNorm, (R, D) each, the second empty without weight; as the operation of this name."""
    rows, width = x.shape
    x, delta = x.contiguous(), delta.contiguous()
    summed = torch.empty_like(x)
    normed = x.new_empty(0) if weight is None else torch.empty_like(x)
    vectors = (x, x) if weight is None or bias is None else (weight.contiguous(), bias.contiguous())
    launch(
        _add_norm,
        "add_norm.rows",
        (rows,) if width else (0,),
        x,
        delta,
        *vectors,
        summed,
        normed,
        eps,
        WIDTH=width,
        NORM=weight is not None,
        BLOCK_D=next_power_of_2(width),
        **configuration("add_norm.rows", width, x.device),
        flops=x.numel() * (1 if weight is None else 9),
        moved=x.element_size() * (3 * x.numel() + normed.numel() + (0 if weight is None else 2 * width)),
    )
    return summed, normed


def compile_cases() -> Iterator[CompileCase]:
    """Each shipped configuration at its widest row."""
    tensors = ("x", "delta", "weight", "bias", "summed", "normed")
    for _, entry in shipped("add_norm.rows"):
        width = entry.get("upto", 8192)
        for dtype in ("fp32", "fp16", "bf16"):
            for norm in (True, False):
                yield CompileCase(
                    _add_norm,
                    "add_norm.rows",
                    f"{dtype}, {width} wide, {'with' if norm else 'without'} norm",
                    {"eps": "fp32", **dict.fromkeys(tensors, f"*{dtype}")},
                    {"WIDTH": width, "NORM": norm, "BLOCK_D": next_power_of_2(width)},
                    {option: entry[option] for option in OPTIONS},
                )
