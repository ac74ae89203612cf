"""The requests of a queue that the decoder works on."""

from __future__ import annotations

import contextlib
from typing import Generic, TypeVar

from pixelrefer_fast.decoding import Decoder, Generation, PromptEmbeds, Sequence

Request = TypeVar("Request")


class Session(Generic[Request]):
    """Requests that were handed to a decoder and are not done; others may use the same decoder meanwhile."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._running: dict[int, tuple[Request, Sequence]] = {}  # by the id of the request

    def widen(self, sequences: int) -> None:
        """Let so many be decoded at once, if nothing is being decoded."""
        if sequences > self._decoder.max_running and not self._running:
            with contextlib.suppress(RuntimeError):  # somebody else's are
                self._decoder.clear()
                self._decoder.max_running = sequences

    def add(self, request: Request, prompt: PromptEmbeds, options: Generation) -> None:
        """Queue a request.

        Raises:
            ValueError: its prompt is longer than the cache.
        """
        self._running[id(request)] = request, self._decoder.submit(prompt, options)

    def cancel(self, request: Request) -> None:
        found = self._running.pop(id(request), None)
        if found is not None:
            found[1].cancel()

    def abandon(self) -> None:
        """Cancel all."""
        for _, sequence in self._running.values():
            sequence.cancel()
        self._running.clear()

    def step(self) -> list[tuple[Request, Sequence]]:
        """One round of the decoder; the requests that are done."""
        self._decoder.advance()
        done = [entry for entry in self._running.values() if entry[1].done]
        for request, _ in done:
            del self._running[id(request)]
        return done
