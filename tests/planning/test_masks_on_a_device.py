"""Masks that are given as tensors of a device: the plan and selection of the host, and nothing of them read.

Where there is no device, tensors of the host go the same way, with the extension's C++ or the definitions. OpenCV is
asked for the host's plans of Lite without IPP here, with which it selects a few patches of weight 1e-15 more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from as_on_a_device import Brought, masks_stay
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import FULL, LITE

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.device.counters import counting
from pixelrefer_fast.encoding.object_tokenizer import even_starts, kmeans_starts
from pixelrefer_fast.ops._extension import available
from pixelrefer_fast.ops.infuse import Groups
from pixelrefer_fast.ops.pack_masks import EXTENTS
from pixelrefer_fast.planning.merge import join
from pixelrefer_fast.planning.request import FrameSource, Request, bind_regions
from pixelrefer_fast.planning.selection import Selection, select_patches
from pixelrefer_fast.planning.views import ViewPlan
from pixelrefer_fast.regions import Region, as_regions
from pixelrefer_fast.regions.tensor_mask import TensorMask

DTYPES = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float16, torch.bfloat16, torch.int16)


@pytest.fixture(autouse=True)
def _stay() -> Iterator[None]:
    cv2.ipp.setUseIPP(False)
    try:
        with masks_stay():
            yield
    finally:
        cv2.ipp.setUseIPP(True)


def _given(mask: np.ndarray, dtype: torch.dtype, layout: str) -> torch.Tensor:
    tensor = torch.from_numpy(mask).to(dtype)
    if layout == "columns first":
        return tensor.t().contiguous().t()
    if layout == "every third":
        wide = torch.full((2 * mask.shape[0], 3 * mask.shape[1]), 1, dtype=dtype)
        wide[::2, ::3] = tensor
        return wide[::2, ::3]
    return tensor


@st.composite
def _mask(draw: st.DrawFn, height: int, width: int) -> np.ndarray:
    """One pixel, a few, thick clouds or everything; with empty rows and columns around."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = np.zeros((height, width), bool)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    share = draw(st.sampled_from([0, 0.1, 0.9, 1]))
    if draw(st.booleans()):
        top, left, bottom, right = 0, 0, height, width
    mask[top:bottom, left:right] = random.random((bottom - top, right - left)) < share
    mask[top, left] = True
    return mask


@st.composite
def _requests(draw: st.DrawFn) -> list[tuple[tuple[int, int], int, list[list[tuple[int, np.ndarray, Any]]]]]:
    """Of each request: the pictures' size, their number, and of each object the frame, the mask and its form."""
    requests = []
    for _ in range(draw(st.integers(1, 2))):
        size, frames = (draw(st.integers(2, 150)), draw(st.integers(2, 150))), draw(st.integers(1, 3))
        form = st.tuples(st.sampled_from(DTYPES), st.sampled_from(["", "columns first", "every third"]), st.booleans())
        objects = []
        for _ in range(draw(st.integers(1, 4))):
            own = sorted(draw(st.sets(st.integers(0, frames - 1), min_size=1)))
            objects.append([(frame, draw(_mask(*size)), draw(form)) for frame in own])
        requests.append((size, frames, objects))
    return requests


def _request(config: ModelConfig, size: tuple[int, int], frames: int, objects: Any, on_device: bool) -> Request:
    pictures = [np.zeros((*size, 3), np.uint8)] * frames
    full = config.kind == "full"
    source = FrameSource.of_images(pictures, None if frames == 1 else list(map(float, range(frames))))

    def form(mask: np.ndarray, dtype: torch.dtype, layout: str, stays: bool) -> Any:
        # what lies in host memory, among the others
        return _given(mask, dtype, layout) if on_device and not stays else mask

    regions = []
    for own in objects:
        marked = {frame: form(mask, *how) for frame, mask, how in own}
        if full:
            marked = dict([next(iter(marked.items()))])
        regions.append(Region.of(next(iter(marked.values()))) if frames == 1 else Region.from_frames(marked))
    return Request(source, regions, bind_regions(source, regions), [0] if full else [])


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
    if isinstance(one, Groups):
        return all(map(_equal, one, other))
    return bool(one == other)


def _check_selection(one: Selection, other: Selection) -> None:
    for field in fields(Selection):
        assert _equal(getattr(one, field.name), getattr(other, field.name)), field.name


def _check_plans(one: ViewPlan, other: ViewPlan, rounded: bool = True) -> None:
    assert one.views == other.views
    assert one.scene == other.scene
    for a, b in zip(one.marks, other.marks, strict=True):
        for field in fields(a):
            if field.name not in ("mask_grid", "on_device"):
                assert _equal(getattr(a, field.name), getattr(b, field.name)), field.name
        assert torch.equal(a.mask_grid > 0, b.mask_grid > 0)
        # OpenCV rounds places in the crop to float32, which has steps of 6e-5 at 1000
        assert bool((a.mask_grid - b.mask_grid).abs().max() < (1e-4 if rounded else 1e-12))


@pytest.mark.parametrize("backend", ["auto", "torch"])
@settings(max_examples=40, deadline=None)
@given(config=st.sampled_from([LITE, FULL]), drawn=_requests())
def test_the_plan_of_the_host(backend: str, config: ModelConfig, drawn: Any) -> None:
    plans = [
        join(config, [_request(config, *own, on_device=on_device) for own in drawn]).plan for on_device in (False, True)
    ]
    _check_plans(*plans, rounded=config.kind == "lite")
    _check_selection(select_patches(plans[0], "torch"), select_patches(plans[1], backend))


@pytest.mark.parametrize("backend", ["auto", "torch"])
@settings(max_examples=40, deadline=None)
@given(config=st.sampled_from([LITE, FULL]), drawn=_requests())
def test_what_is_selected_without_telling_the_host(backend: str, config: ModelConfig, drawn: Any) -> None:
    """The same patches, weights and places, behind which others follow that nobody reads; and the same starts."""
    plan = join(config, [_request(config, *own, on_device=True) for own in drawn]).plan
    told, untold = (select_patches(plan, backend, brought) for brought in (True, False))
    assert torch.equal(untold.offsets, told.offsets)
    assert all(most >= count for most, count in zip(untold.counts, told.counts, strict=True))
    if config.kind == "full":
        assert untold.counts == told.counts
    assert len(untold.index) == len(untold.weights) == len(untold.positions) == sum(untold.counts)
    selected = sum(told.counts)
    assert torch.equal(told.reads.nonzero()[:, 0][told.index], untold.index[:selected])
    assert torch.equal(untold.weights[:selected], told.weights)
    assert torch.equal(untold.positions[:selected], told.positions)
    assert bool(untold.reads.all())
    assert list(untold.first_rows) == plan.first_rows
    assert untold.tokens == told.tokens == sum(mark.tokens for mark in plan.marks)
    assert torch.equal(even_starts(untold.offsets, 5), kmeans_starts(told.counts, 5))


def test_few_cells_more_may_be_selected_than_are() -> None:
    """Of a filled box all that reach into it."""
    mask = torch.zeros(200, 300, dtype=torch.bool)
    mask[40:110, 60:200] = True
    source = FrameSource.of(np.zeros((200, 300, 3), np.uint8))
    regions = as_regions(mask[None])
    plan = join(LITE, [Request(source, regions, bind_regions(source, regions), [])]).plan
    assert select_patches(plan, brought=False).counts == select_patches(plan).counts
    assert 0 < select_patches(plan).counts[0] < plan.marks[0].mask_grid.numel()


@pytest.mark.parametrize("config", [LITE, FULL], ids=["lite", "full"])
def test_nothing_of_a_mask_is_read(config: ModelConfig) -> None:
    """Ten numbers a mask, then how many patches are selected and which of the packed ones are read."""
    masks = torch.zeros(5, 400, 600, dtype=torch.bool)
    for i in range(5):
        masks[i, 30 * i : 100 + 50 * i, 20 : 300 + 50 * i] = True
    source = FrameSource.of(np.zeros((400, 600, 3), np.uint8))
    with Brought() as made:
        regions = as_regions(masks)
    assert made.reads == [5 * EXTENTS * 8]
    with Brought() as planned:
        request = Request(source, regions, bind_regions(source, regions), [])
        plan = join(config, [request]).plan
        selection = select_patches(plan)
    cells = sum(mark.mask_grid.numel() for mark in plan.marks)
    # the tables that the extension checks on the host are its own: at most 15 numbers a mark
    assert max(planned.reads) <= max(8 * 15 * 5, len(selection.reads) + 1 + 8 * 5) < 4 * cells
    assert [region.marks[0][1].__dict__.get("on_host") for region in regions] == [None] * 5


def test_masks_of_one_tensor_are_packed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Sequence[int]] = []
    packed = torch.ops.pixelrefer_fast.pack_masks

    def counted(masks: torch.Tensor, cuts: torch.Tensor) -> Any:
        calls.append(masks.shape)
        return packed(masks, cuts)

    monkeypatch.setattr("pixelrefer_fast.ops.pack_masks", counted)
    masks = torch.rand(4, 20, 30) > 0.5
    as_regions(masks)
    as_regions(masks[:, None])
    as_regions(list(masks))
    Region.from_sam({"masks": [mask[None] for mask in masks]})
    assert calls == [(4, 20, 30)] * 4
    calls.clear()
    as_regions([masks[0], masks[1, :10]])
    assert calls == [(1, 20, 30), (1, 10, 30)]


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([[0, 1], [2, 0]]),
        torch.tensor([[0, 254], [2, 0]], dtype=torch.uint8),
        torch.tensor([[0.0, torch.nan], [1.0, 0.0]]),
        torch.tensor([[torch.inf, 1.0]]).half(),
        torch.zeros(1, 4, 5, 6, dtype=torch.bool),
        torch.zeros(3, 5, dtype=torch.complex64),
        torch.zeros(0, 5),
    ],
    ids=["labels", "grey", "nan", "infinity", "many", "complex", "no pixel"],
)
def test_refused_as_on_the_host(value: torch.Tensor) -> None:
    with pytest.raises(ValueError) as on_device:  # noqa: PT011 (which message is compared below)
        Region.from_mask(value)
    with pytest.raises(ValueError) as on_host:  # noqa: PT011
        Region.from_mask(value.numpy())
    if not value.is_complex():
        assert str(on_device.value) == str(on_host.value)


def test_refused_by_their_numbers() -> None:
    masks = torch.zeros(3, 8, 9)
    masks[:, 1, 1] = 1
    masks[2, 0, 0] = torch.nan
    for value in (masks, list(masks)):
        with pytest.raises(ValueError, match=r"^region 2: mask: expected finite values"):
            as_regions(value)
    masks[2] = 0
    source = FrameSource.of(np.zeros((8, 9, 3), np.uint8))
    regions = as_regions(masks)
    with pytest.raises(ValueError, match=r"^region 2: expected at least one marked pixel inside the image of 8x9"):
        join(LITE, [Request(source, regions, bind_regions(source, regions), [])])
    with pytest.raises(ValueError, match=r"^region 0: expected a mask of 7x9 .*, got 8x9"):
        regions[0].drawn(7, 9, name="region 0")


@pytest.mark.parametrize(
    ("value", "pixels"),
    [
        (torch.tensor([[0, 3], [3, 0]]), [[0, 1], [1, 0]]),
        (torch.tensor([[-7, 0], [-7, 0]]), [[1, 0], [1, 0]]),
        (torch.tensor([[0, 9], [255, 0]], dtype=torch.uint8), [[0, 1], [1, 0]]),
        (torch.tensor([[0.5, 0.6], [-3.0, 1.0]]), [[0, 1], [0, 1]]),
        (torch.tensor([[-(2**63), 0]]), [[1, 0]]),
    ],
)
def test_what_is_marked(value: torch.Tensor, pixels: list[list[int]]) -> None:
    region = Region.from_mask(value)
    assert region.mask(*value.shape).tolist() == pixels
    assert region.drawn(*value.shape).area == np.sum(pixels)


def test_sams_outputs() -> None:
    """Logits are cut at 0, probabilities at a half; of candidates the best; in videos empty frames are left out."""
    generator = torch.Generator().manual_seed(0)
    logits, shares = torch.randn(3, 9, 12, generator=generator), torch.rand(3, 9, 12, generator=generator)
    candidates = torch.rand(2, 3, 9, 12, generator=generator) > 0.5
    frames = {3 + i: {"masks": candidates[:, i], "object_ids": ids} for i, ids in enumerate([[1, 5], [5, 1]])}
    frames[4]["masks"][1] = False
    labels = torch.randint(0, 4, (9, 12), generator=generator)

    def made() -> list[Region]:
        regions = [*Region.from_sam(logits), *Region.from_sam(shares), *Region.from_labels(labels)]
        regions += Region.from_sam(candidates, torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 0.1]]))
        regions += Region.from_sam(frames)
        return regions + as_regions({"segmentation": labels, "segments_info": [{"id": 2}, {"id": 1}]})

    on_device = made()
    with pytest.MonkeyPatch.context() as patch:
        for module in ("formats", "tools", "tensor_mask"):
            patch.setattr(f"pixelrefer_fast.regions.{module}.stays", lambda mask: False)
        on_host = made()
    assert len(on_device) == len(on_host) == 15
    for one, other in zip(on_device, on_host, strict=True):
        assert one.frames == other.frames
        assert all(isinstance(shape, TensorMask) for _, shape in one.marks)
        assert one.to_json() == other.to_json()


def test_a_region_is_a_copy() -> None:
    mask = torch.rand(7, 9) > 0.5
    before = mask.clone()
    region = Region.from_mask(mask)
    mask.fill_(True)
    assert torch.equal(torch.from_numpy(region.mask(7, 9)).bool(), before)


def test_bits_of_different_tensors_are_joined_in_order() -> None:
    """Two tensors and an array between, in one request: the selection is that of each alone."""
    random = np.random.default_rng(0)
    masks = [random.random((60, 90)) < 0.3 for _ in range(5)]
    source = FrameSource.of(np.zeros((60, 90, 3), np.uint8))
    pair = as_regions(torch.from_numpy(np.stack(masks[:2])))
    regions = [pair[1], Region.of(masks[2]), Region.of(torch.from_numpy(masks[3])), pair[0], Region.of(masks[4])]
    order = [1, 2, 3, 0, 4]
    plan = join(LITE, [Request(source, regions, bind_regions(source, regions), [])]).plan
    on_host = [Region.of(masks[i]) for i in order]
    wanted = join(LITE, [Request(source, on_host, bind_regions(source, on_host), [])]).plan
    _check_plans(plan, wanted)
    assert all(not torch.equal(a.mask_grid, b.mask_grid) for a, b in pairwise(plan.marks))


def test_counters_show_who_computes() -> None:
    """One launch for all masks, one for all grids, one for all places; without the extension the definitions' own."""
    masks = torch.rand(3, 60, 90, generator=torch.Generator().manual_seed(0)) > 0.6
    source = FrameSource.of(np.zeros((60, 90, 3), np.uint8))

    def launched(backend: str) -> dict[str, int]:
        with counting() as counts:
            regions = as_regions(masks)
            request = Request(source, regions, bind_regions(source, regions), [])
            plan = join(LITE, [request]).plan
            select_patches(plan, backend)
        return {name: count for name, count in counts.launches.items() if name.startswith("pixelrefer_fast")}

    if available() is not None:
        assert launched("auto") == {}
        return
    names = [f"pixelrefer_fast.{name}_out" for name in ("pack_masks", "mask_grids", "pack_objects", "place_patches")]
    assert launched("auto") == dict.fromkeys(names, 1)
    assert launched("torch") == dict.fromkeys(names[:2], 1)
