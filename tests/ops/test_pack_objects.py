"""pack_objects against a loop over cells."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.ops import pack_objects

Grid = list[list[float]]


def _oracle(grids: list[Grid], capacity: int) -> list[list[int]]:
    """Cell, row, column, counts, offsets."""
    cell, rows, columns, counts, offsets = [], [], [], [], [0]
    place = 0
    for grid in grids:
        for r, line in enumerate(grid):
            for c, value in enumerate(line):
                if value > 0:
                    cell.append(place)
                    rows.append(r)
                    columns.append(c)
                place += 1
        offsets.append(len(cell))
        counts.append(offsets[-1] - offsets[-2])
    return [*([*x, *[-1] * capacity][:capacity] for x in (cell, rows, columns)), counts, offsets]


def _pack(grids: list[Grid], shapes: list[tuple[int, int]], spare: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Spare cells behind the grids look selected."""
    cells = [v for grid in grids for line in grid for v in line] + [1.0] * spare
    return torch.tensor(cells, dtype=torch.float32), torch.tensor(shapes, dtype=torch.int64).reshape(-1, 2)


VALUE = st.sampled_from([0.0, 0.0, 1.0, 0.25, 1e-30, -0.0, -0.5, float("nan"), float("inf")])


@st.composite
def _grids(draw: st.DrawFn) -> tuple[list[Grid], list[tuple[int, int]]]:
    shapes = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8))
    return [[[draw(VALUE) for _ in range(w)] for _ in range(h)] for h, w in shapes], shapes


@given(case=_grids(), capacity=st.integers(0, 120), spare=st.integers(0, 5))
def test_against_a_loop(case: tuple, capacity: int, spare: int) -> None:
    grids, shapes = case
    packed = pack_objects(*_pack(grids, shapes, spare), capacity, backend="torch")
    assert [t.tolist() for t in packed] == _oracle(grids, capacity)
    assert [t.dtype for t in packed] == [torch.int64, torch.int32, torch.int32, torch.int64, torch.int64]


def test_many_objects() -> None:
    shapes = [(1 + i % 5, 1 + i % 7) for i in range(300)]
    generator = torch.Generator().manual_seed(0)
    grids = [((torch.rand(h, w, generator=generator) - 0.4).clamp(min=0)).tolist() for h, w in shapes]
    packed = pack_objects(*_pack(grids, shapes), 4000, backend="torch")
    assert [t.tolist() for t in packed] == _oracle(grids, 4000)


def test_objects_without_a_cell_have_empty_ranges() -> None:
    packed = pack_objects(torch.tensor([0.0, 0, 1, 0, 0, 0]), torch.tensor([[1, 2], [1, 1], [3, 1]]), 2)
    assert packed.offsets.tolist() == [0, 0, 1, 1]
    assert packed.counts.tolist() == [0, 1, 0]
    assert packed.cell.tolist() == [2, -1]


def test_too_little_room_still_tells_the_true_numbers() -> None:
    packed = pack_objects(torch.ones(6), torch.tensor([[1, 2], [2, 2]]), 3)
    assert packed.counts.tolist() == [2, 4]
    assert packed.offsets.tolist() == [0, 2, 6]
    assert [t.tolist() for t in packed[:3]] == [[0, 1, 2], [0, 0, 0], [0, 1, 0]]


def test_no_object() -> None:
    packed = pack_objects(torch.zeros(0), torch.zeros(0, 2, dtype=torch.int64), 2)
    assert [t.tolist() for t in packed] == [[-1, -1], [-1, -1], [-1, -1], [], [0]]


def test_one_cell() -> None:
    packed = pack_objects(torch.tensor([0.5]), torch.tensor([[1, 1]]), 1)
    assert [t.tolist() for t in packed] == [[0], [0], [0], [1], [0, 1]]


@pytest.mark.parametrize("backend", ["auto", "torch"])
class TestRefusals:
    def test_too_few_cells(self, backend: str) -> None:
        with pytest.raises(ValueError, match=r"^pack_objects: expected 6 cells or more for these shapes, got 5$"):
            pack_objects(torch.zeros(5), torch.tensor([[2, 3]]), 6, backend=backend)

    def test_sides_that_are_none(self, backend: str) -> None:
        with pytest.raises(ValueError, match=r"^pack_objects: expected sides from 0 to 2147483647, got -3 to 3$"):
            pack_objects(torch.zeros(9), torch.tensor([[-2, -3], [3, 3]]), 9, backend=backend)
        with pytest.raises(ValueError, match=r"^pack_objects: expected sides .* got 4294967296 to 4294967296$"):
            pack_objects(torch.zeros(9), torch.tensor([[2**32, 2**32]]), 9, backend=backend)

    def test_shapes_whose_cells_int64_does_not_count(self, backend: str) -> None:
        with pytest.raises(ValueError, match=r"^pack_objects: expected 13835058042397261824 cells or more"):
            pack_objects(torch.zeros(9), torch.tensor([[2**31 - 1, 2**31 - 1]] * 3), 9, backend=backend)

    def test_wrong_shapes_dtypes_and_capacity(self, backend: str) -> None:
        shapes = torch.tensor([[2, 3]])
        with pytest.raises(ValueError, match=r"^pack_objects: expected mask_grids of shape \(any\), got \(2, 3\)$"):
            pack_objects(torch.zeros(2, 3), shapes, 6, backend=backend)
        with pytest.raises(ValueError, match=r"^pack_objects: expected grid_shapes of shape \(any, 2\), got \(1, 3\)$"):
            pack_objects(torch.zeros(6), torch.tensor([[1, 2, 3]]), 6, backend=backend)
        with pytest.raises(ValueError, match=r"^pack_objects: expected grid_shapes of torch.int64, got torch.int32$"):
            pack_objects(torch.zeros(6), shapes.int(), 6, backend=backend)
        with pytest.raises(ValueError, match=r"^pack_objects: expected capacity, an integer from 0 to .*, got -1$"):
            pack_objects(torch.zeros(6), shapes, -1, backend=backend)
