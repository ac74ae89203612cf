"""Clocks: what is timed and what is not, in which order; with clocks and events that the test sets."""

from __future__ import annotations

import contextlib
import gc
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pixelrefer_fast.bench.measure import timing


class FakeTime:
    """A wall clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def takes(self, seconds: float) -> Callable[..., None]:
        def run(*_: Any) -> None:
            self.now += seconds

        return run


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    clock = FakeTime()
    monkeypatch.setattr(timing, "time", clock)
    return clock


class FakeDevice:
    """As much of torch.cuda as the clock asks for: a queue whose time the test moves.

    `idle` is what the device still has to do when an event is asked; `log` what was asked of it.
    """

    def __init__(self, wall: FakeTime) -> None:
        self.wall, self.log, self.done_at, self.events = wall, [], 0.0, 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing
                self.at = 0.0

            def record(self) -> None:
                device.log.append("record")
                self.at = max(device.done_at, device.wall.now)

            def query(self) -> bool:
                return device.wall.now >= self.at

            def elapsed_time(self, end: Event) -> float:
                return 1e3 * (end.at - self.at)

        cuda = types.SimpleNamespace(
            Event=Event,
            synchronize=lambda *_: device.wait(),
            _sleep=lambda cycles: device.work(cycles / 2e9, "sleep"),
            device=lambda _: contextlib.nullcontext(),
            get_device_properties=lambda _: types.SimpleNamespace(L2_cache_size=50),
        )
        flush = types.SimpleNamespace(max=lambda: device.work(1e-5, "flush"))
        monkeypatch.setattr(timing.torch, "cuda", cuda)
        monkeypatch.setattr(timing.torch, "zeros", lambda size, **_: (self.log.append(size), flush)[1])

    def work(self, seconds: float, name: str) -> None:
        self.log.append(name)
        self.done_at = max(self.done_at, self.wall.now) + seconds

    def wait(self) -> None:
        self.log.append("wait")
        self.wall.now = max(self.wall.now, self.done_at)


@pytest.fixture
def gpu(wall: FakeTime, monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    device = FakeDevice(wall)
    device.install(monkeypatch)
    return device


def test_the_wall_clock_leaves_out_what_prepares(wall: FakeTime) -> None:
    seconds = timing.clock("cpu").time(wall.takes(5), wall.takes(0.25))
    assert seconds == (0.25, 0.25)


def test_a_device_is_timed_by_itself(gpu: FakeDevice, wall: FakeTime) -> None:
    """The host takes 0.3 ms to queue 0.2 ms of work: while the device idles, so that only its own time is in it."""
    clock = timing.clock("cuda")
    assert gpu.log == [100]  # twice the L2

    def run(given: str) -> None:
        assert given == "inputs"
        wall.now += 3e-4
        gpu.work(2e-4, "run")

    seconds, host = clock.time(lambda: "inputs", run)
    assert seconds == pytest.approx(2e-4)
    assert host == pytest.approx(3e-4)
    assert gpu.log[1:] == ["flush", "wait", "sleep", "record", "run", "record", "wait"]


def test_a_slow_host_gets_more_time_ahead(gpu: FakeDevice, wall: FakeTime) -> None:
    """2 ms to queue: the first idling of 1 ms is too short, the second one is long enough."""
    prepared = []

    def run(_: Any) -> None:
        for _ in range(2):
            wall.now += 1e-3
            gpu.work(1e-4, "run")

    seconds, host = timing.clock("cuda").time(lambda: prepared.append(1), run)
    assert seconds == pytest.approx(2e-4)
    assert host == pytest.approx(2e-3)
    assert len(prepared) == 2


def test_a_stopwatch_gives_the_devices_time_as_a_difference(gpu: FakeDevice, wall: FakeTime) -> None:
    timer = timing.Stopwatch(timing.DeviceClock())

    def once(host: float) -> float:
        start = timer()
        wall.now += host
        gpu.work(5e-4, "run")
        return timer() - start

    assert once(1e-4) == pytest.approx(5e-4)
    assert once(4e-3) == pytest.approx(35e-4)  # the device has waited for the host: the next call gets more time
    assert once(4e-3) == pytest.approx(5e-4)
    assert gpu.log.count("flush") == 3
    timer()  # of a call that fails
    timer.reset()
    assert once(1e-4) == pytest.approx(5e-4)


def test_a_sample_warms_up_prepares_and_collects_no_garbage(wall: FakeTime) -> None:
    calls: list[bool] = []

    def run() -> None:
        calls.append(gc.isenabled())
        wall.now += len(calls)

    assert gc.isenabled()
    seconds = timing.sample(run, "cpu", repeats=3, warmup=2, prepare=wall.takes(50))
    assert seconds == [3.0, 4.0, 5.0]
    assert calls == [False] * 5
    assert gc.isenabled()


def test_garbage_collection_comes_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), timing.quiet():
        _ = 1 / 0
    assert gc.isenabled()


def test_candidates_run_in_turn() -> None:
    calls: list[str] = []

    def candidate(name: str) -> timing.Run:
        def run() -> torch.Tensor:
            calls.append(name)
            return torch.zeros(1)

        return run

    seconds, outputs = timing.interleaved({"a": candidate("a"), "b": candidate("b")}, 3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert outputs.keys() == {"a", "b"}


def test_inputs_rotate_through_memory_of_their_own() -> None:
    x = torch.arange(6.0)
    given = timing.rotating((x, 3, [x + 1]), "cpu")
    first, second, third = given(), given(), given()
    assert first[0].data_ptr() != second[0].data_ptr()
    assert first[2][0].data_ptr() != second[2][0].data_ptr()
    assert third is first
    assert torch.equal(first[0], second[0])
    assert second[1] == 3


@pytest.mark.parametrize(("size", "sets"), [(10, 8), (40, 3), (1000, 2)])
def test_as_many_sets_as_exceed_the_cache(size: int, sets: int, gpu: FakeDevice) -> None:
    """The L2 has 50 bytes here; eight sets at the most."""
    x = torch.ones(size, dtype=torch.uint8)
    assert len(timing.copies((x,), "cuda")) == sets


def test_quantiles_are_in_order() -> None:
    found = timing.quantiles([5.0, 1.0, 3.0, 2.0, 4.0])
    assert found == pytest.approx({"q10": 1.4, "median": 3.0, "q90": 4.6})
