"""What the region stage asks of a device does not grow with objects and images, and the host waits for none of it."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from plain_memory import plain_memory

from pixelrefer_fast.device.counters import counting
from pixelrefer_fast.encoding.object_tokenizer import ObjectTokenizer
from pixelrefer_fast.ops.object_pool import TILE

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PAGE = BENCHMARKS.parent / "docs" / "kernels" / "launches.md"
WIDTH, N = 48, 4

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def launches() -> Iterator[ModuleType]:
    """`benchmarks/launches.py`, which counts for the page in docs/."""
    import importlib.util

    with pytest.MonkeyPatch.context() as patch:
        spec = importlib.util.spec_from_file_location("launches", BENCHMARKS / "launches.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "launches", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def small(launches: ModuleType, kernel_device: torch.device) -> Any:
    return launches.tokenizer(kernel_device, torch.float32, WIDTH, N)


def test_launches_do_not_grow_with_objects_and_images(launches: ModuleType, small: Any) -> None:
    own = {"object_pool", "infuse"}
    for most, clustering in ((0, {"cluster_tile"}), (TILE + 1, {"gram", "cluster"})):
        numbers = set()
        for objects, images in ((1, 1), (4, 1), (16, 1), (64, 1), (8, 8), (64, 8)):
            of = launches.region_pass(small, objects, images, WIDTH, N)
            counts = (most, *(min(count, TILE) for count in of.selection.counts))
            selection = dataclasses.replace(of.selection, counts=counts)
            with plain_memory():
                whole, inner = launches.count(dataclasses.replace(of, selection=selection))
            assert whole.waits == {}
            numbers.add((sum(inner.launches.values()), sum(whole.launches.values())))
            names = {name.removesuffix("_float32") for name in inner.launches}
            assert {f"object_pool.{name}" for name in clustering} <= names
            assert own <= {name.split(".")[0] for name in names}
            # the rest are dense products of the vendor library, and nothing else of torch's
            assert {name for name in names if name.split(".")[0] not in own} <= {"aten.mm", "aten.addmm_"}
        ((inner_number, whole_number),) = numbers
        assert inner_number <= launches.MOST
        assert whole_number <= launches.MOST_WHOLE


def test_what_follows_from_the_weights_is_made_at_load(launches: ModuleType, kernel_device: torch.device) -> None:
    """And anew where a weight was written to, or may be."""
    module = launches.tokenizer(kernel_device, torch.float32, WIDTH, N)
    step = module.infusion.local_step
    with torch.inference_mode(), counting(kernel_device.type) as counts:
        assert step.out_bias() is step.out_bias()
    assert counts.launches == {}
    before = step.out_bias().clone()
    with torch.no_grad():
        step.in_proj.bias[2 * WIDTH :] += 1.0
        torch.testing.assert_close(step.out_bias(), before + step.out_proj.weight.sum(1))
    step.requires_grad_(True)
    assert step.out_bias().grad_fn is not None


def test_nothing_waits_in_full(launches: ModuleType, kernel_device: torch.device) -> None:
    """Its tokens differ in number from mark to mark: how many there are the host has counted."""
    config = dataclasses.replace(launches.config(WIDTH, N), kind="full")
    module = ObjectTokenizer(config).requires_grad_(False).to(kernel_device)
    of = launches.region_pass(module, 4, 1, WIDTH, N)
    with plain_memory(), torch.inference_mode(), counting(kernel_device.type, dry=True) as counts:
        of.run()
    assert counts.waits == {}


def test_what_is_counted_dry_is_what_runs(launches: ModuleType, small: Any) -> None:
    """The kernels themselves, in the interpreter, on objects that share an image; and their result is right."""
    of = launches.region_pass(small, 2, 1, WIDTH, N)
    with plain_memory():
        dry, _ = launches.count(of)
        run, _ = launches.count(of, dry=False)
    assert run == dry
    with torch.inference_mode():
        torch.testing.assert_close(of.run("triton"), of.run("torch"), atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def full_width(launches: ModuleType, kernel_device: torch.device) -> dict[tuple[int, int], Any]:
    with plain_memory():
        return launches.count_all(kernel_device, ((1, 1), (16, 1)))


def test_flops_at_full_width_against_the_reference(full_width: Any) -> None:
    for (objects, images), goal in {(1, 1): 0.4, (16, 1): 0.2}.items():
        whole, _ = full_width[objects, images]
        # feat_linear alone, which nothing shares, is a twentieth: less than that has not been counted
        assert 0.05 * objects * 5.14e9 < whole.flops <= goal * objects * 5.14e9


def test_bytes_at_full_width(full_width: Any) -> None:
    """The weights are read once a call and not once an object."""
    one, _ = full_width[1, 1]
    many, _ = full_width[16, 1]
    weights = 2 * (2 * 4 * 1152 * 1152 + 1152 * 1536 + 1536 * 1536)  # both infusions and feat_linear, bfloat16
    assert weights < one.moved
    assert many.moved < 16 * one.moved - 12 * weights


def test_the_page_is_what_is_counted(launches: ModuleType, full_width: Any) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for line in launches.table(full_width):
        assert "| " + " | ".join(line) + " |" in page, (
            "run: python benchmarks/launches.py --markdown docs/kernels/launches.md"
        )


def test_what_a_profiler_sees_is_held_against_the_counts(
    launches: ModuleType, full_width: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {(1, 1): full_width[1, 1]}
    counted = Counter({k: n for k, n in full_width[1, 1][0].launches.items() if not k.startswith("aten.")})
    compiled = Counter({"_shared": 2, "_other": counted.total() - 2})  # several kernels may share a function

    def row(kernels: Counter[str], waits: Counter[str]) -> Any:
        found = launches.traces.Seen(kernels + Counter(gemm=3), Counter(), waits)
        monkeypatch.setattr(launches, "seen", lambda of: (found, counted, compiled))
        monkeypatch.setattr(launches, "region_pass", lambda *_: None)
        page, seen = launches.rows(one, object())
        assert (page["by"], page["ok"]) == ("counted", True)
        assert (seen["by"], seen["launches"], seen["waits"]) == ("seen", kernels.total() + 3, waits.total())
        return seen

    assert row(compiled, Counter())["ok"]
    assert not row(compiled - Counter(_shared=1), Counter())["ok"]
    assert not row(compiled + Counter(_shared=1), Counter())["ok"]
    assert not row(compiled, Counter(cudaStreamSynchronize=1))["ok"]


@pytest.mark.slow
def test_the_whole_page_is_what_is_counted(launches: ModuleType, kernel_device: torch.device) -> None:
    with plain_memory():
        assert launches.markdown(launches.count_all(kernel_device)) == PAGE.read_text(encoding="utf-8")


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def on_gpu(launches: ModuleType) -> Any:
    module = launches.tokenizer(torch.device("cuda"), torch.bfloat16)
    of = launches.region_pass(module, 16, 1)
    with torch.inference_mode():
        of.run()  # compiles the kernels and makes the vendor library's handles
        torch.cuda.synchronize()
    return of


class TestOnAGpu:
    pytestmark = gpu

    def test_the_driver_sees_no_wait(self, on_gpu: Any) -> None:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.inference_mode():
                on_gpu.run()
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def test_a_captured_graph_replays_what_eager_gives(self, on_gpu: Any) -> None:
        with torch.inference_mode():
            eager = on_gpu.run().clone()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = on_gpu.run()
            captured.fill_(float("nan"))
            graph.replay()
            assert torch.equal(captured, eager)
            # other features through the same graph
            features = on_gpu.features.clone()
            on_gpu.features.mul_(-0.5)
            graph.replay()
            replayed = captured.clone()
            assert torch.equal(replayed, on_gpu.run())
            on_gpu.features.copy_(features)
            assert not torch.equal(replayed, eager)
