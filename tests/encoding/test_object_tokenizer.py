"""Features and masks to object tokens: which rows, which positions, which starts, and the recorded full width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pixelrefer_fast import ops
from pixelrefer_fast.checkpoint.config import ModelConfig, VisionConfig
from pixelrefer_fast.encoding.infusion import HEADS
from pixelrefer_fast.encoding.object_tokenizer import ObjectTokenizer, kmeans_starts
from pixelrefer_fast.planning.selection import select_patches
from pixelrefer_fast.planning.views import MarkPlan, View, ViewPlan

DATA = Path(__file__).parents[1] / "data"

Box = tuple[int, int, int, int]


def _view(rows: int, columns: int, image: int = 0) -> View:
    height, width = 14 * rows, 14 * columns
    return View(image, 0, 0, height, width, height, width, 0, height, width, 1)


class _Plans:
    """Builds a plan of views and marks by hand; every view is one of its own, as a unique image numbers it."""

    def __init__(self) -> None:
        self.plan = ViewPlan()

    def view(self, rows: int, columns: int) -> int:
        return self.plan.add(_view(rows, columns, image=len(self.plan.views)))

    def mark(
        self,
        mask_grid: np.ndarray,
        grid: tuple[int, int] | None = None,
        box: Box = (0, 0, 10, 10),
        image_size: tuple[int, int] = (480, 640),
        context: tuple[int, int] | None = None,
        tokens: int = 8,
    ) -> None:
        crop = self.view(*(grid or mask_grid.shape))
        local_view, global_view = context or (None, None)
        name = f"region {len(self.plan.marks)}"
        cells = torch.from_numpy(mask_grid.astype(np.float32))
        self.plan.marks.append(
            MarkPlan(
                name,
                0,
                crop,
                cells,
                box,
                image_size,
                tokens,
                global_view=global_view,
                local_view=local_view,
            )
        )


def _grid(rows: int, columns: int, seed: int = 0, share: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((rows, columns)) * (rng.random((rows, columns)) < share)


def _positions(grid: tuple[int, int], box: Box, image_size: tuple[int, int]) -> torch.Tensor:
    """(rows, columns, 2) float64 by section 4 of the spec, cell by cell."""
    (h, w), (b0, b1, b2, b3), (height, width) = grid, box, image_size
    values = [
        [
            (((j / w) * (b2 - b0) + b0) / max(width - 1, 1), ((i / h) * (b3 - b1) + b1) / max(height - 1, 1))
            for j in range(w)
        ]
        for i in range(h)
    ]
    return torch.tensor(values, dtype=torch.float64)


# Which rows and positions


def test_selected_rows_by_hand() -> None:
    plans = _Plans()
    plans.view(2, 3)
    plans.mark(np.array([[0, 0.5, 0], [1, 0, 0]]))
    plans.mark(np.zeros((4, 4)))
    plans.view(1, 1)
    plans.mark(np.ones((1, 2)))
    selection = select_patches(plans.plan)
    read = [6 + 1, 6 + 3, 6 + 6 + 16 + 1, 6 + 6 + 16 + 1 + 1]
    assert selection.reads.nonzero().flatten().tolist() == read
    assert selection.index.tolist() == [[0], [1], [2], [3]]
    assert selection.first_rows == (0, 0, 2, 2, 2, 4)
    assert selection.weights.tolist() == [[1]] * 4
    assert selection.offsets.tolist() == [0, 2, 2, 4]
    assert selection.counts == (2, 0, 2)
    assert len(selection.local_groups.order) == len(selection.global_groups.order) == 0


def test_context_rows() -> None:
    plans = _Plans()
    local_view, global_view = plans.view(2, 3), plans.view(4, 5)
    plans.mark(np.ones((2, 2)), context=(local_view, global_view))
    other = plans.view(3, 3)
    plans.mark(np.ones((1, 1)), context=(other, global_view))
    selection = select_patches(plans.plan)
    # the views of context are read whole: (first member, members, first row, rows) of each group
    assert selection.local_groups.groups.tolist() == [[0, 1, 0, 6], [1, 1, 30, 9]]
    assert selection.global_groups.groups.tolist() == [[0, 2, 6, 20]]
    assert selection.local_groups.order.tolist() == selection.global_groups.order.tolist() == [0, 1]


def test_only_what_is_read_has_a_row() -> None:
    plans = _Plans()
    local_view, global_view, nobodys = plans.view(2, 3), plans.view(4, 5), plans.view(3, 3)
    plans.mark(np.array([[0, 1.0], [1, 0]]), context=(local_view, global_view))
    scene = plans.view(1, 4)
    plans.plan.scene.append(scene)
    selection = select_patches(plans.plan)
    assert selection.reads.tolist() == [True] * 26 + [False] * 9 + [False, True, True, False] + [True] * 4
    assert selection.first_rows[nobodys] == selection.first_rows[nobodys + 1] == 26
    assert selection.first_rows[scene : scene + 2] == (28, 32)
    assert selection.index.tolist() == [[26], [27]]
    everything = torch.arange(len(selection.reads))
    assert everything[selection.reads][selection.index[:, 0]].tolist() == [36, 37]


def test_no_mark() -> None:
    selection = select_patches(ViewPlan())
    assert selection.index.shape[0] == selection.weights.shape[0] == 0
    assert selection.positions.shape == (0, 2)
    assert selection.counts == ()
    assert selection.first_rows == (0,)


SIDE = st.integers(1, 6)


@st.composite
def _marked(draw: st.DrawFn) -> list[dict[str, Any]]:
    marks = []
    for i in range(draw(st.integers(1, 4))):
        grid = (draw(SIDE), draw(SIDE))
        fine = grid if draw(st.booleans()) else (draw(st.integers(grid[0], 12)), draw(st.integers(grid[1], 12)))
        height, width = draw(st.integers(1, 900)), draw(st.integers(1, 900))
        b0, b1 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        box = (b0, b1, draw(st.integers(b0, height - 1)), draw(st.integers(b1, width - 1)))
        marks.append({"mask_grid": _grid(*fine, seed=i), "grid": grid, "box": box, "image_size": (height, width)})
    return marks


@given(marks=_marked())
def test_tokens_before_pooling(marks: list[dict[str, Any]]) -> None:
    """Features plus position, on the features' own grid, interpolated to the mask's, where the mask is set."""
    width = 5
    generator = torch.Generator().manual_seed(len(marks))
    pos_weight, pos_bias = torch.randn(width, 2, generator=generator), torch.randn(width, generator=generator)
    plans = _Plans()
    expected, features = [], []
    for mark in marks:
        features.append(torch.full((2, width), torch.nan))
        plans.view(1, 2)  # of someone else
        plans.mark(**mark)
        own = torch.randn(*mark["grid"], width, generator=generator)
        features.append(own.flatten(0, 1))
        places = _positions(mark["grid"], mark["box"], mark["image_size"])
        placed = own.double() + places @ pos_weight.double().T + pos_bias.double()
        fine = F.interpolate(placed.permute(2, 0, 1)[None], size=mark["mask_grid"].shape, mode="bilinear")
        expected.append(fine[0].permute(1, 2, 0)[torch.from_numpy(mark["mask_grid"]) > 0])
    selection = select_patches(plans.plan)
    assert selection.counts == tuple(len(e) for e in expected)
    starts = torch.zeros(len(marks), 144, dtype=torch.int64)
    pooled = ops.object_pool(
        torch.cat(features)[selection.reads],
        selection.index,
        selection.weights,
        selection.positions,
        selection.offsets,
        starts,
        pos_weight,
        pos_bias,
        3,
        max(selection.counts),
    )
    for own, want in zip(pooled, expected, strict=True):
        torch.testing.assert_close(own[: len(want)].double(), want, rtol=1e-5, atol=5e-6)
        assert own[len(want) :].eq(0).all()


@pytest.mark.parametrize("image_size", [(480, 640), (1, 640), (480, 1), (1, 1)])
def test_positions(image_size: tuple[int, int]) -> None:
    """As trained, the box's rows lie on the x axis; an image of one row or column divides by one, not by zero."""
    box = (0, 0, min(100, image_size[0] - 1), min(300, image_size[1] - 1))
    plans = _Plans()
    plans.mark(np.ones((3, 4)), box=box, image_size=image_size)
    positions = select_patches(plans.plan).positions
    assert positions.dtype == torch.float32
    expected = _positions((3, 4), box, image_size).flatten(0, 1)
    torch.testing.assert_close(positions.double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.isfinite(positions).all()


def test_one_interpolated_crop_does_not_change_the_others() -> None:
    """The four corners of a grid that needs none are its own cell."""
    exact, mixed = _Plans(), _Plans()
    for plans in (exact, mixed):
        plans.mark(_grid(5, 7), box=(3, 4, 90, 80))
    mixed.mark(_grid(6, 6), grid=(2, 3))
    one, four = select_patches(exact.plan), select_patches(mixed.plan)
    features = torch.randn(35 + 6, 4)
    count = one.counts[0]
    assert four.index.shape[1] == 4
    gathered = (features[four.reads][four.index] * four.weights[:, :, None]).sum(1)[:count]
    torch.testing.assert_close(gathered, features[:35][one.reads][one.index[:, 0]], rtol=0, atol=1e-6)
    torch.testing.assert_close(four.positions[:count], one.positions, rtol=0, atol=1e-6)


def test_many_marks() -> None:
    plans = _Plans()
    for i in range(300):
        plans.mark(_grid(1 + i % 4, 1 + i % 5, seed=i))
    selection = select_patches(plans.plan)
    assert len(selection.counts) == 300
    first = plans.plan.first_rows
    expected = [
        first[m.crop] + int(cell) for m in plans.plan.marks for cell in np.flatnonzero(m.mask_grid.flatten() > 0)
    ]
    assert selection.reads.nonzero().flatten()[selection.index[:, 0]].tolist() == expected


# The whole tokenizer


def _tokenizer(kind: Any, width: int, out: int, mask_num: int) -> ObjectTokenizer:
    config = ModelConfig(kind, VisionConfig(width, 1, 8, 16), {"hidden_size": out}, mask_num, 1024, 2, {})
    return ObjectTokenizer(config).requires_grad_(False)


def _full_tokens_per_mark(counts: Sequence[int], clusters: int) -> int:
    return sum(min(c, clusters) for c in counts)


def test_full_gives_as_many_tokens_as_it_has_patches() -> None:
    tokenizer = _tokenizer("full", 32, 12, 4)
    plans = _Plans()
    for selected in (0, 2, 4, 9):
        plans.mark((np.arange(9).reshape(3, 3) < selected).astype(float))
    selection = select_patches(plans.plan)
    assert selection.counts == (0, 2, 4, 9)
    features = torch.randn(36, 32)[selection.reads]
    tokens = tokenizer(features, selection, kmeans_starts(selection.counts, 4))
    assert tokens.shape == (_full_tokens_per_mark(selection.counts, 4), 12)
    # few patches are their own tokens: features plus position through the MLP
    placed = features[selection.index[:6, 0]] + tokenizer.pos_linear(selection.positions[:6])
    torch.testing.assert_close(tokens[:6], tokenizer.feat_linear(placed), rtol=1e-5, atol=1e-5)


def test_lite_gives_n_tokens_even_to_an_empty_mask() -> None:
    tokenizer = _tokenizer("lite", 32, 12, 4)
    plans = _Plans()
    context = plans.view(2, 2), plans.view(3, 3)
    for selected in (0, 2, 9):
        plans.mark((np.arange(9).reshape(3, 3) < selected).astype(float), context=context)
    selection = select_patches(plans.plan)
    features = torch.randn(13 + 27, 32)[selection.reads]
    tokens = tokenizer(features, selection, kmeans_starts(selection.counts, 4))
    assert tokens.shape == (12, 12)
    assert torch.isfinite(tokens).all()
    # rows that stand for nothing are infused with context all the same, and equal each other
    torch.testing.assert_close(tokens[0].expand(6, -1), tokens[[0, 1, 2, 3, 6, 7]], rtol=0, atol=1e-6)
    assert (tokens[0] - tokens[4]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_no_object(kind: str) -> None:
    tokenizer = _tokenizer(kind, 32, 12, 4)
    selection = select_patches(ViewPlan())
    assert tokenizer(torch.zeros(0, 32), selection, kmeans_starts([], 4)).shape == (0, 12)


@pytest.mark.parametrize(("kind", "iterations"), [("lite", 3), ("full", 5)])
def test_iterations(kind: str, iterations: int) -> None:
    """Patches in a row from two starts at one end: k-means creeps along for more than five iterations."""
    tokenizer = _tokenizer(kind, 32, 12, 2)
    plans = _Plans()
    context = (plans.view(1, 1), plans.view(1, 1)) if kind == "lite" else None
    plans.mark(np.ones((1, 60)), context=context)
    selection = select_patches(plans.plan)
    features = torch.randn(selection.first_rows[-1], 32)
    features[-60:] = torch.arange(60.0)[:, None] ** 1.5 / 60 * torch.randn(32)
    starts = torch.tensor([[0, 1]])
    tokens = tokenizer(features, selection, starts)

    def expected(count: int) -> torch.Tensor:
        rows = selection.index, selection.weights, selection.positions, selection.offsets
        linear = tokenizer.pos_linear.weight, tokenizer.pos_linear.bias
        pooled = ops.object_pool(features, *rows, starts, *linear, count, 60)
        if tokenizer.infusion is not None:
            local, whole = tokenizer.infusion.local_step, tokenizer.infusion.global_step
            for step, groups in ((local, selection.local_groups), (whole, selection.global_groups)):
                tensors, sizes = step.arguments(groups, 2)
                pooled = ops.infuse(pooled, features, *tensors, HEADS, *sizes[:4], bool(sizes[4]))
        return tokenizer.feat_linear(pooled[0])

    torch.testing.assert_close(tokens, expected(iterations), rtol=0, atol=1e-6)
    for other in (iterations - 1, iterations + 1):
        assert (tokens - expected(other)).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_features_that_nobody_reads_do_not_leak(kind: str) -> None:
    tokenizer = _tokenizer(kind, 32, 12, 4)
    plans = _Plans()
    context = (plans.view(2, 2), plans.view(3, 3)) if kind == "lite" else None
    plans.view(3, 3)  # nobody's
    plans.mark(_grid(4, 5), context=context)
    plans.mark(_grid(4, 6), grid=(2, 3), context=context)
    selection = select_patches(plans.plan)
    starts = kmeans_starts(selection.counts, 4)
    features = torch.randn(selection.first_rows[-1] + 3, 32)
    clean = tokenizer(features, selection, starts)
    assert len(selection.reads) > selection.first_rows[-1] == len(selection.index.unique()) + 13 * (kind == "lite")
    features[-3:] = torch.nan
    assert torch.equal(tokenizer(features, selection, starts), clean)


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_gradients_reach_every_parameter_and_the_features(kind: str) -> None:
    tokenizer = _tokenizer(kind, 32, 12, 4).requires_grad_(True)
    plans = _Plans()
    context = (plans.view(2, 2), plans.view(3, 3)) if kind == "lite" else None
    plans.mark(_grid(4, 5), context=context)
    selection = select_patches(plans.plan)
    features = torch.randn(selection.first_rows[-1], 32, requires_grad=True)
    tokenizer(features, selection, kmeans_starts(selection.counts, 4)).square().sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum(1).min() > 0
    for name, parameter in tokenizer.named_parameters():
        if "mask_embedding" in name:  # in every checkpoint, used by nothing
            assert parameter.grad is None
            continue
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


# The recorded region encoders at full width


def _seeded(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_full_width_as_recorded(kind: str) -> None:
    """Weights and inputs from seeds, as the README of the recordings says; the reference's own object tokens."""
    width, clusters = 1152, 32
    recorded = load_file(DATA / f"region_encoder_{kind}.safetensors")
    tokenizer = _tokenizer(kind, width, 1536, clusters)
    slots = {k.removeprefix(ObjectTokenizer.PREFIX): v for k, v in tokenizer.checkpoint_slots().items()}
    for i, name in enumerate(sorted(slots)):
        slot = slots[name]
        value = _seeded(*slot.shape, seed=1000 + i) * (slot.shape[-1] ** -0.5 if slot.ndim > 1 else 0.1)
        slot.copy_(value + 1 if name.startswith("ln_") and name.endswith("weight") else value)

    plans = _Plans()
    features = []
    boxes = [(10, 20, 160, 180), (0, 0, 126, 126), (100, 300, 470, 600), (5, 5, 80, 190)]
    for i, ((h, w), box) in enumerate(zip([(11, 12), (9, 9), (22, 23), (6, 14)], boxes, strict=True)):
        mask_grid = np.zeros((h, w), dtype=np.float32)
        mask_grid[1 : h - 1, 2 : w - 2] = torch.rand(
            h - 2, w - 4, generator=torch.Generator().manual_seed(900 + i)
        ).numpy()
        context = None
        if kind == "lite":
            context = plans.view(16, 16), plans.view(24, 24)
            features += [_seeded(16, 16, width, seed=1400 + i), _seeded(24, 24, width, seed=1300 + i)]
        plans.mark(mask_grid, box=box, context=context, tokens=clusters)
        features.append(_seeded(h, w, width, seed=1200 + i))
    selection = select_patches(plans.plan)
    permutations = [recorded[f"kmeans_perm.{i}"] for i in range(4)]
    assert selection.counts == tuple(len(p) for p in permutations)
    starts = kmeans_starts(selection.counts, clusters, [p[:clusters].tolist() for p in permutations])
    tokens = tokenizer(torch.cat([f.flatten(0, 1) for f in features])[selection.reads], selection, starts)

    expected = recorded["object_tokens"]
    assert tokens.shape == expected.shape == (4 * clusters, 1536)
    assert (tokens - expected).norm() / expected.norm() < 1e-5
    assert (tokens - expected).abs().max() / expected.abs().max() < 1e-5
