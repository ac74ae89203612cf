"""All prompts that are being decoded: who comes next, what runs together, who is done.

Any number of threads submit; whichever of them waits for something drives the engine, one at a time, a round each. A
round admits what waits as far as slots, cache and a number of tokens go, first come first served, runs a step of
everything that runs, and hands out what its output says. Sequences join and leave between rounds; none waits for
another's end.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import abc
from dataclasses import dataclass

import torch

from pixelrefer_fast.decoding.admission import Admission, OutOfBlocks, Part, missing
from pixelrefer_fast.decoding.cache import BlockPool
from pixelrefer_fast.decoding.prefill_graphs import CapturedPrefills
from pixelrefer_fast.decoding.prefixes import PrefixCache
from pixelrefer_fast.decoding.qwen import LanguageModel
from pixelrefer_fast.decoding.readbacks import Readbacks
from pixelrefer_fast.decoding.sequence import Sequence
from pixelrefer_fast.decoding.slots import CAPTURED, Slots
from pixelrefer_fast.decoding.step_graphs import LAYERS, WHOLE, StepKey, captured_sizes, keys_of
from pixelrefer_fast.decoding.waiting import WaitingLine
from pixelrefer_fast.device.graphs import GraphStore
from pixelrefer_fast.device.stages import stage

FIXED_TOKENS = 2048  # of each slot, that a cache which does not move has room for together
log = logging.getLogger("pixelrefer_fast")
CALM = 64  # rounds without running out of memory after which more sequences run at once again
SHARING_PASSES = 3  # of an admission: one for each kind of prefix that a prompt may share


@dataclass(frozen=True)
class Schedule:
    """How much runs at once, and when the host reads what came of it.

    Attributes:
        slots: sequences.
        prefill_tokens: of prompts that are computed in a round in which nothing runs.
        chunk_tokens: of those that are computed between two steps of what runs.
        ahead: whether a step's output is read while the next one runs. A sequence that ends then computes one step for
            nothing; a device that waited for the host at every step would compute less.
        shared: shortest prefix that is worth sharing.
    """

    slots: int
    prefill_tokens: int
    chunk_tokens: int
    ahead: bool
    shared: int


class Engine:
    """Slots, cache and everything that waits for them.

    Args:
        model: runs the layers.
        pool, prefixes: keys and values, and the prefixes that are kept.
        slots: state of what runs.
        schedule: how much runs at once, and when the host reads.
        graphs: captured steps, where they are wanted.
        prefills: captured passes over prompts, likewise.
    """

    def __init__(
        self,
        model: LanguageModel,
        pool: BlockPool,
        prefixes: PrefixCache,
        slots: Slots,
        schedule: Schedule,
        graphs: GraphStore[StepKey] | None,
        prefills: CapturedPrefills | None,
    ) -> None:
        self.schedule = schedule
        self.graphs, self.prefills = graphs, prefills
        self.most = schedule.slots  # slots that may be taken, less after memory ran out
        self._model, self._pool, self._prefixes, self._slots = model, pool, prefixes, slots
        self._admission = Admission(model, pool, prefixes, schedule.shared, prefills)
        self._lock = threading.RLock()
        self._waiting = WaitingLine()
        self._starting: list[Sequence] = []  # neither waiting nor running: between rounds, one whose prompt is cut
        self._running: list[Sequence] = []  # by slot
        self._readbacks = Readbacks()
        self._captured_version = -1  # of the slots' tensors that captured steps choose tokens in
        self._calm = 0  # rounds since memory ran out
        self._counts = {"steps": 0, "slot_steps": 0, "tokens": 0, "halved": 0, "displaced": 0}

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; it runs when somebody advances."""
        with self._lock:
            self._waiting.join(sequence)

    @property
    def busy(self) -> bool:
        return bool(len(self._waiting) or self._starting or self._running or len(self._readbacks))

    @property
    def captured(self) -> bool:
        """Whether prompts or steps were captured."""
        stores = (self.graphs, None if self.prefills is None else self.prefills.store)
        return any(store is not None and store.counts()["graphs"] for store in stores)

    @property
    def place(self) -> tuple[torch.device, torch.dtype]:
        """Where the cache lies and what it is made of."""
        return self._pool.device, self._pool.dtype

    @property
    def capacity(self) -> int:
        """Tokens that the cache has room for when nothing else is in it."""
        return (self._pool.limit - 1) * self._pool.size

    def counts(self) -> dict[str, int]:
        """What runs and waits, and what was done so far."""
        with self._lock:
            found = {
                "running": len(self._running),
                "starting": len(self._starting),
                "waiting": len(self._waiting),
                "most_running": self.most,
                "readbacks": self._readbacks.read,
                **self._counts,
                **self._admission.counts,
            }
            if self.graphs is not None:
                found |= {f"graph_{name}": n for name, n in self.graphs.counts().items()}
            if self.prefills is not None:
                found |= {f"prefill_graph_{name}": n for name, n in self.prefills.store.counts().items()}
            return found

    def memory(self) -> dict[str, int]:
        """Bytes that are held, and schedule."""
        with self._lock:
            return {
                "cache_bytes": self._pool.held_bytes,
                "cache_limit": self._pool.limit * self._pool.block_bytes,
                "cache_used": (self._pool.limit - 1 - self._pool.free) * self._pool.block_bytes,
                "prefixes": len(self._prefixes),
                "prefix_bytes": self._prefixes.held_bytes,
                "prefix_limit": self._prefixes.limit_bytes,
                "prefix_evictions": self._prefixes.evictions,
                "graph_bytes": sum(x.held_bytes() for x in (self.graphs, self.prefills) if x is not None),
            }

    @torch.inference_mode()
    def advance(self) -> bool:
        """One round; False when there was nothing to do."""
        with self._lock:
            if not self.busy:
                return False
            try:
                self._drop_cancelled()
                self._read(1)
                ran = bool(self._running)
                self._run(self._admit(), ran)
                self._recover()
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
                self._readbacks.clear()

    # Who comes and goes

    def _drop_cancelled(self) -> None:
        for sequence in self._waiting.leave():
            sequence.finish("cancelled")
        leaving = [s for s in (*self._starting, *self._running) if s.cancelled]
        for sequence in leaving:
            sequence.finish("cancelled")
        self._leave(leaving)

    def _admit(self) -> bool:
        """Prompts whose turn it is, as many of their tokens as go between two steps; whether any were completed.

        Completed ones are in their slots; of the last one a part may be left for the next round.
        """
        line, completed = self._waiting, 0
        line.close_ranks()
        room = self.schedule.chunk_tokens if self._running else self.schedule.prefill_tokens
        while room:
            self._gather(room)
            if not self._starting:
                break
            before = len(self._running)
            try:
                room -= self._start(room)
            except torch.OutOfMemoryError as error:
                self._retreat(error)
                break
            completed += len(self._running) - before
        unplaced = [s for s in self._starting if not s.blocks]
        if unplaced:
            line.rejoin(unplaced)
            self._starting = [s for s in self._starting if s.blocks]
        return bool(completed)

    def _gather(self, tokens: int) -> None:
        """Let start who is next, until slots or a number of tokens are used up."""
        line = self._waiting
        wanted = sum(map(missing, self._starting))
        while wanted < tokens and len(self._running) + len(self._starting) < self.most and line.peek() is not None:
            sequence = line.next()
            wanted += missing(sequence)
            self._starting.append(sequence)

    @stage("prefill")
    def _start(self, room: int) -> int:
        """Prefill those that start, as far as there are blocks and `room` for tokens; how many tokens that were.

        Who shares a prefix with another starts one pass later and finds it computed.
        """
        used = 0
        for last in (*[False] * SHARING_PASSES, True):
            now, later = (list(self._starting), []) if last else self._admission.split(self._starting)
            parts: list[Part] = []
            for sequence in now:
                if used < room and (sequence.blocks or self._place(sequence)):
                    parts.append((sequence, min(missing(sequence), room - used)))
                    used += parts[-1][1]
            if parts:
                completed = self._admission.prefill(parts, self._slots)
                self._running += completed
                self._starting = [s for s in self._starting if s not in completed]
            if not later or used == room:
                break
        return used

    def _place(self, sequence: Sequence) -> bool:
        """Give a sequence blocks; without enough of them it steps aside."""
        holders = (*self._running, *(s for s in self._starting if s.blocks))
        try:
            if not self._waiting.may_pass(sequence):
                raise OutOfBlocks
            self._admission.reserve(sequence, holders)
        except OutOfBlocks:
            self._starting.remove(sequence)
            self._waiting.step_aside(sequence)
            return False
        self._waiting.started(sequence)
        return True

    def _retreat(self, error: torch.OutOfMemoryError) -> None:
        """Memory ran out: fewer at once from now on, and what failed all alone has failed."""
        self._slots.keep(range(len(self._running)))
        self._prefixes.clear()
        alone = len(self._starting) == 1 and not self._running
        self._lower((len(self._running) + len(self._starting)) // 2)
        self._put_back(self._starting)
        starting, self._starting = self._starting, []
        if alone:
            starting.pop().fail(error)
        self._waiting.rejoin(starting)

    def _lower(self, most: int) -> None:
        self.most, self._calm = max(1, most), 0
        self._counts["halved"] += 1

    def _recover(self) -> None:
        """More at once again, some rounds after memory ran out: others may have taken it for a while only."""
        self._calm += 1
        if self._calm >= CALM:
            self.most, self._calm = min(2 * self.most, self.schedule.slots), 0

    def _restart(self) -> None:
        """After an exception: all that runs waits again, in the order in which it came."""
        self._slots.reset()
        self._readbacks.clear()
        sequences = [*self._running, *self._starting]
        self._put_back(sequences)
        self._running, self._starting = [], []
        self._waiting.rejoin(s for s in sequences if not s.done)

    def _put_back(self, sequences: abc.Sequence[Sequence]) -> None:
        """Take the blocks of sequences that do not run; prompts and tokens stay, from which they can begin again."""
        for sequence in sequences:
            blocks, sequence.blocks = sequence.blocks, []
            if sequence.decoded is None or sequence.decoded.finish_reason == "cancelled":
                self._pool.soil(blocks)  # nobody has read whether its numbers are finite
            self._pool.release(blocks)
            sequence.computed = 0
            sequence.launched = len(sequence.tokens)
            sequence.logits.clear()

    def _leave(self, sequences: abc.Sequence[Sequence]) -> None:
        """Free slots and blocks of sequences that run or start."""
        if not sequences:
            return
        leaving = set(map(id, sequences))
        stay = [slot for slot, s in enumerate(self._running) if id(s) not in leaving]
        self._slots.keep(stay)
        self._running = [self._running[slot] for slot in stay]
        self._starting = [s for s in self._starting if id(s) not in leaving]
        self._put_back(sequences)

    # Steps and what they found

    @stage("decode")
    def _run(self, admitted: bool, ran: bool) -> None:
        """A step, and what can be read; `ran`: whether anybody waited for one while prompts were computed."""
        ahead = self.schedule.ahead
        if admitted:
            self._readbacks.send(self._slots, self._running)
            if not ahead:
                self._read(0)
                if not ran:
                    return  # first tokens at once, next ones in the next round
        stepped = False
        try:
            self._extend()
            if any(s.launched < s.limit for s in self._running):
                self._step()
                stepped = True
        except torch.OutOfMemoryError as error:
            self._yield_slots(error)
            return
        if stepped:
            self._readbacks.send(self._slots, self._running)
        self._read(1 if ahead and stepped else 0)

    def _extend(self) -> None:
        """Blocks for the next step; without enough of them those that came last begin again when there are."""
        short = sorted((s for s in self._running if self._admission.short(s)), key=lambda s: s.arrival)
        taken: list[Sequence] = []
        try:
            for sequence in short:
                while sequence in self._running:
                    try:
                        self._admission.extend(sequence)
                    except OutOfBlocks:
                        self._displace()
                    else:
                        taken.append(sequence)
                        break
        finally:
            slots = {id(s): slot for slot, s in enumerate(self._running)}
            self._slots.extend(
                [(slots[id(s)], len(s.blocks) - 1, s.blocks[-1]) for s in taken if id(s) in slots],
            )

    def _displace(self) -> None:
        """Free the blocks of those who have ended or, where none has, of who came last, a prompt in parts included."""
        before = len(self._running)
        self._read(0)
        if len(self._running) == before:
            last = max((*self._starting, *self._running), key=lambda s: s.arrival)
            self._leave([last])
            self._waiting.rejoin([last])
            self._counts["displaced"] += 1

    def _step(self) -> None:
        running = self._running
        keep_logits = any(s.keep_logits for s in running)
        # counted before it is so: an interrupt must not leave a step that nobody counts on
        for sequence in running:
            sequence.launched = min(sequence.launched + 1, sequence.limit)
        slots = len(running)
        logits = None if self.graphs is None or keep_logits else self._replayed(slots)
        if logits is None:
            longest = max(s.prompt_tokens + s.launched for s in running)
            logits = self._slots.step(slots, self._pool.needed(longest))
        for slot, sequence in enumerate(running):
            if sequence.keep_logits:
                sequence.logits.append(logits[slot].to(torch.float32, copy=True))
        self._counts["steps"] += 1
        self._counts["slot_steps"] += len(logits)

    def _replayed(self, slots: int) -> torch.Tensor | None:
        """The logits of a step that was captured; None where none fits."""
        assert self.graphs is not None
        size = next((n for n in reversed(captured_sizes(self._slots.size)) if n >= slots), slots)
        if self._slots.captured_kind is not None and self._slots.version == self._captured_version:
            logits = self.graphs.replay(StepKey(size, WHOLE))
            if logits is not None:
                return logits
        logits = self.graphs.replay(StepKey(size, LAYERS))
        if logits is not None:
            self._slots.choose(logits)
        return logits

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Capture passes over prompts and all steps, the largest first; the cache takes its place in memory before, and
        stays there.

        Raises:
            RuntimeError: something is being decoded.
        """
        with self._lock:
            if self.busy:
                raise RuntimeError("decoder: expected nothing to be decoded, got sequences that are not done")
            if self.graphs is None or self.prefills is None:
                return
            slots, pool = self._slots, self._pool
            try:
                pool.fix(max(slots.size * pool.needed(FIXED_TOKENS), slots.width) + 1)
                self.prefills.warm_up()
                slots.prepare_capture()
                for key in keys_of(slots.size):
                    steps = {
                        WHOLE: functools.partial(slots.step, key.slots, slots.width, CAPTURED),
                        LAYERS: functools.partial(slots.layers, key.slots, slots.width),
                    }
                    self.graphs.capture(key, steps[key.kind], slots.views(key.slots), pool.device)
                self._captured_version = slots.version
            except torch.OutOfMemoryError as error:
                log.warning("decoder: no memory to capture further steps, which run as they are (%s)", error)
            finally:
                slots.reset()

    def _yield_slots(self, error: torch.OutOfMemoryError) -> None:
        """A step has no memory: what starts and the later half begin again when there is room, with what they have."""
        starting = list(self._starting)
        self._leave(starting)
        self._waiting.rejoin(starting)
        self._readbacks.send(self._slots, self._running)
        self._read(0)
        half = len(self._running) // 2
        if len(self._running) == 1:
            self._running[0].fail(error)
        later = self._running[half:]
        self._leave(later)
        self._prefixes.clear()
        self._waiting.rejoin(s for s in later if not s.done)
        self._lower(half)

    def _read(self, left: int) -> None:
        """Hand out what readbacks say: those that have arrived, and all but the last `left` of them."""
        while (readback := self._readbacks.next(left)) is not None:
            output = readback.output
            numbers = output.numbers.tolist()
            logprobs = [[]] * len(numbers) if output.logprobs is None else output.logprobs.tolist()
            done = [
                s
                for slot, s in enumerate(readback.sequences)
                if not s.done and self._hand_out(s, numbers[slot], logprobs[slot])
            ]
            self._leave(done)

    def _hand_out(self, sequence: Sequence, numbers: list[int], logprobs: list[float]) -> bool:
        """A row of a readback to its sequence; whether that is done."""
        token, count, failed, active, *likely = numbers
        if not self._readbacks:  # nothing was launched since
            sequence.launched = count
        if failed:
            sequence.fail(
                FloatingPointError(
                    f"the logits of token {count} are not finite in {self._model.dtype}; load with another dtype"
                )
            )
            return True
        if count == len(sequence.tokens):  # sent for others' sake, or after a step that had no memory
            return False
        self._counts["tokens"] += 1
        return sequence.take(token, logprobs, likely, bool(active))
