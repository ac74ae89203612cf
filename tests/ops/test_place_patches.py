"""place_patches against torch's own interpolation of positions and features."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelrefer_fast.ops import place_patches
from pixelrefer_fast.ops.place_patches import COLUMNS

SIDES = st.tuples(*[st.integers(1, 9)] * 4)


def _case(
    sizes: list[tuple[int, int, int, int]], spare: int, same: bool, seed: int
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Row, column, offsets; the table; and of each patch its mark."""
    generator = torch.Generator().manual_seed(seed)
    table, rows, columns, owners, offsets, first = [], [], [], [], [0], 3
    for number, (down, across, fine_down, fine_across) in enumerate(sizes):
        grid = (down, across) if same else (fine_down, fine_across)
        chosen = (torch.rand(grid, generator=generator) < 0.6).nonzero()
        rows.append(chosen[:, 0])
        columns.append(chosen[:, 1])
        owners += [number] * len(chosen)
        offsets.append(offsets[-1] + len(chosen))
        box = torch.randint(0, 900, (6,), generator=generator).tolist()
        table.append([first, down, across, *grid, *box[:4], 1 + box[4], 1 + box[5]])
        first += down * across
    padding = [torch.full((spare,), -1)]
    packed = [torch.cat([*part, *padding]).int() for part in (rows, columns)]
    return (
        [*packed, torch.tensor(offsets)],
        torch.tensor(table, dtype=torch.int64).reshape(-1, COLUMNS),
        torch.tensor(owners).long(),
    )


@settings(deadline=None)
@given(
    sizes=st.lists(SIDES, max_size=4),
    spare=st.integers(0, 3),
    corners=st.sampled_from([1, 4]),
    seed=st.integers(0, 2**32 - 1),
    backend=st.sampled_from(["torch", "auto"]),
)
def test_against_interpolated_features(
    sizes: list[tuple[int, int, int, int]], spare: int, corners: int, seed: int, backend: str
) -> None:
    (row, column, offsets), table, owner = _case(sizes, spare, corners == 1, seed)
    placed = place_patches(row, column, offsets, table, corners, 999, backend=backend)
    count = len(owner)
    assert placed.patch[count:].eq(999).all()
    assert not placed.weights[count:].any()
    assert not placed.positions[count:].any()
    assert torch.allclose(placed.weights[:count].sum(1), torch.ones(count))
    features = torch.randn(400, generator=torch.Generator().manual_seed(seed))
    given_ = (features[placed.patch[:count]] * placed.weights[:count]).sum(1)
    for number, mark in enumerate(table.tolist()):
        own = owner == number
        first, down, across, fine_down, fine_across, *box, height, width = mark
        cells = (row[:count][own].long(), column[:count][own].long())
        coarse = features[first : first + down * across].view(1, 1, down, across)
        fine = F.interpolate(coarse, size=(fine_down, fine_across), mode="bilinear")[0, 0]
        assert torch.allclose(given_[own], fine[cells], atol=1e-5)
        x = (torch.arange(across) / across * (box[2] - box[0]) + box[0]) / max(width - 1, 1)
        y = (torch.arange(down) / down * (box[3] - box[1]) + box[1]) / max(height - 1, 1)
        grid = torch.stack([x.expand(down, across), y[:, None].expand(down, across)])[None]
        wanted = F.interpolate(grid, size=(fine_down, fine_across), mode="bilinear")[0][:, cells[0], cells[1]]
        assert torch.allclose(placed.positions[:count][own], wanted.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corners": 2}, "expected corners, 1 or 4, got 2"),
        ({"nowhere": -1}, "expected nowhere, an integer from 0"),
        ({"offsets": torch.tensor([0, 3, 2])}, "expected offsets from 0 that never fall"),
        ({"offsets": torch.tensor([1, 3, 3])}, "expected offsets from 0 that never fall"),
        ({"offsets": torch.tensor([0, 3])}, r"expected offsets of shape \(3\), got \(2,\)"),
        ({"row": torch.zeros(4)}, "expected row of torch.int32, got torch.float32"),
        ({"column": torch.zeros(5).int()}, r"expected column of shape \(4\), got \(5,\)"),
    ],
)
def test_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "row": torch.zeros(4).int(),
        "column": torch.zeros(4).int(),
        "offsets": torch.tensor([0, 1, 4]),
        "table": torch.ones(2, COLUMNS).long(),
        "corners": 1,
        "nowhere": 9,
    } | change
    with pytest.raises(ValueError, match=f"^place_patches: {message}"):
        place_patches(**arguments)  # type: ignore[arg-type]
