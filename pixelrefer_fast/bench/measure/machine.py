"""Where and from what a result comes: commit, command, machine, library versions, clocks."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2]
LIBRARIES = (
    "torch",
    "triton",
    "transformers",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "av",
    "flash-attn",
    "xformers",
    "flash-kmeans",
    "nvidia-ml-py",
)


def provenance() -> dict[str, Any]:
    """What stands in every result file.

    `commit` and `dirty` are those of the checkout that the running code lies in, None where it lies in none. A lent
    machine gets the files without their history: there COMMIT says it, as `git describe --always --abbrev=40 --dirty`
    prints it.
    """
    import torch

    from pixelrefer_fast import __version__

    commit, dirty = commit_of(PACKAGE.parent)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "commit": commit,
        "dirty": dirty,
        "command": command(),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "device": device(),
        "clocks": clocks(),
    }


def commit_of(folder: Path) -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it) of the checkout whose root is `folder`, else what COMMIT says.

    A package installed into an environment inside somebody's checkout is not part of that checkout.
    """
    top = git(folder, "rev-parse", "--show-toplevel")
    if top and Path(top).resolve() == folder.resolve():
        changes = git(folder, "status", "--porcelain", "--untracked-files=no")
        return git(folder, "rev-parse", "HEAD") or None, bool(changes)
    told = os.environ.get("COMMIT", "")
    if not told:
        return None, None
    return told.removesuffix("-dirty"), told.endswith("-dirty")


def git(folder: Path, *arguments: str) -> str:
    """What git prints about the checkout in `folder`; nothing where it fails or there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def command() -> str:
    """The command line as it can be typed again."""
    interpreter, *rest = sys.orig_argv
    if rest and Path(rest[0]).parent == Path(sys.executable).parent and Path(rest[0]).suffix in ("", ".exe"):
        return shlex.join([Path(rest[0]).stem, *rest[1:]])  # a console script of this environment
    return shlex.join([Path(interpreter).name, *rest])


def device(index: int | None = None) -> dict[str, Any] | None:
    """The CUDA device that is measured on (the current one), None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2": properties.L2_cache_size,
        "memory": properties.total_memory,
        "driver": _driver(),
        "cuda": torch.version.cuda,
    }


def clocks() -> dict[str, Any] | None:
    """Clock rates and power limit at this moment, None without a device or without NVML."""
    import torch

    from pixelrefer_fast.bench.measure import power

    return power.state(torch.device("cuda")) if torch.cuda.is_available() else None


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    except OSError:
        found = []
    return found[0] if found else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
