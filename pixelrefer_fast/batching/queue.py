"""One queue of requests for a network: callers of any number of threads share its batches.

Whoever waits for an answer drives the next step, for everybody; threads of the queue's own only open media and prepare
requests (`workers.py`). A step starts requests that are ready (encoded in one packed pass, or a part of it, and turned
into prompts) and lets all sequences that are being decoded go on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pixelrefer_fast.batching.asks import Answer
from pixelrefer_fast.batching.callers import Caller, Pending
from pixelrefer_fast.batching.encoding import Prepared, SceneCache, embedded_prompt, encode_in_parts
from pixelrefer_fast.batching.frames_ahead import FramesAhead
from pixelrefer_fast.batching.memory import Budget, give_back, out_of_memory
from pixelrefer_fast.batching.planner import BatchBuilder
from pixelrefer_fast.batching.preparing import MediaCache
from pixelrefer_fast.batching.session import Session
from pixelrefer_fast.batching.workers import Workers
from pixelrefer_fast.checks.printable import one_line
from pixelrefer_fast.decoding import Sequence
from pixelrefer_fast.encoding.objects import Objects
from pixelrefer_fast.network import Network

PATIENCE = 1.0  # seconds after which a waiting thread looks whether the driving one is still there
CALM = 8  # batches without running out of memory after which larger ones are tried again
# Seconds that the first request that is ready waits for others to be encoded with: less than a batch of them takes.
GATHER = {"cpu": 0.1, "cuda": 0.01}
# Patches that are encoded between two steps of what is being decoded: of the released encoder 3 TFLOP, as much as a
# chunk of prompts of a 2B model (`decoding.decoder.CHUNK_TOKENS`). A view is not cut: a larger one goes alone.
CHUNK_PATCHES = 4096


@dataclass
class _Encoding:
    """A batch that is being encoded, in parts where others are decoded meanwhile."""

    batch: list[Pending]
    fresh: list[Pending]
    parts: Generator[None, None, list[Objects]]


class RequestQueue:
    """All requests of one network.

    Args:
        network: who answers.
        budget: what may run together; None: from the memory that is free at the first request.
    """

    def __init__(self, network: Network, budget: Budget | None = None) -> None:
        self.network = network
        self._budget = budget
        self._changed = threading.Condition()
        self._driver: threading.Thread | None = None
        self._turns: deque[object] = deque()  # those who want the network for themselves
        self._turn_taken = False  # since the last step
        self._wait_to_drive = 0  # threads
        self._callers: deque[Caller] = deque()  # with open requests; the next one to be served first
        self._held: deque[Pending] = deque()  # taken from their callers, to be started (again) before any other
        self._encoding: _Encoding | None = None
        self._active: dict[int, Pending] = {}  # by id
        self._session: Session[Pending] = Session(network.decoder)
        self._ceiling: int | None = None  # requests at one time after memory ran out
        self._calm = 0
        self._one_by_one = False  # until what is held has been tried: which of a batch has failed?
        self._server: threading.Thread | None = None
        self._files = MediaCache()
        self._scenes = SceneCache()
        self._ahead = FramesAhead()
        self._workers = Workers(
            network, self._changed, self._callers, self._files, self._decode_ahead, self._not_prepared
        )

    @property
    def budget(self) -> Budget:
        if self._budget is None:
            self._budget = Budget.of(self.network)
        return self._budget

    # -- callers -----------------------------------------------------------------------------------------------------

    def submit(self, caller: Caller, value: object) -> int:
        """Hand in a request (`as_ask` says what counts as one, or `Prepared`); its index in the caller. Never fails."""
        with self._changed:
            pending = Pending(caller, caller.count, value)
            caller.count += 1
            caller.open[pending.index] = pending
            if caller.cancelled:
                self._deliver(pending, _failure(pending, None))
                return pending.index
            if isinstance(value, Prepared) and not self._ahead.wanted(value, self._scenes):
                pending.stand, pending.prepared, pending.ready_at = "ready", value, time.monotonic()
                caller.coming.append(pending)
            else:
                caller.waiting.append(pending)
            if caller not in self._callers:
                self._callers.append(caller)
            self._workers.wake(self._wanted())
            self._changed.notify_all()
            if caller.notify is not None:
                self._serve()
            return pending.index

    def advance(self, caller: Caller, whatever: bool = False) -> None:
        """Drive a step, or wait while another thread does, unless something of the caller is finished or told.

        Args:
            caller: whose answers are wanted.
            whatever: drive a step even if answers of the caller wait to be fetched.
        """
        me = threading.current_thread()
        driving = False
        try:
            with self._changed:
                while caller.open and (whatever or not (caller.finished or caller.events)):
                    if self._free(me) and (self._turn_taken or not self._turns):
                        self._driver = me
                        self._turn_taken = False
                        driving = True
                        break
                    self._wait_to_drive += 1
                    try:
                        self._changed.wait(PATIENCE)
                    finally:
                        self._wait_to_drive -= 1
            if driving:
                self._step()
        except BaseException:
            if driving:
                self._recover()
            raise
        finally:
            if driving:
                self._leave()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """The network for the caller alone, in turn with others and between two steps, of which none waits for two."""
        me, turn = threading.current_thread(), object()
        try:
            with self._changed:
                self._turns.append(turn)
                self._changed.notify_all()  # a driver that waits for media lets it pass
                while self._turns[0] is not turn or not self._free(me) or (self._turn_taken and self._wait_to_drive):
                    self._changed.wait(PATIENCE)
                self._turns.popleft()
                self._turn_taken = True
                self._driver = me
            yield
        finally:
            with self._changed:
                if turn in self._turns:  # interrupted while waiting
                    self._turns.remove(turn)
            self._leave()

    def encode(self, prepared: Prepared) -> Objects:
        """A request's objects alone; in parts, each in a turn of its own, while others are being decoded.

        Raises:
            ValueError: a frame that cannot be read, a k-means start that does not fit.
        """
        self._ahead.decode(prepared)
        parts = encode_in_parts(self.network, [prepared], None, self._chunk)
        while True:
            with self.exclusive():
                try:
                    next(parts)
                except StopIteration as end:
                    (objects,) = end.value
                    return objects

    def fetch(self, caller: Caller) -> Answer | None:
        """The next answer of a caller, in the order in which they were finished; None while there is none."""
        with self._changed:
            if not caller.finished:
                return None
            answer = caller.finished.popleft()
            caller.open.pop(answer.index, None)  # still there if its delivery was interrupted
            return answer

    def cancel(self, caller: Caller) -> None:
        """Answer what is open of a caller as cancelled; what a thread is working on, when its step ends."""
        with self._changed:
            caller.cancelled = True
            for pending in [*caller.coming, *caller.waiting]:
                self._deliver(pending, _failure(pending, None))
            if self._driver is None:
                self._drop_cancelled()
            self._changed.notify_all()

    # -- the driving thread ------------------------------------------------------------------------------------------

    def _free(self, me: threading.Thread) -> bool:
        # a thread that died, or was interrupted at the one point that leaves no trace, drives no more
        return self._driver is None or self._driver is me or not self._driver.is_alive()

    def _leave(self) -> None:
        with self._changed:
            if self._driver is threading.current_thread():
                self._drop_cancelled()
                self._driver = None
            self._changed.notify_all()

    def _step(self) -> None:
        with self._changed:
            self._drop_cancelled()
            self._workers.wake(self._wanted())
        if self._encoding is None:
            self._admit()
        if self._encoding is not None:
            self._encode()
        if self._active:
            self._decode()
        elif self._encoding is None:
            self._wait_for_media()
        with self._changed:
            if not self._callers:
                self._files.clear()
                self._scenes.clear()

    def _drop_cancelled(self) -> None:
        """Let go of what was cancelled; where no other thread is within a step."""
        for caller in [caller for caller in self._callers if caller.cancelled]:
            for pending in list(caller.open.values()):
                self._session.cancel(pending)
                self._active.pop(id(pending), None)
                self._deliver(pending, _failure(pending, None))
        self._held = deque(pending for pending in self._held if not pending.answered)

    def _chunk(self) -> int | None:
        """Patches that go between two steps; None where nobody waits for one."""
        return CHUNK_PATCHES if self._active else None

    def _wanted(self) -> int:
        """Requests that callers would have run at one time."""
        return max((caller.requests or self.budget.requests for caller in self._callers), default=0)

    def _limit(self) -> int:
        """Requests that may run at one time."""
        wanted = self._wanted()
        return 1 if self._one_by_one else min(wanted, self._ceiling or wanted)

    def _gathered(self) -> bool:
        """Whether to start what is ready, with `_changed` held: all that could start together is, or waited enough."""
        limit = self._limit()
        room = limit - len(self._active)
        waiting = len(self._held) + sum(len(caller.waiting) + len(caller.coming) for caller in self._callers)
        # a few at a time are encoded much faster than one by one as others end
        if room < 1 or not waiting or (self._active and room < min(waiting, limit // 4)):
            return False
        if self._held:
            return True
        since, ready, startable = self._ready()
        complete = ready >= min(room, startable) or not self._workers.at_work
        return ready > 0 and (complete or time.monotonic() >= since + self._patience)

    def _ready(self) -> tuple[float, int, int]:
        """Since when something is ready, how much is, and how much could start when all is that could be."""
        since, ready, startable = [], 0, 0
        for caller in self._callers:
            left = (caller.requests or self.budget.requests) - caller.started
            found = [pending.ready_at for pending in caller.coming if pending.stand == "ready"]
            if left > 0:
                since += found[:1]
                ready += min(len(found), left)
                startable += min(len(caller.coming) + len(caller.waiting), left)
        return min(since, default=0.0), ready, startable

    @property
    def _patience(self) -> float:
        return GATHER.get(self.network.device.type, GATHER["cuda"])

    def _wait_for_media(self) -> None:
        """Nothing can be done before a worker is done, somebody asks, or what is ready has waited long enough."""
        with self._changed:
            if not self._callers or self._turns or self._gathered():
                return
            since, ready, _ = self._ready()
            left = since + self._patience - time.monotonic() if ready else PATIENCE
            self._changed.wait(min(max(left, 0.0), PATIENCE))

    def _admit(self) -> None:
        """Choose what is encoded next, of what is ready."""
        with self._changed:
            if not self._gathered():
                return
            room = self._limit() - len(self._active)
        budget = self.budget
        chunk = self._chunk()
        if chunk is not None:
            budget = replace(budget, patches=min(budget.patches, chunk))
        builder = BatchBuilder(budget, (t.prepared for t in self._active.values()))
        batch: list[Pending] = []
        again = bool(self._held)  # what is held is tried without others
        while len(batch) < room and (self._held or not again):
            pending = self._next()
            if pending is None:
                break
            if not builder.add(pending.prepared):
                with self._changed:
                    (self._held if again else pending.caller.coming).appendleft(pending)
                break
            batch.append(pending)
        if batch:
            fresh = [t for t in batch if t.prompt is None]
            prepared = [t.prepared for t in fresh if t.prepared is not None]
            parts = encode_in_parts(self.network, prepared, self._scenes, self._chunk)
            self._encoding = _Encoding(batch, fresh, parts)
        if not self._held:
            self._one_by_one = False

    def _next(self) -> Pending | None:
        """What was held, else one request of each caller in turn that is ready."""
        with self._changed:
            while self._held:
                pending = self._held.popleft()
                if not pending.answered:
                    return pending
            for _ in range(len(self._callers)):
                caller = self._callers[0]
                self._callers.rotate(-1)
                if caller.started < (caller.requests or self.budget.requests):
                    for pending in caller.coming:
                        if pending.stand == "ready":
                            caller.coming.remove(pending)
                            return pending
        return None

    def _decode_ahead(self, prepared: Prepared) -> None:
        self._ahead.decode(prepared, self._scenes)

    def _not_prepared(self, pending: Pending, error: BaseException) -> None:
        self._deliver(pending, _failure(pending, error))

    def _encode(self) -> None:
        """The next part of the batch that is being encoded; after the last its prompts go to the decoder."""
        encoding = self._encoding
        assert encoding is not None
        batch = encoding.batch
        try:
            next(encoding.parts)
            return
        except StopIteration as end:
            objects: list[Objects] = end.value
        except Exception as error:
            self._encoding = None
            self._failed(batch, error)
            return
        self._encoding = None
        try:
            for pending, own in zip(encoding.fresh, objects, strict=True):
                if pending.answered:  # cancelled meanwhile
                    continue
                assert pending.prepared is not None
                try:
                    pending.prompt = embedded_prompt(self.network, pending.prepared.question, own)
                except ValueError as error:
                    self._deliver(pending, _failure(pending, error))
                    continue
                pending.prepared.encoded()
        except Exception as error:
            self._failed(batch, error)
            return
        self._start(batch)

    def _start(self, batch: list[Pending]) -> None:
        """Hand prompts to the decoder."""
        self._session.widen(len(batch))
        for pending in batch:
            if not pending.answered:
                assert pending.prepared is not None
                assert pending.prompt is not None
                try:
                    self._session.add(pending, pending.prompt, pending.prepared.generation, pending.caller.streams)
                except ValueError as error:
                    self._deliver(pending, _failure(pending, error))
                    continue
                self._active[id(pending)] = pending
        self._calm += 1
        if self._ceiling is not None and self._calm >= CALM:
            self._calm = 0
            self._ceiling *= 2
            if self._ceiling >= self.budget.requests:
                self._ceiling = None

    def _decode(self) -> None:
        try:
            self._session.step()
        except Exception as error:  # the decoder makes do with less by itself where it can
            batch = list(self._active.values())
            self._active.clear()
            self._session.abandon()
            self._failed(batch, error)
            return
        for pending, number, event in self._session.events():
            if number >= pending.told:
                pending.told = number + 1
                pending.caller.events.append(event)
                if pending.caller.notify is not None:
                    pending.caller.notify()
        for pending, sequences in self._session.done():
            self._active.pop(id(pending), None)
            if not pending.answered:
                first, *others = (_answer(pending, sequence) for sequence in sequences)
                self._deliver(pending, replace(first, others=tuple(others)))

    def _failed(self, batch: list[Pending], error: Exception) -> None:
        """A batch failed as a whole: smaller ones go on, until it is known who cannot be answered at all."""
        short = out_of_memory(error)
        together = len(batch) + len(self._active)
        if short:
            give_back(self.network.device)
            self._ceiling, self._calm = max(1, together // 2), 0
        if together == 1 or (not short and len(batch) == 1):
            self._deliver(batch[0], _failure(batch[0], error))
        else:
            self._held.extendleft(reversed(batch))
            self._one_by_one = self._one_by_one or not short

    def _deliver(self, pending: Pending, answer: Answer) -> None:
        with self._changed:
            if pending.answered:
                return
            caller = pending.caller
            caller.finished.append(answer)
            pending.answered = True
            pending.value = pending.prepared = pending.prompt = None
            for line in (caller.coming, caller.waiting):
                if pending in line:
                    line.remove(pending)
            caller.open.pop(pending.index, None)
            if not caller.open:
                caller.media.clear()
                if caller in self._callers:
                    self._callers.remove(caller)
        if caller.notify is not None:
            caller.notify()

    def _recover(self) -> None:
        """After an interrupt at any point: whoever is not answered starts again, whatever was decoded of it is lost."""
        with self._changed:
            self._session.abandon()
            self._active.clear()
            self._held.clear()
            self._encoding = None
            for caller in self._callers:
                delivered = {answer.index for answer in caller.finished}
                untouched = {*map(id, caller.waiting), *map(id, caller.coming)}
                for pending in list(caller.open.values()):
                    if pending.index in delivered:  # interrupted while it was
                        pending.answered = True
                        del caller.open[pending.index]
                    elif id(pending) not in untouched:
                        self._held.append(pending)

    # -- callers that cannot drive: coroutines -----------------------------------------------------------------------

    def _serve(self) -> None:
        """Have a thread that drives while callers with a `notify` have open requests."""
        if self._server is None or not self._server.is_alive():
            self._server = threading.Thread(target=self._run_server, name="pixelrefer_fast requests")
            self._server.start()

    def _run_server(self) -> None:
        while True:
            with self._changed:
                caller = next((caller for caller in self._callers if caller.notify is not None), None)
                if caller is None:
                    self._server = None
                    return
            try:
                self.advance(caller, whatever=True)
            except Exception as error:  # a defect of ours: nobody may wait forever
                with self._changed:
                    for pending in list(caller.open.values()):
                        self._deliver(pending, _failure(pending, error))


def _answer(pending: Pending, sequence: Sequence) -> Answer:
    given = sequence.decoded
    if given is None:
        return _failure(pending, sequence.error)
    return Answer(
        pending.index,
        given.text,
        finish=given.finish_reason,
        tokens=given.tokens,
        logprobs=given.logprobs,
        top_logprobs=given.top_logprobs,
        prompt_tokens=given.prompt_tokens,
        cached_tokens=given.cached_tokens,
    )


def _failure(pending: Pending, error: BaseException | None) -> Answer:
    """The answer to a request that has none; without an error it was cancelled."""
    if error is None:
        return Answer(pending.index, None, "cancelled", "cancelled")
    if not pending.caller.tracebacks:
        _forget_frames(error)
    message = one_line(str(error)) or type(error).__name__
    if not isinstance(error, ValueError):
        message = f"{type(error).__name__}: {message}"
    if out_of_memory(error):
        message = f"does not fit into memory, even alone: {message}"
    return Answer(pending.index, None, message, "error", exception=error)


def _forget_frames(error: BaseException) -> None:
    """Frames hold images and whoever called them, and there may be many errors in a list of answers."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
