"""One prompt on its way to an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pixelrefer_fast.decoding.options import Answer, FinishReason, Generation, Step
from pixelrefer_fast.decoding.prefixes import PromptEmbeds
from pixelrefer_fast.decoding.text import Detokenizer, TextStream


class Ticket:
    """A prompt that was submitted. Waiting for it drives the decoder, whichever thread does; so do others' tickets.

    Attributes:
        answer: once it is done, unless it failed.
        error: why it failed.
        cancelled: whether somebody has asked for its end.
    """

    def __init__(
        self,
        prompt: PromptEmbeds,
        options: Generation,
        limit: int,
        seed: int,
        detokenizer: Detokenizer,
        advance: Callable[[], bool],
        streamed: bool,
        keep_logits: bool,
    ) -> None:
        self.options = options
        self.limit = limit  # tokens it may get
        self.seed = seed
        self.streamed = streamed
        self.keep_logits = keep_logits
        self.prompt_tokens = len(prompt)
        self.cached_tokens = 0
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.cancelled = False
        self.tokens: list[int] = []
        self.blocks: list[int] = []  # of the cache
        self.launched = 0  # tokens that were computed or are being computed
        self.prompt: PromptEmbeds | None = prompt
        self.logits: deque[torch.Tensor] = deque()
        self._steps: deque[Step] = deque()
        self._logprobs: list[float] = []
        self._detokenizer = detokenizer
        self._text = TextStream(detokenizer, options.stop) if streamed or options.stop else None
        self._pieces: deque[str] = deque()
        self._given: list[str] = []
        self._advance = advance

    @property
    def done(self) -> bool:
        return self.answer is not None or self.error is not None

    def cancel(self) -> None:
        """End it at the next step, with what it has; nothing happens when it is done."""
        self.cancelled = True

    def result(self) -> Answer:
        """The answer, once it is there.

        Raises:
            FloatingPointError: the logits are not finite (a float16 overflow, say).
            torch.OutOfMemoryError: the device has not the memory for this prompt alone.
        """
        while not self.done:
            self._drive()
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer

    def pieces(self) -> Iterator[str]:
        """Text as it comes; pieces join to the answer's. Closing the iterator cancels.

        Raises:
            RuntimeError: the ticket is not one for streaming.
            FloatingPointError, torch.OutOfMemoryError: as `result`, after the pieces before.
        """
        if not self.streamed:
            raise RuntimeError("ticket: expected one submitted with streamed=True")
        return self._iterate(self._pieces)

    def steps(self) -> Iterator[Step]:
        """Tokens with their logits as they come, of a ticket that keeps them."""
        return self._iterate(self._steps)

    def _iterate(self, items: deque[Any]) -> Iterator[Any]:
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
            raise RuntimeError("ticket: it is not done, and the decoder has nothing to do")

    # What the engine tells it

    def take(self, tokens: list[int], logprobs: list[float] | None, goes_on: bool, ends: frozenset[int]) -> bool:
        """New tokens; whether the ticket is done with them.

        Args:
            tokens: in order.
            logprobs: of each, where asked for.
            goes_on: whether the sequence can have more.
            ends: tokens that end one.
        """
        for i, token in enumerate(tokens):
            self.tokens.append(token)
            if logprobs is not None and self.options.logprobs:
                self._logprobs.append(logprobs[i])
            if self.keep_logits:
                self._steps.append(Step(token, self.logits.popleft()))
            if self._text is not None:
                self._give(self._text.feed(token))
                if self._text.stopped:
                    self.finish("stop_string")
                    return True
        if goes_on:
            return False
        self.finish("stop" if self.tokens and self.tokens[-1] in ends else "length")
        return True

    def finish(self, reason: FinishReason) -> None:
        if self._text is None:
            text = self._detokenizer(self.tokens).strip()
        else:
            self._give(self._text.finish())
            if self._text.stopped:
                # what was held back may begin with one that the last character completes
                reason = "stop_string"
            text = "".join(self._given)
        logprobs = tuple(self._logprobs) if self.options.logprobs else None
        self.answer = Answer(text, tuple(self.tokens), reason, logprobs, self.prompt_tokens, self.cached_tokens)
        self.prompt = None

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.prompt = None

    def _give(self, piece: str) -> None:
        if piece:
            self._given.append(piece)
            if self.streamed:
                self._pieces.append(piece)
