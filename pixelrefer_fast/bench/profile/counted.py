"""What the kernels of a question do as they run, counted in the PTX emulator: no device is needed.

The emulator is a tool of the tests and no part of the package: `ptx_emulator` is imported from where PYTHONPATH says,
or from the folder `emulator/` of the checkout that this package lies in, and only by processes that count. They launch
the operations' Triton kernels as compiled for sm_80 or sm_90 on CPU tensors.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pixelrefer_fast.bench.profile import resources
from pixelrefer_fast.bench.profile.calls import Call, load, save
from pixelrefer_fast.bench.run.cases import Arguments
from pixelrefer_fast.device.launches import Launch, listen
from pixelrefer_fast.ops import BackendError, Op, registry

MODULE = "ptx_emulator"
BESIDE = Path(__file__).resolve().parents[3] / "emulator"  # in a checkout
ARCHITECTURES = (80, 90)


@dataclass(frozen=True)
class KernelCounts:
    """A kernel in one configuration within one call of its operation.

    Attributes:
        kernel: `file.kernel`.
        configuration: constants and launch options, as text.
        launches, warps, instructions, barriers, products, sectors, ideal_sectors, wavefronts, ideal_wavefronts, waits:
            `ptx_emulator.counters.Counts`, of all launches together.
        loops: for each innermost loop, the heaviest first: [where, instructions, barriers, products, iterations of all
            warps together], the middle three of one iteration.
    """

    kernel: str
    configuration: str
    launches: int
    warps: int
    instructions: int
    barriers: int
    products: int
    sectors: int
    ideal_sectors: int
    wavefronts: int
    ideal_wavefronts: int
    waits: int
    loops: list[list[str | int]]


@dataclass(frozen=True)
class CountedCall:
    """A call of a question, counted for one architecture.

    Attributes:
        name, op: as `Call` has them.
        times: how often the question makes a call of these shapes; the counts are those of one.
        arch: 80 or 90.
        kernels: that it launches.
        declined: why none was launched, or None.
    """

    name: str
    op: str
    times: int
    arch: int
    kernels: list[KernelCounts]
    declined: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check() -> None:
    """Refuse where nothing can be counted.

    Raises:
        ValueError: there is no emulator, no Triton, or kernels are interpreted.
    """
    if _folder() is None:
        raise ValueError(
            f"--kernels: expected the PTX emulator, {MODULE}: on PYTHONPATH, or in a checkout's emulator/; got neither"
        )
    reason = resources.unusable()
    if reason is not None:
        raise ValueError(f"--kernels: expected compiled kernels, but {reason}")


def _folder() -> str | None:
    """Where the emulator lies, "" if it can be imported as it is, None for nowhere."""
    if importlib.util.find_spec(MODULE) is not None:
        return ""
    return str(BESIDE) if (BESIDE / MODULE / "__init__.py").is_file() else None


def install(arch: int) -> None:
    """Triton's device is the emulator from now on, in the whole process.

    Raises:
        ValueError: as `check`.
    """
    check()
    folder = _folder()
    if folder:
        sys.path.insert(0, folder)
    from pixelrefer_fast.ops import _registry

    torch.set_num_threads(1)
    importlib.import_module(f"{MODULE}.triton_driver").install(f"sm_{arch}")
    vars(_registry)["interpreted"] = lambda: True  # the kernels take tensors of the CPU, as in the interpreter


def counts_of(op: Op, given: Arguments) -> list[KernelCounts]:
    """The kernels that a call launches, after `install`.

    Raises:
        BackendError: the kernels do not take this call.
    """
    names: list[str] = []

    def launched(launch: Launch) -> None:
        names.append(launch.kernel)

    counting = importlib.import_module(f"{MODULE}.counting").counting
    with torch.inference_mode(), listen(launched), counting(lambda: names[-1]) as found:
        op(*given, backend="triton")
    rows = []
    for (kernel, configuration), counts in found.items():
        own = {name: getattr(counts, name) for name in KernelCounts.__dataclass_fields__ if hasattr(counts, name)}
        own["loops"] = [[x.source, x.instructions, x.barriers, x.products, x.iterations] for x in counts.loops]
        rows.append(KernelCounts(kernel=kernel, configuration=configuration, **own))
    return rows


def with_kernels(calls: Sequence[Call]) -> list[Call]:
    """Those of operations that have Triton kernels."""
    return [c for c in calls if importlib.util.find_spec(f"pixelrefer_fast.kernels.{c.op}") is not None]


def count(calls: Sequence[Call], tick: Callable[[str], None] | None = None) -> list[CountedCall]:
    """Calls of operations that have kernels, counted for sm_80 and for sm_90.

    Triton has one device a process, so each architecture has one of its own.

    Args:
        calls: of a question.
        tick: called with the name of a call that is counted.

    Raises:
        ValueError: as `check`.
    """
    check()
    own = with_kernels(calls)
    found: list[CountedCall] = []
    start = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "calls.safetensors"
        save(own, file)
        pools = [ProcessPoolExecutor(1, start, initializer=install, initargs=(arch,)) for arch in ARCHITECTURES]
        try:
            jobs = [
                pool.submit(_count, file, number, arch)
                for number in range(len(own))
                for pool, arch in zip(pools, ARCHITECTURES, strict=True)
            ]
            for job in jobs:
                found.append(job.result())
                if tick is not None:
                    tick(f"{found[-1].name}, sm_{found[-1].arch}")
        finally:
            for pool in pools:
                pool.shutdown(cancel_futures=True)
    return found


def _count(file: Path, number: int, arch: int) -> CountedCall:
    call = load(file)[number]
    kernels, declined = [], None
    try:
        kernels = counts_of(registry()[call.op], call.make(torch.device("cpu")))
    except BackendError as error:
        declined = str(error)
    return CountedCall(call.name, call.op, call.times, arch, kernels, declined)
