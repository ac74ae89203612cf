"""The pretraining of the language model on symbols, and the vision side that learns to give the same tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from recipe.alignment import VISION, AlignmentModel, align, alignment_batch, load_vision
from recipe.language import (
    LANGUAGE,
    LanguageData,
    LanguageModel,
    Symbols,
    language_batch,
    load_language,
    pretrain_language,
    scene_grids,
)
from recipe.sizes import fresh_model
from recipe.symbols import (
    CELL_FACTS,
    OBJECT_FACTS,
    OBJECT_PLACE,
    cell_symbols,
    object_symbols,
    shown_objects,
)

from pixelrefer_fast.train.config import World
from pixelrefer_fast.train.scenes import SceneShare
from pixelrefer_fast.world import CATEGORIES, ask_about, make_scene
from pixelrefer_fast.world.things import COLORS, SHAPES, SYMMETRY

COMPARED = SceneShare(World(1000, 0, video=False, rounds=4, categories=("relation",)), 2)
MIXED = (
    SceneShare(World(1000, 0, video=False, questions=6), 2),
    SceneShare(World(1000, 5000, video=True, questions=6), 1),
)
LESSONS = ((0, MIXED), (3, (COMPARED,)))


@pytest.fixture
def model(small_model):
    return small_model


def scene_with(video: bool):
    return next(s for s in (make_scene(i, video=video) for i in range(50)) if len(s.things) >= 4)


@pytest.mark.parametrize("video", [False, True])
def test_an_objects_symbols_are_what_is_true_of_it(video):
    scene = scene_with(video)
    height, width = scene.size
    for i, thing in enumerate(scene.things):
        told = object_symbols(scene, i, 0, alike=True)
        assert told.shape == (OBJECT_FACTS,)
        assert list(COLORS)[told[:10].argmax()] == thing.color
        assert SHAPES[told[10:20].argmax()] == thing.shape
        rows, columns = np.nonzero(scene.masks[i, 0])
        row, column, _ = told[OBJECT_PLACE]
        assert row == pytest.approx(2 * rows.mean() / (width - 1) - 1, abs=1e-5)
        assert column == pytest.approx(2 * columns.mean() / (height - 1) - 1, abs=1e-5)
        same = sum(t.color == thing.color for t in scene.things)
        assert told[-12:-6].argmax() == same - 1
        assert not object_symbols(scene, i, 0, alike=False)[-12:].any()


def test_a_cell_tells_the_object_that_it_shows():
    scene = scene_with(False)
    height, width = scene.size
    rows, columns = height // 14, width // 14
    cells = cell_symbols(scene, 0, shown_objects(scene.masks[:, 0], rows, columns)).reshape(rows, columns, CELL_FACTS)
    assert (cells[..., :10].sum(-1) <= 1).all()
    for i, thing in enumerate(scene.things):
        y, x = (int(v) for v in np.argwhere(scene.masks[i, 0]).mean(0))
        row, column = min(y * rows // height, rows - 1), min(x * columns // width, columns - 1)
        box = scene.masks[i, 0, row * height // rows : (row + 1) * height // rows]
        if box[:, column * width // columns : (column + 1) * width // columns].mean() > 0.9:
            assert list(COLORS)[cells[row, column, :10].argmax()] == thing.color
            turn = np.radians(scene.angles[i, 0] * SYMMETRY.get(thing.shape, 0))
            shown = float(thing.shape in SYMMETRY)
            assert cells[row, column, -14:-12] == pytest.approx(np.array([np.cos(turn), np.sin(turn)]) * shown)
    empty = cells[..., :10].sum(-1) == 0
    assert empty.any()
    assert not cells[empty][:, -12:].any()


def test_questions_are_packed_as_a_model_reads_them(model):
    """The same text, object and vision tokens in the same places, as the packed batch of the real training has."""
    from pixelrefer_fast.train.batch import collate
    from pixelrefer_fast.train.scenes import scene_samples

    scene = next(
        s for s in (make_scene(i, video=False) for i in range(50)) if all(t.size == "large" for t in s.things[:1])
    )
    questions = [q for q in ask_about(scene, 1) if set(q.objects) == {0}]
    assert questions
    told = language_batch([(scene, questions)], model.config, model.tokenizer, 0)
    seen = collate([scene_samples(scene, questions, model.kind)], model.config, model.tokenizer)["batch"]
    assert torch.equal(told.text["input_ids"], seen.input_ids)
    assert torch.equal(told.text["slots"], seen.slots)
    assert torch.equal(told.text["targets"], seen.targets)
    assert torch.equal(told.text["learnt"], seen.learnt)
    assert len(told.cells) == len(seen.kept)
    assert told.kinds.tolist() == [CATEGORIES.index(q.category) for q in questions for _ in _answer(model, q)]


def _answer(model, question):
    return [*model.tokenizer(question.answer, add_special_tokens=False)["input_ids"], 0]


@pytest.mark.parametrize("small_model", ["full"], indirect=True)
def test_cells_lie_as_vision_tokens_do(model):
    scene = scene_with(True)
    batch = alignment_batch([scene], model.config, model.tokenizer, 0)
    assert len(batch.cells) == len(batch.seen.kept) <= sum(r * c for r, c in scene_grids_of(model, scene))
    assert (batch.cells.abs().sum(1) > 0).all()


def scene_grids_of(model, scene):
    from pixelrefer_fast.train.scenes import scene_samples

    return scene_grids(model.config, scene_samples(scene, ask_about(scene, 0)[:1], model.kind)[0].request)


def test_batches_repeat_and_differ(model):
    data = LanguageData(model.config, model.tokenizer, LESSONS)
    first, again, other = (data.make(n)["batch"] for n in (0, 0, 1))
    assert torch.equal(first.objects, again.objects)
    assert torch.equal(first.text["input_ids"], again.text["input_ids"])
    assert first.objects.shape != other.objects.shape or not torch.equal(first.objects, other.objects)


def test_lessons_follow_each_other(model):
    data = LanguageData(model.config, model.tokenizer, LESSONS)
    assert len(set(data.make(2)["batch"].kinds.tolist())) > 1
    later = data.make(3)["batch"]
    assert set(later.kinds.tolist()) == {CATEGORIES.index("relation")}


def test_the_language_model_learns_from_symbols(model):
    torch.manual_seed(0)
    batch = LanguageData(model.config, model.tokenizer, LESSONS).make(0)["batch"]
    learner = LanguageModel(model.network.llm.requires_grad_(True), len(CATEGORIES))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = learner(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    assert learner.symbols.object_embed.weight.grad.abs().sum() > 0


def test_the_vision_side_learns_the_symbols_tokens(model):
    torch.manual_seed(0)
    batch = alignment_batch([scene_with(False), scene_with(True)], model.config, model.tokenizer, 0)
    learner = AlignmentModel(model, Symbols(model.network.llm.config.hidden_size))
    before = {k: v.clone() for k, v in learner.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(8):
        loss = learner(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    changed = {k for k, v in learner.named_parameters() if not torch.equal(v, before[k])}
    assert any("encoder" in k for k in changed)
    assert any("pos_linear" in k for k in changed)
    assert not any("llm" in k or "symbols" in k for k in changed)


def test_parts_are_pretrained_and_put_together(model, tmp_path):
    language = pretrain_language(model, LESSONS, tmp_path / "language", steps=2)
    assert language == tmp_path / "language" / LANGUAGE
    llm = {k: v.clone() for k, v in model.network.llm.state_dict().items()}
    fresh = fresh_model(model.config, model.tokenizer, 1)
    symbols = load_language(fresh, language)
    assert all(torch.equal(v, llm[k]) for k, v in fresh.network.llm.state_dict().items())
    vision = align(fresh, symbols, MIXED, tmp_path / "vision", steps=2)
    assert vision == tmp_path / "vision" / VISION
    assert all(torch.equal(v, llm[k]) for k, v in fresh.network.llm.state_dict().items())
    other = fresh_model(model.config, model.tokenizer, 2)
    load_vision(other, vision)
    seen = {k: v for k, v in fresh.network.state_dict().items() if not k.startswith("llm.")}
    assert all(torch.equal(other.network.state_dict()[k], v) for k, v in seen.items())
    entries = [json.loads(line) for line in (tmp_path / "vision" / "log.jsonl").read_text().splitlines()]
    assert "accuracy/objects" in entries[-1]
    more = pretrain_language(fresh, LESSONS, tmp_path / "language", steps=4, resume=False, start=language)
    assert not torch.equal(load_language(other, more).object_embed.weight, symbols.object_embed.weight)
    with pytest.raises(ValueError, match="expected all weights of this model"):
        load_vision(other, language)
