"""A missing, stale, mismatched or broken extension is a named reason and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import pixelrefer_fast
from pixelrefer_fast import load, loading
from pixelrefer_fast.checkpoint import Checkpoint
from pixelrefer_fast.decoding.decoder import Decoder
from pixelrefer_fast.doctor import probes as doctor
from pixelrefer_fast.network import Network
from pixelrefer_fast.ops.extension import build as build_extension
from pixelrefer_fast.ops.extension import load as extension

PACKAGE = Path(pixelrefer_fast.__file__).parent
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's own files in a folder of their own, without an extension."""
    folder = tmp_path / "copy" / "pixelrefer_fast"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("*.so", "__pycache__", "assets"))
    return folder


def _python(copy: Path, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"XDG_CACHE_HOME": str(copy.parent / "cache"), "PYTHONPATH": str(copy.parent), **environment}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **settings},
        cwd=copy.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# Packs one object and says who did it, with what the log says.
CALL = """
import logging, sys, torch
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from pixelrefer_fast import ops
from pixelrefer_fast.ops.extension import load as extension
for _ in range(3):
    packed = ops.pack_objects(torch.ones(6), torch.tensor([[2, 3]]), 6)
assert packed.counts.tolist() == [6]
print(extension.reason("cpu"))
"""


def _reasons(copy: Path, **environment: str) -> tuple[list[str], str]:
    """What the log says in a process that calls an operation three times, and the extension's own reason."""
    ran = _python(copy, CALL, **environment)
    assert ran.returncode == 0, ran.stderr
    *log, reason = ran.stdout.splitlines()
    return log, reason


def test_missing(copy: Path) -> None:
    log, reason = _reasons(copy)
    assert reason == "pixelrefer_fast._C is not built (pixelrefer-fast doctor --build)"
    assert log == [f"op pack_objects: not using cuda ({reason})"]


def test_garbage_is_told_from_a_build(copy: Path) -> None:
    (copy / "_C.abi3.so").write_bytes(b"not a library")
    log, reason = _reasons(copy)
    assert reason.startswith(f"{copy / '_C.abi3.so'} was built from other sources than these")
    assert len(log) == 1


def test_broken(copy: Path) -> None:
    (copy / "_C.abi3.so").write_bytes(b"\x7fELF" + build_extension.marker())
    log, reason = _reasons(copy)
    assert reason.startswith(f"{copy / '_C.abi3.so'} does not load: ")
    assert reason.endswith("(pixelrefer-fast doctor --build)")
    assert len(log) == 1
    ran = _python(copy, "from pixelrefer_fast import doctor; doctor.main(['--json'])")
    found = json.loads(ran.stdout)
    assert not found["extension"]["modules"]["_C"]["loads"]
    assert f"pixelrefer_fast._C: {reason}" in found["problems"]


def test_cut_off(copy: Path) -> None:
    """The loader would map it, and the process would die of what is not there."""
    header = bytearray(b"\x7fELF\x02".ljust(64, b"\0"))
    struct.pack_into("=Q", header, 40, 100_000)  # where the section headers begin
    struct.pack_into("=2H", header, 58, 64, 30)  # the size of one, and how many
    (copy / "_C.abi3.so").write_bytes(header + build_extension.marker())
    log, reason = _reasons(copy)
    assert reason == f"{copy / '_C.abi3.so'} is cut off (pixelrefer-fast doctor --build)"
    assert len(log) == 1


def test_a_backend_asked_for_by_name_says_why(copy: Path) -> None:
    code = """
import torch
from pixelrefer_fast import ops
from pixelrefer_fast.ops.scatter_tokens import gather_tokens
for call in (
    lambda: ops.scatter_tokens(torch.zeros(2, 2), torch.zeros(1, 2), torch.tensor([0]), backend="cuda"),
    lambda: gather_tokens(torch.zeros(2, 2), torch.tensor([0]), backend="cuda"),
):
    try:
        call()
    except ops.BackendError as error:
        print(error)
"""
    ran = _python(copy, code)
    assert ran.returncode == 0, ran.stderr
    said = "backend 'cuda' was asked for but declines: pixelrefer_fast._C is not built (pixelrefer-fast doctor --build)"
    assert ran.stdout.splitlines() == [f"op scatter_tokens: {said}", f"gather_tokens: {said}"]


def test_other_devices_are_named() -> None:
    assert extension.reason("mps") == "the extension computes on cpu and cuda, not on mps"


def test_importing_the_package_and_its_operations_loads_nothing(copy: Path) -> None:
    (copy / "_C.abi3.so").write_bytes(b"not a library")
    ran = _python(
        copy,
        "import pixelrefer_fast, pixelrefer_fast.ops, sys; print('pixelrefer_fast.ops.extension.load' in sys.modules)",
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "False\n", "")


BUILD = "import sys; from pixelrefer_fast import doctor; sys.exit(doctor.main(['--build']))"


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on the PATH")
class TestDoctorBuild:
    def test_into_the_package(self, copy: Path) -> None:
        (copy / "_C.abi3.so").write_bytes(b"of an older version")
        ran = _python(copy, BUILD, CUDA_HOME="", CUDA_PATH="", PATH=str(Path(str(COMPILER)).parent))
        assert ran.returncode == 0, ran.stderr
        lines = ran.stdout.splitlines()
        assert lines[0].startswith("building _C with ")
        steps, (built, *loads) = lines[1:8], lines[8:]
        assert [line.split(" csrc/")[0] for line in steps] == [f"_C [{i}/7]" for i in range(1, 8)]
        assert built.startswith("pixelrefer_fast extension: built _C.abi3.so; not built: _C_cuda (")
        assert loads == ["loads: _C"]
        assert [path.name for path in copy.glob("*.so*")] == ["_C.abi3.so"]
        assert _reasons(copy) == ([], "None")

    def test_into_the_users_cache(self, copy: Path) -> None:
        code = f"""
import os
real = os.access
os.access = lambda path, mode: str(path) != {str(copy)!r} and real(path, mode)
{BUILD}
"""
        ran = _python(copy, code)
        assert ran.returncode == 0, ran.stderr
        (built,) = (copy.parent / "cache" / "pixelrefer_fast").glob("*/_C.abi3.so")
        assert not list(copy.glob("*.so"))
        assert _reasons(copy) == ([], "None")
        # a stale one in the package does not hide it
        (copy / "_C.abi3.so").write_bytes(b"of an older version")
        assert _reasons(copy) == ([], "None")
        # other sources, another build
        (copy / "csrc" / "module.h").write_text((copy / "csrc" / "module.h").read_text() + "\n")
        assert _reasons(copy)[1].startswith(f"{copy / '_C.abi3.so'} was built from other sources than these")
        assert built.is_file()

    def test_a_source_that_does_not_compile_is_one_clear_line(self, copy: Path) -> None:
        source = copy / "csrc" / "cpu" / "pack_views.cpp"
        source.write_text(source.read_text() + "int broken = ;\n")
        ran = _python(copy, BUILD)
        assert ran.returncode == 1
        last = ran.stderr.splitlines()[-1]
        assert last.startswith("failed: pixelrefer_fast extension: ")
        assert "not built: _C (cpu/pack_views.cpp: " in last  # with nvcc, the other module is built
        assert "error: expected primary-expression before" in last
        assert not (copy / "_C.abi3.so").exists()


def test_doctor_build_without_a_compiler(copy: Path) -> None:
    ran = _python(copy, BUILD, PATH="/nowhere")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        "failed: pixelrefer_fast extension: not built: _C and _C_cuda (no C++ compiler was found: neither CXX nor c++, "
        "g++ or clang++ on the PATH)\n"
    )


def test_doctor_takes_one_of_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--build", "--json"]) == 2
    assert capsys.readouterr().err == "error: doctor takes --json or --build, got --build --json\n"


class TestBuildForCuda:
    """What the first load onto a CUDA device does where the module of such devices is missing; nvcc is stood in for."""

    @pytest.fixture
    def compilations(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The modules that were compiled, in order; a build is a file with the marker of the sources."""
        compiled: list[str] = []
        torch_with_cuda = build_extension.Torch(tmp_path, (2, 13), "13.0")

        def build(planned: build_extension.BuildPlan, target: Path, *rest: object) -> build_extension.Outcome:
            time.sleep(0.2)  # others come by meanwhile
            compiled.extend(planned.modules)
            path = target / f"{planned.modules[0]}.abi3.so"
            path.write_bytes(build_extension.marker())
            return build_extension.Outcome([path], planned.missing)

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(build_extension, "PACKAGE", tmp_path / "package")
        monkeypatch.setattr(build_extension, "plan", lambda: build_extension.BuildPlan(torch_with_cuda, (), "nvcc", {}))
        monkeypatch.setattr(build_extension, "build", build)
        return compiled

    def test_once_for_all_who_load(self, compilations: list[str], caplog: pytest.LogCaptureFixture) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: extension.build_for_cuda(), range(4)))
        extension.build_for_cuda()
        assert compilations == ["_C_cuda"]
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert caplog.messages[0].startswith(f"compiling _C_cuda into {build_extension.user_folder()}: once, about a ")
        assert extension._found("_C_cuda") == build_extension.user_folder() / "_C_cuda.abi3.so"

    def test_again_after_a_change_of_the_sources(self, compilations: list[str]) -> None:
        build_extension.user_folder().mkdir(parents=True)
        (build_extension.user_folder() / "_C_cuda.abi3.so").write_bytes(b"of other sources")
        extension.build_for_cuda()
        assert compilations == ["_C_cuda"]

    def test_not_if_it_may_not(self, compilations: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PIXELREFER_FAST_BUILD_CUDA", "0")
        extension.build_for_cuda()
        assert compilations == []

    def test_not_if_it_cannot(self, compilations: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        missing = {"_C_cuda": "no nvcc was found"}
        monkeypatch.setattr(build_extension, "plan", lambda: build_extension.BuildPlan(None, (), None, missing))
        extension.build_for_cuda()
        assert compilations == []
        assert not build_extension.user_folder().exists()

    def test_a_failure_is_told_and_no_more(
        self, compilations: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(
            build_extension,
            "build",
            lambda *rest: build_extension.Outcome([], {"_C_cuda": "cuda/scan.cuh: nvcc fails"}),
        )
        extension.build_for_cuda()
        assert caplog.messages[-1] == "_C_cuda is not compiled: cuda/scan.cuh: nvcc fails"

    def test_a_cache_that_cannot_be_written_is_told(
        self, compilations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        extension.build_for_cuda()
        assert compilations == []
        assert caplog.messages[-1].startswith("_C_cuda is not compiled: [Errno 20] Not a directory")

    @pytest.mark.parametrize(("backend", "asked"), [("auto", 1), ("cuda", 1), ("torch", 0), ("triton", 0)])
    def test_load_asks_for_it_on_a_device_alone(
        self, monkeypatch: pytest.MonkeyPatch, backend: str, asked: int
    ) -> None:
        calls: list[int] = []
        monkeypatch.setattr(extension, "build_for_cuda", lambda: calls.append(1))
        load("embedded:lite", device="cpu", backend="torch")
        assert calls == []
        # nothing is put on a device that is not here
        monkeypatch.setattr(loading, "auto_device", lambda device: torch.device("cuda"))
        monkeypatch.setattr(torch.nn.Module, "to_empty", lambda self, device: self)
        monkeypatch.setattr(loading, "restore_buffers", lambda model, device: None)
        monkeypatch.setattr(Checkpoint, "load_into", lambda *rest: {})
        monkeypatch.setattr(Network, "loaded", lambda *rest: None)
        monkeypatch.setattr(Decoder, "warmup", lambda *rest: None)
        load("embedded:lite", dtype="float32", backend=backend)
        assert len(calls) == asked
