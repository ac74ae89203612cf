"""Tables that stay where they are: filled with what is given and its padding, whatever they held."""

from __future__ import annotations

import torch

from pixelrefer_fast.device.static_tables import StaticTables, TableShape

SHAPES = {
    "offsets": TableShape((5,), torch.int32),
    "rows": TableShape((3, 4), torch.int32),
    "weights": TableShape((3, 2), torch.float32),
    "none": TableShape((0,), torch.int64),
}
NONE = torch.empty(0, dtype=torch.int64)


def _tables() -> StaticTables:
    buffer = torch.full((StaticTables.bytes_of(SHAPES) + 40,), 255, dtype=torch.uint8)
    return StaticTables(SHAPES, buffer)


def test_padding() -> None:
    tables = _tables()
    places = [view.data_ptr() for view in tables.views.values()]
    given = {
        "offsets": torch.tensor([0, 3], dtype=torch.int32),
        "rows": torch.ones(1, 4, dtype=torch.int32),
        "weights": torch.full((2, 2), 0.5),
        "none": NONE,
    }
    for _ in range(2):
        tables.fill(given, {"offsets": 3, "rows": torch.tensor([7, 0, 0, 0])})
        assert tables.views["offsets"].tolist() == [0, 3, 3, 3, 3]
        assert tables.views["rows"].tolist() == [[1] * 4, [7, 0, 0, 0], [7, 0, 0, 0]]
        assert tables.views["weights"].tolist() == [[0.5, 0.5], [0.5, 0.5], [0, 0]]
        given |= {"weights": torch.full((2, 2), 0.5)}
    assert [view.data_ptr() for view in tables.views.values()] == places


def test_a_shorter_one_leaves_nothing_of_a_longer_one() -> None:
    tables = _tables()
    for length in (5, 1, 0):
        given = {
            "offsets": torch.arange(length, dtype=torch.int32) + 1,
            "rows": torch.ones(min(length, 3), 4, dtype=torch.int32),
            "weights": torch.ones(min(length, 3), 2),
            "none": NONE,
        }
        tables.fill(given, {})
        assert tables.views["offsets"].tolist() == [*range(1, length + 1), *[0] * (5 - length)]
        assert tables.views["rows"].sum() == 4 * min(length, 3)
