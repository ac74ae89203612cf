"""What people install: a source archive, a wheel for every machine and one with the extension, into dist/.

python tools/release.py                  # built twice in different ways, compared, checked, asked in fresh environments
python tools/release.py --once           # built and checked: a minute
python tools/release.py --python 3.12    # the environments of this Python alone; may be given more than once
python tools/release.py --torch REQUIREMENT   # in them, in place of a CPU build of torch

What is built is what is committed. docs/releasing.md says what each step shows; `make release` brings the tools
(tools/release.txt) and the torch whose headers the extension is compiled with.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
TOOLS = ROOT / ".venv-release" / "bin"
PINS = ROOT / "tools" / "release.txt"
# the oldest C library that torch's own wheels run on
PLATFORM = "manylinux_2_28_x86_64"
TORCHS_OWN = ("libtorch_cpu.so", "libc10.so")  # the process has them loaded by `import torch`
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TORCH = "2.13.0"
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
LIMIT = 20 * 2**20  # bytes of any one file: the embedded models are 15 MB of it


class Refused(Exception):
    """The release is not what it has to be."""


def ran(command: list[str | Path], **options: object) -> str:
    """Standard output of a command.

    Raises:
        Refused: it failed; with all that it said.
    """
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise Refused(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def environment(date: str, mode: str) -> dict[str, str]:
    """Of a build: the commit's date, the setuptools of tools/release.txt, and what of the extension is built."""
    return {
        **os.environ,
        "SOURCE_DATE_EPOCH": date,
        "PIXELREFER_FAST_BUILD_CUDA": mode,
        "PIP_CONSTRAINT": str(PINS),
        "VIRTUAL_ENV": str(ROOT / ".venv"),  # an isolated build looks for torch here
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def cloned(commit: str, folder: Path, umask: int) -> Path:
    ran(["git", "clone", "-q", "--no-checkout", ROOT, folder], umask=umask)
    ran(["git", "checkout", "-q", commit], cwd=folder, umask=umask)
    return folder


def built_by_build(source: Path, out: Path, date: str) -> None:
    """`python -m build`: isolated, the source archive first, then each wheel from the archive's files."""
    ran([TOOLS / "python", "-m", "build", "-o", out, source], env=environment(date, "cpu"))
    (archive,) = out.glob("*.tar.gz")
    shutil.unpack_archive(archive, source / "unpacked")
    (unpacked,) = (source / "unpacked").iterdir()
    ran([TOOLS / "python", "-m", "build", "--wheel", "-o", out, unpacked], env=environment(date, "0"))


def built_by_pip(source: Path, out: Path, date: str) -> None:
    """`pip wheel` without isolation from the checkout, by another user's umask."""
    archive = [TOOLS / "python", "-m", "build", "--sdist", "--no-isolation", "-o", out, source]
    ran(archive, env=environment(date, "0"), umask=0o077)
    wheel = [TOOLS / "python", "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source]
    for mode in ("cpu", "0"):
        ran(wheel, env=environment(date, mode), umask=0o077)
        shutil.rmtree(source / "build")


def labelled(out: Path, date: str) -> None:
    """The wheel with the extension gets the name of the systems that it runs on, of which auditwheel is the judge."""
    (wheel,) = out.glob("*-linux_x86_64.whl")
    excluded = [f"--exclude={name}" for name in TORCHS_OWN]
    command = [TOOLS / "auditwheel", "repair", "--plat", PLATFORM, "--only-plat", *excluded, "-w", out, wheel]
    ran(command, env={**environment(date, "cpu"), "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"})
    wheel.unlink()


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def checked(folder: Path) -> None:
    """What an index asks of the descriptions, what abi3 promises, and sizes.

    Raises:
        Refused: one is not met.
    """
    files = sorted(folder.iterdir())
    ran([TOOLS / "twine", "check", "--strict", *files])
    ran([TOOLS / "abi3audit", "--strict", *folder.glob("*abi3*.whl")])
    for path in files:
        if path.stat().st_size > LIMIT:
            raise Refused(f"{path.name}: expected at most {LIMIT} bytes, got {path.stat().st_size}")


def interpreter(version: str) -> str | None:
    """A Python of this version on the PATH or among pyenv's, if it runs: pyenv's stand-ins may not."""
    homes = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"), reverse=True)
    for path in filter(None, [shutil.which(f"python{version}"), *map(str, homes)]):
        if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    return None


def cpu_torch(python: str, folder: Path) -> str | None:
    """The requirement of a CPU build of torch that pip can download for this Python; None if it cannot."""
    wanted = f"torch=={TORCH}+cpu"
    for source in ([], ["--retries", "0", "--index-url", CPU_BUILDS]):
        command = [python, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", *source, wanted]
        if subprocess.run([*command, "-d", folder], capture_output=True, check=False).returncode == 0:
            return wanted
    return None


def asked(wheel: Path, python: str, torch: str, downloads: Path) -> None:
    """The README's first minute from this wheel in an environment of its own, the recorded cases, the extension.

    Args:
        wheel: one of `DIST`.
        python: interpreter to ask it with.
        torch: requirement of the torch beside it.
        downloads: folder in which pip looks for that too.

    Raises:
        Refused: an answer is another one, or the extension is not as this wheel has it.
    """
    state = "from pixelrefer_fast.ops.extension.load import reason; print(reason('cpu') or 'the extension loads')"
    also = [f"--also={line}" for line in ("pixelrefer-fast verify", f'python -c "{state}"')]
    tool = [sys.executable, ROOT / "tools" / "readme.py", "--fresh", f"--wheel={wheel}", f"--python={python}"]
    with tempfile.TemporaryDirectory() as cache:
        # a compiler that fails, and a cache without what was compiled before: the wheel has to have it
        alone = {**os.environ, "CC": "false", "CXX": "false", "XDG_CACHE_HOME": cache}
        alone["PIP_FIND_LINKS"] = f"{downloads} {os.environ.get('PIP_FIND_LINKS', '')}"
        said = ran([*tool, f"--torch={torch}", *also], env=alone)
    wanted = "the extension loads" if "abi3" in wheel.name else "pixelrefer_fast._C is not built"
    if not said.splitlines()[-1].startswith(wanted):
        raise Refused(f"{wheel.name}: expected {wanted!r}, got {said.splitlines()[-1]!r}")


def tried(version: str, torch: str | None) -> str:
    """One line of what became of both wheels in this Python."""
    python = interpreter(version)
    if python is None:
        return "not on this machine"
    with tempfile.TemporaryDirectory() as folder:
        torch = torch or cpu_torch(python, Path(folder))
        if torch is None:
            return f"not asked: no CPU build of torch {TORCH} can be had for it here"
        for wheel in sorted(DIST.glob("*.whl")):
            asked(wheel, python, torch, Path(folder))
    return f"both wheels answer, with {torch}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="built and checked; not compared, not installed")
    parser.add_argument("--python", action="append", choices=PYTHONS, help="default: all")
    parser.add_argument("--torch", metavar="REQUIREMENT", help="in the environments, in place of a CPU build")
    options = parser.parse_args()
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise Refused(f"expected Linux on x86-64, whose wheel is built, got {sys.platform} on {platform.machine()}")
    if ran(["git", "status", "--porcelain"], cwd=ROOT):
        print("what is not committed is not in it")
    commit, date = ran(["git", "log", "-1", "--format=%H %ct"], cwd=ROOT).split()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built_by_build(cloned(commit, folder / "first", 0o022), folder / "out", date)
        labelled(folder / "out", date)
        found = digests(folder / "out")
        if not options.once:
            built_by_pip(cloned(commit, folder / "another" / "place", 0o077), folder / "again", date)
            labelled(folder / "again", date)
            if digests(folder / "again") != found:
                raise Refused(f"two builds differ:\n{found}\n{digests(folder / 'again')}")
            print("built twice, by `python -m build` and by `pip wheel`: the same bytes")
        checked(folder / "out")
        shutil.rmtree(DIST, ignore_errors=True)
        shutil.copytree(folder / "out", DIST)
    for path in sorted(DIST.iterdir()):
        print(f"{found[path.name]}  {path.name}  {path.stat().st_size:,} bytes")
    (DIST / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in found.items()))
    for version in () if options.once else options.python or PYTHONS:
        print(f"Python {version}: {tried(version, options.torch)}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Refused as error:
        raise SystemExit(f"error: {error}") from None
