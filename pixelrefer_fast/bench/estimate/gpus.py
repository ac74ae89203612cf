"""What GPUs can do: data sheets, and the rates that were measured where somebody has measured.

Data sheets give peaks that no program reaches. A prediction takes measured rates where there are some, else the data
sheet's times the share of it that one H200 was measured to reach, which is an assumption and is printed as one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

MATRIX_SHARE = 790 / 989.4  # bfloat16 products of one H200, measured
COPY_SHARE = 4.3 / 4.8  # bytes read and written by a copy on it
# Seconds; of PyTorch in eager mode, and between two kernels that follow each other on a device. Orders of magnitude.
ISSUE = 5e-6
GAP = 1.5e-6


@dataclass(frozen=True)
class Gpu:
    """One device, or this machine.

    Attributes:
        name: as `find` takes it.
        title: what it is called in full.
        memory: bytes.
        bandwidth: bytes a second of its memory, read and written, from the data sheet; 0 where there is none.
        matrix: FLOP/s of dense matrix products by dtype ("bfloat16", "float16", "float32"), from the data sheet; a
            multiply-add is two. No sparsity, float32 without TF32 (as PyTorch multiplies by default).
        source: where these numbers are from.
        upload: bytes a second from pinned host memory: about four fifths of what the bus can do.
        measured: rates as `rates.measured` gives them ("copy" and dtypes), where they are known.
        measured_source: by whom.
        issue: seconds that the host takes to issue a launch.
        gap: seconds on the device that a launch takes beside what it computes and moves.
        kind: "cuda" or "cpu": which code runs there.
    """

    name: str
    title: str
    memory: int
    bandwidth: float
    matrix: Mapping[str, float]
    source: str
    upload: float = 25e9
    measured: Mapping[str, float] = field(default_factory=dict)
    measured_source: str = ""
    issue: float = ISSUE
    gap: float = GAP
    kind: str = "cuda"

    def computes(self, dtype: str) -> bool:
        """Whether there is a rate for products of this dtype."""
        return dtype in self.measured or dtype in self.matrix

    def rate(self, dtype: str) -> float:
        """FLOP/s that a prediction takes.

        Raises:
            ValueError: the device has no matrix units for this dtype.
        """
        if dtype in self.measured:
            return self.measured[dtype]
        if dtype not in self.matrix:
            known = ", ".join(sorted({*self.measured, *self.matrix} - {"copy"}))
            raise ValueError(f"--dtype: expected one of {known} on {self.title}, got {dtype}")
        return self.matrix[dtype] * MATRIX_SHARE

    @property
    def copy(self) -> float:
        """Bytes a second, read and written, that a prediction takes."""
        return self.measured["copy"] if "copy" in self.measured else self.bandwidth * COPY_SHARE

    def basis(self, dtype: str) -> str:
        """Where the rates of a prediction are from, for people."""
        if "copy" in self.measured and dtype in self.measured:
            return self.measured_source
        assumed = f"{MATRIX_SHARE:.0%} of its matrix rate and {COPY_SHARE:.0%} of its bandwidth (an H200's shares)"
        return f"{self.source}, of which {assumed} are taken to be reached"


def _sheet(
    name: str,
    title: str,
    gigabytes: float,
    terabytes_a_second: float,
    half: float,
    single: float,
    document: str,
    upload: float = 25e9,
    bfloat16: bool = True,
) -> Gpu:
    """From a data sheet's units: 10^9 bytes, 10^12 bytes a second, dense TFLOP/s of 16-bit and float32 products."""
    matrix = {"float16": half * 1e12, "float32": single * 1e12}
    if bfloat16:
        matrix["bfloat16"] = half * 1e12
    return Gpu(name, title, int(gigabytes * 1e9), terabytes_a_second * 1e12, matrix, document, upload)


_TABLE = (
    replace(
        _sheet("H200", "NVIDIA H200 SXM", 141, 4.8, 989.4, 67, "NVIDIA H200 data sheet", 50e9),
        measured={"copy": 4.3e12, "bfloat16": 790e12, "float16": 790e12},
        measured_source="measured on one H200 (copy bandwidth and bfloat16 products; float16 taken to be as fast)",
    ),
    _sheet("H100", "NVIDIA H100 SXM 80 GB", 80, 3.35, 989.4, 67, "NVIDIA H100 data sheet", 50e9),
    _sheet("H100-PCIe", "NVIDIA H100 PCIe 80 GB", 80, 2.0, 756, 51, "NVIDIA H100 PCIe product brief", 50e9),
    _sheet("A100", "NVIDIA A100 SXM 80 GB", 80, 2.039, 312, 19.5, "NVIDIA A100 data sheet"),
    _sheet("A100-40", "NVIDIA A100 40 GB", 40, 1.555, 312, 19.5, "NVIDIA A100 data sheet"),
    _sheet("A100-PCIe", "NVIDIA A100 PCIe 80 GB", 80, 1.935, 312, 19.5, "NVIDIA A100 data sheet"),
    _sheet("B200", "NVIDIA B200 SXM (HGX)", 180, 8.0, 2250, 75, "NVIDIA HGX B200 data sheet", 50e9),
    _sheet("L40S", "NVIDIA L40S", 48, 0.864, 362, 91.6, "NVIDIA L40S data sheet"),
    _sheet("L4", "NVIDIA L4", 24, 0.3, 121, 30.3, "NVIDIA L4 data sheet"),
    _sheet("A10G", "NVIDIA A10G", 24, 0.6, 70, 35, "NVIDIA A10G data sheet (AWS G5)"),
    _sheet("A10", "NVIDIA A10", 24, 0.6, 125, 31.2, "NVIDIA A10 data sheet"),
    _sheet("A40", "NVIDIA A40", 48, 0.696, 149.7, 37.4, "NVIDIA A40 data sheet"),
    _sheet("RTX-5090", "NVIDIA GeForce RTX 5090", 32, 1.792, 209.5, 104.8, "NVIDIA RTX Blackwell white paper", 50e9),
    _sheet("RTX-4090", "NVIDIA GeForce RTX 4090", 24, 1.008, 165.2, 82.6, "NVIDIA Ada white paper"),
    _sheet("RTX-3090", "NVIDIA GeForce RTX 3090", 24, 0.936, 71, 35.6, "NVIDIA GA102 white paper"),
    _sheet("T4", "NVIDIA T4", 16, 0.32, 65, 8.1, "NVIDIA T4 data sheet", 12e9, bfloat16=False),
)
GPUS: Mapping[str, Gpu] = {gpu.name: gpu for gpu in _TABLE}
THIS = "this"
"""The name of the machine that asks, whose rates are measured."""


def find(name: str) -> Gpu:
    """A GPU of the table by its name; case, blanks, dashes, "NVIDIA", "GeForce" and "RTX" do not matter.

    Raises:
        ValueError: there is no such GPU in the table.
    """
    wanted = _plain(name)
    for gpu in GPUS.values():
        if wanted in (_plain(gpu.name), _plain(gpu.title)):
            return gpu
    raise ValueError(f"--gpu: expected {THIS} or one of {', '.join(GPUS)}, got {name!r}")


def this_machine(dtype: str, device: str = "auto") -> Gpu:
    """This machine's first CUDA device, or its CPU, with the rates that it reaches now (takes some seconds).

    Args:
        dtype: of the products to be predicted.
        device: "auto", "cpu" or a CUDA device.

    Raises:
        ValueError: there is no such device.
    """
    from pixelrefer_fast.bench.measure import rates
    from pixelrefer_fast.device.memory import free_memory
    from pixelrefer_fast.loading import auto_device

    chosen = auto_device(device)
    found = rates.measured(chosen, [getattr(torch, dtype)])
    if chosen.type == "cuda":
        properties = torch.cuda.get_device_properties(chosen)
        title, memory = properties.name, properties.total_memory
    else:
        from pixelrefer_fast.bench.measure.machine import provenance

        title, memory = str(provenance()["cpu"]), free_memory(chosen)
    return Gpu(
        name=THIS,
        title=title,
        memory=memory,
        bandwidth=found["copy"],
        matrix={},
        source="this machine",
        measured={name: rate for name, rate in found.items() if rate},
        measured_source="measured here, now",
        issue=_issue(chosen),
        gap=GAP if chosen.type == "cuda" else 0.0,
        kind=chosen.type,
    )


def _issue(device: torch.device, calls: int = 300) -> float:
    """Seconds that the host takes for one of a model's small operations, Python's part included."""
    layer = torch.nn.Linear(64, 64, device=device)
    x = torch.ones(1, 64, device=device)
    times = []
    with torch.inference_mode():
        for _ in range(9):
            start = time.perf_counter()
            for _ in range(calls):
                layer(x).unflatten(1, (2, 32)).flatten(1) * x + x
            times.append((time.perf_counter() - start) / calls / 3)  # a product, a product of numbers, a sum
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    return min(times)


def _plain(name: str) -> str:
    words = name.lower().replace("-", " ").replace("_", " ").split()
    return "".join(word for word in words if word not in ("nvidia", "geforce", "rtx"))
