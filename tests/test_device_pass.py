"""On a GPU: from pixels to object tokens nothing waits for the device, and all of it can be captured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from passes import encode_plan

import pixelrefer_fast as pf
from pixelrefer_fast.planning.request import FrameSource
from pixelrefer_fast.planning.views import Mark, ViewPlan, plan_views
from pixelrefer_fast.regions.boxed_mask import BoxedMask

pytestmark = pytest.mark.gpu

# relative error of a token, through the whole stack; and the part of the tokens that keep to it: in 16 bits k-means may
# put a patch that lies between two clusters into the other one
DTYPES = {"float32": (1e-4, 1.0), "bfloat16": (0.05, 0.9), "float16": (0.005, 0.9)}


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


def _image() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (240, 320, 3), dtype=np.uint8)


def _marks(number: int) -> list[Mark]:
    rng = np.random.default_rng(0)
    marks = []
    for i in range(number):
        mask = np.zeros((240, 320), dtype=np.uint8)
        top, left = int(rng.integers(0, 150)), int(rng.integers(0, 200))
        mask[top : top + 20 + 12 * i, left : left + 25 + 9 * i] = 1
        marks.append(Mark(0, BoxedMask.of(mask), f"region {i}"))
    return marks


def _plan(model: Any, objects: int = 5) -> tuple[ViewPlan, FrameSource]:
    source = FrameSource.of_images([_image()])
    marks = _marks(objects)
    scene = [0] if model.kind == "full" else []
    return plan_views(model.config, source.sizes, marks, objects, scene), source


def _errors(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    assert a.shape == b.shape
    return (a.double().cpu() - b.double()).norm(dim=1) / b.double().norm(dim=1)


def test_same_tokens_as_on_the_cpu(on_device: Any, on_host: Any) -> None:
    plan, source = _plan(on_host)
    expected, _ = encode_plan(on_host, plan, source)
    tokens, _ = encode_plan(on_device, plan, source)
    limit, part = DTYPES[str(on_device.dtype).removeprefix("torch.")]
    assert (_errors(tokens, expected) < limit).double().mean() >= part


def test_nothing_waits_for_the_device(on_device: Any, nothing_waits: None) -> None:
    plan, source = _plan(on_device)
    for _ in range(2):  # the first call compiles kernels
        tokens, _ = encode_plan(on_device, plan, source)
    torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(tokens).all()


def test_a_prompt_is_embedded_without_a_wait(on_device: Any) -> None:
    objects = on_device.encode(_image(), [mark.mask.full() for mark in _marks(5)])
    prompt = on_device.network.build_prompt("What are " + "<region>" * 5 + "?", objects)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        embeds = on_device.network.embed_prompt(prompt, objects)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(embeds[prompt.region_slots.cuda()], objects.tokens)


@pytest.fixture
def captured(on_device: Any) -> Iterator[Any]:
    """What `load` does: every pass, prompt and step captured."""
    network = on_device.network
    before = network.captured
    if before is None or not before.store.counts()["graphs"]:
        network.capture()
    yield network.captured
    network.captured = before


def test_all_passes_are_captured_and_trusted(captured: Any) -> None:
    assert captured.store.refused == {}
    assert captured.store.counts()["graphs"] == 10


def test_prompts_and_steps_are_captured_and_trusted(on_device: Any, captured: Any) -> None:
    """Answers come from them: 6 passes over prompts, 14 steps, no eager one."""
    decoder = on_device.decoder
    counts = decoder.counts()
    assert (counts["prefill_graph_graphs"], counts["graph_graphs"]) == (6, 14)
    on_device.ask(_image(), "What is <region>?", [_marks(1)[0].mask.full()], max_new_tokens=4)
    after = decoder.counts()
    assert after["prefill_graph_replays"] - counts["prefill_graph_replays"] == after["passes"] - counts["passes"] > 0
    assert after["graph_replays"] - counts["graph_replays"] == after["steps"] - counts["steps"]


def test_captured_and_replayed(on_device: Any, captured: Any) -> None:
    """Packed patches to object tokens as one launch, padded, new pixels in each: what an eager pass gives."""
    for objects in (1, 5):
        plan, source = _plan(on_device, objects)
        on_device.network.captured = None
        eager, _ = encode_plan(on_device, plan, source)
        on_device.network.captured = captured
        before = captured.store.counts()["replays"]
        replayed = [encode_plan(on_device, plan, source)[0] for _ in range(2)]
        assert captured.store.counts()["replays"] == before + 2
        assert torch.equal(*replayed)
        limit, part = DTYPES[str(on_device.dtype).removeprefix("torch.")]
        assert (_errors(replayed[0], eager.cpu()) < limit).double().mean() >= part


def test_a_replay_waits_for_nothing(on_device: Any, captured: Any, nothing_waits: None) -> None:
    on_device.network.captured = captured
    plan, source = _plan(on_device)
    for _ in range(2):
        tokens, _ = encode_plan(on_device, plan, source)
    torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(tokens).all()


def test_masks_that_lie_on_the_device(on_device: Any, captured: Any) -> None:
    """A segmenter's tensors give the tokens of the same masks in host memory, through captured passes too."""
    import cv2

    image = _image()
    on_host = [mark.mask.full() for mark in _marks(5)]
    stacked = torch.from_numpy(np.stack(on_host)).bool().cuda()
    cv2.ipp.setUseIPP(False)  # with which OpenCV selects a few patches of weight 1e-15 more
    try:
        expected = on_device.encode(image, on_host).tokens
    finally:
        cv2.ipp.setUseIPP(True)
    limit, part = DTYPES[str(on_device.dtype).removeprefix("torch.")]
    for passes in (None, captured):
        on_device.network.captured = passes
        replays = captured.store.counts()["replays"]
        tokens = on_device.encode(image, stacked).tokens
        assert captured.store.counts()["replays"] == replays + (passes is not None)
        assert (_errors(tokens, expected.cpu()) < limit).double().mean() >= part
