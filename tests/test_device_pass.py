"""On a GPU: from pixels to object tokens nothing waits for the device, and all of it can be captured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pixelrefer_fast as pf
from pixelrefer_fast.encoder import PassLayout
from pixelrefer_fast.object_tokenizer import kmeans_starts
from pixelrefer_fast.options import EncodeOptions
from pixelrefer_fast.patches import pack_patches
from pixelrefer_fast.request import FrameSource
from pixelrefer_fast.selection import select_patches
from pixelrefer_fast.views import Mark, ViewPlan, plan_views

pytestmark = pytest.mark.gpu

DTYPES = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}  # relative, through the whole stack


@pytest.fixture(scope="module", params=["lite", "full"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=list(DTYPES))
def on_device(kind: str, request: pytest.FixtureRequest, assets: Path) -> Any:
    return pf.load(assets / kind, device="cuda", dtype=request.param)


@pytest.fixture(scope="module")
def on_host(kind: str, assets: Path) -> Any:
    return pf.load(assets / kind, device="cpu", dtype="float32")


@pytest.fixture
def nothing_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def _plan(model: Any, objects: int = 5) -> tuple[ViewPlan, FrameSource]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    marks = []
    for i in range(objects):
        mask = np.zeros((240, 320), dtype=np.uint8)
        top, left = int(rng.integers(0, 150)), int(rng.integers(0, 200))
        mask[top : top + 20 + 12 * i, left : left + 25 + 9 * i] = 1
        marks.append(Mark(0, mask, f"region {i}"))
    source = FrameSource.of_images([image])
    scene = [0] if model.kind == "full" else []
    return plan_views(model.config, source.sizes, marks, objects, scene), source


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double().cpu() - b.double()).norm() / b.double().norm()).item()


def test_same_tokens_as_on_the_cpu(on_device: Any, on_host: Any) -> None:
    plan, source = _plan(on_host)
    expected, _ = on_host.encode_plan(plan, source, EncodeOptions())
    tokens, _ = on_device.encode_plan(plan, source, EncodeOptions())
    assert _relative(tokens, expected) < DTYPES[str(on_device.dtype).removeprefix("torch.")]


def test_nothing_waits_for_the_device(on_device: Any, nothing_waits: None) -> None:
    plan, source = _plan(on_device)
    for _ in range(2):  # the first call compiles kernels
        tokens, _ = on_device.encode_plan(plan, source, EncodeOptions())
    torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(tokens).all()


def test_captured_and_replayed(on_device: Any) -> None:
    """Encoder and region stage as one CUDA graph: new pixels into its input give what an eager pass gives."""
    plan, source = _plan(on_device)
    selection = select_patches(plan)
    starts = kmeans_starts(selection.counts, on_device.config.mask_num).cuda()
    layout = PassLayout.of(plan.grids, selection.reads).to(torch.device("cuda"))
    selection = selection.to(torch.device("cuda"))
    patches = pack_patches(plan, source, "cuda")
    given = patches.clone()

    @torch.inference_mode()
    def run() -> torch.Tensor:
        features = on_device.encoder.run(given, layout)
        return on_device.object_tokenizer(features, selection, starts)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for other in (patches, patches.flip(1)):
        given.copy_(other)
        graph.replay()
        replayed = captured.clone()
        assert torch.equal(replayed, run())
