"""What others ask delays nobody's next token for long: slow media, many images, long prompts."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import pixelrefer_fast as pf
from pixelrefer_fast.batching import preparing as preparing_module
from pixelrefer_fast.batching import queue as queue_module
from pixelrefer_fast.batching.callers import Caller
from pixelrefer_fast.batching.preparing import MediaCache, prepare
from pixelrefer_fast.decoding import decoder as decoder_module

BOX = [4, 4, 40, 40]
WHAT = "What is <region>?"
RUNS: dict[str, Any] = {"max_new_tokens": 40, "min_new_tokens": 40}


def _image(seed: int, height: int = 48, width: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Gate:
    """Opens media at once but for those whose name is slow, which it opens when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slow: Callable[[object], bool]) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.threads: set[str] = set()
        open_media = preparing_module.open_media

        def opening(media: Any) -> Any:
            self.threads.add(threading.current_thread().name)
            if slow(media):
                self.asked.set()
                assert self.go_on.wait(60)
            return open_media(media)

        monkeypatch.setattr(preparing_module, "open_media", opening)


class Steps:
    """Patches and tokens of prompts before each step of a model's decoder."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        network, language_model = model.network, model.decoder.language_model
        self.patches, self.tokens = [0], [0]
        features, prefill, step = network.features, language_model.prefill, language_model.step

        def encoding(patches: torch.Tensor, *args: Any) -> torch.Tensor:
            self.patches[-1] += len(patches)
            found: torch.Tensor = features(patches, *args)
            return found

        def starting(embeds: torch.Tensor, *args: Any) -> torch.Tensor:
            self.tokens[-1] += len(embeds)
            found: torch.Tensor = prefill(embeds, *args)
            return found

        def stepping(*args: Any) -> torch.Tensor:
            self.patches.append(0)
            self.tokens.append(0)
            found: torch.Tensor = step(*args)
            return found

        monkeypatch.setattr(network, "features", encoding)
        monkeypatch.setattr(language_model, "prefill", starting)
        monkeypatch.setattr(language_model, "step", stepping)


@pytest.mark.parametrize("first", [True, False], ids=["slow_first", "slow_later"])
def test_tokens_come_while_a_slow_image_is_opened(model: Any, first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an answer that runs, and of requests that were handed in behind the slow one."""
    slow = _image(1)
    gate = Gate(monkeypatch, lambda media: media is slow)
    monkeypatch.setattr(queue_module, "GATHER", {"cpu": 0.001, "cuda": 0.001})
    queue = model.requests
    running = Caller({**RUNS})
    if not first:
        queue.submit(running, pf.Ask(_image(2), WHAT, [BOX]))
        while not model.decoder.counts().get("steps"):
            queue.advance(running, whatever=True)
    waits = Caller({"max_new_tokens": 3})
    queue.submit(waits, pf.Ask(slow, WHAT, [BOX]))
    if first:
        assert gate.asked.wait(60)
        queue.submit(running, pf.Ask(_image(2), WHAT, [BOX]))
    quick = Caller({"max_new_tokens": 3})
    queue.submit(quick, pf.Ask(_image(3), WHAT, [BOX]))
    while not running.finished:
        queue.advance(running)
    assert quick.finished
    assert gate.asked.is_set()
    assert not waits.finished
    assert model.decoder.counts()["tokens"] == 40 + len(quick.finished[0].tokens)
    gate.go_on.set()
    while not waits.finished:
        queue.advance(waits)
    assert all(name.startswith("pixelrefer_fast media") for name in gate.threads)
    for caller, image in ((running, _image(2)), (quick, _image(3)), (waits, slow)):
        (expected,) = model.ask_batch([pf.Ask(image, WHAT, [BOX])], **(caller.defaults or {}))
        assert caller.finished[0].tokens == expected.tokens


@pytest.mark.parametrize("streamed", [False, True])
def test_a_batch_of_images_is_encoded_in_parts_between_steps(
    model: Any, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most so many patches, or one view, and so many tokens of prompts between two tokens of who runs."""
    images = [_image(seed, 60, 80) for seed in range(10)]
    asks = [pf.Ask(image, WHAT, [[4, 4, 30 + i, 40]], max_new_tokens=3) for i, image in enumerate(images)]
    expected = model.ask_batch(asks)
    largest = max(v.patches for ask in asks for v in planned(model, ask).views)
    chunk = 2 * largest
    monkeypatch.setattr(queue_module, "CHUNK_PATCHES", chunk)
    monkeypatch.setattr(decoder_module, "CHUNK_TOKENS", 50)
    model.decoder.clear()
    running = Caller({**RUNS, "max_new_tokens": 150, "min_new_tokens": 150}, streams=streamed)
    queue = model.requests
    queue.submit(running, pf.Ask(_image(99), WHAT, [BOX]))
    while not model.decoder.counts().get("steps"):
        queue.advance(running, whatever=True)
    steps = Steps(model, monkeypatch)
    others = Caller()
    for ask in asks:
        queue.submit(others, ask)
    while len(others.finished) != len(asks):
        queue.advance(others, whatever=True)
        assert not running.finished, "it ended before the others: a longer answer is needed"
    assert sum(steps.patches) >= 10 * largest
    assert max(steps.patches) <= chunk
    assert max(steps.tokens) <= 50
    assert sum(map(bool, steps.patches)) >= 5
    found = sorted(others.finished, key=lambda answer: answer.index)
    assert [a.tokens for a in found] == [a.tokens for a in expected]
    queue.cancel(running)


def planned(model: Any, ask: pf.Ask) -> Any:
    return prepare(model.network, ask, MediaCache(), MediaCache())


def test_one_large_request_is_encoded_in_parts(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views of one request go apart as well, and `encode` beside others does."""
    image = _image(7, 120, 160)
    boxes = [[8 * i, 8 * i, 8 * i + 60, 8 * i + 50] for i in range(6)]
    question = " ".join(["<region>"] * len(boxes)) + "?"
    ask = pf.Ask(image, question, boxes, max_new_tokens=4)
    (expected,) = model.ask_batch([ask])
    tokens = model.encode(image, boxes).tokens
    monkeypatch.setattr(queue_module, "CHUNK_PATCHES", 1)
    model.decoder.clear()
    views = planned(model, ask).views
    queue = model.requests
    running = Caller({**RUNS, "max_new_tokens": 150, "min_new_tokens": 150})
    queue.submit(running, pf.Ask(_image(99), WHAT, [BOX]))
    while not model.decoder.counts().get("steps"):
        queue.advance(running, whatever=True)
    steps = Steps(model, monkeypatch)
    other = Caller()
    queue.submit(other, ask)
    while not other.finished:
        queue.advance(other)
    assert not running.finished
    assert sorted(n for n in steps.patches if n) == sorted(v.patches for v in views)
    assert other.finished[0].tokens == expected.tokens

    def drive() -> None:
        while not running.finished:
            queue.advance(running)

    steps.patches[:] = [0]
    driving = threading.Thread(target=drive)
    driving.start()
    again = model.encode(image, boxes).tokens
    driving.join(60)
    torch.testing.assert_close(again, tokens, rtol=1e-5, atol=1e-5)


def test_a_stream_gets_its_tokens_beside_others(model: Any) -> None:
    """Streams of threads and coroutines and a batch at once: each its own, in one queue."""
    image = _image(5)
    expected = model.ask(image, WHAT, [BOX], max_new_tokens=12)
    found: dict[int, str] = {}
    barrier = threading.Barrier(4)

    def stream(number: int) -> None:
        barrier.wait()
        found[number] = "".join(model.stream(image, WHAT, [BOX], max_new_tokens=12))

    async def streams() -> str:
        return "".join([piece async for piece in model.stream_async(image, WHAT, [BOX], max_new_tokens=12)])

    def batch() -> None:
        barrier.wait()
        (answer,) = model.ask_batch([(image, WHAT, [BOX])], max_new_tokens=12)
        found[9] = answer.text or ""

    threads = [threading.Thread(target=stream, args=(i,)) for i in range(3)] + [threading.Thread(target=batch)]
    for thread in threads:
        thread.start()
    found[8] = asyncio.run(streams())
    for thread in threads:
        thread.join(60)
    assert found == dict.fromkeys((0, 1, 2, 8, 9), expected)


def test_a_stream_that_is_dropped_is_cancelled(model: Any) -> None:
    stream = model.stream(_image(5), WHAT, [BOX], **RUNS)
    next(stream)
    stream.close()
    assert not model.requests._callers
    (answer,) = model.ask_batch([(_image(5), WHAT, [BOX])], max_new_tokens=3)
    assert answer.ok
    assert model.decoder.counts()["running"] == 0


def test_an_image_of_many_requests_is_opened_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    image, opened = _image(5), []
    open_media = preparing_module.open_media

    def counting(media: Any) -> Any:
        opened.append(threading.current_thread())
        return open_media(media)

    monkeypatch.setattr(preparing_module, "open_media", counting)
    answers = model.ask_batch([(image, WHAT, [[4, 4, 20 + i, 40]]) for i in range(30)], max_new_tokens=2)
    assert all(a.ok for a in answers)
    assert len(opened) == 1


def test_workers_look_so_far_ahead_and_end(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more requests are prepared than may run at once, and no thread stays when there is nothing to prepare."""
    queue = model.requests
    caller = Caller({"max_new_tokens": 1})
    for seed in range(3 * queue.budget.requests):
        queue.submit(caller, pf.Ask(_image(seed % 4), WHAT, [BOX]))
    idle = threading.Event()
    for _ in itertools.takewhile(lambda _: queue._workers.at_work, iter(lambda: idle.wait(0.02), None)):
        pass
    assert len(caller.coming) == queue.budget.requests
    assert len(caller.waiting) == 2 * queue.budget.requests
    while len(caller.finished) < 3 * queue.budget.requests:
        queue.advance(caller, whatever=True)
    while queue._workers.at_work:
        idle.wait(0.02)
    assert all(answer.ok for answer in caller.finished)


def test_ctrl_c_while_media_are_opened(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a worker is interrupted; the worker is not, and what it opened counts."""
    slow = _image(1)
    gate = Gate(monkeypatch, lambda media: media is slow)
    wait = queue_module.RequestQueue._wait_for_media

    def interrupted(self: Any) -> None:
        if not gate.go_on.is_set():
            assert gate.asked.wait(60)
            gate.go_on.set()
            raise KeyboardInterrupt
        wait(self)

    monkeypatch.setattr(queue_module.RequestQueue, "_wait_for_media", interrupted)
    batch = model.ask_iter([(slow, WHAT, [BOX])], max_new_tokens=3)
    with pytest.raises(KeyboardInterrupt):
        next(batch)
    assert next(batch).tokens == model.ask_batch([(slow, WHAT, [BOX])], max_new_tokens=3)[0].tokens


def test_whatever_a_worker_raises_is_told(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(media: Any) -> Any:
        raise SystemExit("a reader that wants to end the program")

    monkeypatch.setattr(preparing_module, "open_media", broken)
    answers: Iterator[pf.Answer] = model.ask_iter([(_image(1), WHAT, [BOX])] * 2)
    assert [a.error for a in answers] == ["SystemExit: a reader that wants to end the program"] * 2
