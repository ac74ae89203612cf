"""The requests of a queue that the decoder works on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from pixelrefer_fast.decoding import Decoder, Event, Generation, PromptEmbeds, Sequence

Request = TypeVar("Request")


@dataclass
class _Running(Generic[Request]):
    """A request, its answers, and how many events of the first of them were handed out."""

    request: Request
    sequences: list[Sequence]
    told: int = 0


class Session(Generic[Request]):
    """Requests that were handed to a decoder and are not done; others may use the same decoder meanwhile."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._running: dict[int, _Running[Request]] = {}  # by the id of the request

    def widen(self, sequences: int) -> None:
        """Let so many be decoded at once, if nothing is being decoded, and no steps are captured for fewer."""
        if sequences > self._decoder.max_running and not self._running and not self._decoder.captured:
            with contextlib.suppress(RuntimeError):  # somebody else's are
                self._decoder.clear()
                self._decoder.max_running = sequences

    def add(self, request: Request, prompt: PromptEmbeds, options: Generation, streamed: bool) -> None:
        """Queue a request, whose events are kept for `events` if it is streamed.

        Raises:
            ValueError: its prompt is longer than the cache, its options name tokens that there are not, or it is
                streamed and wants several answers.
        """
        if streamed:
            sequences = [self._decoder.submit(prompt, options, streamed=True)]
        else:
            sequences = self._decoder.submit_each(prompt, options)
        self._running[id(request)] = _Running(request, sequences)

    def cancel(self, request: Request) -> None:
        found = self._running.pop(id(request), None)
        if found is not None:
            for sequence in found.sequences:
                sequence.cancel()

    def abandon(self) -> None:
        """Cancel all."""
        for running in self._running.values():
            for sequence in running.sequences:
                sequence.cancel()
        self._running.clear()

    def step(self) -> None:
        """One round of the decoder."""
        self._decoder.advance()

    def events(self) -> Iterator[tuple[Request, int, Event]]:
        """New events of streamed requests, with their numbers."""
        for running in self._running.values():
            for event in running.sequences[0].new_events():
                yield running.request, running.told, event
                running.told += 1

    def done(self) -> list[tuple[Request, list[Sequence]]]:
        """Requests that are done, which leave."""
        done = [own for own in self._running.values() if all(s.done for s in own.sequences)]
        for own in done:
            del self._running[id(own.request)]
        return [(own.request, own.sequences) for own in done]
