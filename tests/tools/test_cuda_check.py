"""The tool that reads what ptxas says notices what it is there for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

TOOL = Path(__file__).parents[2] / "tools" / "cuda_check.py"
NVCC = shutil.which("nvcc")
SOURCE = """
namespace pixelrefer_fast::cuda { namespace {
template <typename T>
__global__ void indexed(T* data, int at) {
  T held[64];
  for (int i = 0; i < 64; ++i) held[i] = i;
  for (int i = 0; i < at; ++i) held[data[i] % 64] += data[i];  // places that are not known: local memory
  for (int i = 0; i < 64; ++i) data[i] = held[i];
}
template __global__ void indexed<unsigned int>(unsigned int*, int);
} }
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script(TOOL)


@pytest.mark.skipif(NVCC is None, reason="no nvcc on the PATH")
def test_local_memory_is_seen(tool: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "indexed.cu"
    source.write_text(SOURCE)
    ((name, row),) = tool.compiled(NVCC, source, 90).items()
    assert "indexed" in name
    assert row["stack"] >= 256
    assert row["registers"] > 0
    source.write_text("not CUDA")
    with pytest.raises(SystemExit, match=r"^indexed.cu does not compile for sm_90"):
        tool.compiled(NVCC, source, 90)


def test_without_nvcc_one_line_says_so() -> None:
    ran = subprocess.run(
        [sys.executable, str(TOOL)], env={"PATH": "/nowhere"}, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "cuda-check: skipped, no nvcc on the PATH\n")
