"""Who is asked: our models and rivals behind one small protocol, what a call of ours costs by stage, and the check."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from pixelrefer_fast import model as model_module
from pixelrefer_fast.batching.asks import Answer, Ask
from pixelrefer_fast.bench.report.results import relative_error
from pixelrefer_fast.device.counters import Counts, counting

STAGES = ("views", "encoder", "region", "projector", "prompt", "prefill", "decode")
CHECKED = 8  # requests of a call that are asked again, one at a time
# largest error of object tokens over their largest value: float32 itself; 16 bits may have twice the definitions' more
LIMIT = 1e-4


@dataclass(frozen=True, eq=False)
class Request:
    """One question.

    Attributes:
        media: (H, W, 3) uint8, or an opened `Video` whose frames lie in memory.
        question: with a `<region>` for each region.
        regions: one for each object: a mask (H, W) uint8 of 0 and 1, in a video {frame: mask}.
    """

    media: Any
    question: str
    regions: Sequence[Any]


class Asker(Protocol):
    """Answers of exactly as many tokens as wanted, whatever ends they would have; every call repeats.

    Attributes:
        name: who it is: "ours", "reference", ...
        kind: "lite" or "full".
        device, dtype: of its weights.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def weights(self) -> Iterable[torch.Tensor]:
        """Parameters and buffers."""
        ...

    def encode(self, media: Any, regions: Sequence[Any]) -> torch.Tensor:
        """(T, C) object tokens of all regions."""
        ...

    def ask(self, media: Any, question: str, regions: Sequence[Any], max_new_tokens: int) -> tuple[int, ...]:
        """Token ids of the answer."""
        ...


class Ours:
    """A model of this package.

    Args:
        model: a PixelRefer or PixelReferLite.
        starts: of a question's marks, the k-means ranks to begin with; None: the default ones.
    """

    name = "ours"

    def __init__(self, model: Any, starts: Callable[[Any, Sequence[Any]], Any] | None = None) -> None:
        self.model = model
        self._starts = starts

    @property
    def kind(self) -> str:
        return self.model.kind

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def weights(self) -> list[torch.Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]

    def encode(self, media: Any, regions: Sequence[Any]) -> torch.Tensor:
        return self.objects(media, regions).tokens

    def objects(self, media: Any, regions: Sequence[Any]) -> Any:
        """The `Objects`: object tokens and, in Full, vision tokens."""
        return self.model.encode(media, list(regions), **self._options(media, regions))

    def ask(self, media: Any, question: str, regions: Sequence[Any], max_new_tokens: int) -> tuple[int, ...]:
        return self.answers([Request(media, question, regions)], max_new_tokens)[0].tokens

    def answers(self, requests: Sequence[Request], max_new_tokens: int, batch_size: int | None = None) -> list[Answer]:
        """All at once, in order; what could not be answered raises what was wrong with it."""
        asks = [Ask(r.media, r.question, list(r.regions), **self._options(r.media, r.regions)) for r in requests]
        answers = self.model.ask_batch(asks, batch_size=batch_size, progress=False, max_new_tokens=max_new_tokens)
        for answer in answers:
            if not answer.ok:
                raise answer.exception or RuntimeError(answer.error)
        return answers

    def _options(self, media: Any, regions: Sequence[Any]) -> dict[str, Any]:
        starts = None if self._starts is None else self._starts(media, regions)
        return {} if starts is None else {"kmeans_start": starts}


def answer_all(
    asker: Asker, requests: Sequence[Request], max_new_tokens: int, batch_size: int | None = None
) -> list[tuple[int, ...]]:
    """Token ids of every answer: ours in batches, a rival's, who has no such thing, one after the other."""
    if isinstance(asker, Ours):
        return [answer.tokens for answer in asker.answers(requests, max_new_tokens, batch_size)]
    return [asker.ask(r.media, r.question, r.regions, max_new_tokens) for r in requests]


@contextmanager
def as_measured(model: Any) -> Iterator[None]:
    """Answers that go on to their length, and no prefix of a prompt that is found computed by a later call."""
    decoder = model.decoder
    before = decoder.end_ids, decoder.prefix_bytes
    decoder.clear()
    decoder.end_ids, decoder.prefix_bytes = frozenset(), 0
    try:
        yield
    finally:
        decoder.clear()
        decoder.end_ids, decoder.prefix_bytes = before


@contextmanager
def object_tokens(model: Any, count: int) -> Iterator[None]:
    """The model with another n, the number of clusters, which no weight depends on."""
    config = model.config
    model.config = replace(config, mask_num=count)
    try:
        yield
    finally:
        model.config = config


@contextmanager
def definitions(model: Any, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Everything computed by the PyTorch definitions, nothing captured; with `dtype` object tokens in that."""
    language, encoder = model.decoder.language_model, model.encoder
    backends, graphs = (model.backend, language.backend), encoder.graphs
    parts = {name: getattr(model, name) for name in ("encoder", "object_tokenizer", "projector")}
    model.decoder.clear()
    model.backend = language.backend = "torch"
    encoder.graphs = None
    try:
        if dtype is not None and dtype != model.dtype:
            for name, part in parts.items():
                setattr(model, name, copy.deepcopy(part).to(dtype))
        yield
    finally:
        for name, part in parts.items():
            setattr(model, name, part)
        encoder.graphs = graphs
        model.decoder.clear()
        model.backend, language.backend = backends


@contextmanager
def counted(model: Any) -> Iterator[dict[str, Counts]]:
    """What is asked of the device within the block, by stage, when that has ended; "decoder" is prefill and decoding.

    Counted is what runs within the stages: on a CPU, where host data cannot be told from a device's, no bookkeeping
    between them.
    """
    device = model.device.type
    parts: dict[str, list[Counts]] = {}
    places = (
        ("views", model_module, "pack_patches"),
        ("encoder", model.encoder, "forward"),
        ("region", model.object_tokenizer, "forward"),
        ("projector", model, "encode_scenes"),
        ("prompt", model, "embed_prompt"),
        ("decoder", model.decoder, "advance"),
    )
    with ExitStack() as stack:
        for stage, owner, name in places:
            stack.enter_context(_counting(owner, name, parts.setdefault(stage, []), device))
        counts: dict[str, Counts] = {}
        yield counts
        counts |= {stage: add_counts(own) for stage, own in parts.items()}


@contextmanager
def _counting(owner: Any, name: str, parts: list[Counts], device: str) -> Iterator[None]:
    function, own = getattr(owner, name), name in vars(owner)

    def run(*args: Any, **kwargs: Any) -> Any:
        with counting(device) as found:
            result = function(*args, **kwargs)
        parts.append(found)
        return result

    setattr(owner, name, run)
    try:
        yield
    finally:
        setattr(owner, name, function) if own else delattr(owner, name)


def add_counts(parts: Iterable[Counts]) -> Counts:
    """Their sum."""
    total = Counts()
    for part in parts:
        total.launches.update(part.launches)
        total.waits.update(part.waits)
        total.flops += part.flops
        total.moved += part.moved
    return total


def stage_counts(ours: Ours, run: Callable[[int], Any], max_new_tokens: int) -> dict[str, Counts]:
    """Counts of `run(max_new_tokens)` by stage of STAGES; what one token takes is the prefill, the rest decoding."""
    with counted(ours.model) as first:
        run(1)
    with counted(ours.model) as whole:
        run(max_new_tokens)
    prefill, both = first.pop("decoder"), whole.pop("decoder")
    decode = Counts(
        Counter(both.launches) - Counter(prefill.launches),
        Counter(both.waits) - Counter(prefill.waits),
        both.flops - prefill.flops,
        both.moved - prefill.moved,
    )
    return whole | {"prefill": prefill, "decode": decode}


@dataclass(frozen=True)
class Check:
    """How right a call was.

    Attributes:
        error: of the object tokens of its first question, over their largest value.
        limit: that it may reach.
        equal, asked: answers that are those of the same question alone by the definitions, token for token, of how many
            that were asked again.
        ok: whether the error is within the limit and, in float32, all answers are equal (16 bits round differently in
            other batches).
    """

    error: float
    limit: float
    equal: int
    asked: int
    ok: bool


def check(ours: Ours, requests: Sequence[Request], answers: Sequence[tuple[int, ...]], max_new_tokens: int) -> Check:
    """Hold answers that were given together against the definitions, one question at a time."""
    model, first = ours.model, requests[0]
    got = _features(ours, first)
    places = sorted({round(i * (len(requests) - 1) / max(1, CHECKED - 1)) for i in range(CHECKED)})
    with definitions(model):
        plain = _features(ours, first)
        with as_measured(model):
            alone = [ours.ask(r.media, r.question, r.regions, max_new_tokens) for r in (requests[i] for i in places)]
    exact, limit = plain, LIMIT
    if model.dtype != torch.float32:
        with definitions(model, torch.float32):
            exact = _features(ours, first)
        limit += 2 * relative_error(plain, exact)
    error = relative_error(got, exact)
    equal = sum(answers[i] == tokens for i, tokens in zip(places, alone, strict=True))
    fine = error <= limit and (model.dtype != torch.float32 or equal == len(places))
    return Check(error, limit, equal, len(places), fine)


def _features(ours: Ours, request: Request) -> torch.Tensor:
    objects = ours.objects(request.media, request.regions)
    tokens = [objects.tokens] if objects.scene is None else [objects.tokens, objects.scene.tokens]
    return torch.cat([t.float() for t in tokens])
