"""One queue of requests for a model: callers of any number of threads share its batches.

No thread of its own runs it: whoever waits for an answer drives the next step, for everybody. A step admits requests
(planned, encoded in one packed pass, turned into prompts) and lets all sequences that are being decoded go on.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pixelrefer_fast.batching.asks import Answer, as_ask
from pixelrefer_fast.batching.encoding import Prepared, SceneCache, embedded_prompt, encode_prepared
from pixelrefer_fast.batching.memory import Budget, give_back, out_of_memory
from pixelrefer_fast.batching.planner import Packing
from pixelrefer_fast.batching.preparing import Bound, MediaCache, prepare
from pixelrefer_fast.batching.session import Session
from pixelrefer_fast.checks.printable import one_line
from pixelrefer_fast.decoding import PromptEmbeds, Sequence

PATIENCE = 1.0  # seconds after which a waiting thread looks whether the driving one is still there
CALM = 8  # batches without running out of memory after which larger ones are tried again


class Ticket:
    """One request on its way."""

    __slots__ = ("answered", "index", "lane", "prepared", "prompt", "value")

    def __init__(self, lane: Lane, index: int, value: Any) -> None:
        self.lane = lane
        self.index = index
        self.value = value
        self.prepared: Prepared | None = None
        self.prompt: PromptEmbeds | None = None
        self.answered = False


class Lane:
    """The requests of one caller, in order; `finished` fills as they are answered."""

    def __init__(
        self,
        defaults: dict[str, Any] | None = None,
        requests: int | None = None,
        notify: Callable[[], None] | None = None,
    ) -> None:
        self.defaults = defaults
        self.requests = requests  # at one time; None: as the queue thinks best
        self.notify = notify  # called, from any thread, when something was answered
        self.waiting: deque[Ticket] = deque()
        self.open: dict[int, Ticket] = {}  # handed in and not answered
        self.finished: deque[Answer] = deque()
        self.cancelled = False
        self.tracebacks = False  # whether errors keep theirs
        self.media = MediaCache()
        self.count = 0


class RequestQueue:
    """All requests of one model.

    Args:
        model: who answers.
        budget: what may run together; None: from the memory that is free at the first request.
    """

    def __init__(self, model: Any, budget: Budget | None = None) -> None:
        self.model = model
        self.process = os.getpid()
        self._budget = budget
        self._changed = threading.Condition()
        self._driver: threading.Thread | None = None
        self._turns: deque[object] = deque()  # those who want the model for themselves
        self._lanes: deque[Lane] = deque()  # with open requests; the next one to be served first
        self._held: deque[Ticket] = deque()  # taken from their lanes, to be started (again) before any other
        self._active: dict[int, Ticket] = {}  # by id
        self._session = Session(model.decoder)
        self._ceiling: int | None = None  # requests at one time after memory ran out
        self._calm = 0
        self._one_by_one = False  # until what is held has been tried: which of a batch has failed?
        self._server: threading.Thread | None = None
        self._files = MediaCache()
        self._scenes = SceneCache()

    @property
    def budget(self) -> Budget:
        if self._budget is None:
            self._budget = Budget.of(self.model)
        return self._budget

    # -- callers -----------------------------------------------------------------------------------------------------

    def submit(self, lane: Lane, value: Any) -> int:
        """Hand in a request (`as_ask` says what counts as one); its index in the lane. Never fails."""
        with self._changed:
            ticket = Ticket(lane, lane.count, value)
            lane.count += 1
            lane.open[ticket.index] = ticket
            if lane.cancelled:
                self._deliver(ticket, _failure(ticket, None))
                return ticket.index
            lane.waiting.append(ticket)
            if lane not in self._lanes:
                self._lanes.append(lane)
            if lane.notify is not None:
                self._serve()
            return ticket.index

    def advance(self, lane: Lane, whatever: bool = False) -> None:
        """Drive a step, or wait while another thread does, unless something of the lane is finished.

        Args:
            lane: whose answers are wanted.
            whatever: drive a step even if answers of the lane wait to be fetched.
        """
        me = threading.current_thread()
        driving = False
        try:
            with self._changed:
                while lane.open and (whatever or not lane.finished):
                    if not self._turns and self._free(me):
                        self._driver = me
                        driving = True
                        break
                    self._changed.wait(PATIENCE)
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
        """The model for the caller alone, in turn with others and between two steps."""
        me, turn = threading.current_thread(), object()
        try:
            with self._changed:
                self._turns.append(turn)
                while self._turns[0] is not turn or not self._free(me):
                    self._changed.wait(PATIENCE)
                self._turns.popleft()
                self._driver = me
            yield
        finally:
            with self._changed:
                if turn in self._turns:  # interrupted while waiting
                    self._turns.remove(turn)
            self._leave()

    def fetch(self, lane: Lane) -> Answer | None:
        """The next answer of a lane, in the order in which they were finished; None while there is none."""
        with self._changed:
            if not lane.finished:
                return None
            answer = lane.finished.popleft()
            lane.open.pop(answer.index, None)  # still there if its delivery was interrupted
            return answer

    def cancel(self, lane: Lane) -> None:
        """Answer what is open of a lane as cancelled; what a thread is working on, when its step ends."""
        with self._changed:
            lane.cancelled = True
            while lane.waiting:
                ticket = lane.waiting.popleft()
                self._deliver(ticket, _failure(ticket, None))
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
        self._admit()
        if self._active:
            self._decode()
        with self._changed:
            if not self._lanes:
                self._files.clear()
                self._scenes.clear()

    def _drop_cancelled(self) -> None:
        """Let go of what was cancelled; where no other thread is within a step."""
        for lane in [lane for lane in self._lanes if lane.cancelled]:
            lane.waiting.clear()
            for ticket in list(lane.open.values()):
                self._session.cancel(ticket)
                self._active.pop(id(ticket), None)
                self._deliver(ticket, _failure(ticket, None))
        self._held = deque(ticket for ticket in self._held if not ticket.answered)

    def _admit(self) -> None:
        with self._changed:
            wanted = max((lane.requests or self.budget.requests for lane in self._lanes), default=0)
            waiting = len(self._held) + sum(len(lane.waiting) for lane in self._lanes)
        limit = 1 if self._one_by_one else min(wanted, self._ceiling or wanted)
        room = limit - len(self._active)
        # a few at a time are encoded much faster than one by one as others end
        if room < 1 or not waiting or (self._active and room < min(waiting, limit // 4)):
            return
        packing = Packing(self.budget, (t.prepared for t in self._active.values()))
        batch: list[Ticket] = []
        again = bool(self._held)  # what is held is tried without others
        while len(batch) < room and (self._held or not again):
            ticket = self._next()
            if ticket is None:
                break
            if ticket.prepared is None and not self._prepare(ticket):
                continue
            if not packing.add(ticket.prepared):
                self._held.appendleft(ticket)
                break
            batch.append(ticket)
        if batch:
            self._start(batch)
        if not self._held:
            self._one_by_one = False

    def _next(self) -> Ticket | None:
        """What was held, else one request of each lane in turn."""
        with self._changed:
            while self._held:
                ticket = self._held.popleft()
                if not ticket.answered:
                    return ticket
            for _ in range(len(self._lanes)):
                lane = self._lanes[0]
                self._lanes.rotate(-1)
                running = len(lane.open) - len(lane.waiting)
                if lane.waiting and running < (lane.requests or self.budget.requests):
                    return lane.waiting.popleft()
        return None

    def _prepare(self, ticket: Ticket) -> bool:
        value, lane = ticket.value, ticket.lane
        try:
            if not isinstance(value, Bound):
                value = as_ask(value, lane.defaults)
            ticket.prepared = prepare(self.model, value, self._files, lane.media)
        except Exception as error:
            self._deliver(ticket, _failure(ticket, error))
            return False
        return True

    def _start(self, batch: list[Ticket]) -> None:
        """Encode a batch in one pass and hand its prompts to the decoder."""
        try:
            fresh = [t for t in batch if t.prompt is None]
            objects = encode_prepared(self.model, [t.prepared for t in fresh if t.prepared], self._scenes)
            for ticket, own in zip(fresh, objects, strict=True):
                assert ticket.prepared is not None
                try:
                    ticket.prompt = embedded_prompt(self.model, ticket.prepared.question, own)
                except ValueError as error:
                    self._deliver(ticket, _failure(ticket, error))
                    continue
                ticket.prepared.encoded()
        except Exception as error:
            self._failed(batch, error)
            return
        self._session.widen(len(batch))
        for ticket in batch:
            if not ticket.answered:
                assert ticket.prepared is not None
                assert ticket.prompt is not None
                try:
                    self._session.add(ticket, ticket.prompt, ticket.prepared.generation)
                except ValueError as error:
                    self._deliver(ticket, _failure(ticket, error))
                    continue
                self._active[id(ticket)] = ticket
        self._calm += 1
        if self._ceiling is not None and self._calm >= CALM:
            self._calm = 0
            self._ceiling *= 2
            if self._ceiling >= self.budget.requests:
                self._ceiling = None

    def _decode(self) -> None:
        try:
            done = self._session.step()
        except Exception as error:  # the decoder makes do with less by itself where it can
            batch = list(self._active.values())
            self._active.clear()
            self._session.abandon()
            self._failed(batch, error)
            return
        for ticket, decoding in done:
            self._active.pop(id(ticket), None)
            if not ticket.answered:
                self._deliver(ticket, _answer(ticket, decoding))

    def _failed(self, batch: list[Ticket], error: Exception) -> None:
        """A batch failed as a whole: smaller ones go on, until it is known who cannot be answered at all."""
        short = out_of_memory(error)
        together = len(batch) + len(self._active)
        if short:
            give_back(self.model.device)
            self._ceiling, self._calm = max(1, together // 2), 0
        if together == 1 or (not short and len(batch) == 1):
            self._deliver(batch[0], _failure(batch[0], error))
        else:
            self._held.extendleft(reversed(batch))
            self._one_by_one = self._one_by_one or not short

    def _deliver(self, ticket: Ticket, answer: Answer) -> None:
        with self._changed:
            if ticket.answered:
                return
            lane = ticket.lane
            lane.finished.append(answer)
            ticket.answered = True
            ticket.value = ticket.prepared = ticket.prompt = None
            lane.open.pop(ticket.index, None)
            if not lane.open:
                lane.media.clear()
                if lane in self._lanes:
                    self._lanes.remove(lane)
        if lane.notify is not None:
            lane.notify()

    def _recover(self) -> None:
        """After an interrupt at any point: whoever is not answered starts again, whatever was decoded of it is lost."""
        with self._changed:
            self._session.abandon()
            self._active.clear()
            self._held.clear()
            for lane in self._lanes:
                delivered = {answer.index for answer in lane.finished}
                untouched = set(map(id, lane.waiting))
                for ticket in list(lane.open.values()):
                    if ticket.index in delivered:  # interrupted while it was
                        ticket.answered = True
                        del lane.open[ticket.index]
                    elif id(ticket) not in untouched:
                        self._held.append(ticket)

    # -- callers that cannot drive: coroutines -----------------------------------------------------------------------

    def _serve(self) -> None:
        """Have a thread that drives while lanes with a `notify` have open requests."""
        if self._server is None or not self._server.is_alive():
            self._server = threading.Thread(target=self._run_server, name="pixelrefer_fast requests")
            self._server.start()

    def _run_server(self) -> None:
        while True:
            with self._changed:
                lane = next((lane for lane in self._lanes if lane.notify is not None), None)
                if lane is None:
                    self._server = None
                    return
            try:
                self.advance(lane, whatever=True)
            except Exception as error:  # a defect of ours: nobody may wait forever
                with self._changed:
                    for ticket in list(lane.open.values()):
                        self._deliver(ticket, _failure(ticket, error))
                    lane.waiting.clear()


def _answer(ticket: Ticket, decoding: Sequence) -> Answer:
    given = decoding.decoded
    if given is None:
        return _failure(ticket, decoding.error)
    return Answer(
        ticket.index,
        given.text,
        finish=given.finish_reason,
        tokens=given.tokens,
        logprobs=given.logprobs,
        prompt_tokens=given.prompt_tokens,
        cached_tokens=given.cached_tokens,
    )


def _failure(ticket: Ticket, error: BaseException | None) -> Answer:
    """The answer to a request that has none; without an error it was cancelled."""
    if error is None:
        return Answer(ticket.index, None, "cancelled", "cancelled")
    if not ticket.lane.tracebacks:
        _forget_frames(error)
    message = one_line(str(error)) or type(error).__name__
    if not isinstance(error, ValueError):
        message = f"{type(error).__name__}: {message}"
    if out_of_memory(error):
        message = f"does not fit into memory, even alone: {message}"
    return Answer(ticket.index, None, message, "error", exception=error)


def _forget_frames(error: BaseException) -> None:
    """Frames hold images and whoever called them, and there may be many errors in a list of answers."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
