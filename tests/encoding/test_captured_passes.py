"""Passes from patches to object tokens, padded, captured and replayed: the same bits. There is no GPU: a stand-in."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from device_only import device_only, launches_only
from mixed_requests import mixed_requests
from recorded import recorded_cases
from recorded_graphs import SIZE, Recorded, Recorder

from pixelrefer_fast.device import trust
from pixelrefer_fast.device.graphs import Run
from pixelrefer_fast.device.stages import StageCall, listen
from pixelrefer_fast.encoding import captured_passes as captured_module
from pixelrefer_fast.encoding import infusion as infusion_module
from pixelrefer_fast.encoding.captured_passes import CapturedPasses, example
from pixelrefer_fast.encoding.kept_features import KeptFeatures
from pixelrefer_fast.encoding.object_tokenizer import kmeans_starts
from pixelrefer_fast.encoding.pass_sizes import LADDER, PassSizes, pass_sizes
from pixelrefer_fast.engines.packed_pass import embed_items
from pixelrefer_fast.engines.prompts import chat_prompt
from pixelrefer_fast.engines.writer import PromptWriter
from pixelrefer_fast.media import open_media
from pixelrefer_fast.ops.infuse import Groups
from pixelrefer_fast.planning.merge import merge
from pixelrefer_fast.planning.options import EncodeOptions, read_options
from pixelrefer_fast.planning.request import FrameSource, Request
from pixelrefer_fast.planning.selection import select_patches
from pixelrefer_fast.planning.views import Mark, ViewPlan, plan_views
from pixelrefer_fast.regions.boxed_mask import BoxedMask
from pixelrefer_fast.verify.case import RecordedCase
from pixelrefer_fast.verify.replay import RecordedStarts, _plan

KINDS = ("lite", "full")
ROOM = 2**30


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def passes(lite: Any, full: Any) -> dict[str, CapturedPasses]:
    """Of both models, all captured."""
    return {model.kind: _warm(model) for model in (lite, full)}


@pytest.fixture(autouse=True)
def nothing_captured(lite: Any, full: Any) -> Iterator[None]:
    yield
    for model in (lite, full):
        model.network.captured = None


def _warm(model: Any, capturer: Recorder | None = None, limit: int = ROOM) -> CapturedPasses:
    network = model.network
    passes = CapturedPasses(
        network.encoder, network.object_tokenizer, network.config, "torch", limit, capturer or Recorder()
    )
    passes.warm_up()
    return passes


def _poison(passes: CapturedPasses) -> None:
    """What earlier requests leave in the buffers."""
    assert passes._buffers is not None
    passes._buffers.patches.fill_(torch.nan)
    passes._buffers.features.fill_(torch.nan)


def _one_form(monkeypatch: pytest.MonkeyPatch, projected: bool) -> None:
    """Keys are projected or not whatever that costs: a larger pass may find the other form cheaper, which rounds
    otherwise."""

    def is_projected(groups: Groups, n: int, width: int, heads: int) -> bool:
        return projected

    monkeypatch.setattr(infusion_module, "is_projected", is_projected)


def _request(seed: int, number: int, side: int = 128) -> tuple[FrameSource, list[Mark]]:
    rng = np.random.default_rng(seed)
    source = FrameSource.of_images([rng.integers(0, 256, (side, side, 3), dtype=np.uint8)])
    marks = []
    for i in range(number):
        mask = np.zeros((side, side), np.uint8)
        height, width = rng.integers(6, side // 2, 2)
        top, left = rng.integers(0, side - height), rng.integers(0, side - width)
        mask[top : top + height, left : left + width] = rng.random((height, width)) < 0.8
        marks.append(Mark(0, BoxedMask.of(mask), f"region {i}"))
    return source, marks


def _encoded(model: Any, source: FrameSource, plan: ViewPlan, kept: KeptFeatures | None = None) -> tuple[Any, Any]:
    def starts(counts: Sequence[int]) -> torch.Tensor:
        return kmeans_starts(counts, model.config.mask_num)

    tokens, (scene,) = model.network.encode(plan, source, starts, [tuple(plan.scene)], kept)
    return tokens, scene


def _planned(model: Any, source: FrameSource, marks: Sequence[Mark]) -> ViewPlan:
    scene = [0] if model.kind == "full" else []
    return plan_views(model.config, source.sizes, marks, len(marks), scene)


def _joint(model: Any, requests: Sequence[tuple[FrameSource, list[Mark]]]) -> tuple[FrameSource, ViewPlan]:
    """Several of them as one plan, each with the pixels that it has by itself."""
    scene = [0] if model.kind == "full" else []
    asked = [Request(source, (), (), scene) for source, _ in requests]
    joint = merge(asked, [_planned(model, source, marks) for source, marks in requests])
    return joint.source, joint.plan


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("number", [1, 3, 8])
def test_padding_changes_no_bit(
    model: Any, passes: dict[str, CapturedPasses], number: int, projected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of object tokens, and in Full of the whole image's; whatever lies in what is padding."""
    _one_form(monkeypatch, projected)
    captured = _warm(model) if projected else passes[model.kind]
    source, marks = _request(number, number)
    plan = _planned(model, source, marks)
    expected, scene = _encoded(model, source, plan)
    model.network.captured = captured
    before = captured.store.counts()["replays"]
    for _ in range(2):
        _poison(captured)
        tokens, own_scene = _encoded(model, source, plan)
        assert torch.equal(tokens, expected)
        if scene is not None:
            assert torch.equal(own_scene.tokens, scene.tokens)
    assert captured.store.counts()["replays"] == before + 2


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_cases_through_captured_passes(
    kind: str, request: pytest.FixtureRequest, passes: dict[str, CapturedPasses], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the reference: the same bits as without, and so as near to it."""
    _one_form(monkeypatch, False)
    model, captured = request.getfixturevalue(kind), passes[kind]
    before = captured.store.counts()["replays"]
    cases = recorded_cases(kind)
    for path in cases.values():
        case = RecordedCase.read(path, kind)
        source, plan = _plan(model, case)
        starts = RecordedStarts(case, model.config.mask_num)
        expected, (scene,) = model.network.encode(plan, source, starts, [tuple(plan.scene)])
        _poison(captured)
        model.network.captured = captured
        tokens, (own_scene,) = model.network.encode(plan, source, starts, [tuple(plan.scene)])
        model.network.captured = None
        assert torch.equal(tokens, expected), path.stem
        if scene is not None:
            assert torch.equal(own_scene.tokens, scene.tokens), path.stem
    assert captured.store.counts()["replays"] > before


def test_neighbours_change_no_bit(
    model: Any, passes: dict[str, CapturedPasses], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object's tokens are the same whoever shares its pass, and whichever pass that is."""
    _one_form(monkeypatch, False)
    model.network.captured = passes[model.kind]
    requests = [_request(seed, 2) for seed in range(4)]
    alone, _ = _encoded(model, requests[0][0], _planned(model, *requests[0]))
    for number in (2, 4):
        together, _ = _encoded(model, *_joint(model, requests[:number]))
        assert torch.equal(together[: len(alone)], alone)


def test_items_of_other_engines_through_captured_passes(
    model: Any, passes: dict[str, CapturedPasses], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of few and of many of them, of images and videos: the bits of the pass that runs as it is."""
    _one_form(monkeypatch, False)
    captured = passes[model.kind]
    writer = PromptWriter(model.config, model.tokenizer, 4096)
    rows = []
    for ask in mixed_requests(model.kind, 16, seed=5):
        encode = read_options({k: v for k, v in ask.options.items() if k != "max_new_tokens"}, EncodeOptions)
        rows.append(writer.write(chat_prompt(ask.question or ""), open_media(ask.media), ask.regions, encode)[1])
    steps = [rows[0], rows[1][:1], [item for own in rows[2:5] for item in own], [item for own in rows for item in own]]
    before = captured.store.counts()
    for step in steps:
        expected = embed_items(model.network, step)
        _poison(captured)
        for tokens, same in zip(embed_items(model.network, step, captured), expected, strict=True):
            assert torch.equal(tokens, same)
    after = captured.store.counts()
    assert after["replays"] - before["replays"] >= 3  # of whatever has room
    assert after["captures"] == before["captures"] == len(LADDER)


def test_a_mask_finer_than_its_features(
    lite: Any, passes: dict[str, CapturedPasses], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four rows of features a patch, where the others have one."""
    _one_form(monkeypatch, False)
    source, marks = _request(1, 2)
    small = replace(lite.config, mm_max_length=40)
    plan = plan_views(small, source.sizes, marks, len(marks))
    assert select_patches(plan).index.shape[1] == 4
    expected, _ = _encoded(lite, source, plan)
    lite.network.captured = passes["lite"]
    before = passes["lite"].store.counts()["replays"]
    tokens, _ = _encoded(lite, source, plan)
    assert torch.equal(tokens, expected)
    assert passes["lite"].store.counts()["replays"] == before + 1


def test_features_that_are_known_are_read_by_a_pass_that_encodes_the_rest(
    model: Any, passes: dict[str, CapturedPasses], monkeypatch: pytest.MonkeyPatch
) -> None:
    _one_form(monkeypatch, False)
    captured = passes[model.kind]
    source, marks = _request(2, 3)
    plans = [_planned(model, source, own) for own in (marks[:1], marks[:2], marks[:2], marks[1:])]
    kept = KeptFeatures(2**26)
    expected = [_encoded(model, source, plan, kept)[0] for plan in plans]
    again = KeptFeatures(2**26)
    model.network.captured = captured
    used = []
    run = captured.run
    monkeypatch.setattr(captured, "run", lambda sizes, inputs: (used.append(sizes.patches), run(sizes, inputs))[1])
    for plan, tokens in zip(plans, expected, strict=True):
        _poison(captured)
        assert torch.equal(_encoded(model, source, plan, again)[0], tokens)
    assert len(used) == 4
    assert used[2] == 0  # all of it was known
    assert again.nbytes == kept.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_few_sizes_serve_any_traffic(kind: str, request: pytest.FixtureRequest) -> None:
    """Captured before, none later; what they have no room for runs as it is."""
    model = request.getfixturevalue(kind)
    recorder = Recorder()
    captured = _warm(model, recorder)
    assert len(recorder.captured) == len(LADDER) == 10
    rng = np.random.default_rng(0)
    found = []
    for seed in range(500):
        together = [_request(seed, int(rng.integers(1, 9)), int(rng.integers(40, 500))) for _ in range(1 + seed % 4)]
        _, plan = _joint(model, together)
        selection = select_patches(plan)
        fresh = [view for view in plan.views if seed % 3 or rng.random() < 0.4]  # of the others features are known
        found.append(captured.fitting(fresh, selection, kmeans_starts(selection.counts, model.config.mask_num)))
    assert len(recorder.captured) == 10
    sizes = {s for s in found if s is not None}
    assert len(sizes) > 6
    assert sum(s is not None for s in found) > 400


def test_the_smallest_that_has_room(lite: Any, passes: dict[str, CapturedPasses]) -> None:
    captured = passes["lite"]
    source, marks = _request(3, 9)
    fit = []
    for number in (1, 4, 9):
        plan = _planned(lite, source, marks[:number])
        selection = select_patches(plan)
        sizes = captured.fitting(plan.views, selection, kmeans_starts(selection.counts, 8))
        assert sizes is not None
        assert sizes.hold(plan.views, selection)
        fit.append(sizes)
        smaller = [s for s in pass_sizes(lite.config) if s.patches < sizes.patches]
        assert not any(s.hold(plan.views, selection) for s in smaller)
    assert fit == sorted(fit, key=lambda s: s.patches)


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_beyond_any_of_them(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    source, marks = _request(3, 2)
    plan = _planned(model, source, marks)
    selection = select_patches(plan)
    largest = pass_sizes(model.config)[0]
    assert largest.hold(plan.views, selection)
    names = ("patches", "views", "longest", "rows", "marks", "largest")
    for name in (*names, "groups", "context") if kind == "lite" else names:
        assert not replace(largest, **{name: 0}).hold(plan.views, selection), name


def test_other_clusters_than_captured(lite: Any, passes: dict[str, CapturedPasses]) -> None:
    source, marks = _request(3, 2)
    plan = _planned(lite, source, marks)
    selection = select_patches(plan)
    assert passes["lite"].fitting(plan.views, selection, kmeans_starts(selection.counts, 5)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_a_capture_comes_from_the_host(kind: str, request: pytest.FixtureRequest) -> None:
    """No upload, no value read, no shape that depends on values: on a device without values, all of it runs."""
    model = copy.deepcopy(request.getfixturevalue(kind)).to("meta")
    network = model.network
    passes = CapturedPasses(network.encoder, network.object_tokenizer, network.config, "auto", ROOM, Recorder())
    weight = network.encoder.post_norm.weight
    sizes = pass_sizes(network.config)
    passes._buffers = captured_module._Buffers(sizes, network.config.mask_num, weight)
    with torch.no_grad():
        for own in sizes:
            with launches_only():
                passes.compute(own)  # what is made once: tables of the rotation, constants of the weights
            with device_only():
                tokens = passes.compute(own)
            per_mark = network.config.mask_num
            assert tokens.shape == (own.marks * per_mark, network.config.llm["hidden_size"])


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: torch.tensor([1.0, 2.0], device="meta") + x,
        lambda x: x + torch.ones(2).to("meta"),
        lambda x: x.copy_(torch.ones(2)),
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.repeat_interleave(x, x.long()),
        lambda x: x.cpu(),
        lambda x: torch.ones(2) * 2,
    ],
)
def test_what_a_capture_must_not_do_is_seen(mistake: Any) -> None:
    x = torch.ones(2, device="meta")
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), device_only():
        mistake(x)


class _Wrong(Recorder):
    """Every second capture replays something else."""

    def capture(self, run: Run, device: torch.device) -> Recorded:
        captured = super().capture(run, device)
        if len(self.captured) % 2:
            captured.run = lambda: run() + 1
        return captured


@pytest.mark.parametrize("error", [None, RuntimeError("not possible")])
def test_what_is_not_trusted_runs_as_it_is(
    lite: Any, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = _Wrong() if error is None else Recorder()
    recorder.error = error
    dropped = sum(trust.counts()["dropped"].values())
    captured = _warm(lite, recorder)
    lost = 5 if error is None else 10
    assert sum(trust.counts()["dropped"].values()) == dropped + lost
    assert len([r for r in caplog.records if "graphs: not using one" in r.message]) == lost
    assert captured.store.counts()["graphs"] == 10 - lost
    source, marks = _request(4, 2)
    plan = _planned(lite, source, marks)
    expected, _ = _encoded(lite, source, plan)
    lite.network.captured = captured
    torch.testing.assert_close(_encoded(lite, source, plan)[0], expected, rtol=0, atol=2e-5)
    assert captured.store.counts()["replays"] == (1 if error is None else 0)


def test_the_memory_limit_holds_buffers_too(lite: Any) -> None:
    network = lite.network
    sizes, weight = pass_sizes(network.config), network.encoder.post_norm.weight
    buffers = captured_module._Buffers.bytes_of(sizes, network.config.mask_num, weight)
    made = captured_module._Buffers(sizes, network.config.mask_num, weight)
    tables = next(iter(made.tables.values()))._buffer
    assert made.patches.nbytes + made.features.nbytes <= buffers - tables.nbytes
    assert _warm(lite, limit=buffers + 3 * SIZE).store.counts()["graphs"] == 3
    none = _warm(lite, limit=buffers - 1)
    assert none._buffers is None
    assert none.store.counts()["graphs"] == 0


def test_weights_that_were_written_to(lite: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A capture may read what was made of the old ones."""
    model = copy.deepcopy(lite)
    model.network.captured = captured = _warm(model)
    source, marks = _request(4, 2)
    plan = _planned(model, source, marks)
    _encoded(model, source, plan)
    assert captured.store.counts()["replays"] == 1
    with torch.no_grad():
        model.network.object_tokenizer.infusion.local_step.out_proj.bias += 1
    changed, _ = _encoded(model, source, plan)
    assert captured.store.counts()["replays"] == 1
    assert [r.message for r in caplog.records] == [
        "graphs: not using one (the weights of the vision side were written to)"
    ]
    captured.warm_up()
    again, _ = _encoded(model, source, plan)
    assert captured.store.counts()["replays"] == 2
    torch.testing.assert_close(again, changed, rtol=0, atol=2e-5)


def test_a_copy_captures_for_itself(lite: Any) -> None:
    lite.network.captured = _warm(lite)
    other = copy.deepcopy(lite)
    captured = other.network.captured
    assert captured is not lite.network.captured
    assert captured._encoder is other.network.encoder
    source, marks = _request(4, 2)
    plan = _planned(other, source, marks)
    _encoded(other, source, plan)
    assert captured.store.counts()["replays"] == captured.store.counts()["graphs"] == 0


def test_stages_that_are_listened_to_run_one_by_one(lite: Any, passes: dict[str, CapturedPasses]) -> None:
    lite.network.captured = passes["lite"]
    before = passes["lite"].store.counts()["replays"]
    heard = []

    @contextmanager
    def listener(call: StageCall) -> Iterator[None]:
        heard.append(call.stage)
        yield

    source, marks = _request(4, 2)
    with listen(listener):
        _encoded(lite, source, _planned(lite, source, marks))
    assert {"encoder", "pooling", "infusion", "projector"} <= set(heard)
    assert passes["lite"].store.counts()["replays"] == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_captured_example_leaves_no_room(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    like = model.network.encoder.post_norm.weight
    for sizes in pass_sizes(model.config):
        inputs = example(sizes, kind, model.config.mask_num, like)
        assert len(inputs.selection.counts) == sizes.marks
        assert len(inputs.patches) <= sizes.patches
        assert inputs.tables.longest <= sizes.longest
        assert len(inputs.tables.grids) <= sizes.views
        assert inputs.selection.first_rows[-1] <= sizes.rows
        assert int(inputs.selection.index.max()) < inputs.selection.first_rows[-1]


def test_sizes_are_few_and_in_order(lite: Any, full: Any) -> None:
    for model in (lite, full):
        sizes: list[PassSizes] = pass_sizes(model.config)
        assert [s.patches for s in sizes] == sorted((s.patches for s in sizes), reverse=True)
        for name in ("rows", "marks", "views", "longest"):
            values = [getattr(s, name) for s in sizes if s.patches]
            assert values == sorted(values, reverse=True), name
