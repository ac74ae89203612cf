"""The methods of a model that take many requests, or wait for one without blocking: `ask_batch`, `ask_iter`, ..."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Literal, overload

from typing_extensions import Unpack

from pixelrefer_fast.batching.asks import Answer, Ask, AskKeywords, BatchError
from pixelrefer_fast.batching.callers import Caller
from pixelrefer_fast.batching.encoding import Prepared
from pixelrefer_fast.batching.memory import MAX_REQUESTS
from pixelrefer_fast.batching.progress import batch_progress
from pixelrefer_fast.batching.queue import RequestQueue
from pixelrefer_fast.checks.values import is_integer, shown
from pixelrefer_fast.decoding import Event
from pixelrefer_fast.device.processes import PerProcess
from pixelrefer_fast.network import Network

AHEAD = 2  # batches that are taken from the caller's requests before answers are fetched


class Batch(Iterator[Answer]):
    """Answers of one `ask_iter`, while its requests are being taken in; for one thread, but for `cancel`.

    Requests are taken as answers are fetched, a few batches ahead: neither may be a list that fits into memory.
    """

    def __init__(
        self,
        queue: RequestQueue,
        requests: Iterable[object],
        options: Mapping[str, object],
        batch_size: int | None,
        ordered: bool,
        tracebacks: bool = False,
    ) -> None:
        self._queue = queue
        self._caller = Caller(options, batch_size)
        self._caller.tracebacks = tracebacks
        self._requests = iter(requests)
        self._failed: BaseException | None = None
        self._exhausted = False
        self._ordered = ordered
        self._ahead = AHEAD * (batch_size or queue.budget.requests)
        self._fetched: list[tuple[int, Answer]] = []  # a heap: answers that wait for earlier ones
        self._handed_out = 0

    def __iter__(self) -> Batch:
        return self

    def __next__(self) -> Answer:
        while True:
            self._feed()
            while (answer := self._queue.fetch(self._caller)) is not None:
                heapq.heappush(self._fetched, (answer.index, answer))
            if self._fetched and (not self._ordered or self._fetched[0][0] == self._handed_out):
                self._handed_out += 1
                return heapq.heappop(self._fetched)[1]
            if not self._caller.open and not self._caller.finished:
                if self._failed is not None:
                    failed, self._failed = self._failed, None
                    raise failed
                raise StopIteration
            self._queue.advance(self._caller)

    def cancel(self) -> None:
        """Take no more requests; what is open ends as cancelled and is still handed out. From any thread."""
        self._exhausted = True
        self._queue.cancel(self._caller)

    def close(self) -> None:
        """`cancel`, nothing more being handed out."""
        self.cancel()
        self._fetched.clear()
        self._caller.finished.clear()

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        caller = getattr(self, "_caller", None)
        if caller is not None:
            caller.cancelled = True  # seen at the next step: no lock may be waited for here

    def _feed(self) -> None:
        while not self._exhausted and self._caller.count - self._handed_out < self._ahead:
            try:
                value = next(self._requests)
            except StopIteration:
                self._exhausted = True
            except Exception as error:  # told when what came before it is answered
                self._exhausted, self._failed = True, error
            else:
                self._queue.submit(self._caller, value)


class BatchCalls:
    """What `PixelRefer` and `PixelReferLite` can do with many requests."""

    network: Network

    @property
    def requests(self) -> RequestQueue:
        """The queue through which all requests of this model go."""
        queues: PerProcess[RequestQueue] | None = self.__dict__.get("_queues")
        if queues is None:
            queues = self.__dict__.setdefault("_queues", PerProcess(lambda: RequestQueue(self.network)))
        return queues.get()

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_queues"}

    def ask_iter(
        self,
        requests: Iterable[object],
        *,
        ordered: bool = False,
        batch_size: int | None = None,
        **options: Unpack[AskKeywords],
    ) -> Batch:
        """Answers as they are finished, each with the index of its request.

        Args:
            requests: `Ask`s, tuples (media, question, regions) or mappings with these names, of images, videos and
                encoded objects in any mixture. Any iterable, read a few batches ahead.
            ordered: in the order of the requests instead.
            batch_size: at most so many at one time; default: 32 on a CPU, 64 on a GPU. Memory may set it lower.
            options: of all requests, as in `ask`; a request's own win.

        Returns:
            An iterator with `cancel` and `close`. A request that cannot be answered yields an `Answer` with its
            `error`, and disturbs no other. What `requests` itself raises is raised after the answers to what came
            before it.

        Raises:
            ValueError: `requests` cannot be iterated over, or the batch size is no number.
        """
        _check_batch(requests, batch_size)
        return Batch(self.requests, requests, options, batch_size, ordered)

    def ask_batch(
        self,
        requests: Iterable[object],
        *,
        batch_size: int | None = None,
        progress: bool | None = None,
        **options: Unpack[AskKeywords],
    ) -> list[Answer]:
        """`ask_iter` as a list, in the order of the requests.

        Args:
            requests, batch_size, options: as in `ask_iter`.
            progress: whether to draw a bar on stderr; default: if that is a terminal.
        """
        total = len(requests) if isinstance(requests, Sequence) else None
        answers: list[Answer] = []
        batch = self.ask_iter(requests, batch_size=batch_size, **options)
        with batch, batch_progress("requests", progress) as tick:
            for answer in batch:
                answers.append(answer)
                tick(len(answers), total)
        return sorted(answers, key=lambda answer: answer.index)

    @overload
    async def ask_async(
        self,
        media: object,
        question: str,
        regions: object = None,
        *,
        details: Literal[False] = False,
        **options: Unpack[AskKeywords],
    ) -> str: ...

    @overload
    async def ask_async(
        self,
        media: object,
        question: str,
        regions: object = None,
        *,
        details: Literal[True],
        **options: Unpack[AskKeywords],
    ) -> Answer: ...

    async def ask_async(
        self,
        media: object,
        question: str,
        regions: object = None,
        *,
        details: bool = False,
        **options: Unpack[AskKeywords],
    ) -> str | Answer:
        """`ask` that lets the event loop go on; concurrent calls share batches.

        Raises:
            ValueError: naming the input, what was expected and what came.
        """
        ask = Ask(media, question, regions)
        async for answer in self.ask_iter_async([ask], **options):
            text = text_of(answer)
            return answer if details else text
        raise RuntimeError("a request was neither answered nor refused")  # pragma: no cover

    @overload
    def stream_async(
        self,
        media: object,
        question: str,
        regions: object = None,
        *,
        events: Literal[False] = False,
        **options: Unpack[AskKeywords],
    ) -> AsyncGenerator[str, None]: ...

    @overload
    def stream_async(
        self,
        media: object,
        question: str,
        regions: object = None,
        *,
        events: Literal[True],
        **options: Unpack[AskKeywords],
    ) -> AsyncGenerator[Event, None]: ...

    async def stream_async(
        self,
        media: object,
        question: str,
        regions: object = None,
        *,
        events: bool = False,
        **options: Unpack[AskKeywords],
    ) -> AsyncGenerator[str | Event, None]:
        """`stream` that lets the event loop go on; concurrent calls share batches. Closing it cancels.

        Raises:
            ValueError: naming the input, what was expected and what came; before the first piece.
        """
        changed, notify = _wakes(asyncio.get_running_loop())
        queue = self.requests
        caller = Caller(options, None, notify, streams=True)
        queue.submit(caller, Ask(media, question, regions))
        answer = None
        try:
            while answer is None:
                changed.clear()
                answer = queue.fetch(caller)
                while caller.events:  # those before the answer are there by now
                    event = caller.events.popleft()
                    if events:
                        yield event
                    elif event.text:
                        yield event.text
                if answer is None:
                    await changed.wait()
            text_of(answer)
        finally:
            queue.cancel(caller)

    async def ask_iter_async(
        self,
        requests: Iterable[object] | AsyncIterable[object],
        *,
        ordered: bool = False,
        batch_size: int | None = None,
        **options: Unpack[AskKeywords],
    ) -> AsyncGenerator[Answer, None]:
        """`ask_iter` for coroutines; `requests` may be asynchronous as well. Closing it cancels what is open."""
        _check_batch(requests, batch_size)
        changed, notify = _wakes(asyncio.get_running_loop())
        queue = self.requests
        caller = Caller(options, batch_size, notify)
        ahead = AHEAD * (batch_size or queue.budget.requests)
        fetched: list[tuple[int, Answer]] = []
        handed_out = 0
        room = asyncio.Semaphore(ahead)

        async def feed() -> None:
            if isinstance(requests, AsyncIterable):
                async for value in requests:
                    await room.acquire()
                    queue.submit(caller, value)
            else:
                for value in requests:
                    await room.acquire()
                    queue.submit(caller, value)

        feeder = asyncio.create_task(feed())
        feeder.add_done_callback(lambda _: changed.set())
        try:
            while True:
                changed.clear()
                while (answer := queue.fetch(caller)) is not None:
                    heapq.heappush(fetched, (answer.index, answer))
                while fetched and (not ordered or fetched[0][0] == handed_out):
                    handed_out += 1
                    room.release()
                    yield heapq.heappop(fetched)[1]
                if feeder.done() and not caller.open and not caller.finished:
                    feeder.result()  # what `requests` itself raised
                    return
                if not caller.finished:
                    await changed.wait()
        finally:
            feeder.cancel()
            queue.cancel(caller)

    def _stream_one(self, prepared: Prepared) -> Generator[Event, None, None]:
        """Events of one request as they come; nothing of it runs before the first is asked for. Closing it cancels."""
        queue = self.requests
        caller = Caller(streams=True)
        caller.tracebacks = True
        queue.submit(caller, prepared)
        answer = None
        try:
            while answer is None:
                answer = queue.fetch(caller)
                while caller.events:  # those before the answer are there by now
                    yield caller.events.popleft()
                if answer is None:
                    queue.advance(caller)
            text_of(answer)
        finally:
            queue.cancel(caller)

    def _answer_one(self, value: object) -> Answer:
        """One request through the queue, driven by the caller's own thread if no other does."""
        with Batch(self.requests, [value], {}, None, ordered=True, tracebacks=True) as batch:
            answer = next(batch)
            text_of(answer)
            return answer

    def _answer_all(self, values: Iterable[object], progress: bool | None, total: int | None) -> list[Answer]:
        """All requests, in order; the first failure ends it."""
        answers = []
        batch = Batch(self.requests, values, {}, None, ordered=True, tracebacks=True)
        with batch, batch_progress("regions", progress) as tick:
            for answer in batch:
                text_of(answer)
                answers.append(answer)
                tick(len(answers), total)
        return answers


def _wakes(loop: asyncio.AbstractEventLoop) -> tuple[asyncio.Event, Callable[[], None]]:
    """An event of the loop, and what sets it from any thread."""
    changed = asyncio.Event()

    def notify() -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(changed.set)

    return changed, notify


def text_of(answer: Answer) -> str:
    """The text, or what went wrong as an exception."""
    if answer.exception is not None:
        raise answer.exception
    if answer.text is None:
        raise BatchError([answer])
    return answer.text


def _check_batch(requests: object, batch_size: int | None) -> None:
    if not isinstance(requests, (Iterable, AsyncIterable)) or isinstance(requests, (str, bytes, Ask)):
        raise ValueError(f"requests: expected several of them, got {shown(requests)}")
    if batch_size is not None and not (is_integer(batch_size) and 1 <= batch_size <= MAX_REQUESTS):
        raise ValueError(f"batch_size: expected an integer from 1 to {MAX_REQUESTS}, got {shown(batch_size)}")
