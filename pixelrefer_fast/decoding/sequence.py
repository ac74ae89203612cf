"""One prompt on its way to its text."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import torch

from pixelrefer_fast.decoding.options import Decoded, Event, FinishReason, Generation, Step, Usage
from pixelrefer_fast.decoding.prefixes import PromptEmbeds
from pixelrefer_fast.decoding.text import Detokenizer, TextStream

Item = TypeVar("Item", Event, Step)


def texts(events: Generator[Event, None, None]) -> Iterator[str]:
    """The pieces of text of events; closing it closes them."""
    with contextlib.closing(events):
        for event in events:
            if event.text:
                yield event.text


class Sequence:
    """One prompt and the tokens that follow it, from `Decoder.submit` to its end; docs/decoding.md tells its life.

    Whoever waits for it (`result`, `pieces`, `steps`) drives the decoder, for all sequences and from any thread.

    Attributes:
        options, limit, seed, ends, streamed, keep_logits: as submitted; `limit` is the most tokens that it may get,
            `ends` are those that end it.
        prompt: what is decoded; None once the sequence is done.
        prompt_tokens: length of the prompt.
        arrival: how many were submitted before it.
        passed: how many that came later started while there was no room for it.
        cached_tokens: how many of them came from a kept prefix.
        blocks: of the cache, while it has some.
        computed: how many of its tokens have keys and values in them, until the last of the prompt has.
        launched: tokens that are computed or being computed.
        logits: of launched tokens that the host has not read back, where they are kept.
        tokens: those that the host has read back.
        decoded: what came of it, once it is done, unless it failed.
        error: why it failed.
        cancelled: whether somebody has asked for its end.
    """

    def __init__(
        self,
        prompt: PromptEmbeds,
        options: Generation,
        limit: int,
        seed: int,
        ends: frozenset[int],
        detokenizer: Detokenizer,
        advance: Callable[[], bool],
        streamed: bool,
        keep_logits: bool,
    ) -> None:
        # as submitted
        self.options = options
        self.limit = limit
        self.seed = seed
        self.ends = ends
        self.streamed = streamed
        self.keep_logits = keep_logits
        self.prompt: PromptEmbeds | None = prompt
        self.prompt_tokens = len(prompt)
        self.cancelled = False
        # by the waiting line, the admission and the engine
        self.arrival = 0
        self.passed = 0
        self.cached_tokens = 0
        self.blocks: list[int] = []
        self.computed = 0
        self.launched = 0
        self.logits: deque[torch.Tensor] = deque()
        # by `take`, `finish` and `fail`
        self.tokens: list[int] = []
        self.decoded: Decoded | None = None
        self.error: BaseException | None = None
        self._steps: deque[Step] = deque()
        self._logprobs: list[float] = []
        self._likely: list[tuple[tuple[int, float], ...]] = []
        self._detokenizer = detokenizer
        self._text = TextStream(detokenizer, options.stop) if streamed or options.stop else None
        self._events: deque[Event] = deque()
        self._given: list[str] = []
        self._advance = advance

    @property
    def done(self) -> bool:
        return self.decoded is not None or self.error is not None

    def cancel(self) -> None:
        """End it at the next step, with what it has; nothing happens when it is done."""
        self.cancelled = True

    def result(self) -> Decoded:
        """What came of it; waits until it is done.

        Raises:
            FloatingPointError: the logits are not finite (a float16 overflow, say).
            torch.OutOfMemoryError: the device has not the memory for this prompt alone.
        """
        while not self.done:
            self._drive()
        if self.error is not None:
            raise self.error
        assert self.decoded is not None
        return self.decoded

    def pieces(self) -> Iterator[str]:
        """Text as it comes; pieces join to the whole text. Closing the iterator cancels.

        Raises:
            RuntimeError: the sequence is not one for streaming.
            FloatingPointError, torch.OutOfMemoryError: as `result`, after the pieces before.
        """
        return texts(self.events())

    def events(self) -> Generator[Event, None, None]:
        """An event for each token as it comes, and one for the end. Closing the iterator cancels.

        Raises:
            As `pieces`.
        """
        if not self.streamed:
            raise RuntimeError("sequence: expected one submitted with streamed=True")
        return self._iterate(self._events)

    def new_events(self) -> list[Event]:
        """Those that came since the last call; for whoever drives the decoder himself."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def steps(self) -> Iterator[Step]:
        """Tokens with their logits as they come, of a sequence that keeps them."""
        return self._iterate(self._steps)

    def _iterate(self, items: deque[Item]) -> Generator[Item, None, None]:
        try:
            while True:
                while items:
                    yield items.popleft()
                if self.done:
                    break
                self._drive()
        finally:
            self.cancel()
        if self.error is not None:
            raise self.error

    def _drive(self) -> None:
        if not self._advance() and not self.done:
            raise RuntimeError("sequence: it is not done, and the decoder has nothing to do")

    # What the engine tells it

    def take(self, token: int, logprobs: list[float], likely: list[int], goes_on: bool) -> bool:
        """The next token; whether the sequence is done with it.

        Args:
            token: its id.
            logprobs: of it and of the most likely tokens at its place, where asked for.
            likely: those tokens.
            goes_on: whether the sequence can have more.
        """
        options = self.options
        self.tokens.append(token)
        logprob = logprobs[0] if options.logprobs else None
        if logprob is not None:
            self._logprobs.append(logprob)
        most = tuple(zip(likely, logprobs[1:], strict=True))[: options.top_logprobs] if options.top_logprobs else None
        if most is not None:
            self._likely.append(most)
        if self.keep_logits:
            self._steps.append(Step(token, self.logits.popleft()))
        piece = ""
        if self._text is not None and token not in options.stop_token_ids:
            piece = self._text.feed(token, len(self.tokens) > options.min_new_tokens)
            self._given.append(piece)
        if self.streamed:
            self._events.append(Event(piece, token, logprob, most))
        if self._text is not None and self._text.stopped:
            self.finish("stop_string")
            return True
        if goes_on:
            return False
        self.finish("stop" if token in self.ends else "length")
        return True

    def finish(self, reason: FinishReason) -> None:
        rest = ""
        if self._text is None:
            text = self._detokenizer(t for t in self.tokens if t not in self.options.stop_token_ids).strip()
        else:
            rest = self._text.finish()
            if self._text.stopped:
                # what was held back may begin with one that the last character completes
                reason = "stop_string"
            text = "".join(self._given) + rest
        if self.streamed:
            usage = Usage(self.prompt_tokens, self.cached_tokens, len(self.tokens))
            self._events.append(Event(rest, finish_reason=reason, usage=usage))
        self.decoded = Decoded(
            text=text,
            tokens=tuple(self.tokens),
            finish_reason=reason,
            logprobs=tuple(self._logprobs) if self.options.logprobs else None,
            top_logprobs=tuple(self._likely) if self.options.top_logprobs else None,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
        )
        self.prompt = None

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.prompt = None
