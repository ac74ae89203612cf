"""Calls of a question counted in the emulator: the numbers of the committed table, and what cannot be counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pixelrefer_fast.bench.profile import counted, resources

ROOT = Path(__file__).parents[3]
# kernels run compiled in processes without TRITON_INTERPRET, which decides when Triton is imported
SCRIPT = """
import json, sys
import torch
from pixelrefer_fast.bench.profile.calls import capturing
from pixelrefer_fast.bench.profile.counted import count
from pixelrefer_fast.bench.run import arguments
from pixelrefer_fast.ops import registry

if __name__ == "__main__":
    cpu = torch.device("cpu")
    with capturing(lambda: "encoder") as calls:
        for op, dtype in (("add_norm", torch.bfloat16), ("add_norm", torch.bfloat16), ("add_norm", torch.float64)):
            registry()[op](*arguments.make(op, cpu, dtype, {"rows": 8, "width": 256}))
        registry()["pack_objects"](*arguments.make("pack_objects", cpu, torch.float32, {}))
    told = []
    found = count(calls, told.append)
    assert "ptx_emulator" not in sys.modules
    print(json.dumps([[call.to_json() for call in found], told]))
"""


def test_counts_of_calls_are_those_of_the_table(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYTHONPATH")}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found, told = json.loads(done.stdout)
    assert [(call["name"], call["times"], call["arch"]) for call in found] == [
        ("encoder/add_norm/0", 2, 80),
        ("encoder/add_norm/0", 2, 90),
        ("encoder/add_norm/1", 1, 80),
        ("encoder/add_norm/1", 1, 90),
    ]
    assert told == [f"{call['name']}, sm_{call['arch']}" for call in found]
    table = json.loads((ROOT / "docs" / "kernels" / "counts.json").read_text(encoding="utf-8"))
    committed = [r for r in table["rows"] if r["call"] == "rows 8, width 256, bf16"]
    for call, row in zip(found[:2], committed, strict=True):
        (kernel,) = call["kernels"]
        assert call["arch"] == row["arch"]
        assert (kernel["kernel"], kernel["sectors"], kernel["warps"]) == ("add_norm.rows", row["sectors"], row["warps"])
    for call in found[2:]:  # no kernel takes float64
        assert call["kernels"] == []
        assert "float64" in call["declined"]


def test_without_an_emulator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(counted, "MODULE", "no_emulator")
    with pytest.raises(ValueError, match="--kernels: expected the PTX emulator, no_emulator: on PYTHONPATH"):
        counted.check()
    # a checkout's folder counts
    monkeypatch.setattr(counted, "BESIDE", tmp_path)
    monkeypatch.setattr(resources, "unusable", lambda: "it is interpreted")
    (tmp_path / "no_emulator").mkdir()
    (tmp_path / "no_emulator" / "__init__.py").touch()
    with pytest.raises(ValueError, match="--kernels: expected compiled kernels, but it is interpreted"):
        counted.check()


def test_the_checkouts_emulator_is_found() -> None:
    assert (counted.BESIDE / "ptx_emulator" / "triton_driver.py").is_file()
