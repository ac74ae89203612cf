"""A question to each model in turn: texts as they grow, and what they cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from pixelrefer_fast.checks.printable import marked_text
from pixelrefer_fast.decoding import Event
from pixelrefer_fast.media import Media
from pixelrefer_fast.model import PixelRefer, PixelReferLite
from pixelrefer_fast.page.asked import PageAsk
from pixelrefer_fast.page.board import Board
from pixelrefer_fast.regions import Region

PageModel = PixelRefer | PixelReferLite
SHOWN_EVERY = 0.05
"""Seconds between two looks at a growing text."""


@dataclass(frozen=True)
class Told:
    """What a model has said so far.

    Attributes:
        model: its name.
        texts: one, or one for each object that is described.
        done: whether they are whole.
        seconds: since it was asked; of the whole answer once it is done.
        first: seconds to the first token.
        prompt_tokens, tokens: of the prompts, and of the answers.
        weights: bytes of the model.
        cache: bytes of keys and values of these prompts and answers.
        error: why there is no answer, or none any more.
    """

    model: str
    texts: tuple[str, ...]
    done: bool = False
    seconds: float = 0.0
    first: float | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    weights: int = 0
    cache: int = 0
    error: str | None = None


async def told(
    models: Mapping[str, PageModel], board: Board, ask: PageAsk, most_tokens: int, seconds: float
) -> AsyncGenerator[list[Told], None]:
    """What each model says, again and again until all is said. One after the other, so that times are of each alone.

    Args:
        models: by name.
        board: what is asked about.
        ask: the question.
        most_tokens: of an answer.
        seconds: that a model may take.
    """
    texts = ("",) * (len(ask.objects) if ask.text is None else 1)
    every = [Told(name, texts, weights=weight_bytes(model)) for name, model in models.items()]
    yield every
    for at, model in enumerate(models.values()):
        async with aclosing(_answering(model, board.media, ask.questions(board, model.kind), every[at], most_tokens,
                                       seconds)) as growing:  # fmt: skip
            async for every[at] in growing:
                yield list(every)


def weight_bytes(model: PageModel) -> int:
    """Of all that a model has loaded."""
    return sum(own.numel() * own.element_size() for own in (*model.parameters(), *model.buffers()))


def cache_bytes(model: PageModel, tokens: int) -> int:
    """Keys and values of so many tokens."""
    llm = model.config.llm
    head = llm.get("head_dim") or llm["hidden_size"] // llm["num_attention_heads"]
    return int(2 * llm["num_hidden_layers"] * llm["num_key_value_heads"] * head * model.dtype.itemsize * tokens)


@dataclass
class _Growing:
    """Texts of several questions as their events come."""

    texts: list[str]
    first: float | None = None
    last: float | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(
        self, model: PageModel, media: Media, question: tuple[str, list[Region]], at: int, most_tokens: int
    ) -> None:
        text, regions = question
        stream = model.stream_async(media, text, regions, events=True, max_new_tokens=most_tokens)
        async with aclosing(stream) as events:
            async for event in events:
                self._take(event, at)

    def _take(self, event: Event, at: int) -> None:
        self.last = time.monotonic()
        if self.first is None:
            self.first = self.last
        self.texts[at] += event.text
        if event.finish_reason is not None:
            self.texts[at] = marked_text(self.texts[at], event.finish_reason)
        if event.usage is not None:
            self.prompt_tokens += event.usage.prompt_tokens
            self.tokens += event.usage.tokens
        self.changed.set()


async def _answering(
    model: PageModel,
    media: Media,
    questions: Sequence[tuple[str, list[Region]]],
    told: Told,
    most_tokens: int,
    seconds: float,
) -> AsyncGenerator[Told, None]:
    """All questions together, as they would come from several callers."""
    begin = time.monotonic()
    growing = _Growing([""] * len(questions))
    tasks = [
        asyncio.ensure_future(growing.follow(model, media, question, at, most_tokens))
        for at, question in enumerate(questions)
    ]

    def now(done: bool = False, error: str | None = None) -> Told:
        end = growing.last if done and growing.last is not None else time.monotonic()
        first = None if growing.first is None else growing.first - begin
        tokens = growing.prompt_tokens + growing.tokens
        return replace(
            told,
            texts=tuple(growing.texts),
            done=done,
            seconds=end - begin,
            first=first,
            prompt_tokens=growing.prompt_tokens,
            tokens=growing.tokens,
            cache=cache_bytes(model, tokens),
            error=error,
        )

    try:
        while not all(task.done() for task in tasks):
            left = begin + seconds - time.monotonic()
            if left <= 0:
                yield now(done=True, error=f"expected an answer within {seconds:g} s")
                return
            growing.changed.clear()
            waiting = asyncio.ensure_future(growing.changed.wait())
            await asyncio.wait({waiting, *(task for task in tasks if not task.done())}, timeout=min(left, 1.0),
                               return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
            waiting.cancel()
            yield now()
            await asyncio.sleep(SHOWN_EVERY)
        for task in tasks:
            task.result()
        yield now(done=True)
    except ValueError as error:
        yield now(done=True, error=str(error))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
