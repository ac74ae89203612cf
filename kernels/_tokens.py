"""What the kernels of `object_pool` share: where an object's tokens lie, and what they are."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bounds(offsets, item, capacity, most):
    """First row and number of an object's tokens, kept within the arrays whatever the offsets say."""
    first = tl.load(offsets + item)
    count = tl.minimum(tl.load(offsets + item + 1), capacity) - first
    return first, tl.minimum(count, most).to(tl.int32)


@triton.jit
def _both(pos_weight, columns, valid):
    """Both weights of each of the `columns`, in float32, loaded as one: apart, each is two bytes of every four."""
    dtype: tl.constexpr = pos_weight.dtype.element_ty
    pair: tl.constexpr = tl.int64 if dtype == tl.float32 else tl.int32
    half: tl.constexpr = tl.int32 if dtype == tl.float32 else tl.int16
    both = tl.load(pos_weight.to(tl.pointer_type(pair), bitcast=True) + columns, mask=valid, other=0)
    first = both.to(half).to(dtype, bitcast=True)
    second = (both >> dtype.primitive_bitwidth).to(half).to(dtype, bitcast=True)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def tokens(
    features,
    index,
    weights,
    positions,
    pos_weight,
    pos_bias,
    rows,
    inside,
    columns,
    STRIDE: tl.constexpr,
    CORNERS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Tokens of the packed `rows` in the features' dtype, rounded where the definition rounds; zero outside."""
    dtype: tl.constexpr = features.dtype.element_ty
    valid = columns < WIDTH
    here = inside[:, None] & valid[None, :]  # [R, C]
    if CORNERS == 1:
        row = tl.load(index + rows, mask=inside, other=0)
        feature = tl.load(features + row[:, None] * STRIDE + columns[None, :], mask=here, other=0.0)
    else:
        total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
        for corner in tl.static_range(CORNERS):
            row = tl.load(index + rows * CORNERS + corner, mask=inside, other=0)
            weight = tl.load(weights + rows * CORNERS + corner, mask=inside, other=0.0)
            value = tl.load(features + row[:, None] * STRIDE + columns[None, :], mask=here, other=0.0)
            total += weight[:, None] * value.to(tl.float32)
        feature = total.to(dtype)
    x = tl.load(positions + rows * 2, mask=inside, other=0.0).to(dtype).to(tl.float32)
    y = tl.load(positions + rows * 2 + 1, mask=inside, other=0.0).to(dtype).to(tl.float32)
    along_x, along_y = _both(pos_weight, columns, valid)
    bias = tl.load(pos_bias + columns, mask=valid, other=0.0).to(tl.float32)
    term = (x[:, None] * along_x[None, :] + y[:, None] * along_y[None, :] + bias[None, :]).to(dtype)
    token = (feature.to(tl.float32) + term.to(tl.float32)).to(dtype)
    return tl.where(here, token, 0.0)
