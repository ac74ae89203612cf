"""Source pixels and a view plan to the packed, normalised patches of every view, in one launch.

A lane makes one pixel of one patch, all three channels of it. It finds its view, its place in the final picture, the
places of the picture between the two resizes that the second resize reads, and for each of those the source pixels that
the first one reads: nothing is kept in between. Rounding is that of the libraries that the weights were trained with,
step by step, so that the grey levels are the same. What OpenCV and Pillow do is told in docs/kernels/view_patches.md.

Coefficients are made in float64 as those libraries make them, and multiplications and additions are not contracted
(`enable_fp_fusion=False`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pixelrefer_fast.kernels._launch import CompileCase, configuration, interpreted, launch, shipped
from pixelrefer_fast.kernels._sizes import cdiv

PATCH = 14
VALUES = 3 * PATCH * PATCH
PIXELS = tl.constexpr(PATCH * PATCH)
SIDE = tl.constexpr(PATCH)
COLUMNS = tl.constexpr(11)  # of a plan
HALF = tl.constexpr(1 << 21)  # 0.5 in the second resize's weights
# adding and taking off 1.5 * 2^23 in float32 rounds 0 <= x < 2^22 half to even
ROUND = tl.constexpr(12582912.0)

# The interpreter takes its time by the program, not by the lane.
INTERPRETED_BLOCK = 1 << 14

# for `launch` and the compile check: every product is rounded before it is added
OPTIONS = {"enable_fp_fusion": False}


@triton.jit
def _cubic(x):
    """Bicubic kernel with a = -0.5, in float64."""
    x = tl.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))


@triton.jit
def _first_taps(place, limit, scale, inverse, step, by_area, whole, area_filter, horizontal):
    """What the first resize reads along one axis for its output at `place`.

    Returns the first source place (which may be -1), the number of places after it, and the weights of the first one,
    of those between and of the last one: in 1 / 2048, or parts of an area where `by_area`, all 1 where the scale is
    `whole` as well. `limit` is the last source place there is.
    """
    d = place.to(tl.float64)
    end_place = limit.to(tl.float64)

    # linear, with half-pixel centres, or the variant that stands for an area mean when a side grows
    centre = ((d + 0.5) * scale - 0.5).to(tl.float32)
    at = tl.floor(centre)
    grown = tl.floor(d * scale)
    part = ((d + 1.0) - (grown + 1.0) * inverse).to(tl.float32)
    part = tl.where(part <= 0.0, 0.0, part - tl.floor(part))
    fraction = tl.where(area_filter, part, centre - at)
    start = tl.where(area_filter, grown, at.to(tl.float64)).to(tl.int32)
    outside = horizontal & ((start < 0) | (start >= limit))
    fraction = tl.where(outside, 0.0, fraction)
    start = tl.where(outside, tl.minimum(tl.maximum(start, 0), limit), start)
    first = ((1.0 - fraction) * 2048.0 + ROUND) - ROUND
    last = (fraction * 2048.0 + ROUND) - ROUND

    # area mean: the parts of a source pixel that a cell's two ends cut, and whole ones between them
    begin = d * scale
    end = begin + scale
    cell = tl.minimum(scale, end_place + 1.0 - begin)
    low = tl.ceil(begin)
    high = tl.minimum(tl.floor(end), end_place)
    low = tl.minimum(low, high)
    cut_first = tl.where(low - begin > 1e-3, 1.0, 0.0).to(tl.float64)
    cut_last = tl.where(end - high > 1e-3, 1.0, 0.0).to(tl.float64)
    middle = (1.0 / cell).to(tl.float32)
    left = ((low - begin) / cell).to(tl.float32)
    right = (tl.minimum(tl.minimum(end - high, 1.0), cell) / cell).to(tl.float32)
    left = tl.where(cut_first > 0.0, left, tl.where(high > low, middle, right))
    right = tl.where(cut_last > 0.0, right, middle)

    # cells of a whole number of pixels have weight 1 everywhere
    area_start = tl.where(whole, d * step, low - cut_first).to(tl.int32)
    area_more = tl.where(whole, step, high - low + cut_first + cut_last) - 1.0
    start = tl.where(by_area, area_start, start)
    more = tl.where(by_area, area_more.to(tl.int32), 1)
    first = tl.where(whole, 1.0, tl.where(by_area, left, first))
    between = tl.where(whole, 1.0, middle)
    last = tl.where(whole, 1.0, tl.where(by_area, right, last))
    return start, more, first, between, last


@triton.jit
def _second_taps(place, size, final):
    """What the second resize reads along one axis: first place, their number, centre, 1 / (filter scale), weights' sum.

    Without a change of size it reads one place, whose weight is 1.
    """
    scale = size.to(tl.float64) / final.to(tl.float64)
    filter_scale = tl.maximum(scale, 1.0)
    support = 2.0 * filter_scale
    centre = (place.to(tl.float64) + 0.5) * scale
    narrow = 1.0 / filter_scale
    start = tl.maximum((centre - support + 0.5).to(tl.int32), 0)
    end = tl.minimum((centre + support + 0.5).to(tl.int32), size)
    same = size == final
    start = tl.where(same, place, start)
    count = tl.where(same, 1, end - start)
    total = tl.zeros(place.shape, tl.float64)
    for k in range(tl.max(count, 0)):
        weight = _cubic(((start + k).to(tl.float64) - centre + 0.5) * narrow)
        total += tl.where(k < count, weight, 0.0)
    return start, count, centre, narrow, tl.where(total == 0.0, 1.0, total)


@triton.jit
def _second_weight(place, centre, narrow, total):
    """The second resize's weight of a place, in 1 / 2^22."""
    weight = _cubic((place.to(tl.float64) - centre + 0.5) * narrow) / total * 4194304.0
    return tl.where(weight < 0.0, weight - 0.5, weight + 0.5).to(tl.int32)


@triton.jit
def _clip(x):
    """A sum of grey levels times weights of 1 / 2^22 to a grey level."""
    return tl.minimum(tl.maximum((x + HALF) >> 22, 0), 255)


@triton.jit
def _first_level(total, mean, two_by_two, by_area, whole, share):
    """What the first resize has summed to a grey level, rounded as its way of summing asks."""
    mean = tl.where(whole, total.to(tl.float32) * share, mean)
    level = ((mean + ROUND) - ROUND).to(tl.int32)
    return tl.minimum(tl.where(two_by_two | (by_area == 0), (total + 2) >> 2, level), 255)


@triton.jit
def _normalised(level):
    """0..255 to -1..1, rounded to float32 where the reference's processor rounds."""
    unit = (level.to(tl.float64) * (1 / 255)).to(tl.float32)
    return (unit - 0.5) * 2.0


@triton.jit(do_not_specialize=["num_bytes", "num_views", "num_images", "patches"])
def view_patches_kernel(
    pixels,  # [B] uint8: images one after the other
    images,  # [I, 3] int64: first byte, height, width
    plan,  # [V, 11] int64: see ops/view_patches.py
    cu_seqlens,  # [V + 1] int64: first patch of each view
    out,  # [P, 588] float32
    num_bytes,  # B
    num_images,  # I
    num_views,  # V
    patches,  # P
    BLOCK: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    patch = lane // PIXELS
    inside = patch < patches

    # the view that holds this patch; patches past the last view are black
    low = tl.zeros((BLOCK,), tl.int32)
    high = low + num_views
    remaining = num_views
    while remaining > 0:
        middle = (low + high) // 2
        passed = tl.load(cu_seqlens + middle + 1, mask=middle < num_views, other=1 << 62) <= patch
        low = tl.where((low < high) & passed, middle + 1, low)
        high = tl.where((low <= middle) & (passed == 0), middle, high)
        remaining = remaining // 2
    view = tl.minimum(low, num_views - 1)
    known = low < num_views
    row = plan + view.to(tl.int64) * COLUMNS
    image = tl.load(row, mask=known, other=-1)
    top = tl.load(row + 1, mask=known, other=0)
    left = tl.load(row + 2, mask=known, other=0)
    bottom = tl.load(row + 3, mask=known, other=1)
    right = tl.load(row + 4, mask=known, other=1)
    size_y = tl.load(row + 5, mask=known, other=1).to(tl.int32)
    size_x = tl.load(row + 6, mask=known, other=1).to(tl.int32)
    area_filter = tl.load(row + 7, mask=known, other=0) == 1
    final_y = tl.maximum(tl.load(row + 8, mask=known, other=SIDE).to(tl.int32), SIDE)
    final_x = tl.maximum(tl.load(row + 9, mask=known, other=SIDE).to(tl.int32), SIDE)
    merge = tl.maximum(tl.load(row + 10, mask=known, other=1).to(tl.int32), 1)
    begin = tl.load(cu_seqlens + view, mask=known, other=0)

    # pixel of the final picture: patches in raster order, or in cells of merge x merge
    cell, part = (patch - begin).to(tl.int32) // (merge * merge), (patch - begin).to(tl.int32) % (merge * merge)
    cells = tl.maximum(final_x // (SIDE * merge), 1)
    pixel = (lane % PIXELS).to(tl.int32)
    y = (cell // cells * merge + part // merge) * SIDE + pixel // SIDE
    x = (cell % cells * merge + part % merge) * SIDE + pixel % SIDE

    # An image stays within `pixels` and a crop within its image, whatever the plan says. A black view reads nothing, so
    # no resize is made of it.
    real = inside & (image >= 0) & (image < num_images)
    frame = images + tl.where(real, image, 0) * 3
    start_byte = tl.load(frame, mask=real, other=0)
    frame_y = tl.load(frame + 1, mask=real, other=1)
    frame_x = tl.load(frame + 2, mask=real, other=1)
    real = real & (start_byte >= 0) & (frame_y > 0) & (frame_x > 0)
    real = real & (frame_x <= (num_bytes - start_byte) // 3 // tl.maximum(frame_y, 1))
    top = tl.minimum(tl.maximum(top, 0), frame_y - 1)
    left = tl.minimum(tl.maximum(left, 0), frame_x - 1)
    source_y = tl.minimum(tl.maximum(bottom - top, 1), frame_y - top).to(tl.int32)
    source_x = tl.minimum(tl.maximum(right - left, 1), frame_x - left).to(tl.int32)
    size_y = tl.where(real, tl.maximum(size_y, 1), final_y)
    size_x = tl.where(real, tl.maximum(size_x, 1), final_x)
    source_y = tl.where(real, source_y, final_y)
    source_x = tl.where(real, source_x, final_x)

    # how the first resize goes about it
    inverse_y = size_y.to(tl.float64) / source_y.to(tl.float64)
    inverse_x = size_x.to(tl.float64) / source_x.to(tl.float64)
    scale_y = 1.0 / inverse_y
    scale_x = 1.0 / inverse_x
    step_y = tl.floor(scale_y + 0.5)
    step_x = tl.floor(scale_x + 0.5)
    # 2^-52: how far a quotient may lie from a whole number to be one
    exact = (tl.abs(scale_y - step_y) < 2.220446049250313e-16) & (tl.abs(scale_x - step_x) < 2.220446049250313e-16)
    two_by_two = exact & (step_y == 2.0) & (step_x == 2.0)
    shrinks = (scale_y >= 1.0) & (scale_x >= 1.0)
    same = (size_y == source_y) & (size_x == source_x)
    # OpenCV takes the linear filter for an area mean at half the size: its weights give the same levels there
    by_area = (area_filter & shrinks) | same
    whole = by_area & exact
    share = (1.0 / tl.maximum(step_y * step_x, 1.0)).to(tl.float32)
    taps_y = tl.max(tl.where(by_area, tl.floor(scale_y) + tl.where(whole, 0.0, 2.0), 2.0), 0).to(tl.int32)
    taps_x = tl.max(tl.where(by_area, tl.floor(scale_x) + tl.where(whole, 0.0, 2.0), 2.0), 0).to(tl.int32)
    limit_y = source_y - 1
    limit_x = source_x - 1
    # A program whose views keep their sizes, as whole frames do, is spared the first resize's coefficients.
    resized = tl.max((real & (same == 0)).to(tl.int32), 0) > 0
    none = tl.zeros((BLOCK,), tl.int32)
    one = tl.full((BLOCK,), 1.0, tl.float32)

    # The second resize: rows within rounded columns or the reverse, as Pillow orders its passes.
    upright = (size_y > final_y) & (size_y - final_y > 2 * (size_x - final_x))
    across = upright == 0
    start_y, count_y, centre_y, narrow_y, total_y = _second_taps(y, size_y, final_y)
    start_x, count_x, centre_x, narrow_x, total_x = _second_taps(x, size_x, final_x)
    edge_o, edge_i = tl.where(upright, size_x, size_y) - 1, tl.where(upright, size_y, size_x) - 1
    limit_o, limit_i = tl.where(upright, limit_x, limit_y), tl.where(upright, limit_y, limit_x)
    scale_o, scale_i = tl.where(upright, scale_x, scale_y), tl.where(upright, scale_y, scale_x)
    inverse_o, inverse_i = tl.where(upright, inverse_x, inverse_y), tl.where(upright, inverse_y, inverse_x)
    step_o, step_i = tl.where(upright, step_x, step_y), tl.where(upright, step_y, step_x)
    start_o, start_i = tl.where(upright, start_x, start_y), tl.where(upright, start_y, start_x)
    count_o, count_i = tl.where(upright, count_x, count_y), tl.where(upright, count_y, count_x)
    centre_o, centre_i = tl.where(upright, centre_x, centre_y), tl.where(upright, centre_y, centre_x)
    narrow_o, narrow_i = tl.where(upright, narrow_x, narrow_y), tl.where(upright, narrow_y, narrow_x)
    total_o, total_i = tl.where(upright, total_x, total_y), tl.where(upright, total_y, total_x)

    sum_r = tl.zeros((BLOCK,), tl.int32)
    sum_g = tl.zeros((BLOCK,), tl.int32)
    sum_b = tl.zeros((BLOCK,), tl.int32)
    for o in range(tl.max(count_o, 0)):
        place_o = start_o + o
        weight_o = _second_weight(place_o, centre_o, narrow_o, total_o)
        place_o = tl.minimum(place_o, edge_o)
        at_o, more_o, first_o, mid_o, last_o = place_o, none, one, one, one
        if resized:
            at_o, more_o, first_o, mid_o, last_o = _first_taps(
                place_o, limit_o, scale_o, inverse_o, step_o, by_area, whole, area_filter, upright
            )
        line_r = tl.zeros((BLOCK,), tl.int32)
        line_g = tl.zeros((BLOCK,), tl.int32)
        line_b = tl.zeros((BLOCK,), tl.int32)
        for i in range(tl.max(count_i, 0)):
            place_i = start_i + i
            weight_i = _second_weight(place_i, centre_i, narrow_i, total_i)
            place_i = tl.minimum(place_i, edge_i)
            at_i, more_i, first_i, mid_i, last_i = place_i, none, one, one, one
            if resized:
                at_i, more_i, first_i, mid_i, last_i = _first_taps(
                    place_i, limit_i, scale_i, inverse_i, step_i, by_area, whole, area_filter, across
                )
            at_y, at_x = tl.where(upright, at_i, at_o), tl.where(upright, at_o, at_i)
            more_y, more_x = tl.where(upright, more_i, more_o), tl.where(upright, more_o, more_i)
            first_y, first_x = tl.where(upright, first_i, first_o), tl.where(upright, first_o, first_i)
            mid_y, mid_x = tl.where(upright, mid_i, mid_o), tl.where(upright, mid_o, mid_i)
            last_y, last_x = tl.where(upright, last_i, last_o), tl.where(upright, last_o, last_i)
            # nothing is read for a place that does not count: its level is 0
            used = real & (o < count_o) & (i < count_i)
            # integers of linear weights and of whole cells, float32 of area weights
            whole_r = tl.zeros((BLOCK,), tl.int32)
            whole_g = tl.zeros((BLOCK,), tl.int32)
            whole_b = tl.zeros((BLOCK,), tl.int32)
            mean_r = tl.zeros((BLOCK,), tl.float32)
            mean_g = tl.zeros((BLOCK,), tl.float32)
            mean_b = tl.zeros((BLOCK,), tl.float32)
            for v in range(taps_y):
                weight_y = tl.where(v == 0, first_y, tl.where(v == more_y, last_y, mid_y))
                source_row = top + tl.minimum(tl.maximum(at_y + v, 0), limit_y)
                line = pixels + start_byte + (source_row * frame_x + left) * 3
                on_line = used & (v <= more_y)
                # below 2^24, hence exact, but for area weights
                row_r = tl.zeros((BLOCK,), tl.float32)
                row_g = tl.zeros((BLOCK,), tl.float32)
                row_b = tl.zeros((BLOCK,), tl.float32)
                for h in range(taps_x):
                    weight_x = tl.where(h == 0, first_x, tl.where(h == more_x, last_x, mid_x))
                    red = line + tl.minimum(tl.maximum(at_x + h, 0), limit_x).to(tl.int64) * 3
                    read = on_line & (h <= more_x)
                    row_r += tl.load(red, mask=read, other=0).to(tl.float32) * weight_x
                    row_g += tl.load(red + 1, mask=read, other=0).to(tl.float32) * weight_x
                    row_b += tl.load(red + 2, mask=read, other=0).to(tl.float32) * weight_x
                mean_r += weight_y * row_r
                mean_g += weight_y * row_g
                mean_b += weight_y * row_b
                weight = weight_y.to(tl.int32)
                level_r, level_g, level_b = row_r.to(tl.int32), row_g.to(tl.int32), row_b.to(tl.int32)
                whole_r += tl.where(by_area, level_r, (weight * (level_r >> 4)) >> 16)
                whole_g += tl.where(by_area, level_g, (weight * (level_g >> 4)) >> 16)
                whole_b += tl.where(by_area, level_b, (weight * (level_b >> 4)) >> 16)
            line_r += weight_i * _first_level(whole_r, mean_r, two_by_two, by_area, whole, share)
            line_g += weight_i * _first_level(whole_g, mean_g, two_by_two, by_area, whole, share)
            line_b += weight_i * _first_level(whole_b, mean_b, two_by_two, by_area, whole, share)
        sum_r += weight_o * _clip(line_r)
        sum_g += weight_o * _clip(line_g)
        sum_b += weight_o * _clip(line_b)

    place = out + patch * (3 * PIXELS) + pixel
    tl.store(place, _normalised(_clip(sum_r)), mask=inside)
    tl.store(place + PIXELS, _normalised(_clip(sum_g)), mask=inside)
    tl.store(place + 2 * PIXELS, _normalised(_clip(sum_b)), mask=inside)


def view_patches(
    pixels: torch.Tensor, images: torch.Tensor, plan: torch.Tensor, cu_seqlens: torch.Tensor, patches: int
) -> torch.Tensor:
    """`ops.view_patches` in one launch; the values of the plan are not checked, see there."""
    out = torch.empty(patches, VALUES, dtype=torch.float32, device=pixels.device)
    pixels, images, plan, cu_seqlens = (t.contiguous() for t in (pixels, images, plan, cu_seqlens))
    config = configuration("view_patches.view_patches", 1, pixels.device)
    if interpreted():
        config["BLOCK"] = INTERPRETED_BLOCK
    lanes = patches * PATCH * PATCH
    launch(
        view_patches_kernel,
        "view_patches.view_patches",
        (cdiv(lanes, config["BLOCK"]),),
        pixels,
        images,
        plan,
        cu_seqlens,
        out,
        len(pixels),
        len(images),
        len(plan),
        patches,
        # operations depend on the plan, which is not read here
        moved=pixels.nbytes + images.nbytes + plan.nbytes + cu_seqlens.nbytes + out.nbytes,
        **config,
        **OPTIONS,
    )
    return out


def compile_cases() -> Iterator[CompileCase]:
    """Every shipped configuration: bytes and integers in, float32 out."""
    signature = {
        "pixels": "*u8",
        "images": "*i64",
        "plan": "*i64",
        "cu_seqlens": "*i64",
        "out": "*fp32",
        "num_bytes": "i32",
        "num_images": "i32",
        "num_views": "i32",
        "patches": "i32",
    }
    for device, entry in shipped("view_patches.view_patches"):
        yield CompileCase(
            kernel=view_patches_kernel,
            name="view_patches.view_patches",
            shape=f"uint8 to fp32 ({device})",
            signature=signature,
            constants={"BLOCK": entry["BLOCK"]},
            options={"num_warps": entry["num_warps"], "num_stages": entry["num_stages"], **OPTIONS},
        )
