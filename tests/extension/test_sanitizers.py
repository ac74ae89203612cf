"""The C++ code under AddressSanitizer and UndefinedBehaviorSanitizer, the CUDA kernels on the CPU with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
SANITIZED = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
# makecontext is announced as a possible source of false positives; none was seen
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ on the PATH")


def _sanitizer(name: str) -> Path:
    """The sanitizer's library; GCC may be installed without."""
    ran = subprocess.run([str(COMPILER), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(ran.stdout.strip())
    if not path.is_absolute():
        pytest.skip(f"g++ has no {name}")
    return path


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    _sanitizer("libasan.so")
    program = tmp_path_factory.mktemp("fuzz") / "fuzz"
    sources = [HERE / "fuzz.cpp", *sorted(CSRC.glob("cpu/*.cpp")), "-x", "c++", *sorted(CSRC.glob("cuda/*.cu"))]
    warnings = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
    folders = (f"-I{CSRC}", f"-I{HERE / 'cuda_on_cpu'}")
    command = [str(COMPILER), "-std=c++17", *SANITIZED, *warnings, *folders, *map(str, sources), "-pthread"]
    subprocess.run([*command, "-o", str(program)], check=True, timeout=300)
    return program


def _run(program: Path, cpu_cases: int, cuda_cases: int) -> str:
    command = [str(program), str(cpu_cases), str(cuda_cases)]
    environment = {**os.environ, **OPTIONS}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran.stdout


def test_random_raggeds(fuzz: Path) -> None:
    out = _run(fuzz, 2000, 40)
    assert out.splitlines() == [
        "CPU: 2000 cases of each operation",
        "CUDA kernels on the CPU: 40 cases of each operation",
    ]


@pytest.mark.slow
def test_many_random_raggeds(fuzz: Path) -> None:
    assert "kernels on the CPU: 300 cases" in _run(fuzz, 30_000, 300)


@pytest.mark.slow
def test_the_extension_itself(tmp_path: Path) -> None:
    """Built with AddressSanitizer and loaded into Python: outputs are exactly as long as they may be."""
    library = _sanitizer("libasan.so")
    code = """
import sys, torch
from pathlib import Path
from pixelrefer_fast.ops.extension import build, load
plan = build.plan()
target = Path(sys.argv[1])
outcome = build.build(plan, target, lambda line: None)
assert not set(outcome.missing) - {"_C_cuda"}, outcome
load._found = lambda name: target / f"{name}.abi3.so"
assert load.reason("cpu") is None, load.reason("cpu")
from pixelrefer_fast.ops import registry
for name in ("mask_grids", "pack_masks", "pack_objects", "pack_views", "place_patches", "scatter_tokens"):
    for sample in registry()[name].samples(torch.Generator().manual_seed(0), torch.float16):
        plain = [a.clone() if isinstance(a, torch.Tensor) else a for a in sample]
        wanted, given = registry()[name](*plain, backend="torch"), registry()[name](*sample, backend="cuda")
        if isinstance(wanted, torch.Tensor):
            wanted, given = (wanted,), (given,)
        pairs = zip(wanted, given) if wanted is not None else [(plain[0], sample[0])]
        assert all(torch.equal(a, b) for a, b in pairs)
print("equal")
"""
    wrapper = tmp_path / "c++"
    wrapper.write_text(f'#!/bin/sh\nexec "{COMPILER}" {" ".join(SANITIZED)} "$@"\n')
    wrapper.chmod(0o755)
    # the sanitizer has to be there before everything else
    environment = {**os.environ, **OPTIONS, "CXX": str(wrapper), "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "built")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout.strip() == "equal"
