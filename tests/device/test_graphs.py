"""Captured computations by key: what is kept, compared, refused and replayed, with a stand-in for capture."""

from __future__ import annotations

import pytest
import torch
from recorded_graphs import SIZE, Recorder

from pixelrefer_fast.device import trust
from pixelrefer_fast.device.graphs import GraphStore, Run

CPU = torch.device("cpu")


class _Counter:
    """A computation that reads what it was given and writes to a state."""

    def __init__(self, device: torch.device = CPU) -> None:
        self.given = torch.ones(4, device=device)
        self.state = {"count": torch.zeros(4, 2, device=device)[:, 0]}  # a column

    def run(self) -> torch.Tensor:
        self.state["count"] += 1
        return self.given * 10 + self.state["count"]


def _store(limit: int = 10 * SIZE, recorder: Recorder | None = None) -> GraphStore[str]:
    return GraphStore(limit, recorder or Recorder())


def test_a_replay_reads_what_lies_there_and_goes_on_from_it() -> None:
    counter, store = _Counter(), _store()
    store.capture("count", counter.run, counter.state, CPU)
    assert counter.state["count"].tolist() == [0] * 4  # a capture runs it, and puts back what that changed
    assert "count" in store
    counter.given.fill_(2)
    found = store.replay("count")
    assert found is not None
    assert found.tolist() == [21] * 4
    store.replay("count")
    assert found.tolist() == [22] * 4  # each replay writes over the last one's result
    assert store.counts() == {"graphs": 1, "held_bytes": SIZE, "captures": 1, "replays": 2, "not_kept": 0}


def test_captured_once() -> None:
    counter, recorder = _Counter(), Recorder()
    store = _store(recorder=recorder)
    for _ in range(3):
        store.capture("count", counter.run, counter.state, CPU)
    assert recorder.tries == 1
    store.clear()
    assert store.held_bytes() == 0
    store.capture("count", counter.run, counter.state, CPU)
    assert recorder.tries == 2


def test_what_was_not_captured_is_not_replayed() -> None:
    store = _store()
    assert store.replay("count") is None
    assert store.counts()["not_kept"] == 1


def test_what_there_is_no_room_for_is_not_kept() -> None:
    recorder = Recorder()
    store = _store(2 * SIZE + 1, recorder)
    counter = _Counter()
    for key in "abc":
        store.capture(key, counter.run, counter.state, CPU)
    assert [key for key in "abc" if key in store] == ["a", "b"]
    assert store.refused == {"c": f"it takes {SIZE} bytes, where 1 are left of {2 * SIZE + 1}"}
    assert store.held_bytes() == 2 * SIZE
    recorder.held = 1
    store.capture("d", counter.run, counter.state, CPU)
    assert "d" in store


def test_a_capture_that_fails_is_said_once_and_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    counter, recorder = _Counter(), Recorder()
    store = _store(recorder=recorder)
    recorder.error = RuntimeError("operation not permitted when stream is capturing")
    for _ in range(2):
        store.capture("count", counter.run, counter.state, CPU)
    assert recorder.tries == 1
    reason = "the capture failed: operation not permitted when stream is capturing"
    assert store.refused == {"count": reason}
    assert [record.message for record in caplog.records] == [f"graphs: not using one ({reason})"]
    assert trust.counts()["dropped"][reason] >= 1
    assert counter.state["count"].tolist() == [0] * 4
    recorder.error = None
    store.clear()
    store.capture("count", counter.run, counter.state, CPU)
    assert "count" in store


def test_a_capture_without_memory_is_tried_again() -> None:
    counter, recorder = _Counter(), Recorder()
    store = _store(recorder=recorder)
    recorder.error = torch.OutOfMemoryError("not now")
    with pytest.raises(torch.OutOfMemoryError, match=r"^not now$"):
        store.capture("count", counter.run, counter.state, CPU)
    assert counter.state["count"].tolist() == [0] * 4
    recorder.error = None
    store.capture("count", counter.run, counter.state, CPU)
    assert "count" in store


class _Forgetful(Recorder):
    """What a capture that kept a freed address would be: it replays what was there, not what is."""

    def capture(self, run: Run, device: torch.device):  # type: ignore[no-untyped-def]
        captured = super().capture(run, device)
        before = run().clone()
        captured.run = lambda: before
        return captured


@pytest.mark.parametrize("part", ["result", "state"])
def test_a_capture_that_disagrees_is_dropped(part: str) -> None:
    """Whatever of it does: what it returns, or what it leaves in the state."""
    counter, store = _Counter(), _store(recorder=_Forgetful())
    run = counter.run if part == "result" else lambda: (counter.run(), torch.ones(1))[1]
    store.capture("count", run, counter.state, CPU)
    assert "count" not in store
    assert "is not what the eager run gave" in store.refused["count"]
    assert counter.state["count"].tolist() == [0] * 4


def test_without_cuda() -> None:
    assert GraphStore(SIZE).unusable(CPU) == "CUDA graphs exist on cuda only"


@pytest.mark.gpu
def test_replay_is_the_eager_result() -> None:
    device = torch.device("cuda")
    store: GraphStore[str] = GraphStore(2**30)
    counter = _Counter(device)
    store.capture("count", counter.run, counter.state, device)
    assert store.refused == {}
    for value in (1.0, 7.0):
        counter.given.fill_(value)
        expected = value * 10 + counter.state["count"] + 1
        found = store.replay("count")
        assert found is not None
        assert torch.equal(found, expected)


@pytest.mark.gpu
def test_memory_is_one_pool() -> None:
    """The second graph uses the first one's, and its own result does not write over the first one's."""
    device = torch.device("cuda")
    x = torch.rand(4096, device=device)
    store: GraphStore[int] = GraphStore(2**30)
    for rows in (4096, 2048):
        # 64 MiB on the way, and 32
        store.capture(rows, lambda rows=rows: (x[:rows, None] * x).sum(1), {}, device)  # type: ignore[misc]
    assert store.refused == {}
    held = [store._graphs[rows].held for rows in (4096, 2048)]
    assert 64 * 2**20 <= held[0] < 128 * 2**20
    assert held[1] <= 2 * 2**20
    large, small = store.replay(4096), store.replay(2048)
    assert large is not None
    assert small is not None
    torch.testing.assert_close(large[:2048], small)
    torch.testing.assert_close(large, (x[:, None] * x).sum(1))


@pytest.mark.gpu
def test_a_dropped_graph_leaves_the_pool_whole() -> None:
    """Its memory is given back to a pool that goes on."""
    device = torch.device("cuda")
    store: GraphStore[int] = GraphStore(1)  # nothing is kept
    x = torch.rand(1 << 20, device=device)
    for key in range(3):
        store.capture(key, lambda: x * 2, {}, device)
    assert len(store.refused) == 3
    other: GraphStore[int] = GraphStore(2**30)
    other.capture(0, lambda: x * 2, {}, device)
    found = other.replay(0)
    assert found is not None
    assert torch.equal(found, x * 2)


@pytest.mark.gpu
def test_a_replay_does_not_wait() -> None:
    device = torch.device("cuda")
    counter, store = _Counter(device), GraphStore[str](2**30)
    store.capture("count", counter.run, counter.state, device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = store.replay("count")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found is not None
