"""CUDA graphs by bucket: lengths, padding, what is kept and given up, with a stand-in for capture; replay on a GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recorded_graphs import SIZE, Recorder

from pixelrefer_fast.device.graphs import SMALLEST_BUCKET, GraphCache, bucket


def _double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def _ones(length: int) -> dict[str, torch.Tensor]:
    return {"x": torch.ones(length)}


@given(length=st.integers(1, 100_000))
def test_bucket_bounds_the_padding(length: int) -> None:
    padded = bucket(length)
    assert padded >= length
    assert padded == SMALLEST_BUCKET or padded - length < length / 4
    assert bucket(padded) == padded
    assert padded <= bucket(length + 1)


def test_buckets_are_few() -> None:
    buckets = sorted({bucket(n) for n in range(16385)})
    assert buckets[:10] == [64, 80, 96, 112, 128, 160, 192, 224, 256, 320]
    assert buckets[-1] == 16384
    assert len(buckets) == 33


def test_captured_once_replayed_with_each_calls_values() -> None:
    recorder = Recorder()
    cache = GraphCache(10**6, recorder)
    first = cache.run("double", _double, {"x": torch.arange(4.0)})
    second = cache.run("double", _double, {"x": torch.full((4,), 5.0)})
    # the first result still stands: it is a copy
    assert first.tolist() == [0, 2, 4, 6]
    assert second.tolist() == [10] * 4
    assert [x.replays for x in recorder.captured] == [3]  # the first is compared with the eager run
    assert cache.counts() == {
        "graphs": 1,
        "held_bytes": SIZE + 16,
        "captures": 1,
        "replays": 2,
        "evictions": 0,
        "not_kept": 0,
    }


def test_the_callers_tensors_stay_its_own() -> None:
    """Neither are they kept as buffers nor written to."""
    cache = GraphCache(10**6, Recorder())
    x = torch.ones(4)
    cache.run("double", _double, {"x": x})
    x.fill_(torch.nan)
    assert cache.run("double", _double, _ones(4)).tolist() == [2] * 4
    assert x.isnan().all()


@pytest.mark.parametrize(
    ("key", "inputs"),
    [
        ("other", {"x": torch.ones(4)}),
        ("double", {"x": torch.ones(5)}),
        ("double", {"x": torch.ones(2, 2)}),
        ("double", {"x": torch.ones(4, dtype=torch.float64)}),
    ],
    ids=["key", "length", "shape", "dtype"],
)
def test_what_makes_another_graph(key: str, inputs: dict[str, torch.Tensor]) -> None:
    recorder = Recorder()
    cache = GraphCache(10**6, recorder)
    cache.run("double", _double, _ones(4))
    out = cache.run(key, _double, inputs)
    assert out.shape == inputs["x"].shape
    assert out.dtype == inputs["x"].dtype
    assert len(recorder.captured) == 2


def test_padding_to_a_bucket() -> None:
    """Lengths of a bucket share its graph, and what the padding holds reaches no result."""

    def sums(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        place = torch.arange(len(x))
        inside = (place >= offsets[:-1, None]) & (place < offsets[1:, None])
        return torch.where(inside, x, 0).sum(1)

    recorder = Recorder()
    cache = GraphCache(10**6, recorder)
    for length in (65, 70, 80):
        x = torch.full((bucket(length),), torch.nan)
        x[:length] = torch.arange(length)
        out = cache.run("sums", sums, {"x": x, "offsets": torch.tensor([0, 3, length])})
        assert out.tolist() == [3, sum(range(3, length))]
    assert [x.replays for x in recorder.captured] == [4]


def test_the_least_recently_used_is_given_up() -> None:
    recorder = Recorder()
    cache = GraphCache(3 * (SIZE + 40), recorder)
    for length in (8, 9, 10):
        cache.run("double", _double, _ones(length))
    cache.run("double", _double, _ones(8))  # now 9 is the one not used for longest
    cache.run("double", _double, _ones(7))
    assert cache.counts()["evictions"] == 1
    assert cache.held_bytes() == 3 * SIZE + 4 * (10 + 8 + 7)
    for length in (8, 10, 7):
        cache.run("double", _double, _ones(length))
    assert len(recorder.captured) == 4
    assert cache.run("double", _double, _ones(9)).tolist() == [2] * 9
    assert len(recorder.captured) == 5


def test_as_many_are_given_up_as_a_large_one_needs() -> None:
    recorder = Recorder()
    cache = GraphCache(4 * SIZE, recorder)
    for length in (1, 2, 3):
        cache.run("double", _double, _ones(length))
    recorder.held = 3 * SIZE
    cache.run("double", _double, _ones(4))
    assert cache.counts()["evictions"] == 3
    assert cache.held_bytes() == 3 * SIZE + 16


def test_one_that_exceeds_the_limit_alone_is_not_kept() -> None:
    recorder = Recorder()
    cache = GraphCache(2 * SIZE, recorder)
    cache.run("double", _double, _ones(2))
    recorder.held = 2 * SIZE
    for value in (1.0, 2.0, 3.0):
        assert cache.run("double", _double, {"x": torch.full((3,), value)}).tolist() == [2 * value] * 3
    counts = cache.counts()
    # captured once to learn its size, then run as it is; the small one stayed
    assert (counts["captures"], counts["not_kept"], counts["evictions"]) == (2, 2, 0)
    assert cache.held_bytes() == SIZE + 8
    assert list(cache.refused.values()) == [f"it takes {2 * SIZE + 12} bytes, of a limit of {2 * SIZE}"]


def test_a_capture_that_fails_is_remembered_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    cache = GraphCache(10**6, recorder)
    cache.run("double", _double, _ones(2))
    recorder.error = RuntimeError("operation not permitted when stream is capturing")
    for value in (1.0, 2.0, 3.0):
        assert cache.run("double", _double, {"x": torch.full((3,), value)}).tolist() == [2 * value] * 3
    assert recorder.tries == 2
    reason = "the capture failed: operation not permitted when stream is capturing"
    assert list(cache.refused.values()) == [reason]
    assert [record.message for record in caplog.records] == [f"graphs: not using one ({reason})"]
    counts = cache.counts()
    assert (counts["graphs"], counts["captures"], counts["replays"], counts["not_kept"]) == (1, 1, 1, 2)
    # what is captured already goes on, and other weights are another try
    cache.run("double", _double, _ones(2))
    assert cache.counts()["replays"] == 2
    cache.clear()
    recorder.error = None
    assert cache.run("double", _double, _ones(3)).tolist() == [2] * 3
    assert recorder.tries == 3
    assert not cache.refused


def test_a_function_that_fails_raises_what_is_wrong_with_it() -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a defect")

    cache = GraphCache(10**6, Recorder())
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^a defect$"):
            cache.run("fail", fail, _ones(3))


def test_a_capture_without_memory_is_tried_again() -> None:
    recorder = Recorder()
    cache = GraphCache(10**6, recorder)
    recorder.error = torch.OutOfMemoryError("not now")
    with pytest.raises(torch.OutOfMemoryError, match=r"^not now$"):
        cache.run("double", _double, _ones(3))
    recorder.error = None
    assert cache.run("double", _double, _ones(3)).tolist() == [2] * 3
    assert len(recorder.captured) == 1
    assert not cache.refused


def test_clear() -> None:
    recorder = Recorder()
    cache = GraphCache(10**6, recorder)
    cache.run("double", _double, _ones(3))
    cache.clear()
    assert cache.held_bytes() == 0
    cache.run("double", _double, _ones(3))
    assert len(recorder.captured) == 2


def test_inference_mode_and_gradients() -> None:
    """One graph serves calls within inference mode and without; results take part in no gradient."""
    weight = torch.ones(3, requires_grad=True)
    recorder = Recorder()
    cache = GraphCache(10**6, recorder)

    def weigh(x: torch.Tensor) -> torch.Tensor:
        return x * weight

    with torch.inference_mode():
        assert cache.run("weigh", weigh, _ones(3)).tolist() == [1] * 3
    out = cache.run("weigh", weigh, {"x": torch.full((3,), 2.0)})
    assert out.tolist() == [2] * 3
    assert not out.requires_grad
    assert not out.is_inference()
    with torch.inference_mode():
        assert cache.run("weigh", weigh, _ones(3)).tolist() == [1] * 3
    assert len(recorder.captured) == 1


def test_without_cuda() -> None:
    cache = GraphCache(10**6)
    assert cache.unusable(torch.device("cpu")) == "CUDA graphs exist on cuda only"
    message = "^graphs: expected inputs on a device with CUDA graphs, got cpu: CUDA graphs exist on cuda only$"
    with pytest.raises(ValueError, match=message):
        cache.run("double", _double, _ones(3))


def test_inputs_of_no_device_and_of_two() -> None:
    cache = GraphCache(10**6, Recorder())
    with pytest.raises(ValueError, match=r"^graphs: expected inputs on one device, got no inputs$"):
        cache.run("double", _double, {})
    two = {"x": torch.ones(1), "y": torch.ones(1, device="meta")}
    with pytest.raises(ValueError, match=r"^graphs: expected inputs on one device, got \['cpu', 'meta'\]$"):
        cache.run("double", _double, two)


def _attend(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    from pixelrefer_fast.ops import varlen_attention

    q, k, v = x.unbind(1)
    return varlen_attention(q, k, v, offsets, offsets, 128, 128, backend="triton")


@pytest.mark.gpu
def test_replay_is_the_eager_result() -> None:
    device = torch.device("cuda")
    cache = GraphCache(2**30)
    generator = torch.Generator().manual_seed(0)
    for lengths in ([30, 40, 1], [70, 2, 3], [128]):
        total = sum(lengths)
        x = torch.full((128, 3, 4, 72), torch.nan, dtype=torch.float16)
        x[:total] = torch.randn(total, 3, 4, 72, generator=generator)
        # as many sequences in every call: those left over are empty
        ends = torch.tensor([0, *lengths]).cumsum(0)
        offsets = torch.cat([ends, ends[-1:].expand(4 - len(ends))]).int()
        inputs = {"x": x.to(device), "offsets": offsets.to(device)}
        out = cache.run("attend", _attend, inputs)
        assert torch.equal(out[:total], _attend(**inputs)[:total])
    assert cache.counts()["captures"] == 1
    assert cache.counts()["replays"] == 3


@pytest.mark.gpu
def test_memory_on_the_device() -> None:
    """What a graph holds is counted, and given back with it."""

    def grow(x: torch.Tensor) -> torch.Tensor:
        return (x[:, None] * x).sum(1)  # 4096 x 4096 floats on the way: 64 MiB

    inputs = {"x": torch.rand(4096, device="cuda")}
    cache = GraphCache(2**30)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    out = cache.run("grow", grow, inputs)
    torch.testing.assert_close(out, grow(**inputs))
    assert 64 * 2**20 <= cache.held_bytes() < 128 * 2**20
    cache.clear()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < before + 64 * 2**20


@pytest.mark.gpu
def test_a_replay_does_not_wait() -> None:
    cache = GraphCache(2**30)
    inputs = {"x": torch.rand(64, device="cuda")}
    cache.run("double", _double, inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = cache.run("double", _double, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out, 2 * inputs["x"])
