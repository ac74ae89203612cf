"""One queue of requests for a network: callers of any number of threads share its batches.

No thread of its own runs it: whoever waits for an answer drives the next step, for everybody. A step admits requests
(planned, encoded in one packed pass, turned into prompts) and lets all sequences that are being decoded go on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from pixelrefer_fast.batching.asks import Answer, as_ask
from pixelrefer_fast.batching.encoding import Prepared, SceneCache, embedded_prompt, encode_prepared
from pixelrefer_fast.batching.memory import Budget, give_back, out_of_memory
from pixelrefer_fast.batching.planner import BatchBuilder
from pixelrefer_fast.batching.preparing import Bound, MediaCache, prepare
from pixelrefer_fast.batching.session import Session
from pixelrefer_fast.checks.printable import one_line
from pixelrefer_fast.decoding import Event, PromptEmbeds, Sequence
from pixelrefer_fast.network import Network

PATIENCE = 1.0  # seconds after which a waiting thread looks whether the driving one is still there
CALM = 8  # batches without running out of memory after which larger ones are tried again


class Pending:
    """One request on its way."""

    __slots__ = ("answered", "caller", "index", "prepared", "prompt", "told", "value")

    def __init__(self, caller: Caller, index: int, value: object) -> None:
        self.caller = caller
        self.index = index
        self.value: object = value
        self.prepared: Prepared | None = None
        self.prompt: PromptEmbeds | None = None
        self.answered = False
        self.told = 0  # events that its caller has; an answer that is begun again tells them again


class Caller:
    """The requests of one caller, in order; `finished` fills as they are answered, `events` before if it streams."""

    def __init__(
        self,
        defaults: Mapping[str, object] | None = None,
        requests: int | None = None,
        notify: Callable[[], None] | None = None,
    ) -> None:
        self.defaults = defaults
        self.requests = requests  # at one time; None: as the queue thinks best
        self.notify = notify  # called, from any thread, when something was answered
        self.waiting: deque[Pending] = deque()
        self.open: dict[int, Pending] = {}  # handed in and not answered
        self.finished: deque[Answer] = deque()
        self.cancelled = False
        self.tracebacks = False  # whether errors keep theirs
        self.streams = False
        self.events: deque[Event] = deque()
        self.media = MediaCache()
        self.count = 0


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
        self._callers: deque[Caller] = deque()  # with open requests; the next one to be served first
        self._held: deque[Pending] = deque()  # taken from their callers, to be started (again) before any other
        self._active: dict[int, Pending] = {}  # by id
        self._session: Session[Pending] = Session(network.decoder)
        self._ceiling: int | None = None  # requests at one time after memory ran out
        self._calm = 0
        self._one_by_one = False  # until what is held has been tried: which of a batch has failed?
        self._server: threading.Thread | None = None
        self._files = MediaCache()
        self._scenes = SceneCache()

    @property
    def budget(self) -> Budget:
        if self._budget is None:
            self._budget = Budget.of(self.network)
        return self._budget

    # -- callers -----------------------------------------------------------------------------------------------------

    def submit(self, caller: Caller, value: object) -> int:
        """Hand in a request (`as_ask` says what counts as one); its index in the caller. Never fails."""
        with self._changed:
            pending = Pending(caller, caller.count, value)
            caller.count += 1
            caller.open[pending.index] = pending
            if caller.cancelled:
                self._deliver(pending, _failure(pending, None))
                return pending.index
            caller.waiting.append(pending)
            if caller not in self._callers:
                self._callers.append(caller)
            if caller.notify is not None:
                self._serve()
            return pending.index

    def advance(self, caller: Caller, whatever: bool = False) -> None:
        """Drive a step, or wait while another thread does, unless something of the caller is finished.

        Args:
            caller: whose answers are wanted.
            whatever: drive a step even if answers of the caller wait to be fetched.
        """
        me = threading.current_thread()
        driving = False
        try:
            with self._changed:
                while caller.open and (whatever or not caller.finished):
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
        """The network for the caller alone, in turn with others and between two steps."""
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
            while caller.waiting:
                pending = caller.waiting.popleft()
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
        self._admit()
        if self._active:
            self._decode()
        with self._changed:
            if not self._callers:
                self._files.clear()
                self._scenes.clear()

    def _drop_cancelled(self) -> None:
        """Let go of what was cancelled; where no other thread is within a step."""
        for caller in [caller for caller in self._callers if caller.cancelled]:
            caller.waiting.clear()
            for pending in list(caller.open.values()):
                self._session.cancel(pending)
                self._active.pop(id(pending), None)
                self._deliver(pending, _failure(pending, None))
        self._held = deque(pending for pending in self._held if not pending.answered)

    def _admit(self) -> None:
        with self._changed:
            wanted = max((caller.requests or self.budget.requests for caller in self._callers), default=0)
            waiting = len(self._held) + sum(len(caller.waiting) for caller in self._callers)
        limit = 1 if self._one_by_one else min(wanted, self._ceiling or wanted)
        room = limit - len(self._active)
        # a few at a time are encoded much faster than one by one as others end
        if room < 1 or not waiting or (self._active and room < min(waiting, limit // 4)):
            return
        builder = BatchBuilder(self.budget, (t.prepared for t in self._active.values()))
        batch: list[Pending] = []
        again = bool(self._held)  # what is held is tried without others
        while len(batch) < room and (self._held or not again):
            pending = self._next()
            if pending is None:
                break
            if pending.prepared is None and not self._prepare(pending):
                continue
            if not builder.add(pending.prepared):
                self._held.appendleft(pending)
                break
            batch.append(pending)
        if batch:
            self._start(batch)
        if not self._held:
            self._one_by_one = False

    def _next(self) -> Pending | None:
        """What was held, else one request of each caller in turn."""
        with self._changed:
            while self._held:
                pending = self._held.popleft()
                if not pending.answered:
                    return pending
            for _ in range(len(self._callers)):
                caller = self._callers[0]
                self._callers.rotate(-1)
                running = len(caller.open) - len(caller.waiting)
                if caller.waiting and running < (caller.requests or self.budget.requests):
                    return caller.waiting.popleft()
        return None

    def _prepare(self, pending: Pending) -> bool:
        value, caller = pending.value, pending.caller
        try:
            if not isinstance(value, Bound):
                value = as_ask(value, caller.defaults)
            pending.prepared = prepare(self.network, value, self._files, caller.media)
        except Exception as error:
            self._deliver(pending, _failure(pending, error))
            return False
        return True

    def _start(self, batch: list[Pending]) -> None:
        """Encode a batch in one pass and hand its prompts to the decoder."""
        try:
            fresh = [t for t in batch if t.prompt is None]
            objects = encode_prepared(self.network, [t.prepared for t in fresh if t.prepared], self._scenes)
            for pending, own in zip(fresh, objects, strict=True):
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
            for caller in self._callers:
                delivered = {answer.index for answer in caller.finished}
                untouched = set(map(id, caller.waiting))
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
                    caller.waiting.clear()


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
