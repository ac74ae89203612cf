"""The compiled extension: found and loaded at its first use, or a reason why not.

`_C` computes on the CPU, `_C_cuda` on CUDA devices. Both register implementations of the out-variants whose schemas
stand in `pixelrefer_fast/ops/`. Importing the package never fails for them and never loads them.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pixelrefer_fast.ops.extension import build

MODULES = {"cpu": "_C", "cuda": "_C_cuda"}
ADVICE = "pixelrefer-fast doctor --build"
VARIABLE = "PIXELREFER_FAST_BUILD_CUDA"
log = logging.getLogger("pixelrefer_fast")
_lock = threading.Lock()


def reason(device: str) -> str | None:
    """Why the extension cannot compute on this type of device, or None. The first call loads it."""
    if device not in MODULES:
        return f"the extension computes on cpu and cuda, not on {device}"
    with _lock:
        return _load(MODULES[device])


def describe() -> dict[str, Any]:
    """By module: the file, whether it loads, and why not; and what could be built here."""
    modules = {}
    for device, name in MODULES.items():
        why, path = reason(device), _found(name)
        modules[name] = {"loads": why is None, "file": None if path is None else str(path), "reason": why or ""}
    planned = build.plan()
    missing = "; ".join(f"{name}: {why}" for name, why in planned.missing.items())
    return {"modules": modules, "can_build": planned.modules, "cannot_build": missing}


def build_in_place(progress: Callable[[str], None]) -> None:
    """Compile what can be compiled here into the package's folder, or the user's cache where that is read-only.

    Raises:
        build.BuildError: a module that could be built here was not.
    """
    planned = build.plan()
    if not planned.modules:
        raise build.BuildError(build.summary(build.Outcome([], planned.missing)))
    own = build.PACKAGE
    target = own if os.access(own, os.W_OK) else build.user_folder()
    progress(f"building {' and '.join(planned.modules)} with {planned.compiler[0]} into {target}")
    outcome = build.build(planned, target, progress)
    if len(outcome.built) < len(planned.modules):
        raise build.BuildError(build.summary(outcome))
    progress(build.summary(outcome))


def build_for_cuda() -> None:
    """Compile `_C_cuda` into the user's cache if it is missing and can be compiled: once, with a warning.

    No wheel brings it: it is compiled where torch, nvcc and the devices are those that it will run with. Other
    processes wait for the one that compiles. Where nothing can be compiled, nothing is, and the definitions compute.
    PIXELREFER_FAST_BUILD_CUDA=0 leaves it at that.
    """
    name = MODULES["cuda"]
    if _is_there(name) or os.environ.get(VARIABLE) == "0":
        return
    planned = build.only(build.plan(), name, "not asked for")
    if not planned.modules:
        return
    import fcntl  # the plan knows that this is Linux

    folder = build.user_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_there(name):
                return
            log.warning("compiling %s into %s: once, about a minute (%s=0 leaves it out)", name, folder, VARIABLE)
            outcome = build.build(planned, folder, log.info)
    except (OSError, build.BuildError) as error:
        log.warning("%s is not compiled: %s", name, error)
        return
    if not outcome.built:
        log.warning("%s is not compiled: %s", name, outcome.missing[name])


def _is_there(name: str) -> bool:
    path = _found(name)
    return path is not None and _is_current(path)


def _found(name: str) -> Path | None:
    """A build of these sources before one of others, the package's own before the user's."""
    file = f"{name}{build.SUFFIX}"
    places = [build.PACKAGE / file]
    if build.CSRC is not None:
        places.append(build.user_folder() / file)
    there = [path for path in places if path.is_file()]
    return next(filter(_is_current, there), there[0] if there else None)


def _is_current(path: Path) -> bool:
    return build.CSRC is None or build.marker() in path.read_bytes()


def _is_whole(path: Path) -> bool:
    """Whether a library reaches to the end of its section headers, which come last.

    One that was cut off would be mapped all the same, and the process would die of a bus error. What is no library at
    all, the loader tells.
    """
    data = path.read_bytes()
    if len(data) < 64 or data[:5] != b"\x7fELF\x02":  # of 64 bits
        return True
    (first,) = struct.unpack_from("=Q", data, 40)
    size, count = struct.unpack_from("=2H", data, 58)
    return len(data) >= first + size * count


@functools.cache
def _load(name: str) -> str | None:
    import torch

    path = _found(name)
    if path is None:
        return f"pixelrefer_fast.{name} is not built ({ADVICE})"
    # asked before it is loaded: loading registers functions, whose arguments may not be those of the schemas
    if not _is_current(path):
        return f"{path} was built from other sources than these ({ADVICE})"
    if not _is_whole(path):
        return f"{path} is cut off ({ADVICE})"
    if name == MODULES["cuda"] and torch.version.cuda is None:
        return "this torch is built without CUDA"
    try:
        spec = importlib.util.spec_from_file_location(f"pixelrefer_fast.{name}", path)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except Exception as error:
        return f"{path} does not load: {' '.join(str(error).split())[:300]} ({ADVICE})"
    return None
