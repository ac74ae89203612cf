"""Frames of videos are decoded beside the steps of others, by who prepares a request and not by who drives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import pixelrefer_fast as pf
from pixelrefer_fast.batching import queue as queue_module
from pixelrefer_fast.batching.callers import Caller
from pixelrefer_fast.batching.encoding import SceneCache, encode_in_parts
from pixelrefer_fast.batching.frames_ahead import FramesAhead
from pixelrefer_fast.batching.preparing import MediaCache, prepare
from pixelrefer_fast.encoding.vision import result_of
from pixelrefer_fast.media import Video

BOX = [4, 4, 40, 40]
WHAT = "What is <region>?"
RUNS: dict[str, Any] = {"max_new_tokens": 40, "min_new_tokens": 40}


def _image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 56, 3), dtype=np.uint8)


def _caches() -> tuple[MediaCache, MediaCache]:
    return MediaCache(), MediaCache()


class SlowVideo(Video):
    """Frames in memory, which are decoded when the gate is opened, one after the other; keeps who decodes which."""

    def __init__(self, frames: int, seed: int = 0, go_on: threading.Event | None = None) -> None:
        self.label, self.height, self.width, self.average_fps = "slow", 48, 56, 1.0
        self.times = [float(n) for n in range(frames)]
        self.images = [_image(seed + n) for n in range(frames)]
        self.asked, self.go_on = threading.Event(), go_on
        self.decoded: list[tuple[int, str]] = []

    def _decode(self, indices: list[int]) -> Iterator[np.ndarray]:
        for index in indices:
            self.asked.set()
            if self.go_on is not None:
                assert self.go_on.wait(60)
            self.decoded.append((index, threading.current_thread().name))
            yield self.images[index].copy()


def _regions(model: Any) -> list[dict[int, list[int]]]:
    """In two frames, where a region may be."""
    return [{1: BOX, 3: BOX}] if model.kind == "lite" else [{1: BOX}]


def _ask(model: Any, video: Video, **options: Any) -> pf.Ask:
    return pf.Ask(video, WHAT, _regions(model), **options)


@pytest.mark.parametrize("streamed", [False, True])
def test_tokens_come_while_frames_are_decoded(model: Any, streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an answer that runs, and of a request behind the slow one; the thread that drives decodes no frame."""
    (expected,) = model.ask_batch([_ask(model, SlowVideo(5))], max_new_tokens=3)
    monkeypatch.setattr(queue_module, "GATHER", {"cpu": 0.001, "cuda": 0.001})
    queue = model.requests
    running = Caller({**RUNS})
    queue.submit(running, pf.Ask(_image(2), WHAT, [BOX]))
    while not model.decoder.counts().get("steps"):
        queue.advance(running, whatever=True)
    slow = SlowVideo(5, go_on=threading.Event())
    waits = Caller({"max_new_tokens": 3}, streams=streamed)
    if streamed:  # as `stream` does, whose request is prepared before
        prepared = prepare(model.network, _ask(model, slow, max_new_tokens=3), *_caches())
        queue.submit(waits, prepared)
    else:
        queue.submit(waits, _ask(model, slow))
    assert slow.asked.wait(60)
    before = model.decoder.counts()["tokens"]
    quick = Caller({"max_new_tokens": 3})
    queue.submit(quick, pf.Ask(_image(3), WHAT, [BOX]))
    while not running.finished:
        queue.advance(running)
    assert quick.finished
    assert not waits.finished
    assert not slow.decoded
    assert model.decoder.counts()["tokens"] > before + len(quick.finished[0].tokens)
    assert slow.go_on is not None
    slow.go_on.set()
    while not waits.finished:
        queue.advance(waits, whatever=True)
    assert waits.finished[0].tokens == expected.tokens
    assert {n for n, _ in slow.decoded} >= set(_regions(model)[0])
    assert len({n for n, _ in slow.decoded}) == len(slow.decoded)
    assert all(name.startswith("pixelrefer_fast media") for _, name in slow.decoded)


def test_encode_decodes_before_it_has_the_device(model: Any) -> None:
    """Its own thread does: others take their steps meanwhile."""
    queue = model.requests
    tokens = model.encode(SlowVideo(5), _regions(model)).tokens
    slow = SlowVideo(5, go_on=threading.Event())
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(model.encode(slow, _regions(model)).tokens))
    thread.start()
    assert slow.asked.wait(60)
    (answer,) = model.ask_batch([(_image(2), WHAT, [BOX])], max_new_tokens=3)
    assert answer.ok
    assert not slow.decoded
    assert slow.go_on is not None
    slow.go_on.set()
    thread.join(60)
    assert torch.equal(found[0], tokens)
    assert not queue._ahead.nbytes


def test_frames_of_one_video_are_decoded_once_and_let_go(model: Any) -> None:
    """Of many questions at once; once a video is known as a whole, of further ones those with marks alone."""
    video = SlowVideo(5)
    asks = [pf.Ask(video, WHAT, [{1: [4, 4, 20 + i, 40]}]) for i in range(6)]
    answers = model.ask_batch(asks, max_new_tokens=2)
    assert all(a.ok for a in answers)
    assert len({n for n, _ in video.decoded}) == len(video.decoded)
    assert not model.requests._ahead.nbytes
    prepared = prepare(model.network, asks[0], *_caches())
    assert prepared.request is not None
    scenes, ahead = SceneCache(), FramesAhead()
    whole = list(range(5)) if model.kind == "full" else [1]
    assert ahead.wanted(prepared, scenes) == whole
    ahead.decode(prepared, scenes)
    assert ahead.nbytes == len(whole) * video.images[0].nbytes
    encoded = result_of(encode_in_parts(model.network, [prepared], scenes, lambda: None))
    assert len(encoded) == 1
    assert ahead.wanted(prepared, scenes) == [1]
    prepared.encoded()
    assert not ahead.nbytes


def test_what_has_no_room_is_decoded_as_it_is_encoded(model: Any) -> None:
    """The answers are the same."""
    video = SlowVideo(5)
    (expected,) = model.ask_batch([_ask(model, video)], max_new_tokens=3)
    for frames in (0, 1):
        model.requests._ahead._limit = frames * video.images[0].nbytes
        video.decoded.clear()
        (answer,) = model.ask_batch([_ask(model, video)], max_new_tokens=3)
        assert answer.tokens == expected.tokens
        assert sum(name.startswith("pixelrefer_fast media") for _, name in video.decoded) == frames
        assert len(video.decoded) > frames


def test_a_frame_that_cannot_be_decoded_is_told(model: Any) -> None:
    class Broken(SlowVideo):
        def _decode(self, indices: list[int]) -> Iterator[np.ndarray]:
            raise ValueError("broken, frame 1: cannot be decoded")

    answers = model.ask_batch([_ask(model, Broken(5)), pf.Ask(_image(2), WHAT, [BOX])], max_new_tokens=2)
    assert [a.error for a in answers] == ["broken, frame 1: cannot be decoded", None]
