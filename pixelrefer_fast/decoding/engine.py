"""All prompts that are being decoded: who comes next, what runs together, who is done.

Any number of threads submit; whichever of them waits for something drives the engine, one at a time, a round each. A
round admits what waits as far as lanes and cache go, first come first served, runs a few steps of everything that runs,
and hands out what the notes of the lanes say. Sequences join and leave between rounds; none waits for another's end.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pixelrefer_fast.decoding.admission import Admission, OutOfBlocks
from pixelrefer_fast.decoding.cache import BlockPool
from pixelrefer_fast.decoding.lanes import Kind, Lanes, Notes
from pixelrefer_fast.decoding.prefixes import PrefixCache
from pixelrefer_fast.decoding.qwen import LanguageModel
from pixelrefer_fast.decoding.sequence import Ticket
from pixelrefer_fast.decoding.step_graphs import StepGraphs
from pixelrefer_fast.device.stages import stage

SHARING_PASSES = 3  # of an admission: one for each kind of beginning that a prompt may share


@dataclass(frozen=True)
class Limits:
    """How much runs at once.

    Attributes:
        lanes: sequences.
        prefill_tokens: packed tokens of one pass over prompts; a longer prompt has a pass of its own.
        look: steps between two looks at the notes; 1 on a device that the host need not wait for.
        look_streamed: the same while somebody reads along.
        ahead: whether a round's notes are read while the next round's steps run.
        shared: shortest beginning that is worth sharing.
    """

    lanes: int
    prefill_tokens: int
    look: int
    look_streamed: int
    ahead: bool
    shared: int


@dataclass(frozen=True)
class _Look:
    """Notes on their way to the host, and whose they are."""

    notes: Notes
    tickets: tuple[Ticket, ...]
    arrived: torch.cuda.Event | None


class Engine:
    """Lanes, cache and everything that waits for them.

    Args:
        model: runs the layers.
        pool, prefixes: keys and values, and the beginnings that are kept.
        lanes: state of what runs.
        limits: how much runs at once.
        ends: tokens that end a sequence.
        graphs: captured steps, where they are wanted.
    """

    def __init__(
        self,
        model: LanguageModel,
        pool: BlockPool,
        prefixes: PrefixCache,
        lanes: Lanes,
        limits: Limits,
        ends: frozenset[int],
        graphs: StepGraphs | None,
    ) -> None:
        self.limits = limits
        self.graphs = graphs
        self.most = limits.lanes  # lanes that may be taken, less after memory ran out
        self._model, self._pool, self._prefixes, self._lanes, self._ends = model, pool, prefixes, lanes, ends
        self._admission = Admission(model, pool, prefixes, limits.shared)
        self._lock = threading.RLock()
        self._waiting: deque[Ticket] = deque()
        self._starting: list[Ticket] = []  # neither waiting nor running
        self._running: list[Ticket] = []  # by lane
        self._looks: deque[_Look] = deque()
        self._counts = {"looks": 0, "steps": 0, "tokens": 0, "halved": 0}

    def submit(self, ticket: Ticket) -> None:
        """Queue a ticket; it runs when somebody advances."""
        with self._lock:
            self._waiting.append(ticket)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running or self._looks)

    @property
    def place(self) -> tuple[torch.device, torch.dtype]:
        """Where the cache lies and what it is made of."""
        return self._pool.keys.device, self._pool.keys.dtype

    @property
    def capacity(self) -> int:
        """Tokens that the cache has room for when nothing else is in it."""
        return (self._pool.limit - 1) * self._pool.size

    def counts(self) -> dict[str, int]:
        """What runs and waits, and what was done so far."""
        with self._lock:
            found = {
                "running": len(self._running),
                "waiting": len(self._waiting),
                "most_running": self.most,
                **self._counts,
                **self._admission.counts,
            }
            if self.graphs is not None:
                found |= {f"graph_{name}": n for name, n in self.graphs.counts().items()}
            return found

    def memory(self) -> dict[str, int]:
        """Bytes that are held, and limits."""
        with self._lock:
            return {
                "cache_bytes": self._pool.held_bytes,
                "cache_limit": self._pool.limit * self._pool.block_bytes,
                "cache_used": (self._pool.limit - 1 - self._pool.free) * self._pool.block_bytes,
                "prefixes": len(self._prefixes),
                "prefix_bytes": self._prefixes.held_bytes,
                "prefix_limit": self._prefixes.limit_bytes,
                "prefix_evictions": self._prefixes.evictions,
                "graph_bytes": 0 if self.graphs is None else self.graphs.held_bytes(),
            }

    @torch.inference_mode()
    def advance(self) -> bool:
        """One round; False when there was nothing to do."""
        with self._lock:
            if not self.busy:
                return False
            try:
                self._drop_cancelled()
                admitted = self._admit()
                self._run(admitted)
            except BaseException:
                self._restart()
                raise
            return True

    @torch.inference_mode()
    def tidy(self) -> None:
        """Let go of what was cancelled, which otherwise waits for the next round."""
        with self._lock:
            self._drop_cancelled()
            if not self._running:
                self._looks.clear()

    # Who comes and goes

    def _drop_cancelled(self) -> None:
        for ticket in [t for t in self._waiting if t.cancelled]:
            self._waiting.remove(ticket)
            ticket.finish("cancelled")
        leaving = [t for t in self._running if t.cancelled]
        for ticket in leaving:
            ticket.finish("cancelled")
        self._leave(leaving)

    def _admit(self) -> list[Ticket]:
        """Prompts whose turn it is, prefilled and in their lanes."""
        admitted: list[Ticket] = []
        while self._waiting and len(self._running) < self.most:
            tokens = 0
            while self._waiting and len(self._running) + len(self._starting) < self.most:
                tokens += self._waiting[0].prompt_tokens + len(self._waiting[0].tokens)
                if self._starting and tokens > self.limits.prefill_tokens:
                    break
                self._starting.append(self._waiting.popleft())
            admitted += self._start()
            if self._starting:
                self._wait_again(self._starting)
                break
        return admitted

    @stage("prefill")
    def _start(self) -> list[Ticket]:
        """Prefill those that start, as far as there are blocks; they leave `_starting`.

        Who shares a beginning with another starts one pass later and finds it computed.
        """
        started: list[Ticket] = []
        for last in (*[False] * SHARING_PASSES, True):
            now, later = (self._starting, []) if last else self._admission.split(self._starting)
            placed: list[Ticket] = []
            try:
                for ticket in now:
                    self._admission.reserve(ticket)
                    placed.append(ticket)
            except OutOfBlocks:
                later = []
            except torch.OutOfMemoryError as error:
                self._retreat(error)
                return started
            try:
                if placed:
                    self._admission.prefill(placed, self._lanes, _kind(placed))
            except torch.OutOfMemoryError as error:
                self._retreat(error)
                return started
            self._running += placed
            started += placed
            self._starting = [t for t in self._starting if not t.blocks]
            if not later:
                break
        return started

    def _retreat(self, error: torch.OutOfMemoryError) -> None:
        """Memory ran out: fewer at once from now on, and what failed all alone has failed."""
        self._lanes.keep(range(len(self._running)))
        self._put_back(self._starting)
        self._prefixes.clear()
        alone = len(self._starting) == 1 and not self._running
        self.most = max(1, (len(self._running) + len(self._starting)) // 2)
        self._counts["halved"] += 1
        if alone:
            self._starting.pop().fail(error)

    def _restart(self) -> None:
        """After an exception: all that runs waits again, in the order in which it came."""
        self._lanes.reset()
        self._looks.clear()
        tickets = [t for t in (*self._running, *self._starting) if not t.done]
        self._put_back([*self._running, *self._starting])
        self._running, self._starting = [], []
        self._wait_again(tickets)

    def _wait_again(self, tickets: Sequence[Ticket]) -> None:
        self._waiting.extendleft(reversed(tickets))
        self._starting = []

    def _put_back(self, tickets: Sequence[Ticket]) -> None:
        """Take the blocks of tickets that do not run; prompts and tokens stay, from which they can begin again."""
        for ticket in tickets:
            blocks, ticket.blocks = ticket.blocks, []
            self._pool.release(blocks)
            ticket.launched = len(ticket.tokens)
            ticket.logits.clear()

    def _leave(self, tickets: Sequence[Ticket]) -> None:
        """Free lanes and blocks of running tickets."""
        if not tickets:
            return
        leaving = set(map(id, tickets))
        stay = [lane for lane, t in enumerate(self._running) if id(t) not in leaving]
        self._lanes.keep(stay)
        self._running = [self._running[lane] for lane in stay]
        self._put_back(tickets)

    # Steps and what they found

    @stage("decode")
    def _run(self, admitted: list[Ticket]) -> None:
        limits = self.limits
        careful = any(t.keep_logits for t in self._running)
        if any(t.streamed for t in admitted):
            # the first token at once, the others' next ones in the next round
            self._note()
            self._read(0)
            return
        streamed = any(t.streamed for t in self._running)
        steps = 1 if careful else limits.look_streamed if streamed else limits.look
        steps = min(steps, max((t.limit - t.launched for t in self._running), default=0))
        if careful and any(len(t.logits) for t in self._running):
            steps = 0  # logits of first tokens are handed out before the next
        try:
            for _ in range(steps):
                self._step(careful)
        except torch.OutOfMemoryError as error:
            self._yield_lanes(error)
            return
        if self._running:
            self._note()
        self._read(1 if limits.ahead and not careful and steps else 0)

    def _step(self, keep_logits: bool) -> None:
        running = self._running
        # noted before it is so: an interrupt must not leave a step that nobody counts on
        for ticket in running:
            ticket.launched = min(ticket.launched + 1, ticket.limit)
        longest = max(t.prompt_tokens + t.launched for t in running)
        kind = _kind(running)
        lanes, width = len(running), self._pool.needed(longest)
        if self.graphs is None or keep_logits:
            logits = self._lanes.step(lanes, width, kind)
        else:
            lanes, width = min(_bucket(lanes), self._lanes.size), min(_bucket(width), self._lanes.width)
            logits = self.graphs.run(
                (lanes, width, kind, self._pool.version),
                lambda: self._lanes.step(lanes, width, kind),
                self._lanes.views(lanes),
            )
        for lane, ticket in enumerate(running):
            if ticket.keep_logits:
                ticket.logits.append(logits[lane].clone())
        self._counts["steps"] += 1

    def _yield_lanes(self, error: torch.OutOfMemoryError) -> None:
        """A step has no memory: the later half begins again when there is room, from the tokens that it has."""
        self._note()
        self._read(0)
        half = len(self._running) // 2
        if len(self._running) == 1:
            self._running[0].fail(error)
        later = self._running[half:]
        self._leave(later)
        self._prefixes.clear()
        self._wait_again([t for t in later if not t.done])
        self.most = max(1, half)
        self._counts["halved"] += 1

    def _note(self) -> None:
        """Send the notes of the lanes on their way to the host."""
        notes, arrived = self._lanes.look(_kind(self._running)), None
        if notes.numbers.is_cuda:
            notes = Notes(_sent(notes.numbers), None if notes.logprobs is None else _sent(notes.logprobs))
            arrived = torch.cuda.Event()
            arrived.record()
        self._looks.append(_Look(notes, tuple(self._running), arrived))

    def _read(self, left: int) -> None:
        """Hand out what notes say, all but the last `left` of them."""
        while len(self._looks) > left:
            look = self._looks.popleft()
            if look.arrived is not None:
                look.arrived.synchronize()
            self._counts["looks"] += 1
            numbers = look.notes.numbers.tolist()
            logprobs = None if look.notes.logprobs is None else look.notes.logprobs.tolist()
            done = [
                t
                for lane, t in enumerate(look.tickets)
                if not t.done and self._hand_out(t, numbers[lane], None if logprobs is None else logprobs[lane])
            ]
            self._leave(done)

    def _hand_out(self, ticket: Ticket, numbers: list[int], logprobs: list[float] | None) -> bool:
        """What a lane's notes say of its ticket; whether it is done."""
        ring = self._lanes.ring
        count, failed, active = numbers[ring:]
        places = [i % ring for i in range(len(ticket.tokens), count)]
        self._counts["tokens"] += len(places)
        tokens = [numbers[i] for i in places]
        if not self._looks:  # nothing was launched since
            ticket.launched = count
        done = ticket.take(
            tokens, None if logprobs is None else [logprobs[i] for i in places], bool(active or failed), self._ends
        )
        if done or not failed:
            return done
        ticket.fail(
            FloatingPointError(
                f"the logits of token {count} are not finite in {self._model.dtype}; load with another dtype"
            )
        )
        return True


def _kind(tickets: Sequence[Ticket]) -> Kind:
    return Kind(any(t.options.temperature > 0 for t in tickets), any(t.options.logprobs for t in tickets))


def _bucket(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def _sent(x: torch.Tensor) -> torch.Tensor:
    """A tensor of the device on its way to pinned memory."""
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return host.copy_(x, non_blocking=True)
