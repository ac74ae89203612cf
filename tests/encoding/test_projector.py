"""Vision tokens of Full, and which of them a video keeps, against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast import ops
from pixelrefer_fast.encoding.projector import VisionProjector, kept_cells


def _by_formula(projector: VisionProjector, features: torch.Tensor) -> torch.Tensor:
    """Linear, exact (erf) GELU, Linear in float64."""
    slots = {k.removeprefix(projector.PREFIX): v.double() for k, v in projector.checkpoint_slots().items()}
    hidden = features.double() @ slots["0.weight"].T + slots["0.bias"]
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return hidden @ slots["2.weight"].T + slots["2.bias"]


def test_images_are_projected_patch_by_patch() -> None:
    projector = VisionProjector(12, 20).requires_grad_(False)
    features = 3 * torch.randn(35, 12)
    tokens = projector(features, 1)
    assert tokens.shape == (35, 20)
    torch.testing.assert_close(tokens.double(), _by_formula(projector, features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [(2, 2), (4, 6), (6, 4), (2, 10)])
def test_downsampling_is_bilinear_interpolation(grid: tuple[int, int]) -> None:
    projector = VisionProjector(12, 20).requires_grad_(False)
    raster = 3 * torch.randn(*grid, 12)
    halved = F.interpolate(
        raster.permute(2, 0, 1)[None].double(), size=(grid[0] // 2, grid[1] // 2), mode="bilinear", align_corners=False
    )
    places = ops.pack_views(torch.tensor([[*grid, 2]]), grid[0] * grid[1])
    tokens = projector(raster[places.row, places.column], 2)
    expected = _by_formula(projector, halved[0].permute(1, 2, 0).flatten(0, 1))
    assert tokens.shape == (grid[0] * grid[1] // 4, 20)
    torch.testing.assert_close(tokens.double(), expected, rtol=1e-5, atol=1e-5)


def test_no_patch() -> None:
    projector = VisionProjector(12, 20)
    assert projector(torch.zeros(0, 12), 1).shape == projector(torch.zeros(0, 12), 2).shape == (0, 20)


@pytest.mark.parametrize("merge", [0, 3, 4])
def test_a_merge_that_is_not(merge: int) -> None:
    with pytest.raises(ValueError, match=f"^projector: expected merge 1 or 2, got {merge}$"):
        VisionProjector(12, 20)(torch.zeros(16, 12), merge)


def test_checkpoint_slots() -> None:
    projector = VisionProjector(12, 20)
    shapes = {k: tuple(v.shape) for k, v in projector.checkpoint_slots().items()}
    prefix = "model.mm_projector.readout."
    assert shapes == {
        f"{prefix}0.weight": (20, 12),
        f"{prefix}0.bias": (20,),
        f"{prefix}2.weight": (20, 20),
        f"{prefix}2.bias": (20,),
    }


# Dropped cells


def _frame(cells: int, merge: int, seed: int) -> torch.Tensor:
    levels = torch.randint(0, 256, (cells * merge**2, 588), generator=torch.Generator().manual_seed(seed))
    return levels / 127.5 - 1


def _change(frame: torch.Tensor, cell: int, merge: int, values: int) -> torch.Tensor:
    """One grey level more or less in so many values of a cell."""
    changed = frame.clone()
    own = changed[cell * merge**2 : (cell + 1) * merge**2].flatten()
    own[:values] += torch.where(own[:values] > 0, -2 / 255, 2 / 255)
    changed[cell * merge**2 : (cell + 1) * merge**2] = own.view(merge**2, 588)
    return changed


def _oracle(frames: list[torch.Tensor], merge: int) -> list[bool]:
    kept = []
    for t, frame in enumerate(frames):
        own = []
        for cell in range(len(frame) // merge**2):
            total = 0.0
            for patch in range(cell * merge**2, (cell + 1) * merge**2):
                before = frames[t - 1][patch].tolist()
                total += sum(abs(a - b) for a, b in zip(frame[patch].tolist(), before, strict=True))
            own.append(t == 0 or total / (588 * merge**2) * 255 > 0.1)
        kept += own if any(own) else [True, *own[1:]]
    return kept


@given(
    merge=st.sampled_from([1, 2]),
    changes=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 20, 40, 110, 130, 588])), max_size=3)
    ),
)
def test_kept_cells_against_a_loop(merge: int, changes: list[list[tuple[int, int]]]) -> None:
    frames = [_frame(4, merge, seed=0)]
    for own in changes[:4]:
        frame = frames[-1]
        for cell, values in own:
            frame = _change(frame, cell, merge, values)
        frames.append(frame)
    kept = kept_cells(frames, merge)
    assert kept.dtype == torch.bool
    assert kept.tolist() == _oracle(frames, merge)


@pytest.mark.parametrize(("merge", "values", "kept"), [(1, 29, False), (1, 30, True), (2, 117, False), (2, 118, True)])
def test_a_cell_is_dropped_at_a_mean_change_of_a_twentieth_of_a_grey_level(merge: int, values: int, kept: bool) -> None:
    first = _frame(3, merge, seed=1)
    second = _change(_change(first, 0, merge, 588), 2, merge, values)
    assert kept_cells([first, second], merge).tolist() == [True] * 3 + [True, False, kept]


@pytest.mark.parametrize(("mean", "kept"), [(0.0999, False), (0.1001, True)])
def test_the_threshold(mean: float, kept: bool) -> None:
    first = torch.zeros(8, 588)
    second = first.clone()
    second[0] = 1
    second[4:] = mean / 255
    assert kept_cells([first, second], 2).tolist() == [True, True, True, kept]


def test_an_unchanged_frame_keeps_its_first_cell() -> None:
    frame = _frame(4, 2, seed=2)
    assert kept_cells([frame, frame, frame], 2).tolist() == [True] * 4 + [True, False, False, False] * 2


def test_the_frame_before_is_compared_not_the_last_that_was_kept() -> None:
    """A slow change is never seen: each step is too small, their sum is not."""
    frames = [_frame(2, 1, seed=3)]
    for step in range(5):
        moved = frames[-1].clone()
        moved[1, 20 * step : 20 * step + 20] += 2 / 255
        frames.append(moved)
    assert (frames[-1] - frames[0])[1].abs().mean() * 255 > 0.3
    assert kept_cells(frames, 1).tolist() == [True, True] + [True, False] * 5


def test_a_single_frame_is_kept_whole() -> None:
    assert kept_cells([_frame(3, 2, seed=4)], 2).tolist() == [True] * 3


def test_frames_of_one_cell() -> None:
    frame = _frame(1, 1, seed=5)
    assert kept_cells([frame, frame, -frame], 1).tolist() == [True] * 3


def test_poison_in_a_cell_does_not_reach_the_others() -> None:
    first = _frame(3, 1, seed=6)
    second = _change(first, 1, 1, 588)
    second[2] = torch.nan
    assert kept_cells([first, second], 1).tolist()[:5] == [True] * 3 + [False, True]
