"""Watts, joules, clocks and throttling of an NVIDIA GPU, asked by nvidia-ml-py; nothing where that or a GPU lacks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

EVERY = 0.05  # seconds between two samples
# reasons for which a clock is below what the device could do under load; idling is none, neither is a set limit
THROTTLING = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


@dataclass
class Watch:
    """What a device drew while it was watched.

    Attributes:
        seconds: of the block.
    """

    _gpu: _Gpu | None
    seconds: float = 0.0
    _watts: list[tuple[float, float]] = field(default_factory=list)
    _clocks: list[int] = field(default_factory=list)
    _memory_clocks: list[int] = field(default_factory=list)
    _reasons: int = 0
    _energy: tuple[float | None, float | None] = (None, None)

    def facts(self) -> dict[str, Any] | None:
        """Of the block, None where there is nothing to ask.

        Returns:
            `joules` (by the device's own counter, else the samples' mean power times the seconds, else None) and which
            of the two it was, `watts` (joules a second), the lowest and highest `sm_mhz` and `memory_mhz`, and
            `throttled`: why clocks were held down, by name.
        """
        if self._gpu is None:
            return None
        first, last = self._energy
        joules, source = None, None
        if first is not None and last is not None:
            joules, source = last - first, "counter"
        elif self._watts:
            joules, source = self.seconds * sum(w for _, w in self._watts) / len(self._watts), "samples"
        return {
            "seconds": self.seconds,
            "joules": joules,
            "energy_from": source,
            "watts": None if joules is None or not self.seconds else joules / self.seconds,
            "sm_mhz": _range(self._clocks),
            "memory_mhz": _range(self._memory_clocks),
            "throttled": [name for bit, name in THROTTLING.items() if self._reasons & bit],
        }

    def sample(self) -> None:
        """Ask the device once."""
        if self._gpu is None:
            return
        now = self._gpu.now()
        if now["watts"] is not None:
            self._watts.append((time.perf_counter(), now["watts"]))
        if now["sm_mhz"] is not None:
            self._clocks.append(now["sm_mhz"])
        if now["memory_mhz"] is not None:
            self._memory_clocks.append(now["memory_mhz"])
        self._reasons |= now["reasons"] or 0


@contextmanager
def watching(device: Any, every: float | None = EVERY) -> Iterator[Watch]:
    """Watch a device during the block.

    The energy counter of a device moves a few times a second: let the block take a second or more.

    Args:
        device: a torch device or its name; any but a CUDA device gives no facts.
        every: seconds between two samples; None: only at both ends.
    """
    with _opened(device) as gpu:
        watch = Watch(gpu)
        if gpu is None:
            yield watch
            return
        done = threading.Event()

        def follow() -> None:
            while not done.wait(every):
                watch.sample()

        follower = threading.Thread(target=follow, name="power", daemon=True) if every is not None else None
        watch.sample()
        first = gpu.joules()
        start = time.perf_counter()
        if follower is not None:
            follower.start()
        try:
            yield watch
        finally:
            watch.seconds = time.perf_counter() - start
            watch._energy = (first, gpu.joules())
            done.set()
            if follower is not None:
                follower.join()
            watch.sample()


def state(device: Any) -> dict[str, Any] | None:
    """Clocks in MHz, now and at most, and the power limit in watts; None where there is nothing to ask."""
    with _opened(device) as gpu:
        return None if gpu is None else gpu.state()


class _Gpu:
    """One device, asked through nvidia-ml-py; what it does not know is None."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def _ask(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, name)(self._handle, *arguments)
        except (self._nvml.NVMLError, AttributeError):  # not every device has every counter, nor every version the name
            return None

    def joules(self) -> float | None:
        """Since the driver was loaded."""
        return _scaled(self._ask("nvmlDeviceGetTotalEnergyConsumption"))

    def now(self) -> dict[str, Any]:
        nvml = self._nvml
        return {
            "watts": _scaled(self._ask("nvmlDeviceGetPowerUsage")),
            "sm_mhz": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "memory_mhz": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            "reasons": self._ask("nvmlDeviceGetCurrentClocksThrottleReasons"),
        }

    def state(self) -> dict[str, Any]:
        nvml, now = self._nvml, self.now()
        return {
            "sm_mhz": now["sm_mhz"],
            "sm_mhz_most": self._ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
            "memory_mhz": now["memory_mhz"],
            "memory_mhz_most": self._ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_MEM),
            "watts_limit": _scaled(self._ask("nvmlDeviceGetEnforcedPowerLimit")),
        }


@contextmanager
def _opened(device: Any) -> Iterator[_Gpu | None]:
    """The device for as long as the block lasts, None where it cannot be asked."""
    import torch

    device = torch.device(device)
    if device.type != "cuda":
        yield None
        return
    try:
        import pynvml as nvml
    except ImportError:
        yield None
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield None
        return
    try:
        handle = _handle(nvml, device)
        yield None if handle is None else _Gpu(nvml, handle)
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _handle(nvml: Any, device: Any) -> Any:
    """NVML counts all devices of a machine, torch those that it is shown: the identifier tells them apart."""
    import torch

    index = torch.cuda.current_device() if device.index is None else device.index
    properties = torch.cuda.get_device_properties(index)
    asks: list[Callable[[], Any]] = []
    identifier = getattr(properties, "uuid", None)
    if identifier is not None:
        asks.append(lambda: nvml.nvmlDeviceGetHandleByUUID(f"GPU-{identifier}"))
    if torch.cuda.device_count() == 1:
        asks.append(lambda: nvml.nvmlDeviceGetHandleByIndex(0) if nvml.nvmlDeviceGetCount() == 1 else None)
    for ask in asks:
        with contextlib.suppress(nvml.NVMLError):
            handle = ask()
            if handle is not None:
                return handle
    return None


def _scaled(value: float | None) -> float | None:
    """From thousandths."""
    return None if value is None else value / 1e3


def _range(values: list[int]) -> list[int] | None:
    return [min(values), max(values)] if values else None
