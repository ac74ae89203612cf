"""pack_objects against a loop over cells."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.ops import pack_objects


def _oracle(grids: list[list[list[float]]]) -> tuple[list[int], list[int], list[int], list[int]]:
    index, rows, columns, offsets = [], [], [], [0]
    place = 0
    for grid in grids:
        for r, line in enumerate(grid):
            for c, value in enumerate(line):
                if value > 0:
                    index.append(place)
                    rows.append(r)
                    columns.append(c)
                place += 1
        offsets.append(len(index))
    return index, rows, columns, offsets


def _pack(grids: list[list[list[float]]], shapes: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    cells = [v for grid in grids for line in grid for v in line]
    return torch.tensor(cells, dtype=torch.float32), torch.tensor(shapes, dtype=torch.int64).reshape(-1, 2)


VALUE = st.sampled_from([0.0, 0.0, 1.0, 0.25, 1e-30, -0.0, -0.5, float("nan")])


@st.composite
def _grids(draw: st.DrawFn) -> tuple[list[list[list[float]]], list[tuple[int, int]]]:
    shapes = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8))
    return [[[draw(VALUE) for _ in range(w)] for _ in range(h)] for h, w in shapes], shapes


@given(case=_grids())
def test_against_a_loop(case: tuple) -> None:
    grids, shapes = case
    packed = pack_objects(*_pack(grids, shapes))
    index, rows, columns, offsets = _oracle(grids)
    assert packed.cell.tolist() == index
    assert packed.row.tolist() == rows
    assert packed.column.tolist() == columns
    assert packed.offsets.tolist() == offsets
    assert {t.dtype for t in packed} == {torch.int64}


def test_many_objects() -> None:
    shapes = [(1 + i % 5, 1 + i % 7) for i in range(300)]
    generator = torch.Generator().manual_seed(0)
    grids = [((torch.rand(h, w, generator=generator) - 0.4).clamp(min=0)).tolist() for h, w in shapes]
    packed = pack_objects(*_pack(grids, shapes))
    assert [t.tolist() for t in packed] == list(_oracle(grids))


def test_objects_without_a_cell_have_empty_ranges() -> None:
    packed = pack_objects(torch.tensor([0.0, 0, 1, 0, 0, 0]), torch.tensor([[1, 2], [1, 1], [3, 1]]))
    assert packed.offsets.tolist() == [0, 0, 1, 1]
    assert packed.cell.tolist() == [2]


def test_no_object() -> None:
    packed = pack_objects(torch.zeros(0), torch.zeros(0, 2, dtype=torch.int64))
    assert packed.offsets.tolist() == [0]
    assert len(packed.cell) == len(packed.row) == len(packed.column) == 0


def test_one_cell() -> None:
    packed = pack_objects(torch.tensor([0.5]), torch.tensor([[1, 1]]))
    assert [t.tolist() for t in packed] == [[0], [0], [0], [0, 1]]


@pytest.mark.parametrize("cells", [5, 7])
def test_wrong_number_of_cells(cells: int) -> None:
    message = f"^pack_objects: expected 6 cells for these shapes, got {cells}$"
    with pytest.raises(ValueError, match=message):
        pack_objects(torch.zeros(cells), torch.tensor([[2, 3]]))


def test_wrong_shapes_and_dtypes() -> None:
    shapes = torch.tensor([[2, 3]])
    with pytest.raises(ValueError, match=r"^pack_objects: expected mask_grids of shape \(any\), got \(2, 3\)$"):
        pack_objects(torch.zeros(2, 3), shapes)
    with pytest.raises(ValueError, match=r"^pack_objects: expected grid_shapes of shape \(any, 2\), got \(1, 3\)$"):
        pack_objects(torch.zeros(6), torch.tensor([[1, 2, 3]]))
    with pytest.raises(ValueError, match=r"^pack_objects: expected grid_shapes of torch.int64, got torch.int32$"):
        pack_objects(torch.zeros(6), shapes.int())
