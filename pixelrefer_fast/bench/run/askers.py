"""Who is asked: our models and rivals behind one small protocol, what a call of ours costs by stage, and the check."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from pixelrefer_fast.batching.asks import Answer, Ask
from pixelrefer_fast.bench.report.results import relative_error
from pixelrefer_fast.device.counters import Counts, counting
from pixelrefer_fast.device.stages import STAGES, StageCall, StageName, listen
from pixelrefer_fast.model import PixelRefer, PixelReferLite

Model = PixelRefer | PixelReferLite

CHECKED = 8  # requests of a call that are asked again, one at a time
# largest error of object tokens over their largest value: float32 itself; 16 bits may have twice the definitions' more
LIMIT = 1e-4


@dataclass(frozen=True, eq=False)
class BenchRequest:
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

    def __init__(self, model: Model, starts: Callable[[Any, Sequence[Any]], Any] | None = None) -> None:
        self.model = model
        self.starts = starts

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
        return self.answers([BenchRequest(media, question, regions)], max_new_tokens)[0].tokens

    def answers(
        self, requests: Sequence[BenchRequest], max_new_tokens: int, batch_size: int | None = None
    ) -> list[Answer]:
        """All at once, in order; what could not be answered raises what was wrong with it."""
        asks = [Ask(r.media, r.question, list(r.regions), **self._options(r.media, r.regions)) for r in requests]
        answers = self.model.ask_batch(asks, batch_size=batch_size, progress=False, max_new_tokens=max_new_tokens)
        for answer in answers:
            if not answer.ok:
                raise answer.exception or RuntimeError(answer.error)
        return answers

    def _options(self, media: Any, regions: Sequence[Any]) -> dict[str, Any]:
        starts = None if self.starts is None else self.starts(media, regions)
        return {} if starts is None else {"kmeans_start": starts}


def answer_all(
    asker: Asker, requests: Sequence[BenchRequest], max_new_tokens: int, batch_size: int | None = None
) -> list[tuple[int, ...]]:
    """Token ids of every answer: ours in batches, a rival's, who has no such thing, one after the other."""
    if isinstance(asker, Ours):
        return [answer.tokens for answer in asker.answers(requests, max_new_tokens, batch_size)]
    return [asker.ask(r.media, r.question, r.regions, max_new_tokens) for r in requests]


@contextmanager
def as_measured(model: Model, ends: frozenset[int] = frozenset()) -> Iterator[None]:
    """Answers that go on to their length, and no beginning of a prompt that is found computed by a later call.

    Where prompts and steps were captured they are captured anew, as these settings are part of them; what was captured
    before serves again afterwards.

    Args:
        ends: tokens that end an answer before.
    """
    decoder = model.decoder
    captured = is_captured(model)
    before = decoder.end_ids, decoder.prefix_bytes
    with decoder.aside():
        decoder.end_ids, decoder.prefix_bytes = ends, 0
        try:
            if captured:
                decoder.warmup()
            yield
        finally:
            decoder.end_ids, decoder.prefix_bytes = before


def is_captured(model: Model) -> bool:
    """Whether prompts and steps are replayed."""
    return model.decoder.counts().get("graph_graphs", 0) > 0


@contextmanager
def object_tokens(model: Model, count: int) -> Iterator[None]:
    """The model with another n, the number of clusters, which no weight depends on."""
    network = model.network
    config = network.config
    network.config = replace(config, mask_num=count)
    try:
        yield
    finally:
        network.config = config


@contextmanager
def definitions(model: Model) -> Iterator[None]:
    """Everything computed by the PyTorch definitions, nothing captured."""
    network, language = model.network, model.decoder.language_model
    backends, captured = (network.backend, language.backend), network.captured
    with model.decoder.aside():
        network.backend = language.backend = "torch"
        network.captured = None
        try:
            yield
        finally:
            network.captured = captured
            network.backend, language.backend = backends


def with_vision_in(model: Model, dtype: torch.dtype) -> Model:
    """A model beside this one that shares its language model, with a vision side in another dtype."""
    network = model.network
    shared = (network.llm, network.decoder, network.tokenizer)
    twin = copy.deepcopy(model, {id(part): part for part in shared})
    for part in (twin.network.encoder, twin.network.object_tokenizer, twin.network.projector):
        part.to(dtype)
    return twin


@contextmanager
def counting_stages(device: str) -> Iterator[dict[StageName, Counts]]:
    """What is asked of a device within the block, by stage of `device.stages.STAGES`; all of them are there at its end.

    Counted is what runs within the stages: on a CPU, where host data cannot be told from a device's, no bookkeeping
    between them.
    """
    parts: dict[StageName, list[Counts]] = {name: [] for name in STAGES}

    @contextmanager
    def count(call: StageCall) -> Iterator[None]:
        with counting(device) as found:
            yield
        parts[call.stage].append(found)

    counts: dict[StageName, Counts] = {}
    with listen(count):
        yield counts
    counts |= {name: add_counts(own) for name, own in parts.items()}


def add_counts(parts: Iterable[Counts]) -> Counts:
    """Their sum."""
    total = Counts()
    for part in parts:
        total.launches.update(part.launches)
        total.waits.update(part.waits)
        total.flops += part.flops
        total.moved += part.moved
        total.flops_by.update(part.flops_by)
        total.moved_by.update(part.moved_by)
    return total


@dataclass(frozen=True)
class AnswerCheck:
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


def check(
    ours: Ours, requests: Sequence[BenchRequest], answers: Sequence[tuple[int, ...]], max_new_tokens: int
) -> AnswerCheck:
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
        twin = with_vision_in(model, torch.float32)
        with definitions(twin):
            exact = _features(Ours(twin, ours.starts), first)
        limit += 2 * relative_error(plain, exact)
    error = relative_error(got, exact)
    equal = sum(answers[i] == tokens for i, tokens in zip(places, alone, strict=True))
    fine = error <= limit and (model.dtype != torch.float32 or equal == len(places))
    return AnswerCheck(error, limit, equal, len(places), fine)


def _features(ours: Ours, request: BenchRequest) -> torch.Tensor:
    objects = ours.objects(request.media, request.regions)
    tokens = [objects.tokens] if objects.scene is None else [objects.tokens, objects.scene.tokens]
    return torch.cat([t.float() for t in tokens])
