"""How every kernel is launched: on its tensors' device, with a launch configuration that is data, and counted.

Kernels are launched through `launch` and nowhere else, so that a count of launches, FLOPs and bytes is one of all of
them.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pixelrefer_fast.device import launches
from pixelrefer_fast.device.launches import Launch

CONFIGS = Path(__file__).resolve().parent / "configs"

# what a launch configuration may hold besides the kernel's own BLOCK_* sizes
OPTIONS = ("num_warps", "num_stages")

# devices that share a file of launch configurations, by compute capability. sm_86's give a block 99 KiB of shared
# memory, where sm_80's give 163 and the others 227.
FAMILIES = {80: "sm_80", 86: "sm_86", 89: "sm_86", 90: "sm_90", 100: "sm_100", 120: "sm_86", 121: "sm_86"}

# how every kernel is compiled unless it says otherwise: results depend on it, and Triton's own choice is another from
# 3.10 on
PINNED = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class CompileCase:
    """One shipped way of compiling a kernel, for `make compile-check`, which needs no device.

    Attributes:
        kernel: the `@triton.jit` function.
        name: `file.kernel`, as in the configuration files.
        shape: what this case is for, for people ("bf16, 128 patches").
        signature: type of each argument that is no constant: "*bf16", "*fp32", "*i64", "i32", ...
        constants: value of each `tl.constexpr` argument, BLOCK_* sizes included.
        options: num_warps and num_stages.
        matrix: whether a matrix product must reach the tensor cores (wgmma on sm_90).
    """

    kernel: Any
    name: str
    shape: str
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int] = field(default_factory=dict)
    matrix: bool = False


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1), on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def launch(
    kernel: Any,
    name: str,
    grid: Sequence[int],
    *args: Any,
    flops: int = 0,
    moved: int = 0,
    **constants: Any,
) -> None:
    """Launch `kernel` over `grid` on the device of its first argument, a tensor; an empty grid launches nothing.

    Args:
        kernel: a `@triton.jit` function.
        name: `file.kernel`.
        grid: up to three sizes.
        args: the kernel's arguments that are no constants, in order.
        flops, moved: what this launch computes, and how many bytes it reads and writes.
        constants: `tl.constexpr` arguments and launch options, as `configuration` gives them.
    """
    if 0 in grid:
        return
    if launches.watched() and not launches.told(Launch(name, tuple(grid), flops, moved, kernel.fn.__name__)):
        return
    prepared = _prepared()
    if not isinstance(kernel, prepared.JITFunction):
        _mend_interpreter()
        with launches.launched():
            kernel[tuple(grid)](*args, **{**PINNED, **constants})
        return
    device = args[0].get_device()  # -1 for the CPU's
    # entering a device that is entered already takes as long as half a launch
    if device < 0 or device == torch.cuda.current_device():
        prepared.launch(kernel, tuple(grid), args, constants, PINNED)
    else:
        with torch.cuda.device(device):
            prepared.launch(kernel, tuple(grid), args, constants, PINNED)


@functools.cache
def _prepared() -> ModuleType:
    """Imported by the first launch: it brings Triton, and this file is there before anybody needs that."""
    return importlib.import_module("pixelrefer_fast.kernels._prepared")


@functools.cache
def _mend_interpreter() -> None:
    """Loop bounds in the interpreter: NumPy 2.4 makes no int of a one-element array, which Triton 3.6 relies on."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_mend


def configuration(name: str, size: int, device: torch.device | None = None) -> dict[str, int]:
    """The launch configuration of a kernel: block sizes, warps and stages.

    `kernels/configs/<file>/<device name>.json` holds what was tuned on that device; beside it a file for its family, of
    kernels that want something else there than elsewhere, each entry with its `reason`; and `default.json`. Each kernel
    has a list of entries; the first whose `upto` is at least `size` is taken (the last one has none). `size` must be
    something that few values cover: never a packed length. The result is kept and shared: not to be changed.
    """
    return _chosen(name, size, device)


@functools.lru_cache(maxsize=4096)
def _chosen(name: str, size: int, device: torch.device | None) -> dict[str, int]:
    file, kernel = name.split(".")
    own = _table(file, _device_name(device)) if device is not None and device.type == "cuda" else {}
    entries = own.get(kernel) or untuned(file, device)[kernel]
    entry = next(e for e in entries if "upto" not in e or size <= e["upto"])
    return {k: v for k, v in entry.items() if k != "upto"}


def untuned(file: str, device: torch.device | None) -> dict[str, list[dict[str, int]]]:
    """Entries of a file's kernels on a device for which nothing was tuned: its family's, else the default's."""
    shared = _table(file, _family(device)) if device is not None and device.type == "cuda" else {}
    return {**_table(file, "default"), **shared}


def shipped(name: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Every shipped configuration of a kernel: (device name, family or "default", entry), for the compile check."""
    file, kernel = name.split(".")
    for found in sorted((CONFIGS / file).glob("*.json")):
        for entry in _table(file, found.stem).get(kernel, []):
            yield found.stem, dict(entry)


@functools.cache
def _family(device: torch.device) -> str:
    """Name of the file that a CUDA device shares with its like, "default" for one that is not known."""
    major, minor = torch.cuda.get_device_capability(device)
    return FAMILIES.get(10 * major + minor, "default")


@functools.cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device).replace(" ", "_")


@functools.cache
def _table(file: str, stem: str) -> dict[str, list[dict[str, int]]]:
    path = CONFIGS / file / f"{stem}.json"
    if not path.is_file():
        return {}
    read = json.loads(path.read_text(encoding="utf-8"))
    return {name: [{k: v for k, v in e.items() if k != "reason"} for e in entries] for name, entries in read.items()}
