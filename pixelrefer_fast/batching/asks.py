"""The requests and answers of a batch: `Ask`, `Answer`, `BatchError`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from typing_extensions import Unpack

from pixelrefer_fast.checks.printable import marked_text
from pixelrefer_fast.checks.values import shown
from pixelrefer_fast.decoding.options import GenerationKeywords
from pixelrefer_fast.planning.options import EncodeKeywords

Finish = Literal["stop", "length", "stop_string", "error", "cancelled"]


class AskKeywords(EncodeKeywords, GenerationKeywords, total=False):
    """The options of a question as keywords: those of encoding and those of decoding, for type checkers."""


class Ask:
    """One request of a batch: the arguments of `model.ask`.

    Args:
        media: an image, a video, or `Objects` from `encode`. Requests with the same path or the same object share
            reading and encoding; arrays must not change until the answer is there.
        question: text with a `<region>` tag for each region. None asks for a detailed description of the one region.
        regions: the marked regions, in any form that `ask` takes. None with `Objects`.
        options: as in `ask`; they override the options of the whole batch.
    """

    __slots__ = ("first_region", "media", "options", "question", "regions")

    options: dict[str, object]

    def __init__(
        self,
        media: object,
        question: str | None = None,
        regions: object = None,
        **options: Unpack[AskKeywords],
    ) -> None:
        self.media = media
        self.question = question
        self.regions = regions
        self.options = dict(options)
        self.first_region = 0  # number of the first region in the caller's own list, for messages

    def __repr__(self) -> str:
        return f"Ask({shown(self.media)}, {shown(self.question)}, {shown(self.regions)})"


@dataclass(frozen=True)
class Answer:
    """The answer to one request, or the reason why there is none.

    Attributes:
        index: number of the request, from 0, in the order given.
        text: the answer; None if the request failed.
        error: why the request failed, in one line; None if it did not.
        finish: "stop" (the model ended the answer), "length" (`max_new_tokens` or the context is used up),
            "stop_string", "error" or "cancelled".
        tokens: token ids of the answer, including the end token.
        logprobs: log-probability of each token, if requested (`logprobs=True`).
        top_logprobs: the most likely tokens at each place with their log-probabilities, if requested.
        prompt_tokens: length of the prompt as the language model sees it.
        cached_tokens: number of prompt tokens taken from the KV cache.
        exception: the exception that `ask` would have raised.
        others: the further answers to a request with `n` above 1.
    """

    index: int
    text: str | None = None
    error: str | None = None
    finish: Finish = "error"
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    exception: BaseException | None = field(default=None, repr=False, compare=False)
    others: tuple[Answer, ...] = ()

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def finish_reason(self) -> Finish:
        """`finish`, by the name that `Decoded` and others have for it."""
        return self.finish

    def _repr_html_(self) -> str:
        """The text, or the error, and how it ended, for notebooks."""
        said = escape(marked_text(self.text or "", self.finish))
        if self.error is not None:
            said = f"<i>{escape(self.error)}</i>"
        return f"<p>{said} <small>({self.finish}, {len(self.tokens)} tokens)</small></p>"


class BatchError(ValueError):
    """Some requests failed in a call that returns a list of texts.

    Attributes:
        answers: the answers to all requests, including those that succeeded.
    """

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = tuple(answers)
        failed = [a for a in answers if not a.ok]
        super().__init__(
            f"{len(failed)} of {len(answers)} requests failed; request {failed[0].index}: {failed[0].error}"
        )


def as_ask(value: object, defaults: Mapping[str, object] | None = None) -> Ask:
    """Make an `Ask` from any form in which a request may be given.

    Args:
        value: an `Ask`, a tuple or list (media, question[, regions[, options]]), or a mapping with the names of
            `model.ask`'s arguments. An exception is raised again: with it, readers of requests report a request that
            they could not read.
        defaults: options of the whole batch.

    Raises:
        ValueError: the value has none of these forms.
    """
    if isinstance(value, Exception):
        raise value
    if isinstance(value, Ask):
        ask = value
    elif isinstance(value, Mapping):
        if "media" not in value or not all(isinstance(key, str) for key in value):
            raise ValueError(f'request: expected a mapping with "media" and the names of options, got {shown(value)}')
        ask = Ask(value["media"], value.get("question"), value.get("regions"))
        ask.options = {k: v for k, v in value.items() if k not in ("media", "question", "regions")}
    elif isinstance(value, (tuple, list)):
        if not 1 <= len(value) <= 4 or (len(value) == 4 and not isinstance(value[3], Mapping)):
            raise ValueError(f"request: expected (media, question, regions, options), got {shown(value)}")
        ask = Ask(*value[:3])
        ask.options = dict(value[3]) if len(value) == 4 else {}
    else:
        raise ValueError(f"request: expected an Ask, a tuple or a mapping, got {shown(value)}")
    if not defaults:
        return ask
    merged = Ask(ask.media, ask.question, ask.regions)
    merged.options = {**defaults, **ask.options}
    merged.first_region = ask.first_region
    return merged
