"""What `warmup` makes before the first request; captures are recorded, there is no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded_graphs import Recorder

import pixelrefer_fast as pf
from pixelrefer_fast.decoding import engine as engine_module
from pixelrefer_fast.device import graphs as graphs_module


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(graphs_module, "cuda_capturer", lambda: recorder)
    monkeypatch.setattr(engine_module, "FIXED_TOKENS", 256)  # no more memory than tests need
    return recorder


def _requests() -> list[pf.Ask]:
    rng = np.random.default_rng(0)
    asks = []
    for i in range(6):
        picture = rng.integers(0, 256, (90 + 20 * i, 120, 3), dtype=np.uint8)
        boxes = [[10 + j, 8, 60 + 2 * j, 70] for j in range(1 + i % 3)]
        asks.append(pf.Ask(picture, "<region>" * len(boxes), boxes, max_new_tokens=4))
    return asks


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_nothing_is_captured_once_requests_come(kind: str, assets: Path, recorder: Recorder) -> None:
    model: Any = pf.load(assets / kind, device="cpu", dtype="float32")
    expected = [answer.tokens for answer in model.ask_batch(_requests(), progress=False)]
    assert recorder.tries == 0
    model.warmup(graph_bytes=2**30)
    tries = recorder.tries
    assert tries == len(recorder.captured) > 10
    assert model.network.captured.store.refused == {}
    replays = model.network.captured.store.counts()["replays"]
    assert replays == 0  # its own requests run as they are
    assert [answer.tokens for answer in model.ask_batch(_requests(), progress=False)] == expected
    assert [model.ask(a.media, a.question, a.regions, max_new_tokens=4, details=True).tokens for a in _requests()] == (
        expected
    )
    assert recorder.tries == tries
    assert model.network.captured.store.counts()["replays"] > 0
    assert model.decoder.counts()["graph_replays"] > 0
    model.warmup(graph_bytes=0)
    assert model.network.captured is None
    assert recorder.tries == tries


def test_it_leaves_nothing_behind(assets: Path) -> None:
    """No features of its picture, no prefixes of its prompts; on a CPU nothing is captured."""
    model: Any = pf.load(assets / "lite", device="cpu", dtype="float32", warmup=True)
    assert model.network.captured is None
    assert model.network.kept_features.nbytes == 0
    assert model.decoder.memory().get("prefixes", 0) == 0


def test_on_a_cpu_only_where_it_is_wanted(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelrefer_fast.model import PixelReferLite

    warmed = []
    monkeypatch.setattr(PixelReferLite, "warmup", lambda self, graph_bytes=None: warmed.append(graph_bytes))
    for options, times in (({}, 0), ({"warmup": False}, 0), ({"warmup": True, "graph_bytes": 0}, 1)):
        warmed.clear()
        pf.load(assets / "lite", device="cpu", dtype="float32", **options)
        assert len(warmed) == times


def test_without_memory_passes_run_as_they_are(assets: Path, recorder: Recorder) -> None:
    model: Any = pf.load(assets / "lite", device="cpu", dtype="float32")
    expected = [answer.tokens for answer in model.ask_batch(_requests(), progress=False)]
    recorder.error = torch.OutOfMemoryError("none left")
    model.warmup(graph_bytes=2**30)
    assert [answer.tokens for answer in model.ask_batch(_requests(), progress=False)] == expected
