"""Which launch configuration a kernel gets on which device: what was tuned, else its family's, else the default."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pixelrefer_fast.kernels import _launch

DEFAULT = [{"upto": 64, "BLOCK": 64, "num_warps": 4}, {"BLOCK": 128, "num_warps": 4}]
FAMILY = [{"BLOCK": 32, "num_warps": 2, "reason": "two are enough"}]
TUNED = [{"BLOCK": 16, "num_warps": 1}]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Configurations of a kernel file, in `tmp_path`, and two devices: cuda:0 an L40S, cuda:1 of no known family."""
    kept = (_launch._chosen, _launch._table, _launch._device_name, _launch._family)
    monkeypatch.setattr(_launch, "CONFIGS", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: [(8, 9), (13, 0)][device.index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: ["NVIDIA L40S", "Another"][device.index])
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "default.json").write_text(json.dumps({"a": DEFAULT, "b": DEFAULT}))
    (tmp_path / "scratch" / "sm_86.json").write_text(json.dumps({"a": FAMILY}))
    for function in kept:
        function.cache_clear()
    yield tmp_path / "scratch"
    for function in kept:
        function.cache_clear()


def test_a_family_has_what_its_file_names_and_the_default_else(folder: Path) -> None:
    ada, other = torch.device("cuda", 0), torch.device("cuda", 1)
    assert _launch.configuration("scratch.a", 64, ada) == {"BLOCK": 32, "num_warps": 2}
    assert _launch.configuration("scratch.b", 64, ada) == {"BLOCK": 64, "num_warps": 4}
    assert _launch.configuration("scratch.b", 65, ada) == {"BLOCK": 128, "num_warps": 4}
    for device in (other, torch.device("cpu"), None):
        assert _launch.configuration("scratch.a", 64, device) == {"BLOCK": 64, "num_warps": 4}
    assert [device for device, _ in _launch.shipped("scratch.a")] == ["default", "default", "sm_86"]


def test_what_was_tuned_on_the_device_comes_before_its_family(folder: Path) -> None:
    (folder / "NVIDIA_L40S.json").write_text(json.dumps({"a": TUNED}))
    ada = torch.device("cuda", 0)
    assert _launch.configuration("scratch.a", 64, ada) == TUNED[0]
    assert _launch.configuration("scratch.b", 64, ada) == {"BLOCK": 64, "num_warps": 4}
    # from where tools/tune.py begins
    assert _launch.untuned("scratch", ada) == {"a": [{"BLOCK": 32, "num_warps": 2}], "b": DEFAULT}
    assert _launch.untuned("scratch", None) == {"a": DEFAULT, "b": DEFAULT}
