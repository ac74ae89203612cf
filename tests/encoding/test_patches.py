"""Patches of all views of a plan: each in its place, each frame read once, in order, when it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pixelrefer_fast import ops
from pixelrefer_fast.device.launches import listen
from pixelrefer_fast.encoding import patches as module
from pixelrefer_fast.encoding.patches import pack_patches
from pixelrefer_fast.ops.view_patches import pack_pixels
from pixelrefer_fast.planning.request import FrameSource
from pixelrefer_fast.planning.views import View, ViewPlan

BLACK = -1


def _view(image: int, rows: int, columns: int, merge: int = 1) -> View:
    height, width = 14 * rows, 14 * columns
    return View(image, 0, 0, height, width, height, width, 0, height, width, merge)


def _plan(*views: View) -> ViewPlan:
    plan = ViewPlan()
    for view in views:
        plan.add(view)
    return plan


def _frames(count: int) -> list[np.ndarray]:
    return [np.full((60, 60, 3), i, dtype=np.uint8) for i in range(count)]


class Recorder:
    """Frames that note when they are read."""

    def __init__(self, frames: Sequence[np.ndarray]) -> None:
        self.frames = frames
        self.asked: list[list[int]] = []
        self.read_so_far: list[int] = []

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        self.asked.append(list(numbers))
        for number in numbers:
            self.read_so_far.append(number)
            yield self.frames[number]

    @property
    def source(self) -> FrameSource:
        count = len(self.frames)
        return FrameSource(name=None, sizes=[(60, 60)] * count, times=[float(i) for i in range(count)], read=self.read)


def test_every_view_is_in_its_place() -> None:
    views = [
        _view(4, 2, 2),
        _view(1, 1, 3),
        _view(BLACK, 1, 1),
        _view(4, 1, 2),
        _view(0, 2, 4, merge=2),
        _view(1, 3, 1),
        _view(BLACK, 2, 2),
    ]
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (60, 60, 3), dtype=np.uint8) for _ in range(5)]
    plan = _plan(*views)
    patches = pack_patches(plan, FrameSource.of_images(frames))
    pixels, images = pack_pixels(frames)
    rows = plan.table()
    expected = torch.cat(
        [
            ops.view_patches(pixels, images, rows[i : i + 1], torch.tensor([0, v.patches]), v.patches)
            for i, v in enumerate(views)
        ]
    )
    assert patches.dtype == torch.float32
    assert torch.equal(patches, expected)


def test_each_frame_is_read_once_in_ascending_order() -> None:
    recorder = Recorder(_frames(9))
    pack_patches(
        _plan(_view(7, 1, 1), _view(2, 1, 1), _view(7, 2, 2), _view(BLACK, 1, 1), _view(0, 1, 1)), recorder.source
    )
    assert recorder.asked == [[0, 2, 7]]
    assert recorder.read_so_far == [0, 2, 7]


def test_a_frame_is_done_with_before_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(_frames(4))
    seen = []
    view_patches = ops.view_patches

    def spy(pixels: torch.Tensor, *args: Any, backend: str) -> torch.Tensor:
        seen.append((int(pixels[0]), list(recorder.read_so_far)))
        return view_patches(pixels, *args, backend=backend)

    monkeypatch.setattr(ops, "view_patches", spy)
    pack_patches(_plan(*(_view(i, 1, 1) for i in (3, 1, 0))), recorder.source)
    assert seen == [(0, [0]), (1, [0, 1]), (3, [0, 1, 3])]


def test_the_plan_is_not_changed() -> None:
    plan = _plan(_view(1, 1, 1), _view(BLACK, 1, 1))
    before = plan.table()
    pack_patches(plan, FrameSource.of_images(_frames(2)))
    assert torch.equal(plan.table(), before)


def test_nothing() -> None:
    assert pack_patches(ViewPlan(), FrameSource.of_images(_frames(1))).shape == (0, 588)
    assert pack_patches(_plan(_view(BLACK, 1, 2)), FrameSource.of_images(_frames(1))).eq(-1).all()


def test_a_source_that_gives_too_few_frames() -> None:
    short = FrameSource.of_images(_frames(3))
    short = replace(short, read=lambda numbers: iter(_frames(len(numbers) - 1)))
    with pytest.raises(ValueError, match=r"^frames: expected 2 to be read, got 1$"):
        pack_patches(_plan(_view(0, 1, 1), _view(2, 1, 1)), short)


def test_frames_of_any_memory_layout() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    plan = _plan(_view(0, 2, 3))
    turned = np.asfortranarray(frame)
    expected = pack_patches(plan, FrameSource.of_images([frame]))
    assert torch.equal(pack_patches(plan, FrameSource.of_images([turned])), expected)
    assert torch.equal(pack_patches(plan, FrameSource.of_images([frame[:, ::-1][:, ::-1]])), expected)


@pytest.mark.parametrize("limit", [1, 3 * 60 * 60, 3 * 2 * 60 * 60, 2**30])
@pytest.mark.kernel
def test_frames_that_lie_together_are_cut_together(
    limit: int, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device: as many frames in one launch as the limit lets, and the same patches."""
    rng = np.random.default_rng(2)
    frames = [rng.integers(0, 256, (60, 60, 3), dtype=np.uint8) for _ in range(5)]
    plan = _plan(_view(4, 1, 2), _view(1, 1, 1), _view(BLACK, 1, 1), _view(0, 2, 1), _view(1, 1, 2))
    launches = []
    monkeypatch.setattr(module, "PIXEL_BYTES", limit)
    with listen(launches.append):
        patches = pack_patches(plan, FrameSource.of_images(frames), kernel_device, backend="triton")
    torch.testing.assert_close(patches.cpu(), pack_patches(plan, FrameSource.of_images(frames)), rtol=0, atol=1e-6)
    assert len(launches) == {1: 3, 3 * 60 * 60: 3, 3 * 2 * 60 * 60: 2, 2**30: 1}[limit]
