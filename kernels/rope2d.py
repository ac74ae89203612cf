"""Rotary position in two dimensions, fused with the bias of the query-key-value product: one launch, in place."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pixelrefer_fast.kernels._launch import OPTIONS, CompileCase, configuration, launch, shipped
from pixelrefer_fast.kernels._sizes import cdiv


@triton.jit(do_not_specialize=["patches", "places"])
def _rope2d(
    qkv,  # [P, 3, H, d] float, rows ROW elements apart, changed in place
    bias,  # [3, H, d] same dtype
    rows,  # [P] int32
    columns,  # [P] int32
    cos,  # [G, d / 4] float32
    sin,  # [G, d / 4] float32
    patches,
    places,
    ROW: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    HALF: tl.constexpr = HEAD // 2
    QUARTER: tl.constexpr = HEAD // 4
    WIDTH: tl.constexpr = HEADS * HEAD
    patch = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    pair = tl.program_id(1) * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)
    inside = (patch < patches)[:, None] & (pair < HEADS * HALF)[None, :]  # [P, pairs]

    # pair i of a head is its elements i and i + d / 2
    i = pair % HALF
    first = pair // HALF * HEAD + i
    # a place outside the table is taken to its nearest end: on a device nobody looks
    row = tl.minimum(tl.maximum(tl.load(rows + patch, patch < patches, 0), 0), places - 1)
    column = tl.minimum(tl.maximum(tl.load(columns + patch, patch < patches, 0), 0), places - 1)
    place = tl.where((i < QUARTER)[None, :], row[:, None], column[:, None])  # [P, pairs]
    angle = place * QUARTER + (i % QUARTER)[None, :]
    c = tl.load(cos + angle, inside, 0.0)
    s = tl.load(sin + angle, inside, 0.0)

    at = qkv + patch.to(tl.int64)[:, None] * ROW + first[None, :]
    for part in tl.static_range(3):
        own = bias + part * WIDTH + first
        one = tl.load(at + part * WIDTH, inside, 0.0).to(tl.float32)
        two = tl.load(at + part * WIDTH + HALF, inside, 0.0).to(tl.float32)
        one += tl.load(own, pair < HEADS * HALF, 0.0).to(tl.float32)[None, :]
        two += tl.load(own + HALF, pair < HEADS * HALF, 0.0).to(tl.float32)[None, :]
        if part < 2:
            one, two = one * c - two * s, two * c + one * s
        tl.store(at + part * WIDTH, one.to(qkv.dtype.element_ty), inside)
        tl.store(at + part * WIDTH + HALF, two.to(qkv.dtype.element_ty), inside)


def rope2d(
    qkv: torch.Tensor,
    bias: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> None:
    """As `pixelrefer_fast.ops.rope2d`; of `qkv` the dimensions (3, H, d) are contiguous."""
    patches, _, heads, head_dim = qkv.shape
    config = configuration("rope2d.rope2d", head_dim, qkv.device)
    grid = (cdiv(patches, config["BLOCK_P"]), cdiv(heads * head_dim // 2, config["BLOCK_PAIRS"]))
    launch(
        _rope2d,
        "rope2d.rope2d",
        grid,
        qkv,
        bias.contiguous(),
        rows.contiguous(),
        columns.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        patches,
        len(cos),
        # a product and a fused one for each element of q and k, a sum for each of q, k and v
        flops=patches * heads * head_dim * (2 * 3 + 3),
        moved=2 * qkv.numel() * qkv.element_size() + 8 * patches,
        ROW=qkv.stride(0),
        HEADS=heads,
        HEAD=head_dim,
        **config,
    )


def compile_cases() -> Iterator[CompileCase]:
    for device, entry in shipped("rope2d.rope2d"):
        blocks = {k: v for k, v in entry.items() if k.startswith("BLOCK")}
        for dtype in ("fp32", "fp16", "bf16"):
            yield CompileCase(
                kernel=_rope2d,
                name="rope2d.rope2d",
                shape=f"{dtype}, 16 heads of 72, {device}",
                signature={
                    "qkv": f"*{dtype}",
                    "bias": f"*{dtype}",
                    "rows": "*i32",
                    "columns": "*i32",
                    "cos": "*fp32",
                    "sin": "*fp32",
                    "patches": "i32",
                    "places": "i32",
                },
                constants={"ROW": 3 * 16 * 72, "HEADS": 16, "HEAD": 72, **blocks},
                options={k: entry[k] for k in OPTIONS},
            )
