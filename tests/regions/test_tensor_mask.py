"""A mask on a device as a region: written only when somebody reads it, in other processes a mask in host memory."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from as_on_a_device import Brought, masks_stay

import pixelrefer_fast as pf
from pixelrefer_fast.regions import Region, as_regions
from pixelrefer_fast.regions.shapes import Bitmap
from pixelrefer_fast.regions.tensor_mask import TensorMask


@pytest.fixture(autouse=True)
def _stay() -> Iterator[None]:
    with masks_stay():
        yield


def _region() -> tuple[Region, np.ndarray]:
    mask = np.random.default_rng(0).random((31, 45)) < 0.2
    return Region.from_mask(torch.from_numpy(mask)), mask


def test_its_record_is_made_when_it_is_read() -> None:
    region, mask = _region()
    with Brought() as brought:
        written = region.written()
        assert not isinstance(written, dict)
    assert brought.reads == []
    assert written == Region.of(mask).to_json()
    assert json.loads(json.dumps(dict(written))) == region.to_json()
    assert type(pickle.loads(pickle.dumps(region.written()))) is dict
    assert type(Region.of(mask).written()) is dict


def test_in_another_process_it_is_in_host_memory() -> None:
    region, mask = _region()
    again = pickle.loads(pickle.dumps(region))
    assert again == Region.of(mask)
    assert isinstance(again.marks[0][1], Bitmap)


def test_its_words() -> None:
    region, _ = _region()
    assert repr(region) == "<Region mask: height=31, width=45, on cpu>"
    assert region.kind == "mask"
    assert isinstance(region.marks[0][1], TensorMask)


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_a_models_tokens(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The tokens of the same masks in host memory, bit for bit, and the same record; encoding reads no mask."""
    model = request.getfixturevalue(kind)
    image = np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    masks = np.zeros((3, 120, 160), bool)
    for i in range(3):
        masks[i, 10 + 9 * i : 60 + 12 * i, 20 + 5 * i : 70 + 25 * i] = True
    regions = as_regions(torch.from_numpy(masks))
    objects = model.encode(image, regions)
    assert all("on_host" not in region.marks[0][1].__dict__ for region in regions)
    wanted = model.encode(image, masks)
    assert torch.equal(objects.tokens, wanted.tokens)
    assert objects.objects == wanted.objects
    objects.save(tmp_path / "tensors")
    assert pf.Objects.load(tmp_path / "tensors").provenance == wanted.provenance
