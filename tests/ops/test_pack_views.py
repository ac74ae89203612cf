"""pack_views against a loop over patches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.ops import pack_views

View = tuple[int, int, int]  # rows, columns, merge


def _oracle(views: list[View], patches: int) -> list[list[int]]:
    """Row, column, sequence, cu_seqlens, longest."""
    places = []
    cu_seqlens = [0]
    for i, (rows, columns, merge) in enumerate(views):
        places += [
            (top + down, left + right, i)
            for top in range(0, rows, merge)
            for left in range(0, columns, merge)
            for down in range(merge)
            for right in range(merge)
        ]
        cu_seqlens.append(len(places))
    places = (places + [(0, 0, len(views))] * patches)[:patches]
    longest = max((rows * columns for rows, columns, _ in views), default=0)
    return [*([p[axis] for p in places] for axis in range(3)), cu_seqlens, [longest]]


def _grids(views: list[View]) -> torch.Tensor:
    return torch.tensor(views, dtype=torch.int64).reshape(-1, 3)


_VIEW = st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(1, 2)).map(
    lambda v: (v[0] * v[2], v[1] * v[2], v[2])
)


@given(views=st.lists(_VIEW, max_size=8), patches=st.integers(0, 400))
def test_against_a_loop(views: list[View], patches: int) -> None:
    packed = pack_views(_grids(views), patches, backend="torch")
    assert [t.tolist() for t in packed] == _oracle(views, patches)
    assert {t.dtype for t in packed} == {torch.int32}


def test_a_merged_view_comes_in_blocks_of_four() -> None:
    packed = pack_views(_grids([(2, 4, 2)]), 8)
    assert packed.row.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert packed.column.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_room_for_more_is_padding() -> None:
    packed = pack_views(_grids([(1, 2, 1), (3, 1, 1)]), 7)
    assert [t.tolist() for t in packed] == [
        [0, 0, 0, 1, 2, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 2, 2],
        [0, 2, 5],
        [3],
    ]


def test_no_view() -> None:
    packed = pack_views(_grids([]), 2)
    assert [t.tolist() for t in packed] == [[0, 0], [0, 0], [0, 0], [0], [0]]


def test_many_views() -> None:
    views = [(2 * (1 + i % 9), 2 * (1 + i % 5), 1 + i % 2) for i in range(500)]
    patches = sum(h * w for h, w, _ in views)
    packed = pack_views(_grids(views), patches + 10, backend="torch")
    assert [t.tolist() for t in packed] == _oracle(views, patches + 10)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("view", [(3, 4, 2), (4, 3, 2), (1, 1, 0), (1, 1, 3), (-2, 2, 1), (2**32, 1, 1)])
def test_grids_that_are_none(view: View, backend: str) -> None:
    message = rf"^pack_views: expected grids of .* got \({view[0]}, {view[1]}, {view[2]}\) for view 1$"
    with pytest.raises(ValueError, match=message):
        pack_views(_grids([(2, 2, 2), view]), 4, backend=backend)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_wrong_shape_dtype_and_room(backend: str) -> None:
    with pytest.raises(ValueError, match=r"^pack_views: expected grids of shape \(any, 3\), got \(1, 2\)$"):
        pack_views(torch.tensor([[2, 2]]), 4, backend=backend)
    with pytest.raises(ValueError, match=r"^pack_views: expected grids of torch.int64, got torch.int32$"):
        pack_views(_grids([(2, 2, 1)]).int(), 4, backend=backend)
    with pytest.raises(ValueError, match=r"^pack_views: expected patches, an integer from 0 to 2147483647, got -1$"):
        pack_views(_grids([(2, 2, 1)]), -1, backend=backend)
    with pytest.raises(ValueError, match=r"^pack_views: expected at most 2147483647 patches, got 4294967294$"):
        pack_views(_grids([(2**31 - 1, 1, 1)] * 2), 4, backend=backend)
