"""Watts, joules, clocks and throttling, from a driver that the test stands in for."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

from pixelrefer_fast.bench.measure import machine, power


class Driver(types.ModuleType):
    """As much of nvidia-ml-py as is asked: two devices, the second of which torch sees."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.joules, self.watts, self.sm, self.reasons = 5.0, 300.0, 1980, 0x1
        self.counts_energy, self.starts, self.open = True, True, 0

    def nvmlInit(self) -> None:
        if not self.starts:
            raise self.NVMLError("driver not loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1234":
            raise self.NVMLError("not found")
        return "second"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "second"
        if not self.counts_energy:
            raise self.NVMLError("not supported")
        return round(1000 * self.joules)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return round(1000 * self.watts)

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return self.sm if kind == self.NVML_CLOCK_SM else 3201

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
        return 2000 if kind == self.NVML_CLOCK_SM else 3300

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return self.reasons


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: types.SimpleNamespace(uuid="1234"))
    return made


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says, read by read; then the last value on and on."""
    values: list[float] = []
    clock = types.SimpleNamespace(perf_counter=lambda: values.pop(0) if len(values) > 1 else values[0])
    monkeypatch.setattr(power, "time", clock)
    return values


def test_energy_clocks_and_throttling_of_a_block(driver: Driver, seconds: list[float]) -> None:
    seconds[:] = [0.0, 10.0, 12.0]  # of the first sample, the block's start and its end
    with power.watching("cuda", every=None) as watch:
        driver.joules, driver.sm, driver.reasons = 605.0, 1500, 0x1 | 0x4 | 0x40
        watch.sample()
    facts = watch.facts()
    assert facts is not None
    assert facts["joules"] == 600.0
    assert facts["energy_from"] == "counter"
    assert facts["sm_mhz"] == [1500, 1980]
    assert facts["memory_mhz"] == [3201, 3201]
    assert facts["throttled"] == ["power cap", "hardware thermal slowdown"]
    assert facts["watts"] == pytest.approx(600.0 / facts["seconds"])
    assert driver.open == 0


def test_without_an_energy_counter_power_is_summed(driver: Driver, seconds: list[float]) -> None:
    driver.counts_energy = False
    seconds[:] = [0.0, 10.0, 14.0]
    with power.watching(torch.device("cuda:0"), every=None):
        pass
    with power.watching(torch.device("cuda:0"), every=None) as watch:
        driver.watts = 500.0
    facts = watch.facts()
    assert facts is not None
    assert facts["energy_from"] == "samples"
    assert facts["joules"] == pytest.approx(400.0 * facts["seconds"])
    assert facts["throttled"] == []


def test_samples_are_taken_meanwhile(driver: Driver) -> None:
    """The follower asks until the block ends; the block ends as soon as it has asked twice."""
    asked = []
    original = power.Watch.sample

    def sample(self: power.Watch) -> None:
        original(self)
        asked.append(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(power.Watch, "sample", sample)
        with power.watching("cuda", every=1e-4):
            while len(asked) < 3:
                pass
    assert len(asked) >= 4


def test_state_and_its_place_in_provenance(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {
        "sm_mhz": 1980,
        "sm_mhz_most": 2000,
        "memory_mhz": 3201,
        "memory_mhz_most": 3300,
        "watts_limit": None,  # this driver does not know the call
    }
    assert power.state("cuda") == wanted
    assert machine.clocks() == wanted


def _no_uuid(driver: Driver, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "get_device_properties", lambda index: types.SimpleNamespace(uuid="another"))


def _no_library(driver: Driver, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "pynvml", None)


def _no_driver(driver: Driver, patch: pytest.MonkeyPatch) -> None:
    driver.starts = False


@pytest.mark.parametrize("lacks", [_no_uuid, _no_library, _no_driver])
def test_where_nothing_can_be_asked_there_are_no_facts(
    lacks: Any, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacks(driver, monkeypatch)
    with power.watching("cuda") as watch:
        watch.sample()
    assert watch.facts() is None
    assert power.state("cuda") is None
    assert driver.open == 0


def test_a_cpu_has_none() -> None:
    with power.watching("cpu") as watch:
        pass
    assert watch.facts() is None


def test_an_error_within_the_block_stays(driver: Driver) -> None:
    with pytest.raises(KeyError, match="mine"), power.watching("cuda"):
        raise KeyError("mine")
    assert driver.open == 0
