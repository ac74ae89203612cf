"""A batch answers what one request at a time answers, token for token (float32, CPU)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixed_requests import CAT, mixed_requests
from recorded import recorded_cases

import pixelrefer_fast as pf
from pixelrefer_fast.batching import queue as queue_module
from pixelrefer_fast.batching.preparing import Bound
from pixelrefer_fast.checkpoint.embedded import EMBEDDED_FULL, EMBEDDED_LITE, is_embedded
from pixelrefer_fast.decoding import decoder as decoder_module
from pixelrefer_fast.decoding.options import Generation
from pixelrefer_fast.planning.options import EncodeOptions
from pixelrefer_fast.planning.request import FrameSource, Request
from pixelrefer_fast.regions.boxed_mask import BoxedMask
from pixelrefer_fast.verify.case import RecordedCase
from pixelrefer_fast.verify.replay import _plan

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT.parent / "shared" / "golden"
COUNT = 110  # of either model


@pytest.fixture(scope="module", params=["lite", "full", EMBEDDED_LITE, EMBEDDED_FULL])
def model(request: pytest.FixtureRequest) -> Any:
    """The bundled checkpoints with random weights, and the trained ones."""
    if not is_embedded(request.param):
        return request.getfixturevalue(request.param)
    return pf.load(request.param, device="cpu", dtype="float32", feature_bytes=0)


@pytest.fixture(scope="module")
def asks(model: Any) -> list[pf.Ask]:
    return mixed_requests(model.kind, COUNT)


@pytest.fixture(scope="module")
def alone(model: Any, asks: list[pf.Ask]) -> list[tuple[int, ...]]:
    """The tokens of each request by itself."""
    tokens = []
    for i, ask in enumerate(asks):
        (answer,) = model.ask_batch([ask])
        tokens.append(answer.tokens)
        if i < 10:
            assert answer.text == model.ask(ask.media, ask.question, ask.regions, **ask.options)
    return tokens


@pytest.mark.parametrize("batch_size", [3, 32, 128])
def test_a_mixed_batch_answers_as_one_at_a_time(
    model: Any, asks: list[pf.Ask], alone: list[tuple[int, ...]], batch_size: int
) -> None:
    answers = model.ask_batch(asks, batch_size=batch_size)
    assert [a.error for a in answers] == [None] * len(asks)
    assert [a.index for a in answers] == list(range(len(asks)))
    assert [a.tokens for a in answers] == alone
    assert len(set(alone)) > len(asks) // 10  # they are not all alike


@pytest.fixture(scope="module")
def three_hundred(model: Any) -> tuple[list[pf.Ask], list[tuple[int, ...]]]:
    """Greedy, sampled and penalised requests side by side, and the tokens of each by itself."""
    drawn = random.Random(11)
    asks = []
    for i, ask in enumerate(mixed_requests(model.kind, 300, seed=5)):
        kinds: list[dict[str, Any]] = [
            {},
            {"temperature": 0.9, "top_k": 20, "seed": i},
            {"temperature": 1.2, "top_p": 0.8, "top_k": 0, "seed": i},
            {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
            {"min_new_tokens": 1, "logit_bias": {65: 2.0}},
        ]
        ask.options |= drawn.choice(kinds)
        asks.append(ask)
    return asks, [model.ask_batch([ask])[0].tokens for ask in asks]


@pytest.fixture
def decoder(model: Any) -> Iterator[Any]:
    """The model's, with an engine of its own before and after."""
    model.decoder.clear()
    yield model.decoder
    model.decoder.clear()


def _tokens(answers: Iterable[pf.Answer]) -> list[tuple[int, ...]]:
    given = sorted(answers, key=lambda answer: answer.index)
    assert [a.error for a in given] == [None] * len(given)
    return [a.tokens for a in given]


@pytest.mark.slow
def test_three_hundred_at_once(model: Any, three_hundred: Any, decoder: Any) -> None:
    asks, alone = three_hundred
    assert _tokens(model.ask_batch(asks, batch_size=64)) == alone


@pytest.mark.slow
def test_three_hundred_in_parts(model: Any, three_hundred: Any, decoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A view and a few tokens of prompts between two steps."""
    monkeypatch.setattr(queue_module, "CHUNK_PATCHES", 1)
    monkeypatch.setattr(decoder_module, "CHUNK_TOKENS", 24)
    asks, alone = three_hundred
    assert _tokens(model.ask_batch(asks, batch_size=12)) == alone
    assert decoder.counts()["passes"] > len(asks) // 2  # of batches of twelve in one pass each there would be 25


@pytest.mark.slow
def test_three_hundred_streamed(model: Any, three_hundred: Any, decoder: Any) -> None:
    """By eight threads that share the queue."""
    asks, alone = three_hundred

    def tokens(ask: pf.Ask) -> tuple[int, ...]:
        events = model.stream(ask.media, ask.question, ask.regions, events=True, **ask.options)
        return tuple(event.token for event in events if event.token is not None)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(tokens, asks)) == alone


@pytest.mark.slow
def test_three_hundred_with_prefixes_of_each_other(model: Any, three_hundred: Any, decoder: Any) -> None:
    asks, alone = three_hundred
    twice = [ask for ask in asks for _ in range(2)]
    assert _tokens(model.ask_batch(twice, batch_size=16)) == [tokens for tokens in alone for _ in range(2)]
    assert decoder.counts()["prefix_hits"] > len(asks) // 5


@pytest.mark.slow
def test_three_hundred_interrupted(
    model: Any, three_hundred: Any, decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every so often within a pass over prompts, and within a step."""
    asks, alone = three_hundred
    language_model = decoder.language_model
    calls = {"prefill": 0, "step": 0}
    for name, every in (("prefill", 7), ("step", 31)):
        function = getattr(language_model, name)

        def interrupted(*args: Any, name: str = name, every: int = every, function: Any = function) -> Any:
            calls[name] += 1
            if calls[name] % every == 0:
                raise KeyboardInterrupt
            return function(*args)

        monkeypatch.setattr(language_model, name, interrupted)
    batch, answers, interrupts = model.ask_iter(asks, batch_size=24), [], 0
    while len(answers) < len(asks):
        try:
            answers.append(next(batch))
        except KeyboardInterrupt:
            interrupts += 1
    assert _tokens(answers) == alone
    assert interrupts >= 5


@pytest.mark.slow
def test_three_hundred_resumed(model: Any, three_hundred: Any, decoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every few steps memory runs out: those that came last begin again from the tokens that they have."""
    asks, alone = three_hundred
    step, calls, again = decoder.language_model.step, itertools.count(1), []
    prefill = decoder.language_model.prefill

    def short(*args: Any) -> torch.Tensor:
        if len(args[0]) > 1 and next(calls) % 5 == 0:  # who runs alone would have failed
            raise torch.OutOfMemoryError("no more")
        found: torch.Tensor = step(*args)
        return found

    def counting(embeds: torch.Tensor, *args: Any) -> torch.Tensor:
        again.extend(s for s in decoder._engine._starting if s.tokens)
        found: torch.Tensor = prefill(embeds, *args)
        return found

    monkeypatch.setattr(decoder.language_model, "step", short)
    monkeypatch.setattr(decoder.language_model, "prefill", counting)
    assert _tokens(model.ask_batch(asks, batch_size=64)) == alone
    assert decoder.counts()["halved"] >= 3
    assert again


def test_neighbours_and_their_order_change_nothing(
    model: Any, asks: list[pf.Ask], alone: list[tuple[int, ...]]
) -> None:
    order = list(range(len(asks)))
    random.Random(3).shuffle(order)
    answers = model.ask_batch([asks[i] for i in order[: COUNT // 2]], batch_size=20)
    assert [a.tokens for a in answers] == [alone[i] for i in order[: COUNT // 2]]


def test_streamed_and_encoded_first(model: Any, asks: list[pf.Ask]) -> None:
    for ask in asks[:6]:
        text = model.ask(ask.media, ask.question, ask.regions, **ask.options)
        assert "".join(model.stream(ask.media, ask.question, ask.regions, **ask.options)) == text
        encoding = {k: v for k, v in ask.options.items() if k in ("kmeans_seed", "frames")}
        objects = model.encode(ask.media, ask.regions, **encoding)
        answers = model.ask_batch(
            [(objects, ask.question), asks[0], (objects, ask.question)],
            max_new_tokens=ask.options["max_new_tokens"],
        )
        assert [answers[0].text, answers[2].text] == [text, text]


class _Drawn:
    """A recorded mask, which may be empty."""

    frames = None
    kind = "mask"

    def __init__(self, masks: dict[int, np.ndarray]) -> None:
        self.masks = masks

    def drawn(self, height: int, width: int, frame: int | None = None, *, name: str = "") -> BoxedMask:
        return BoxedMask.of(self.masks[frame if frame is not None else next(iter(self.masks))])

    def written(self) -> dict[str, Any]:
        return {}


def _recorded(model: Any, case: RecordedCase) -> Bound:
    _, plan = _plan(model, case)
    images = [image.numpy() for image in case.series("image")]
    frames = case.tensors["mask_ids"].tolist()
    groups = case.mark_frames if case.mark_frames is not None else [[frame] for frame in frames]
    masks = iter(case.tensors["masks"].numpy().astype(np.uint8))
    regions: list[Any] = [_Drawn({frame: next(masks) for frame in own}) for own in groups]
    counts = [int((m.mask_grid > 0).sum()) for m in plan.marks]
    drawn = iter(case.series("kmeans_perm"))
    clusters = model.config.mask_num
    starts = [next(drawn)[:clusters].tolist() if count > clusters else None for count in counts]
    request = Request(
        FrameSource.of_images(images, case.times),
        regions,
        [tuple(own) for own in groups],
        list(range(len(images))) if model.kind == "full" else [],
    )
    tokens = case.tensors["output_ids"].shape[1]
    return Bound(request, case.question, EncodeOptions(kmeans_start=starts), Generation(max_new_tokens=tokens))


@pytest.mark.filterwarnings("ignore:mask.*too small", "ignore:region.*too small")
@pytest.mark.parametrize("kind", ["lite", "full"])
def test_recorded_cases_in_one_batch(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    paths = [*sorted((GOLDEN / model.kind).glob("case_*.safetensors")), *recorded_cases(model.kind).values()]
    cases = [RecordedCase.read(path, model.kind) for path in paths]
    assert len(cases) >= 5
    answers = model.ask_batch([_recorded(model, case) for case in cases])
    assert [a.error for a in answers] == [None] * len(cases)
    for case, answer in zip(cases, answers, strict=True):
        assert list(answer.tokens) == case.tensors["output_ids"][0].tolist(), case.name
        assert answer.text == case.text.strip()


def test_describe_takes_lists_of_images(model: Any) -> None:
    image = pf.load_image(CAT)
    media = [CAT, image[:80, :90].copy(), CAT]
    regions = [[[10, 20, 120, 150], [150, 60, 330, 260]], [[5, 5, 60, 60]], [[300, 10, 440, 90]]]
    texts = model.describe(media, regions, max_new_tokens=6)
    assert texts == [model.describe(m, r, max_new_tokens=6) for m, r in zip(media, regions, strict=True)]
    with pytest.raises(pf.BatchError, match=r"1 of 4 requests failed; request 2: region 0") as caught:
        model.describe(media, [regions[0], [[500, 500, 600, 600]], regions[2]], max_new_tokens=6)
    assert [a.text for a in caught.value.answers] == [*texts[0], None, *texts[2]]
    with pytest.raises(ValueError, match="image or video 1: region 0"):
        model.describe(media, [regions[0], ["nonsense"], regions[2]])


def test_what_is_shared_is_encoded_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = model.network.encoder.forward

    def counting(patches: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(len(patches))
        return forward(patches, *args, **kwargs)

    boxes = [[10, 20, 120, 150], [150, 60, 330, 260]]
    single = [(CAT, "What is <region>?", [box]) for box in boxes]
    monkeypatch.setattr(model.network.encoder, "forward", counting)
    for ask in single:
        model.ask_batch([ask], max_new_tokens=1)
    one_by_one = seen.copy()
    seen.clear()
    model.ask_batch([single[0]] * 5, max_new_tokens=1)
    assert seen == one_by_one[:1]
    seen.clear()
    model.ask_batch(single * 2, max_new_tokens=1)
    (together,) = seen
    assert together < sum(one_by_one)
