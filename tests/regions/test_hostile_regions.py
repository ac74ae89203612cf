"""Damaged, absurd and malicious regions: a ValueError that says what is wrong, in bounded memory and time."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import MEGABYTE, bounded, quick

from pixelrefer_fast.regions import Region, as_regions

KEYS = (
    *("type", "size", "counts", "segmentation", "bbox", "polygons", "points", "width", "height", "xyxy", "xywh"),
    *("frames", "masks", "object_ids", "iou_scores", "0", "7", "12", "-1", "x"),
)
numbers = st.one_of(
    st.integers(-3, 40),
    st.integers(),
    st.floats(),
    st.sampled_from([10**9, -(10**9), 1e30, -1e30, 2**31, 2**63, 2**64, 10**400, 1e-300, -0.0]),
)
atoms = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.text(max_size=6),
    st.sampled_from(["box", "polygon", "scribble", "rle", "frames", "0" * 30, "PPYo0", "\x00"]),
)
garbage = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=7),
        st.lists(numbers, min_size=2, max_size=8),
        st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    ),
    max_leaves=25,
)


def parse_and_draw(value) -> None:
    """Whatever the value: regions and masks, or ValueError."""
    try:
        regions = as_regions(value)
    except ValueError:
        return
    for region in regions:
        json.dumps(region.to_json())
        for frame in (region.frames or (None,))[:3]:
            with contextlib.suppress(ValueError):
                mask = region.mask(20, 30, frame)
                assert mask.shape == (20, 30)
                assert mask.any()


@settings(quick, max_examples=250)
@given(garbage)
def test_any_json_is_regions_or_a_value_error(value):
    parse_and_draw(value)
    for parse in (Region.of, Region.from_json, Region.from_rle, Region.from_polygon, Region.from_frames):
        try:
            parse(value)
        except ValueError:
            continue


arrays = st.builds(
    lambda shape, dtype, low, seed: np.random.default_rng(seed).integers(low, 40, shape).astype(dtype),
    st.one_of(
        st.lists(st.integers(0, 5), max_size=5),
        st.tuples(st.integers(0, 30), st.just(4)),
        st.just((20, 30, 1)),
        st.just((3, 20, 30)),
    ),
    st.sampled_from(["bool", "u1", "u8", "i1", "i8", "f2", "f8", "c8", "O", "U3", "S3", "M8[s]"]),
    st.sampled_from([-9, 0, 39]),
    st.integers(0, 2**32 - 1),
)


@settings(quick, max_examples=300)
@given(arrays, st.sampled_from(["numpy", "torch", "rows", "scalars", "list", "frames", "counts"]))
def test_any_array_is_regions_or_a_value_error(array, form):
    if form == "torch" or form == "scalars":
        if array.dtype.kind not in "biufc":
            return
        array = torch.from_numpy(array)
    value = {
        "rows": lambda: list(array) if array.ndim else [array],
        "scalars": lambda: list(array.ravel()),
        "list": lambda: [array],
        "frames": lambda: {2: array},
        "counts": lambda: {"size": [20, 30], "counts": array},
    }.get(form, lambda: array)()
    parse_and_draw(value)


@settings(quick, max_examples=100)
@given(
    st.lists(st.tuples(*[st.integers(-20, 40)] * 2, *[st.integers(1, 40)] * 2), min_size=1, max_size=6),
    st.sampled_from([np.int8, np.int32, np.int64, np.float32, np.float64]),
)
def test_arrays_of_boxes_are_the_boxes_of_their_rows(boxes, dtype):
    array = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes]).astype(dtype)
    regions = as_regions(array)
    if array.min() >= 0 and array.max() <= 1:  # [0, 0, 1, 1]: a mask's values
        assert [region.kind for region in regions] == ["mask"]
    else:
        assert regions == as_regions(array.tolist())


@settings(quick, max_examples=200)
@given(
    st.sampled_from(
        [
            {"type": "box", "xyxy": [1, 2, 9, 8]},
            {"type": "polygon", "polygons": [[1, 1, 9, 1, 9, 9]], "size": [20, 30]},
            {"type": "scribble", "points": [[1, 1], [5, 9]], "width": 3},
            {"size": [20, 30], "counts": [100, 50, 450]},
            {"segmentation": {"size": [20, 30], "counts": "T3b1`="}, "height": 20, "width": 30},
            {"type": "frames", "frames": {"3": {"type": "box", "xyxy": [1, 2, 9, 8]}}},
        ]
    ),
    st.data(),
)
def test_regions_with_one_part_replaced(template, data):
    value = json.loads(json.dumps(template))
    holder, key = value, data.draw(st.sampled_from(sorted(value)))
    while isinstance(holder[key], (dict, list)) and data.draw(st.booleans()):
        holder = holder[key]
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    holder[key] = data.draw(garbage)
    parse_and_draw(value)


@settings(quick, max_examples=300)
@given(st.tuples(st.integers(1, 30), st.integers(1, 30)), st.binary(max_size=40), st.booleans())
def test_random_compressed_counts(size, data, printable):
    counts = bytes(48 + byte % 64 for byte in data) if printable else data
    parse_and_draw({"size": list(size), "counts": counts})


@settings(quick, max_examples=200)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.lists(st.integers(-2, 40), max_size=8))
def test_random_uncompressed_counts(size, counts):
    valid = bool(counts) and min(counts) >= 0 and sum(counts) == size[0] * size[1]
    if valid:
        values = np.repeat(np.arange(len(counts)) % 2, counts).reshape(size[::-1]).T
        shape = Region.from_rle({"size": size, "counts": counts}).marks[0][1]
        assert np.array_equal(shape.boxed(*size, "region").full(), values)
    else:
        with pytest.raises(ValueError, match=r"^RLE counts: expected"):
            Region.from_rle({"size": size, "counts": counts})


@pytest.mark.parametrize(
    "value",
    [
        {"size": [31_623, 31_623], "counts": [10**9]},
        {"size": [10**9, 1], "counts": "0" * 9},
        {"size": [9_000, 9_000], "counts": "o" * 10**7},
        {"size": [9_000, 9_000], "counts": [81_000_000]},  # sound, and refused by its size before it is decoded
        {"size": [20, 30], "counts": "0" * 10**6},
        {"size": [20, 30], "counts": "o" * 10**6 + "0"},
        [[0, 0, 16_000_000, 0, 0, 16_000_000]],
        [[0, 0, 1_000_000, 0, 0, 5] * 100],
        {"type": "scribble", "points": [[-16e6, -16e6], [16e6, 16e6]], "width": 16e6},
        {"type": "box", "xyxy": [-16e6, -16e6, 16e6, 16e6]},
        np.broadcast_to(np.uint8(1), (40_000, 40_000)),
        np.broadcast_to(np.int64(7), (10**15, 4)),
        {"size": [20, 30], "counts": np.broadcast_to(np.int64(0), (10**15,))},
        torch.ones(1, dtype=torch.uint8).expand(40_000, 40_000),
        {"segmentation": [[0, 0] * 40_000]},
    ],
)
def test_absurd_sizes_take_no_memory(value):
    size = len(value["counts"]) if isinstance(value, dict) and "counts" in value else 0
    with bounded(10 + 200 * size / MEGABYTE if size <= 2**23 else 20, 5):
        parse_and_draw([value])
        parse_and_draw(value)


def test_deep_and_recursive_structures():
    deep: list = []
    for _ in range(50_000):
        deep = [deep]
    recursive: dict = {}
    recursive["segmentation"] = recursive["7"] = recursive["frames"] = recursive
    endless: list = []
    endless.append(endless)
    nested = {"segmentation": {"segmentation": {"size": [4, 4], "counts": [16]}}}
    for value in (deep, recursive, endless, nested, {1: {2: {3: [0, 0, 1, 1]}}}, {"7": recursive}):
        with pytest.raises(ValueError, match="expected"):
            as_regions(value)
    while deep:  # freeing it recursively would overflow the stack
        deep = deep[0]


def test_ten_thousand_regions():
    mask = np.zeros((1080, 1920), bool)
    mask[500:520, 700:730] = True
    rle = Region.from_mask(mask).to_json()
    forms = [[i % 1900, i % 1000, i % 1900 + 9, i % 1000 + 9] for i in range(4000)]
    forms += [rle] * 3000 + [[[1, 1, 90, 1, 90, 90]]] * 2000 + [{str(i): rle} for i in range(1000)]
    with bounded(60, 20):  # 10,000 masks of this size would be 20 GB
        regions = as_regions(forms)
        assert len(regions) == 10_000
        assert np.array_equal(regions[5000].mask(1080, 1920), mask)
    forms[9_999] = [5, 5, 5, 5]
    with pytest.raises(ValueError, match=r"^region 9999: box: expected x0 < x1"):
        as_regions(forms)


def test_many_masks_are_kept_small():
    mask = np.zeros((1080, 1920), np.uint8)
    mask[500:520, 700:730] = 1
    with bounded(20, 20):
        regions = as_regions(np.broadcast_to(mask, (300, 1080, 1920)))
    assert np.array_equal(regions[299].mask(1080, 1920), mask)
