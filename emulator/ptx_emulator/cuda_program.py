"""Host code compiled by nvcc, run as it is: what it launches runs in the emulator, on memory of the CPU."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence

import numpy as np

from .faults import Fault
from .launch import Report, run
from .memory.global_memory import Buffer
from .nvcc import Compiled
from .options import Options
from .parser import Kernel, Module, parse

_Sizes = ctypes.POINTER(ctypes.c_uint)
_Launch = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, _Sizes, _Sizes, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t
)  # as in cuda_runtime.cpp
_Memset = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)


class CudaProgram:
    """A program of some .cu files: its functions are called, its kernels emulated for one architecture.

    Args:
        compiled: of `nvcc.compiled`.
        arch: "sm_80" or "sm_90".

    Attributes:
        module: the kernels.
        library: the host code.
    """

    def __init__(self, compiled: Compiled, arch: str) -> None:
        self.module = Module()
        for file in compiled.ptx[arch]:
            self.module.kernels |= parse(file.read_text()).kernels
        self.library = ctypes.CDLL(str(compiled.library))
        listed = subprocess.run(
            ["nm", "-D", "--defined-only", str(compiled.library)], capture_output=True, text=True, check=True
        )
        self._symbols = [line.split()[-1] for line in listed.stdout.splitlines()]

    def __getitem__(self, name: str) -> Kernel:
        """A kernel by its name or by a part of it that only one has."""
        return self.module[name]

    def number(self, name: str, *arguments: int) -> int:
        """Call a function that launches nothing and returns a 64-bit integer."""
        return int(self._call(name, arguments))

    def launches(
        self, name: str, *arguments: int, buffers: Sequence[Buffer], options: Options | None = None
    ) -> list[tuple[str, Report]]:
        """Call a function.

        Args:
            name: of a C function, or the last part of a C++ function's name if no other has it.
            arguments: integers, or addresses.
            buffers: memory that the kernels may access, as if it were the device's.
            options: of each launch.

        Returns:
            The kernels' names and the emulator's reports, in the order of the launches.

        Raises:
            ValueError: no such function.
            Fault: of a launch, or memory is set outside the buffers; nothing is launched after it.
        """
        reports: list[tuple[str, Report]] = []
        failures: list[Exception] = []

        def launched(kernel: bytes, grid, block, given, shared: int) -> None:
            if failures:
                return
            try:
                found = self.module.kernels[kernel.decode()]
                values = [ctypes.string_at(given[i], p.size) for i, p in enumerate(found.parameters.values())]
                report = run(found, grid[:3], values, block=block[:3], shared=shared, buffers=buffers, options=options)
                reports.append((found.name, report))
            except Exception as failure:  # ctypes would print it and go on
                failures.append(failure)

        def memory_set(at: int | None, value: int, size: int) -> None:
            start = at or 0  # as ctypes gives a null pointer
            if failures or not size:
                return
            if any(b.address <= start and start + size <= b.address + b.size for b in buffers):
                ctypes.memset(start, value, size)
            else:
                failures.append(Fault(f"cudaMemsetAsync: {size} bytes at {start:#x} lie in no buffer"))

        callbacks = _Launch(launched), _Memset(memory_set)
        self.library.emulator_install(*callbacks)
        self._call(name, arguments)
        if failures:
            raise failures[0]
        return reports

    def _call(self, name: str, arguments: Sequence[int]) -> int:
        function = getattr(self.library, self._symbol(name))
        function.restype = ctypes.c_int64
        return function(*(ctypes.c_int64(int(np.int64(a))) for a in arguments))

    def _symbol(self, name: str) -> str:
        # a C++ name is mangled to a list of its parts, each with its length, and an E
        found = [s for s in self._symbols if s == name or f"{len(name)}{name}E" in s]
        if len(found) != 1:
            raise ValueError(f"name: expected that of one function, got {name!r}, which {len(found)} have"[:200])
        return found[0]
