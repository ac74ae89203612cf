"""Rotary position in two dimensions for packed patches, fused with the bias of the query-key-value product."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pixelrefer_fast.ops._check import check_device, check_dtype, check_shape
from pixelrefer_fast.ops._registry import Reason, register_op

THETA = 10000.0
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def rope2d_table(
    places: int, head_dim: int, device: torch.device | str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the angles of every row, or column, of a grid; made once, shared by all layers and passes.

    Args:
        places: rows or columns of the largest grid, G.
        head_dim: size of an attention head d, a multiple of 4.
        device: where the table lies.

    Returns:
        (G, d / 4) float32 each. Place g turns by g * 10000^(-2i / (d / 2)), i counting the d / 4 frequencies.

    Raises:
        ValueError: if 4 does not divide the head size.
    """
    if head_dim % 4:
        raise ValueError(f"rope2d: expected a head size that is a multiple of 4, got {head_dim}")
    exponents = torch.arange(0, head_dim // 2, 2, dtype=torch.float32, device=device) / (head_dim // 2)
    angles = torch.arange(places, device=device)[:, None] * (1.0 / THETA**exponents)
    return angles.cos(), angles.sin()


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for patches, heads, head_dim in ((7, 2, 16), (33, 3, 72), (1, 1, 4), (0, 2, 8)):
        qkv = torch.randn(patches, 3, heads, head_dim, generator=generator).to(dtype)
        bias = torch.randn(3, heads, head_dim, generator=generator).to(dtype)
        rows, columns = torch.randint(0, 40, (2, patches), generator=generator, dtype=torch.int32)
        yield qkv, bias, rows, columns, *rope2d_table(40, head_dim)


@register_op(
    source="reference model/damovl_encoder/modeling_damovl_encoder.py apply_rotary_pos_emb_vision",
    tolerance={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3},
    samples=_samples,
    mutates=("qkv",),
)
def rope2d(
    qkv: torch.Tensor,
    bias: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> None:
    """Add the bias to queries, keys and values and turn queries and keys by their patch's place, in place.

    Args:
        qkv: (P, 3, H, d), any float dtype, changed in place: the product of the patches with the query-key-value
            weight, no bias added. d is a multiple of 4.
        bias: (3, H, d), same dtype.
        rows, columns: (P,) int32, the patch's place in its own grid, below G.
        cos, sin: (G, d / 4) float32 from `rope2d_table`, or float64.

    Returns:
        Nothing. Element i of a head is paired with element i + d / 2; the first d / 4 pairs turn with the row, the
        others with the column. Computed in the table's dtype and rounded once.

    Raises:
        ValueError: for a shape or dtype that does not fit, and on a CPU for a place outside the table. On a device,
            where looking would wait, such a place is taken to the table's nearest end.
    """
    rows, columns = (_inside(name, place, len(cos)) for name, place in (("rows", rows), ("columns", columns)))
    # (P, 1, d / 2): the angles are those of every head
    cos, sin = (torch.cat([x[rows], x[columns]], dim=1)[:, None] for x in (cos, sin))
    half = qkv.shape[3] // 2
    for i in range(2):
        x = qkv[:, i]  # (P, H, d)
        first, second = torch.add(x, bias[i].to(cos.dtype)).split(half, dim=2)
        x[..., :half] = (first * cos).addcmul_(second, sin, value=-1)
        x[..., half:] = (second * cos).addcmul_(first, sin)
    qkv[:, 2] += bias[2]


@rope2d.check
def _check(
    qkv: torch.Tensor,
    bias: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> None:
    check_shape("rope2d", "qkv", qkv, None, 3, None, None)
    if qkv.shape[3] % 4:
        raise ValueError(f"rope2d: expected a head size that is a multiple of 4, got {qkv.shape[3]}")
    check_shape("rope2d", "bias", bias, *qkv.shape[1:])
    check_dtype("rope2d", "bias", bias, qkv.dtype)
    for name, place in (("rows", rows), ("columns", columns)):
        check_shape("rope2d", name, place, len(qkv))
        check_dtype("rope2d", name, place, torch.int32)
    check_shape("rope2d", "cos", cos, None, qkv.shape[3] // 4)
    check_shape("rope2d", "sin", sin, *cos.shape)
    if len(qkv) and not len(cos):
        raise ValueError("rope2d: expected a table of at least one place, got none")
    for name, table in (("cos", cos), ("sin", sin)):
        check_dtype("rope2d", name, table, torch.float32, torch.float64)
    check_device("rope2d", qkv.device, bias=bias, rows=rows, columns=columns, cos=cos, sin=sin)


def _inside(name: str, place: torch.Tensor, places: int) -> torch.Tensor:
    if place.device.type != "cpu":
        return place.clamp(0, places - 1)
    if place.numel():
        low, high = (x.item() for x in place.aminmax())
        if low < 0 or high >= places:
            raise ValueError(f"rope2d: expected {name} from 0 to {places - 1}, got {low} to {high}")
    return place


def _accepts(qkv: torch.Tensor, cos: torch.Tensor) -> Reason:
    if qkv.dtype not in DTYPES or cos.dtype != torch.float32:
        return f"it computes float32 and 16-bit floats with a float32 table, not {qkv.dtype} with {cos.dtype}"
    if not qkv[:1].is_contiguous():
        return f"dimensions 1 to 3 of qkv are not contiguous (strides {qkv.stride()})"
    return None


rope2d.kernel(accepts=_accepts)
