"""Columns of slots that lie side by side in one tensor a dtype."""

from __future__ import annotations

import pytest
import torch

from pixelrefer_fast.decoding.slot_state import Column, SlotState

PACKED = {
    "counts": Column(torch.int64),
    "rate": Column(torch.float32, vacant=1),
    "numbers": Column(torch.int64, 3, 7),
    "active": Column(torch.bool),
}
ALONE = {"table": Column(torch.int32, 2, 5), "none": Column(torch.int64, 0, -1)}


@pytest.fixture
def state() -> SlotState:
    return SlotState(PACKED, ALONE, 6, torch.device("cpu"))


def _is_vacant(state: SlotState, *slots: int) -> bool:
    return all(
        bool((state.columns[name][list(slots)] == column.vacant).all()) for name, column in (PACKED | ALONE).items()
    )


def test_all_are_vacant_at_first_and_columns_are_views_of_one_tensor_a_dtype(state: SlotState) -> None:
    assert _is_vacant(state, *range(6))
    assert state.columns["numbers"].shape == (6, 3)
    assert state.columns["none"].shape == (6, 0)
    assert state.columns["counts"].untyped_storage().data_ptr() == state.columns["numbers"].untyped_storage().data_ptr()
    assert state.columns["table"].is_contiguous()


def test_what_is_not_given_is_vacant_after_filling(state: SlotState) -> None:
    state.fill(1, 2, {"counts": [3, 4], "numbers": [[1, 2, 3], [4, 5, 6]], "table": [[8, 9], [10, 11]]})
    assert state.columns["counts"].tolist() == [0, 3, 4, 0, 0, 0]
    assert state.columns["numbers"][1:3].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert state.columns["table"][1:3].tolist() == [[8, 9], [10, 11]]
    state.fill(2, 1, {"rate": [0.5]})
    assert state.columns["counts"].tolist() == [0, 3, 0, 0, 0, 0]
    assert state.columns["rate"].tolist() == [1, 1, 0.5, 1, 1, 1]
    assert state.columns["table"][2].tolist() == [10, 11]  # a tensor of its own stays
    assert _is_vacant(state, 0, 3, 4, 5)


def test_slots_move_in_any_order_and_the_rest_is_vacated(state: SlotState) -> None:
    rows = range(6)
    state.fill(0, 6, {"counts": rows, "active": [True] * 6, "table": [[r, -r] for r in rows]})
    state.move([4, 1, 5])
    state.vacate(3, 6)
    assert state.columns["counts"].tolist() == [4, 1, 5, 0, 0, 0]
    assert state.columns["table"][:3].tolist() == [[4, -4], [1, -1], [5, -5]]
    assert _is_vacant(state, 3, 4, 5)
    state.move([2], idle={"table"})
    assert state.columns["counts"][0] == 5
    assert state.columns["table"][0].tolist() == [4, -4]


def test_a_column_becomes_wider(state: SlotState) -> None:
    state.fill(0, 1, {"table": [[1, 2]]})
    state.widen("table", 4)
    assert state.columns["table"][:2].tolist() == [[1, 2, 5, 5], [5, 5, 5, 5]]
    state.widen("table", 5, state.columns["table"][:, :1])
    assert state.columns["table"][0].tolist() == [1, 2, 5, 5, 1]
