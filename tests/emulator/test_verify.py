"""A recorded request of the reference holds with every kernel compiled and emulated."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kernel_place import EMULATED
from recorded import recorded_cases

from pixelrefer_fast.device.launches import Launch, listen
from pixelrefer_fast.verify.replay import STAGES, verify

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not EMULATED, reason="needs compiled kernels in the emulator: make emulate"),
]


def test_a_recorded_case_holds(assets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    shutil.copytree(assets / "full", folder, ignore=shutil.ignore_patterns("case_*.safetensors"))
    shutil.copy(recorded_cases("full")["under_patch"], folder)
    launched: set[str] = set()

    def hear(launch: Launch) -> None:
        launched.add(launch.kernel.split(".")[0])

    with listen(hear):
        report = verify(folder, backend="triton", device="cpu", dtype="float32")
    (found,) = report["cases"]
    assert tuple(found["stages"]) == STAGES
    assert found["ok"], found
    # all but infuse, which the Full kind has not
    encoding = {"add_norm", "object_pool", "rope2d", "varlen_attention", "view_patches"}
    assert launched == encoding | {"best_token", "norm_linear", "paged_attention", "swiglu"}
