"""CUDA sources compiled by nvcc: their kernels to PTX, their host code to a library over a stand-in for CUDA's runtime.

No device, no driver and no assembler take part: the PTX is what a build of the extension embeds or assembles.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = ("sm_80", "sm_90")
_RUNTIME = Path(__file__).with_name("cuda_runtime.cpp")
_OPTIONS = ("-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC", "--cudart=none", "-Xlinker=-Bsymbolic")


@dataclass(frozen=True)
class Compiled:
    """What nvcc made of some sources.

    Attributes:
        library: host code, to be loaded by `CudaProgram`.
        ptx: of each architecture, a file for each source.
    """

    library: Path
    ptx: dict[str, tuple[Path, ...]]


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME or CUDA_PATH, else of the PATH; None if there is none."""
    homes = (os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name))
    named = (shutil.which(str(Path(home) / "bin" / "nvcc")) for home in homes)
    return next(filter(None, named), None) or shutil.which("nvcc")


def compiled(sources: Sequence[Path], folder: Path, nvcc: str) -> Compiled:
    """Compile, or find in `folder` what was compiled of the same text by the same nvcc.

    Args:
        sources: .cu files of one program; headers that they include lie beside them.
        folder: keeps what is compiled.
        nvcc: of `find_nvcc`.

    Raises:
        ValueError: they do not compile; the message is nvcc's.
    """
    command = [nvcc, *_OPTIONS]
    for arch in ARCHITECTURES:
        number = arch.removeprefix("sm_")
        command += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    made = folder / _digest(sources, command)
    if not made.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as building:
            files = [str(_RUNTIME), *map(str, sources)]
            ran = subprocess.run(
                [*command, "--keep", f"--keep-dir={building}", "-o", f"{building}/program.so", *files],
                capture_output=True,
                text=True,
                check=False,
            )
            if ran.returncode:
                raise ValueError(f"nvcc: {', '.join(s.name for s in sources)} does not compile:\n{ran.stderr}")
            _keep(Path(building), made)
    ptx = {
        arch: tuple(made / f"{source.stem}.compute_{arch.removeprefix('sm_')}.ptx" for source in sources)
        for arch in ARCHITECTURES
    }
    return Compiled(made / "program.so", ptx)


def _keep(building: Path, made: Path) -> None:
    """The library and the PTX, all of them at once: another process may be building the same."""
    kept = building / "kept"
    kept.mkdir()
    for file in (building / "program.so", *building.glob("*.ptx")):
        shutil.move(file, kept)
    with contextlib.suppress(OSError):  # it is there by now
        kept.rename(made)


def _digest(sources: Sequence[Path], command: Sequence[str]) -> str:
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256("\0".join([version, *command]).encode())
    headers = {h for source in sources for h in source.parent.iterdir() if h.suffix in (".h", ".cuh")}
    for file in (_RUNTIME, *sources, *sorted(headers)):
        text = file.read_bytes()
        digest.update(f"{file.name} {len(text)} ".encode() + text)
    return digest.hexdigest()[:16]
