"""A driver for Triton whose device is the emulator: kernels are compiled to PTX and run on tensors of the CPU.

`install("sm_80")` before the first kernel is launched. Nothing else changes: Triton specialises, compiles and caches as
for a device, up to the PTX; it is neither assembled nor loaded.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia.compiler import CUDABackend

from .launch import Argument, Report, run
from .machine import Observer
from .memory.global_memory import Buffer
from .options import Options
from .parser import Kernel, parse

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one block may have
DEVICE = {"multiprocessor_count": 108, "warpSize": 32, "max_num_regs": 65536}


@dataclass
class Launched:
    """One launch, for reports.

    Attributes:
        kernel: name of the entry.
        grid: of blocks.
        threads: of a block.
        configuration: its constants and how it was compiled, as text.
        seconds: that it took here.
        report: of the emulator.
    """

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    configuration: str
    seconds: float
    report: Report


@dataclass
class Settings:
    """How launches are emulated from now on.

    Attributes:
        options: of each launch.
        observer: a function that gives each launch of a kernel its observer, or None.
        launched: is called after each launch.
        rewrite: changes a kernel before it is run, to see whether that is noticed.
    """

    options: Options
    observer: Callable[[Kernel, tuple[int, int, int]], Observer | None] | None = None
    launched: Callable[[Launched], None] | None = None
    rewrite: Callable[[Kernel], Kernel] | None = None


settings = Settings(Options())


class PtxBackend(CUDABackend):
    """Triton's compiler for CUDA, ended at the PTX."""

    def __init__(self, target: GPUTarget) -> None:
        super().__init__(target)
        self.binary_ext = "ptx"

    def add_stages(self, stages: dict[str, Any], options: Any, language: Any) -> None:
        super().add_stages(stages, options, language)
        del stages["cubin"]

    @functools.lru_cache  # noqa: B019 (as the method it takes the place of; a process has one)
    def hash(self) -> str:
        return f"emulated-{self.target.arch}"


class EmulatedDevice:
    """What Triton asks of a device: how much it has, and to load a binary, here the text of the PTX."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def load_binary(self, name: str, ptx: bytes, shared: int, device: int) -> tuple[str, Kernel, int, int, int]:
        """(module, function, registers, spills, most threads)."""
        return name, _parsed(ptx), 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_LIMIT[self.arch], **DEVICE}


@functools.cache
def _parsed(ptx: bytes) -> Kernel:
    (kernel,) = parse(ptx.decode()).kernels.values()
    return kernel


class Launcher:
    """Runs a compiled kernel with the arguments of one launch."""

    def __init__(self, source: Any, metadata: Any) -> None:
        constants = {k[0] if isinstance(k, tuple) else source.fn.arg_names.index(k) for k in source.constants}
        names = source.fn.arg_names
        chosen = {names[k[0]]: v for k, v in source.constants.items() if source.signature[names[k[0]]] == "constexpr"}
        chosen |= {option: getattr(metadata, option) for option in ("num_warps", "num_stages")}
        self.configuration = ", ".join(f"{k}={v}" for k, v in chosen.items())
        self.shared = metadata.shared
        self.block = metadata.num_warps * 32
        # what the compiled kernel takes: neither constants nor what was specialised into one
        self.taken = [
            (i, name) for i, name in enumerate(names) if source.signature[name] != "constexpr" and i not in constants
        ]

    def __call__(
        self,
        x: int,
        y: int,
        z: int,
        stream: int,
        kernel: Kernel,
        packed_metadata: Any,
        launch_metadata: Any,
        enter_hook: Any,
        exit_hook: Any,
        *arguments: Any,
    ) -> None:
        given = [arguments[i] for i, _ in self.taken]
        values: list[Argument] = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in given]
        # two scratch pointers that Triton's kernels end with and these do not use
        values += [None] * (len(kernel.parameters) - len(values))
        buffers = _buffers([(name, a) for (_, name), a in zip(self.taken, given, strict=True)])
        if settings.rewrite is not None:
            kernel = settings.rewrite(kernel)
        grid = (x, y, z)
        observer = settings.observer(kernel, grid) if settings.observer is not None else None
        begun = time.perf_counter()
        report = run(
            kernel,
            grid,
            values,
            block=self.block,
            shared=self.shared,
            buffers=buffers,
            options=settings.options,
            observer=observer,
        )
        if settings.launched is not None:
            seconds = time.perf_counter() - begun
            settings.launched(Launched(kernel.name, grid, self.block, self.configuration, seconds, report))


def _buffers(arguments: Sequence[tuple[str, Any]]) -> list[Buffer]:
    """The storages of tensors; two tensors may share one."""
    found: dict[int, Buffer] = {}
    for name, value in arguments:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            found.setdefault(storage.data_ptr(), Buffer(storage.data_ptr(), storage.nbytes(), name))
    return list(found.values())


class EmulatedDriver(DriverBase):
    """Triton's driver of one architecture, 80 or 90."""

    def __init__(self, arch: int) -> None:
        super().__init__()
        self.arch = arch
        self.utils = EmulatedDevice(arch)
        self.launcher_cls = Launcher

    @classmethod
    def is_active(cls) -> bool:
        return False  # it is installed, never found

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("an emulated kernel has no time")

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self.arch, 10)


def install(arch: str, options: Options | None = None) -> None:
    """Let Triton launch kernels in the emulator.

    Args:
        arch: "sm_80" or "sm_90".
        options: how, unless `settings` is changed later.

    Raises:
        ValueError: another architecture.
    """
    found = re.fullmatch(r"sm_(\d+)", arch)
    if found is None or int(found[1]) not in SHARED_LIMIT:
        raise ValueError(f"arch: expected one of {', '.join(f'sm_{n}' for n in SHARED_LIMIT)}, got {arch!r}")
    settings.options = options or Options()
    backends["nvidia"] = type(backends["nvidia"])(PtxBackend, backends["nvidia"].driver)
    triton.runtime.driver.set_active(EmulatedDriver(int(found[1])))
