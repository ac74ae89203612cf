"""What an installed copy is: cheap to import, complete, and no shadow over Hugging Face's `kernels`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMIT = 20 * 2**20  # bytes of an archive; the embedded models are 15 MB of it


def run(code: str, *, cwd: Path, path: Path | None = None, **environment: str) -> str:
    """Run Python code in a fresh interpreter with the current folder off sys.path."""
    env = {**os.environ, "PYTHONSAFEPATH": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    env.pop("PYTHONPATH", None)
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def copied(target: Path) -> Path:
    """The checkout's files elsewhere, so that building leaves nothing in it."""
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in files.stdout.splitlines():
        origin, copy = ROOT / name, target / name
        if not (origin.exists() or origin.is_symlink()):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_symlink():
            copy.symlink_to(os.readlink(origin))
        else:
            copy.write_bytes(origin.read_bytes())
    return target


def built(kind: str, source: Path, out: Path) -> Path:
    """What setuptools builds of this folder without the extension, as build and pip ask it to."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    environment = {**os.environ, "PIXELREFER_FAST_BUILD_CUDA": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("source") / "copy")


@pytest.fixture(scope="module")
def archive(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("sdist", source, tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_source_archive_is_complete_and_holds_no_tests(archive: Path) -> None:
    """What builds the wheel again, links followed; the tests are a checkout's, whole or not at all."""
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "pixelrefer_fast").rglob("*.py")}
    kernels = {f"pixelrefer_fast/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    csrc = {f"pixelrefer_fast/{path.relative_to(ROOT)}" for path in (ROOT / "csrc").rglob("*.c*") if path.is_file()}
    assert package | kernels | csrc | {"pyproject.toml", "setup.py", "README.md", "LICENSE"} <= names
    assert not {name for name in names if name.startswith(("tests", "training", "emulator", "benchmarks", "tools"))}
    assert archive.stat().st_size < LIMIT


def test_builds_of_one_source_are_the_same(source: Path, archive: Path, tmp_path: Path) -> None:
    """From a checkout that was used, or from the source archive where umask, owner and date are others."""
    used = copied(tmp_path / "used")
    (used / "pixelrefer_fast" / "assets" / "__pycache__").mkdir()
    (used / "pixelrefer_fast" / "assets" / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"")
    for path in used.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)
            os.utime(path, (0, 2**30))
    shutil.unpack_archive(archive, tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("pixelrefer_fast-*")
    for folder in ("archive", "first", "second"):
        (tmp_path / folder).mkdir()
    assert built("sdist", used, tmp_path / "archive").read_bytes() == archive.read_bytes()
    first, second = built("wheel", used, tmp_path / "first"), built("wheel", unpacked, tmp_path / "second")
    assert first.read_bytes() == second.read_bytes()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files in a folder of their own, ahead of the editable install on sys.path."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_is_complete(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = subprocess.run(
        ["git", "ls-files", "pixelrefer_fast", "kernels", "csrc"], cwd=ROOT, check=True, capture_output=True
    )
    for name in wanted.stdout.decode().splitlines():
        if name.startswith(("kernels/", "csrc/")):
            name = f"pixelrefer_fast/{name}"
            if name.startswith("pixelrefer_fast/kernels/") and not name.endswith((".py", ".json")):
                continue
        if name not in ("pixelrefer_fast/kernels", "pixelrefer_fast/csrc"):  # the links themselves
            assert name in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"pixelrefer_fast"}
    assert not [name for name in names if "__pycache__" in name]
    assert wheel.stat().st_size < LIMIT
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_wheel_answers(installed: Path, tmp_path: Path) -> None:
    code = """
import importlib.resources, pixelrefer_fast as pf
assets = importlib.resources.files("pixelrefer_fast.assets")
model = pf.load(str(assets / "lite"), device="cpu")
print(pf.__file__)
embedded = [pf.load(name, device="cpu").kind for name in ("embedded:lite", "embedded:full")]
print(len(model.describe(str(assets / "cat.jpg"), [[10, 20, 100, 120]], max_new_tokens=2)), *embedded)
"""
    out = run(code, cwd=tmp_path, path=installed).splitlines()
    assert out[0] == str(installed / "pixelrefer_fast" / "__init__.py")
    assert out[-1] == "1 lite full"


@pytest.mark.parametrize("form", ["wheel", "editable"])
def test_kernels_is_not_ours(form: str, installed: Path, tmp_path: Path) -> None:
    code = """
import importlib.util, pixelrefer_fast.kernels
spec = importlib.util.find_spec("kernels")
places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
print(places)
import transformers, transformers.integrations
"""
    # Python 3.10 knows no PYTHONSAFEPATH and puts the current folder on sys.path
    out = run(code, cwd=ROOT if sys.version_info >= (3, 11) else tmp_path, path=installed if form == "wheel" else None)
    assert str(ROOT) not in out.replace(str(ROOT / ".venv"), "")
    assert str(installed) not in out


def test_nothing_imports_the_name_kernels() -> None:
    for folder in ("pixelrefer_fast", "kernels", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for line in path.read_text().splitlines():
                assert not line.lstrip().startswith(("import kernels", "from kernels")), path
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_import_touches_no_device_and_needs_no_triton(tmp_path: Path) -> None:
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import pixelrefer_fast as pf
from pixelrefer_fast import PixelRefer, PixelReferLite, Objects, Region, load, ops, verify, Video
import torch
assert not torch.cuda.is_initialized()
print(sorted(m for m in ("triton", "cv2", "av", "pycocotools", "typer", "supervision") if m in sys.modules))
"""
    assert run(code, cwd=tmp_path) == "[]"


def test_import_costs_little_beyond_torch(tmp_path: Path) -> None:
    # counted in modules, which does not depend on the machine; the time is reported in docs/
    code = """
import sys, torch
before = set(sys.modules)
import pixelrefer_fast
print(len(set(sys.modules) - before))
"""
    assert int(run(code, cwd=tmp_path)) <= 5


def test_public_names() -> None:
    import pixelrefer_fast as pf

    for name in pf.__all__:
        assert getattr(pf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        pf.missing  # noqa: B018
    assert set(pf.__all__) <= set(dir(pf))
