"""What a kernel takes of a multiprocessor, and how many warps of it fit there: occupancy, without a device.

Compiling needs Triton, which ships NVIDIA's assembler, and no GPU; `tools/compile_check.py` compiles every shipped case
with it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WARP = 32
REGISTERS = 65536  # of a multiprocessor
REGISTER_UNIT = 256  # in which a warp gets them
SHARED_UNIT = 128  # bytes, in which a block gets them
RESERVED = 1024  # bytes of shared memory that each block takes beside its own
MATRIX = {"wgmma": r"wgmma\.mma_async", "tcgen05": r"tcgen05\.mma", "mma": r"\bmma\.sync"}


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one, as the CUDA programming guide lists them by compute capability.

    Attributes:
        warps, blocks: resident at one time.
        shared: bytes of shared memory.
    """

    warps: int
    blocks: int
    shared: int


MULTIPROCESSORS = {
    75: Multiprocessor(32, 16, 64 * 1024),
    80: Multiprocessor(64, 32, 164 * 1024),
    86: Multiprocessor(48, 16, 100 * 1024),
    89: Multiprocessor(48, 24, 100 * 1024),
    90: Multiprocessor(64, 32, 228 * 1024),
    100: Multiprocessor(64, 32, 228 * 1024),
    120: Multiprocessor(48, 24, 100 * 1024),
}


def occupancy(arch: int, threads: int, registers: int, shared: int) -> float | None:
    """Resident warps over the most that a multiprocessor holds, from what a block takes; None for an unknown device.

    Args:
        arch: compute capability, 90 for 9.0.
        threads: of a block.
        registers: a thread.
        shared: bytes a block.
    """
    limits = MULTIPROCESSORS.get(arch)
    if limits is None or threads < 1:
        return None
    warps = -(-threads // WARP)
    own = -(-max(registers, 1) * WARP // REGISTER_UNIT) * REGISTER_UNIT  # of a warp
    # a warp's registers lie in one of four parts
    by_registers = 4 * (REGISTERS // 4 // own) // warps
    taken = -(-shared // SHARED_UNIT) * SHARED_UNIT + (RESERVED if arch >= 80 else 0)
    by_shared = limits.shared // taken if taken else limits.blocks
    blocks = min(limits.blocks, limits.warps // warps, by_registers, by_shared)
    return blocks * warps / limits.warps


@dataclass(frozen=True)
class Compiled:
    """One kernel as compiled for one architecture.

    Attributes:
        registers: a thread.
        local: bytes of local memory a thread: spills.
        shared: bytes of shared memory a block.
        matrix: the matrix instruction in its PTX, "" for none.
        threads: of a block.
        cubin: the assembled kernel.
    """

    registers: int
    local: int
    shared: int
    matrix: str
    threads: int
    cubin: bytes = field(repr=False)


def compile_case(case: Any, arch: int) -> Compiled:
    """Compile a `CompileCase` for an architecture, with pointers aligned to 16 bytes, as torch allocates.

    Raises:
        ValueError: an argument of the kernel that the case gives no type nor value, or both.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pixelrefer_fast.kernels._launch import PINNED

    names = case.kernel.arg_names
    unknown = [n for n in names if (n in case.constants) == (n in case.signature)]
    if unknown:
        raise ValueError(
            f"{case.name} ({case.shape}): expected each argument in one of signature and constants: {unknown}"
        )
    signature = {n: "constexpr" if n in case.constants else case.signature[n] for n in names}
    aligned = [p.num for p in case.kernel.params if signature[p.name].startswith("*") and not p.do_not_specialize]
    source = ASTSource(case.kernel, signature, case.constants, {(n,): [["tt.divisibility", 16]] for n in aligned})
    options = {**PINNED, **case.options}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, WARP), options=options)
    ptx = compiled.asm["ptx"]
    return Compiled(
        shared=compiled.metadata.shared,
        matrix=next((name for name, pattern in MATRIX.items() if re.search(pattern, ptx)), ""),
        threads=compiled.metadata.num_warps * WARP,
        cubin=compiled.asm["cubin"],
        **_assembled(compiled.asm["cubin"]),
    )


def _assembled(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of local memory a thread, as the assembler wrote them into its output."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", printed.stdout)}
    return {"registers": found["REG"], "local": found["STACK"] + found["LOCAL"]}


def installed() -> bool:
    """Whether Triton is there."""
    return importlib.util.find_spec("triton") is not None


def unusable() -> str | None:
    """Why no kernel can be compiled here, or None."""
    from pixelrefer_fast.kernels._launch import interpreted

    if not installed():
        return "triton is not installed"
    if interpreted():
        return "TRITON_INTERPRET is set, and what is interpreted is not compiled"
    return None


def shipped_cases(kernel: str, dtype: str = "") -> Iterator[Any]:
    """The compile cases of one of our kernels.

    Args:
        kernel: `file.kernel`.
        dtype: only those of this element type ("bf16"), where a case is of one.

    Raises:
        ValueError: there is no such kernel.
    """
    file, _, _ = kernel.partition(".")
    folder = Path(__file__).resolve().parents[2] / "kernels"
    files = sorted(p.stem for p in folder.glob("*.py") if not p.name.startswith("_"))
    if file not in files:
        raise ValueError(f"kernel: expected one of {', '.join(files)} with a kernel after a dot, got {kernel!r}")
    cases = list(importlib.import_module(f"pixelrefer_fast.kernels.{file}").compile_cases())
    names = sorted({case.name for case in cases})
    if kernel not in names:
        raise ValueError(f"kernel: expected one of {', '.join(names)}, got {kernel!r}")
    others = {"fp32", "fp16", "bf16"} - {dtype}
    for case in cases:
        words = set(re.split(r"[^a-z0-9]+", case.shape))
        if case.name == kernel and not (dtype and words & others and dtype not in words):
            yield case
