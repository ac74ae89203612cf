"""The loader of CUDA sources: what is compiled once, what launches see, what goes wrong."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from ptx_emulator import Buffer, Fault
from ptx_emulator.cuda_program import CudaProgram
from ptx_emulator.nvcc import compiled, find_nvcc

NVCC = find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc: neither in CUDA_HOME/bin nor on the PATH")

HEADER = "struct Pair { char first; long second; };\n"
SOURCE = """
#include <cuda_runtime_api.h>
#include "pair.h"

__global__ void write(int* to, short scale, Pair pair, float add) {
  extern __shared__ int held[];
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  const int i = (blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x * blockDim.y + thread;
  held[thread] = i * scale;
  to[i] = held[thread] + pair.first + static_cast<int>(pair.second) + static_cast<int>(add);
}

extern "C" void fill(int* to, long shared, cudaStream_t stream) {
  write<<<dim3(2, 3), dim3(8, 4), shared, stream>>>(to, -3, Pair{5, -70000}, 2.5f);
}

extern "C" void fill_by_the_interface(int* to, cudaStream_t stream) {
  short scale = 2;
  Pair pair{0, 1};
  float add = 0;
  void* arguments[] = {&to, &scale, &pair, &add};
  cudaLaunchKernel(reinterpret_cast<const void*>(write), dim3(6), dim3(32), arguments, 128, stream);
}

extern "C" void fill_and_set(int* to, long bytes, cudaStream_t stream) {
  write<<<6, 32, 128, stream>>>(to, 1, Pair{0, 0}, 0);
  cudaMemsetAsync(to, 0xff, bytes, stream);
  write<<<1, 32, 128, stream>>>(to, 1, Pair{0, 0}, 0);
}

namespace of { long twice(long x) { return 2 * x; } }
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    (folder / "pair.h").write_text(HEADER)
    (folder / "write.cu").write_text(SOURCE)
    return folder / "write.cu"


@pytest.fixture(scope="module")
def program(source: Path, tmp_path_factory: pytest.TempPathFactory) -> CudaProgram:
    assert NVCC is not None
    return CudaProgram(compiled([source], tmp_path_factory.mktemp("built"), NVCC), "sm_80")


def _filled(program: CudaProgram, function: str, *arguments: int) -> tuple[np.ndarray, int]:
    to = np.full(192, -1, np.int32)
    buffers = [Buffer(to.ctypes.data, to.nbytes, "to")]
    reports = program.launches(function, to.ctypes.data, *arguments, 0, buffers=buffers)
    assert all("write" in name and report.steps for name, report in reports)
    return to, len(reports)


@needs_nvcc
def test_sizes_and_arguments_of_any_width(program: CudaProgram) -> None:
    to, launches = _filled(program, "fill", 128)
    assert launches == 1
    assert (to == np.arange(192) * -3 + 5 - 70000 + 2).all()
    to, _ = _filled(program, "fill_by_the_interface")
    assert (to == np.arange(192) * 2 + 1).all()
    assert program.number("twice", -(2**40)) == -(2**41)


@needs_nvcc
def test_launches_and_memory_operations_keep_their_order(program: CudaProgram) -> None:
    to, launches = _filled(program, "fill_and_set", 4 * 96)
    assert launches == 2
    assert (to == np.concatenate([np.arange(32), np.full(64, -1), np.arange(96, 192)])).all()


@needs_nvcc
def test_a_fault_ends_the_program(program: CudaProgram) -> None:
    with pytest.raises(Fault, match=r"^out of bounds: 4 bytes at 64 of 64 of shared memory"):
        _filled(program, "fill", 64)
    with pytest.raises(Fault, match=r"^cudaMemsetAsync: 772 bytes at 0x[0-9a-f]+ lie in no buffer$"):
        _filled(program, "fill_and_set", 4 * 193)


@needs_nvcc
def test_names(program: CudaProgram) -> None:
    assert "write" in program["write"].name
    with pytest.raises(ValueError, match=r"^name: expected that of one function, got 'thrice', which 0 have$"):
        program.number("thrice")


@needs_nvcc
def test_what_is_compiled_is_kept(source: Path, tmp_path: Path) -> None:
    """By the text of sources and headers: nvcc is asked for its version only."""
    assert NVCC is not None
    counting = tmp_path / "nvcc"
    counting.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/calls\nexec {NVCC} "$@"\n')
    counting.chmod(counting.stat().st_mode | stat.S_IXUSR)
    first = compiled([source], tmp_path / "built", str(counting))
    assert compiled([source], tmp_path / "built", str(counting)) == first
    assert first.library.is_file()
    assert all(".target sm_80" in file.read_text() for file in first.ptx["sm_80"])
    assert sorted((tmp_path / "built").iterdir()) == [first.library.parent]
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) == 3
    assert calls.count("--version") == 2

    other = tmp_path / "write.cu"
    other.write_text(SOURCE)
    (tmp_path / "pair.h").write_text(HEADER.replace("char", "short"))
    assert compiled([other], tmp_path / "built", str(counting)) != first


@needs_nvcc
def test_a_source_that_does_not_compile(tmp_path: Path) -> None:
    assert NVCC is not None
    (tmp_path / "wrong.cu").write_text("not CUDA")
    with pytest.raises(ValueError, match=r"^nvcc: wrong\.cu does not compile:\n(.|\n)*error"):
        compiled([tmp_path / "wrong.cu"], tmp_path / "built", NVCC)
    assert not list((tmp_path / "built").iterdir())


def test_nvcc_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path / "home" / "bin", tmp_path / "path"):
        folder.mkdir(parents=True)
        (folder / "nvcc").write_text("#!/bin/sh\n")
        (folder / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert find_nvcc() == str(tmp_path / "home" / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert find_nvcc() == str(tmp_path / "path" / "nvcc")
    monkeypatch.setenv("PATH", "")
    assert find_nvcc() is None
