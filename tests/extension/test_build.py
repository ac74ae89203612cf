"""Building from source: the three modes, what is planned, how wheels are named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from pixelrefer_fast.ops.extension import build as build_extension
from pixelrefer_fast.ops.extension.build import BuildError, architectures, plan

ROOT = Path(__file__).parents[2]
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on the PATH")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What a build reads, in a folder of its own; small assets are left out."""
    folder = tmp_path / "source"
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "assets")
    shutil.copytree(ROOT / "pixelrefer_fast", folder / "pixelrefer_fast", symlinks=True, ignore=ignored)
    (folder / "pixelrefer_fast" / "assets").mkdir()
    for name in ("csrc", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def _wheel(source: Path, *options: str, **environment: str) -> tuple[int, str, list[Path]]:
    """Exit code, all that was said, the wheels."""
    out = source.parent / "wheels"
    # -v: pip is silent about what a build prints
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", *options, "-w", str(out), "."]
    settings = {**os.environ, "CUDA_HOME": "", "CUDA_PATH": "", **environment}
    ran = subprocess.run(command, cwd=source, env=settings, capture_output=True, text=True, timeout=600, check=False)
    return ran.returncode, ran.stdout + ran.stderr, sorted(out.glob("*.whl"))


def _pure(wheel: Path) -> bool:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (described,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/WHEEL"))
    assert "pixelrefer_fast/csrc/bindings_cpu.cpp" in names  # for `doctor --build`
    assert "pixelrefer_fast/__init__.py" in names
    has_extension = any(name.endswith(".so") for name in names)
    assert ("Root-Is-Purelib: true" in described) == (not has_extension)
    assert f"Tag: {'-'.join(wheel.stem.split('-')[-3:])}" in described
    return not has_extension


def test_0_leaves_it_out(source: Path) -> None:
    code, said, wheels = _wheel(source, "--no-build-isolation", PIXELREFER_FAST_BUILD_CUDA="0")
    assert code == 0, said
    assert "pixelrefer_fast extension: not built (PIXELREFER_FAST_BUILD_CUDA=0)" in said
    assert [w.name.split("-", 2)[2] for w in wheels] == ["py3-none-any.whl"]
    assert _pure(wheels[0])


@needs_compiler
def test_unset_builds_what_can_be_built(source: Path) -> None:
    code, said, wheels = _wheel(source, "--no-build-isolation", PATH=str(Path(str(COMPILER)).parent))
    assert code == 0, said
    (line,) = (line.strip() for line in said.splitlines() if "pixelrefer_fast extension:" in line)
    assert line.startswith("pixelrefer_fast extension: built _C.abi3.so; not built: _C_cuda (")
    assert wheels[0].name.split("-", 2)[2].startswith("cp310-abi3-")
    assert not _pure(wheels[0])


def test_unset_without_a_compiler_is_a_pure_wheel(source: Path) -> None:
    code, said, wheels = _wheel(source, "--no-build-isolation", PATH="/nowhere")
    assert code == 0, said
    (line,) = (line.strip() for line in said.splitlines() if "pixelrefer_fast extension:" in line)
    assert line.startswith("pixelrefer_fast extension: not built: _C and _C_cuda (no C++ compiler was found")
    assert [w.name.split("-", 2)[2] for w in wheels] == ["py3-none-any.whl"]
    assert _pure(wheels[0])


@needs_compiler
def test_unset_with_a_source_that_does_not_compile_is_a_pure_wheel(source: Path) -> None:
    path = source / "csrc" / "cpu" / "pack_views.cpp"
    path.write_text(path.read_text() + "int broken = ;\n")
    without = [folder for folder in os.environ["PATH"].split(os.pathsep) if not (Path(folder) / "nvcc").exists()]
    code, said, wheels = _wheel(source, "--no-build-isolation", PATH=os.pathsep.join(without))
    assert code == 0, said
    assert "not built: _C (cpu/pack_views.cpp: " in said
    assert _pure(wheels[0])


def test_1_insists(source: Path) -> None:
    code, said, wheels = _wheel(source, "--no-build-isolation", PIXELREFER_FAST_BUILD_CUDA="1", PATH="/nowhere")
    assert code != 0
    assert "PIXELREFER_FAST_BUILD_CUDA=1, but pixelrefer_fast extension: not built: _C and _C_cuda (no C++" in said
    assert wheels == []


@needs_compiler
def test_cpu_insists_on_one_module(source: Path) -> None:
    code, said, wheels = _wheel(source, "--no-build-isolation", PIXELREFER_FAST_BUILD_CUDA="cpu")
    assert code == 0, said
    assert "built _C.abi3.so; not built: _C_cuda (" in said
    assert not _pure(wheels[0])
    path = source / "csrc" / "cpu" / "pack_views.cpp"
    path.write_text(path.read_text() + "int broken = ;\n")
    code, said, _ = _wheel(source, "--no-build-isolation", PIXELREFER_FAST_BUILD_CUDA="cpu")
    assert code != 0
    assert "PIXELREFER_FAST_BUILD_CUDA=cpu, but pixelrefer_fast extension: not built: " in said


def test_another_mode_is_refused(source: Path) -> None:
    code, said, _ = _wheel(source, "--no-build-isolation", PIXELREFER_FAST_BUILD_CUDA="yes")
    assert code != 0
    assert "PIXELREFER_FAST_BUILD_CUDA: expected 0, 1, cpu or nothing, got 'yes'" in said


@needs_compiler
@pytest.mark.slow
def test_under_build_isolation_the_surrounding_torch_is_found(source: Path) -> None:
    """pip builds in an environment without torch; setuptools comes from the package index."""
    code, said, wheels = _wheel(source)
    if "No matching distribution found for setuptools" in said:
        pytest.skip("no package index can be reached")
    assert code == 0, said
    assert "pixelrefer_fast extension: built _C.abi3.so" in said
    assert not _pure(wheels[0])


@pytest.mark.slow
def test_the_cuda_module_links_and_loads(tmp_path: Path) -> None:
    """Where torch is built with CUDA and nvcc is; `make test-oldest` brings such a torch. No device is needed."""
    planned = plan()
    if "_C_cuda" in planned.missing:
        pytest.skip(planned.missing["_C_cuda"])
    outcome = build_extension.build(planned, tmp_path, print)
    assert dict(outcome.missing) == {}
    code = f"""
import torch
from pathlib import Path
from pixelrefer_fast import ops
from pixelrefer_fast.ops.extension import load as extension
extension._found = lambda name: Path({str(tmp_path)!r}) / f"{{name}}.abi3.so"
print(extension.reason("cpu"), extension.reason("cuda"))
packing = ("mask_grids_out", "pack_masks_out", "pack_objects_out", "pack_views_out", "place_patches_out")
for name in (*packing, "scatter_tokens_", "gather_tokens_out"):
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pixelrefer_fast::{{name}}", key), (name, key)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "None None\n"), ran.stderr


def test_building_asks_neither_network_nor_git_nor_the_driver() -> None:
    for name in ("setup.py", "pixelrefer_fast/ops/extension/build.py"):
        text = (ROOT / name).read_text()
        assert not [word for word in ("nvidia-smi", "git ", "http", "urllib", "import torch") if word in text], name


# The plan.


def _environment(tmp_path: Path, **names: str) -> dict[str, str]:
    """A PATH with these programs; each says what it is given."""
    for name, text in names.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": str(tmp_path)}


def _torch(tmp_path: Path, version: str, cuda: str | None) -> str:
    """A folder that looks like an installed torch; what to put into PYTHONPATH."""
    folder = tmp_path / "site" / "torch"
    (folder / "include" / "torch" / "csrc" / "stable").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "version.py").write_text(f"__version__ = '{version}'\ncuda: Optional[str] = {cuda!r}\n")
    return str(tmp_path / "site")


def _planned(tmp_path: Path, site: str, environment: dict[str, str]) -> list[str]:
    """One line a module, as the planner sees it from another process."""
    code = """
import runpy, sys, json
plan = runpy.run_path(sys.argv[1])["plan"](json.loads(sys.argv[2]))
print(plan.torch.version, plan.torch.cuda)
for name in ("_C", "_C_cuda"):
    print(plan.missing.get(name, "planned"))
"""
    path = str(ROOT / "pixelrefer_fast" / "ops" / "extension" / "build.py")
    command = [sys.executable, "-c", code, path, json.dumps(environment)]
    ran = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": site}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_cuda_needs_nvcc_and_a_torch_with_cuda(tmp_path: Path) -> None:
    site = _torch(tmp_path, "2.13.0+cu130", "13.0")
    environment = _environment(tmp_path, **{"c++": ""})
    assert _planned(tmp_path, site, environment) == [
        "(2, 13) 13.0",
        "planned",
        "no nvcc was found: neither in CUDA_HOME/bin nor on the PATH",
    ]
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    _environment(tmp_path / "cuda" / "bin", nvcc="")
    assert _planned(tmp_path, site, environment | {"CUDA_HOME": str(tmp_path / "cuda")})[1:] == ["planned", "planned"]
    assert _planned(tmp_path, site, _environment(tmp_path, nvcc=""))[1:] == ["planned", "planned"]
    (tmp_path / "site" / "torch" / "version.py").write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    assert _planned(tmp_path, site, environment)[2] == "the torch that was found is built without CUDA"


def test_the_environment_around_a_build_is_asked(tmp_path: Path) -> None:
    """As where a build has an interpreter of its own: without site-packages, and torch in an activated environment."""
    code = """
import runpy, sys
find_torch = runpy.run_path(sys.argv[1])["find_torch"]
sys.executable = "/nowhere"
print(find_torch({}), find_torch({"VIRTUAL_ENV": sys.argv[2]}).folder, "torch" in sys.modules)
"""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    path = str(ROOT / "pixelrefer_fast" / "ops" / "extension" / "build.py")
    command = [sys.executable, "-S", "-c", code, path, str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, f"None {Path(torch.__file__).parent} False"), ran.stderr


def test_an_old_torch_is_named(tmp_path: Path) -> None:
    site = _torch(tmp_path, "2.9.1", None)
    reason = "it needs the headers of torch 2.10 or newer, found 2.9"
    assert _planned(tmp_path, site, _environment(tmp_path, **{"c++": ""})) == ["(2, 9) None", reason, reason]


def test_the_compiler_is_the_one_that_is_named(tmp_path: Path) -> None:
    environment = _environment(tmp_path, **{"mine": "", "c++": ""})
    assert plan(environment | {"CXX": "mine -m64"}).compiler == ("mine", "-m64")
    assert plan(environment).compiler == (str(tmp_path / "c++"),)
    missing = plan(environment | {"CXX": "absent"}).missing
    assert missing["_C"].startswith("no C++ compiler was found")


def test_a_plan_of_one_module_keeps_the_reasons_of_the_others(tmp_path: Path) -> None:
    torch_with_cuda = build_extension.Torch(tmp_path, (2, 13), "13.0")
    whole = build_extension.BuildPlan(torch_with_cuda, ("c++",), "nvcc", {})
    assert build_extension.only(whole, "_C", "why").missing == {"_C_cuda": "why"}
    assert build_extension.only(whole, "_C_cuda", "why").modules == ["_C_cuda"]
    none = build_extension.BuildPlan(None, (), None, {"_C": "no compiler", "_C_cuda": "no nvcc"})
    assert build_extension.only(none, "_C", "why").missing == none.missing


def test_architectures() -> None:
    code = "--generate-code=arch=compute_{0},code=sm_{0}".format
    assert architectures("8.0;9.0 10.0+PTX") == [
        *map(code, (80, 90, 100)),
        "--generate-code=arch=compute_100,code=compute_100",
    ]
    assert architectures("9.0a") == [code("90a")]
    for listed in ("Hopper", "9", ""):
        with pytest.raises(
            BuildError, match=r"^TORCH_CUDA_ARCH_LIST: expected versions such as 8.0;9.0;10.0\+PTX, got "
        ):
            architectures(listed)


def test_an_older_nvcc_builds_for_what_it_knows(tmp_path: Path) -> None:
    environment = _environment(tmp_path, nvcc="printf 'compute_80\\ncompute_90\\n'", **{"c++": ""})
    assert build_extension._known_architectures(plan(environment)) == "8.0;9.0+PTX"


def test_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_extension._jobs({"MAX_JOBS": "3"}) == 3
    for wrong in ("0", "-1", "many"):
        with pytest.raises(BuildError, match=rf"^MAX_JOBS: expected a number of 1 or more, got '{wrong}'$"):
            build_extension._jobs({"MAX_JOBS": wrong})
    monkeypatch.setattr(build_extension, "JOB_MEMORY", 2**60)
    assert build_extension._jobs({}) == 1  # however little memory there is


def test_the_digest_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    before = build_extension.digest()
    monkeypatch.setattr(build_extension, "CSRC", tmp_path / "csrc")
    assert build_extension.digest() == before
    (tmp_path / "csrc" / "README.md").write_text("words")
    assert build_extension.digest() == before
    (tmp_path / "csrc" / "cpu" / "ops.h").write_text("// other\n")
    assert build_extension.digest() != before
