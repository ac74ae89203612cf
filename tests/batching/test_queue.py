"""The queue: failures alone, memory that runs out, cancelling and interrupts, threads, coroutines."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from encoding_batches import look_at_batches

import pixelrefer_fast as pf
from pixelrefer_fast.batching import queue as queue_module
from pixelrefer_fast.batching.callers import Caller
from pixelrefer_fast.batching.memory import Budget

BOX = [4, 4, 40, 40]
WHAT = "What is <region>?"


@pytest.fixture
def model(assets: Any) -> Any:
    """A model of its own, so that what a test does to it ends with the test."""
    return pf.load(assets / "lite", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (48, 56, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def asks(image: np.ndarray) -> list[pf.Ask]:
    return [pf.Ask(image, WHAT, [[4, 4, 20 + i, 40]], max_new_tokens=1 + i % 4) for i in range(12)]


@pytest.fixture(scope="module")
def expected(lite: Any, asks: list[pf.Ask]) -> list[str]:
    return [lite.ask(a.media, a.question, a.regions, **a.options) for a in asks]


def texts(answers: list[pf.Answer]) -> list[str | None]:
    return [answer.text for answer in answers]


class Failing:
    """Stands before a function and raises when told to."""

    def __init__(self, function: Callable[..., Any], fails: Callable[..., BaseException | None]) -> None:
        self.function, self.fails, self.calls = function, fails, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        error = self.fails(*args, **kwargs)
        if error is not None:
            raise error
        return self.function(*args, **kwargs)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_bad_request_fails_alone(model: Any, image: np.ndarray, asks: list[pf.Ask], expected: list[str]) -> None:
    bad: list[tuple[Any, str]] = [
        ((image, WHAT, [[900, 900, 950, 950]]), "region 0: expected at least one marked pixel"),
        ((image, "What?", [BOX]), "expected a <region> tag"),
        (("/missing.png", WHAT, [BOX]), "expected an existing file"),
        ((image, WHAT, None), "expected"),
        ((image, WHAT, []), "expected at least one, got none"),
        ((image, None, [BOX, BOX]), "question: expected one where 2 regions are marked"),
        ((image, WHAT, [BOX], {"max_new_tokens": 0}), "max_new_tokens"),
        ((image, WHAT, [BOX], {"nonsense": 0}), "nonsense"),
        ((image, WHAT, [BOX], {"kmeans_start": [[1, 2, 3]]}), "kmeans_start"),
        ((image, WHAT + " x" * 5000, [BOX]), "expected at most"),
        ((image, "<REGION> <region>", [BOX]), "reserved"),
        ((image, "\ud800 <region>", [BOX]), "half a character"),
        (7, "request: expected"),
        (OSError("the reader lost it"), "OSError: the reader lost it"),
    ]
    requests: list[Any] = []
    for i, ask in enumerate(asks):
        requests += [ask, bad[i][0]]
    requests += [value for value, _ in bad[len(asks) :]]
    answers = model.ask_batch(requests)
    assert [a.index for a in answers] == list(range(len(requests)))
    assert texts(answers)[0 : 2 * len(asks) : 2] == expected
    failed = [a for a in answers if not a.ok]
    assert len(failed) == len(bad)
    for answer, (_, said) in zip(failed, bad, strict=True):
        assert answer.finish == "error"
        assert answer.text is None
        assert said in (answer.error or "")
        assert "\n" not in (answer.error or "")


def test_a_question_may_be_left_out(model: Any, image: np.ndarray) -> None:
    (answer,) = model.ask_batch([(image, None, [BOX])], max_new_tokens=3)
    assert [answer.text] == model.describe(image, [BOX], max_new_tokens=3)
    objects = model.encode(image, [BOX])
    (again,) = model.ask_batch([{"media": objects}], max_new_tokens=3)
    assert again.tokens == answer.tokens


def test_errors_hold_no_images(model: Any) -> None:
    image = np.zeros((50, 60, 3), np.uint8)
    watched = weakref.ref(image)
    answers = model.ask_batch([(image, WHAT, [[900, 900, 950, 950]])] * 2)
    assert not any(a.ok for a in answers)
    del image
    gc.collect()
    assert watched() is None


@pytest.mark.parametrize("bad", [None, 3, "abc", pf.Ask("a", "b")])
def test_requests_that_are_none(model: Any, bad: Any) -> None:
    with pytest.raises(ValueError, match="requests: expected several"):
        model.ask_batch(bad)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, 10**9])
def test_bad_batch_sizes(model: Any, size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size: expected an integer"):
        model.ask_batch([], batch_size=size)


def test_no_requests(model: Any) -> None:
    assert model.ask_batch([]) == []
    assert list(model.ask_iter(iter(()))) == []


# -- as they finish ----------------------------------------------------------------------------------------------------


def test_answers_come_before_all_requests_are_taken(model: Any, asks: list[pf.Ask], expected: list[str]) -> None:
    taken = 0

    def endless() -> Iterator[pf.Ask]:
        nonlocal taken
        for ask in itertools.cycle(asks):
            taken += 1
            yield ask

    with model.ask_iter(endless(), batch_size=4, ordered=True) as batch:
        for i in range(30):
            answer = next(batch)
            assert (answer.index, answer.text) == (i, expected[i % len(asks)])
            assert taken <= i + 1 + 2 * 4
    assert list(batch) == []
    assert model.ask_batch(asks)[0].ok


def test_what_the_requests_raise_comes_last(model: Any, asks: list[pf.Ask], expected: list[str]) -> None:
    def broken() -> Iterator[pf.Ask]:
        yield from asks[:5]
        raise KeyError("reader")

    batch = model.ask_iter(broken(), ordered=True)
    assert [next(batch).text for _ in range(5)] == expected[:5]
    with pytest.raises(KeyError, match="reader"):
        next(batch)
    assert list(batch) == []


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_out_of_memory_halves_the_batch(
    model: Any, asks: list[pf.Ask], expected: list[str], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def look(batch: list[Any]) -> None:
        sizes.append(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError("fake")

    look_at_batches(monkeypatch, look)
    assert texts(model.ask_batch(asks)) == expected
    assert len(sizes) < 3 * len(asks)


def test_what_does_not_fit_alone_is_told(
    model: Any, asks: list[pf.Ask], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(batch: list[Any]) -> None:
        if any(p.request.regions[0].marks[0][1].x1 == 27 for p in batch):
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 7 bytes")

    look_at_batches(monkeypatch, look)
    answers = model.ask_batch(asks)
    assert [a.index for a in answers if not a.ok] == [7]
    assert "does not fit into memory, even alone" in (answers[7].error or "")
    assert [t for i, t in enumerate(texts(answers)) if i != 7] == [t for i, t in enumerate(expected) if i != 7]
    with pytest.raises(RuntimeError, match="not enough memory"):
        model.ask(asks[7].media, asks[7].question, asks[7].regions)


def test_larger_batches_are_tried_again_after_a_while(
    model: Any, asks: list[pf.Ask], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    short = True

    def look(batch: list[Any]) -> None:
        sizes.append(len(batch))
        if short and len(batch) > 2:
            raise torch.OutOfMemoryError("fake")

    look_at_batches(monkeypatch, look)
    many = [pf.Ask(a.media, a.question, a.regions, max_new_tokens=1) for a in asks * 3]
    assert all(a.ok for a in model.ask_batch(many))
    assert sizes[0] == 32
    assert max(sizes[sizes.index(2) :]) <= 4
    short = False
    sizes.clear()
    assert all(a.ok for a in model.ask_batch(many * 8))
    assert max(sizes) > 4


def test_an_error_of_one_in_encoding_disturbs_no_other(
    model: Any, asks: list[pf.Ask], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(batch: list[Any]) -> None:
        if any(p.request.regions[0].marks[0][1].x1 in (23, 29) for p in batch):
            raise ValueError("frame 3: cannot be decoded")

    look_at_batches(monkeypatch, look)
    answers = model.ask_batch(asks)
    assert {a.index: a.error for a in answers if not a.ok} == dict.fromkeys((3, 9), "frame 3: cannot be decoded")
    assert [t for t in texts(answers) if t is not None] == [t for i, t in enumerate(expected) if i not in (3, 9)]


def test_budgets_make_batches(model: Any, asks: list[pf.Ask], expected: list[str], monkeypatch: Any) -> None:
    sizes: list[int] = []

    look_at_batches(monkeypatch, lambda batch: sizes.append(len(batch)))
    # four of the requests need the same views: they take no more patches than one
    for budget, most in ((Budget(5, 1 << 20, 1 << 20), 5), (Budget(99, 1, 1 << 20), 4), (Budget(99, 1 << 20, 60), 2)):
        monkeypatch.setattr(model.requests, "_budget", budget)
        sizes.clear()
        assert texts(model.ask_batch(asks)) == expected
        assert max(sizes) == most


# -- cancelling and interrupts -----------------------------------------------------------------------------------------


def test_cancel(model: Any, asks: list[pf.Ask], expected: list[str]) -> None:
    batch = model.ask_iter(asks, batch_size=3, ordered=True)
    assert next(batch).text == expected[0]
    batch.cancel()
    rest = list(batch)
    assert rest
    assert {a.finish for a in rest if not a.ok} == {"cancelled"}
    assert all(a.text == expected[a.index] for a in rest if a.ok)
    assert texts(model.ask_batch(asks)) == expected


def test_cancel_from_another_thread(model: Any, asks: list[pf.Ask], expected: list[str]) -> None:
    batch = model.ask_iter(itertools.cycle(asks), batch_size=2)
    threading.Timer(0.2, batch.cancel).start()
    answers = list(batch)
    assert answers[-1].finish in ("cancelled", "stop", "length")
    assert texts(model.ask_batch(asks)) == expected


def test_an_abandoned_batch_stops(model: Any, asks: list[pf.Ask], expected: list[str]) -> None:
    batch = model.ask_iter(itertools.cycle(asks), batch_size=4)
    next(batch)
    del batch
    gc.collect()
    assert texts(model.ask_batch(asks)) == expected
    assert not model.requests._callers
    assert not model.requests._active


@pytest.mark.parametrize("stage", ["encode", "prompt", "prefill", "step", "deliver"])
def test_an_interrupt_leaves_the_model_usable(
    model: Any, asks: list[pf.Ask], expected: list[str], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner: Any
    owner, name = {
        "encode": (model.network, "features"),
        "prompt": (model.network, "embed_prompt"),
        "prefill": (model.decoder.language_model, "prefill"),
        "step": (model.decoder.language_model, "step"),
        "deliver": (queue_module, "_answer"),
    }[stage]
    interrupted_at = 0

    def fails(*_: Any) -> BaseException | None:
        return KeyboardInterrupt() if call.calls == interrupted_at else None

    call = Failing(getattr(owner, name), fails)
    monkeypatch.setattr(owner, name, call)
    for interrupted_at in (1, 2, 3):  # noqa: B007 (read by `fails`)
        call.calls = 0
        batch = model.ask_iter(asks, batch_size=3, ordered=True)
        found = []
        interrupts = 0
        while len(found) < len(asks):
            try:
                found.append(next(batch).text)
            except KeyboardInterrupt:
                interrupts += 1
        assert interrupts == 1
        assert found == expected
    interrupted_at = 0
    assert texts(model.ask_batch(asks)) == expected


def test_ctrl_c_ends_a_batch(model: Any, asks: list[pf.Ask], expected: list[str]) -> None:
    """The signal itself, while requests are being answered."""
    # tests that are started in the background of a shell begin with the signal ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signalled = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        signalled.start()
        with pytest.raises(KeyboardInterrupt):
            model.ask_batch(itertools.islice(itertools.cycle(asks), 100_000))
    finally:
        signal.signal(signal.SIGINT, before)
    assert texts(model.ask_batch(asks)) == expected
    assert not model.requests._callers


def test_an_interrupt_in_one_thread_delays_the_other_only(
    model: Any, asks: list[pf.Ask], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = threading.Event()

    def interrupting(batch: list[Any]) -> None:
        if threading.current_thread() is threading.main_thread() and not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    look_at_batches(monkeypatch, interrupting)
    results: list[list[str | None]] = []
    thread = threading.Thread(target=lambda: results.append(texts(model.ask_batch(asks * 3, batch_size=4))))
    thread.start()
    while not interrupted.is_set() and thread.is_alive():
        try:
            model.ask_batch(asks)
        except KeyboardInterrupt:
            break
    interrupted.set()
    thread.join(60)
    assert results == [expected * 3]
    assert texts(model.ask_batch(asks)) == expected


# -- threads -----------------------------------------------------------------------------------------------------------


def test_threads_share_batches_and_get_their_own_answers(
    model: Any, asks: list[pf.Ask], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    look_at_batches(monkeypatch, lambda batch: sizes.append(len(batch)))
    barrier = threading.Barrier(6)
    found: dict[int, Any] = {}

    def batch(number: int) -> None:
        barrier.wait()
        found[number] = texts(model.ask_batch(asks, batch_size=4))

    def single(number: int) -> None:
        barrier.wait()
        found[number] = [model.ask(a.media, a.question, a.regions, **a.options) for a in asks]

    def mixed(number: int) -> None:
        barrier.wait()
        one = asks[number]
        joined = "".join(model.stream(one.media, one.question, one.regions, **one.options))
        assert len(model.encode(one.media, one.regions)) == 1
        found[number] = [*expected[:number], joined, *expected[number + 1 :]]

    threads = [
        threading.Thread(target=run, args=(i,)) for i, run in enumerate((batch, batch, single, single, mixed, mixed))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == dict.fromkeys(range(6), expected)
    assert max(sizes) > 4  # of more than one caller


def test_a_late_small_caller_is_not_kept_waiting(model: Any, asks: list[pf.Ask]) -> None:
    queue = model.requests
    long, short = Caller(None, 4), Caller(None, 4)
    for ask in asks * 20:
        queue.submit(long, ask)
    queue.advance(long)
    queue.submit(short, asks[0])
    done = 0
    while not short.finished:
        queue.advance(short)
        while queue.fetch(long) is not None:
            done += 1
    assert done < 40
    queue.cancel(long)


def test_turns_of_a_caller_who_wants_the_model_alone(model: Any, asks: list[pf.Ask], image: np.ndarray) -> None:
    stop = threading.Event()

    def endless() -> Iterator[pf.Ask]:
        while not stop.is_set():
            yield from asks

    busy = threading.Thread(target=lambda: list(model.ask_iter(endless())))
    busy.start()
    start = time.monotonic()
    for _ in range(3):
        model.encode(image, [BOX])
    assert time.monotonic() - start < 60
    stop.set()
    busy.join(60)
    assert not busy.is_alive()


def test_copies_and_forks_have_queues_of_their_own(model: Any, asks: list[pf.Ask], expected: list[str]) -> None:
    assert texts(model.ask_batch(asks[:2])) == expected[:2]
    clone = copy.deepcopy(model)
    assert clone.requests is not model.requests
    assert texts(clone.ask_batch(asks[:2])) == expected[:2]
    assert model.requests is model.requests
    assert "_queues" not in model.__getstate__()


def test_a_fork_asks_while_a_thread_of_its_parent_is_within_a_round(
    model: Any, asks: list[pf.Ask], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It inherits locks of the queue, of the decoder and of its engine, all of them held, and waits for none."""
    inside, go_on = threading.Event(), threading.Event()
    language_model = model.decoder.language_model
    prefill = language_model.prefill

    def held(*args: Any) -> torch.Tensor:
        if threading.current_thread() is asking:
            inside.set()
            go_on.wait(60)
        return prefill(*args)

    monkeypatch.setattr(language_model, "prefill", held)
    found: list[str] = []
    asking = threading.Thread(target=lambda: found.extend(texts(model.ask_batch(asks[:1]))))
    asking.start()
    try:
        assert inside.wait(60)
        child = os.fork()
        if not child:
            signal.alarm(30)  # whoever waits for an inherited lock is ended
            torch.set_num_threads(1)  # a fork has no threads of OpenMP
            os._exit(0 if texts(model.ask_batch(asks[1:3])) == expected[1:3] else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        go_on.set()
        asking.join(60)
    assert found == expected[:1]


def test_answers_can_be_sent_to_other_processes(model: Any, asks: list[pf.Ask]) -> None:
    answers = model.ask_batch([asks[0], 7])
    again = pickle.loads(pickle.dumps(answers))
    assert again == answers


# -- coroutines --------------------------------------------------------------------------------------------------------


def test_coroutines_share_batches(
    model: Any, asks: list[pf.Ask], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    look_at_batches(monkeypatch, lambda batch: sizes.append(len(batch)))

    async def all_at_once() -> list[str]:
        return await asyncio.gather(*(model.ask_async(a.media, a.question, a.regions, **a.options) for a in asks))

    assert asyncio.run(all_at_once()) == expected
    assert len(sizes) < len(asks)


def test_asynchronous_iteration(model: Any, asks: list[pf.Ask], expected: list[str]) -> None:
    async def requests() -> AsyncIterator[Any]:
        for ask in [*asks, 7]:
            await asyncio.sleep(0)
            yield ask

    async def run(given: Any, ordered: bool) -> list[pf.Answer]:
        return [answer async for answer in model.ask_iter_async(given, ordered=ordered, batch_size=3)]

    ordered = asyncio.run(run(requests(), True))
    assert [a.index for a in ordered] == list(range(len(asks) + 1))
    assert texts(ordered) == [*expected, None]
    unordered = asyncio.run(run(asks, False))
    assert texts(sorted(unordered, key=lambda a: a.index)) == expected
    assert "request: expected" in (ordered[-1].error or "")
    _wait_until_idle(model)


def test_asynchronous_errors(model: Any, image: np.ndarray, asks: list[pf.Ask], expected: list[str]) -> None:
    with pytest.raises(ValueError, match="expected a <region> tag"):
        asyncio.run(model.ask_async(image, "What?", [BOX]))

    async def broken() -> AsyncIterator[Any]:
        yield asks[0]
        raise KeyError("reader")

    async def run() -> str | None:
        answers = model.ask_iter_async(broken())
        first = await anext(answers)
        with pytest.raises(KeyError, match="reader"):
            await anext(answers)
        return first.text

    assert asyncio.run(run()) == expected[0]


def test_a_cancelled_task_leaves_the_model_usable(model: Any, asks: list[pf.Ask], expected: list[str]) -> None:
    async def run() -> str:
        async def endless() -> None:
            async for _ in model.ask_iter_async(itertools.cycle(asks), batch_size=2):
                pass

        task = asyncio.create_task(endless())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        one = asks[0]
        return await model.ask_async(one.media, one.question, one.regions, **one.options)

    assert asyncio.run(run()) == expected[0]
    _wait_until_idle(model)


def _wait_until_idle(model: Any) -> None:
    server = model.requests._server
    if server is not None:
        server.join(30)
    assert model.requests._server is None
    assert not model.requests._callers
