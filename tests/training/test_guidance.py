"""What the language model's pretraining tells of the steps to an answer."""

from __future__ import annotations

import copy

import pytest
import torch
from recipe.guidance import HINTS, LAYERS, POINTERS, UNKNOWN, Guide, Pointing, _looks_elsewhere
from recipe.language import LanguageData, LanguageModel, language_batch
from recipe.sizes import fresh_model, mini_config
from recipe.symbols import ALIKE, LOOKS, NEIGHBOUR_LOOKS

from pixelrefer_fast.train.config import World
from pixelrefer_fast.train.module import read_text
from pixelrefer_fast.train.scenes import SceneShare
from pixelrefer_fast.world import CATEGORIES, ask_about, make_scene
from pixelrefer_fast.world.motion import MOTIONS
from pixelrefer_fast.world.questions import ORDINALS
from pixelrefer_fast.world.things import COLORS, SHAPES

COLUMN = {name: i for i, name in enumerate(HINTS)}


@pytest.fixture
def model(small_model):
    return small_model


def asked(kind, video, question):
    """A scene with a question of this kind, and the question."""
    for seed in range(400):
        scene = make_scene(seed, video=video)
        for q in ask_about(scene, seed, [question]):
            if q.kind == kind:
                return scene, q
    raise AssertionError(f"no scene asks {kind}")


def test_the_object_that_is_meant_is_pointed_at(model):
    scene, question = asked("by color", False, "selection")
    batch = language_batch([(scene, [question])], model.config, model.tokenizer, 0)
    meant = batch.guidance.pointing["meant"]
    text = batch.text
    assert meant.queries.tolist() == [int(text["learnt"][-2])]
    place = {int(row): int(slot) for slot, row in zip(text["slots"], text["rows"], strict=True)}
    number = ORDINALS.index(question.answer)
    # object tokens of the marks, in order: the wanted ones carry the colour that is asked for
    wanted = set(meant.keys[0][meant.wanted[0]].tolist())
    rows = [row for row, slot in place.items() if slot in wanted]
    told = batch.objects[rows][:, : len(COLORS)].argmax(1)
    color = scene.things[question.objects[number]].color
    assert {list(COLORS)[i] for i in told.tolist()} == {color}
    assert color in question.text
    hinted = batch.guidance.labels[batch.guidance.places == meant.queries[0]]
    assert hinted[0, COLUMN["asked_color"]] == list(COLORS).index(color)
    assert (hinted[0, COLUMN["asked_shape"] :] == UNKNOWN).all()


def test_objects_are_compared_with_the_one_before(model):
    scene, question = asked("side", False, "relation")
    batch = language_batch([(scene, [question])], model.config, model.tokenizer, 0)
    labels = batch.guidance.labels
    assert sorted(set(labels[:, COLUMN["number"]].tolist())) == [0, 1]
    compared = labels[labels[:, COLUMN["same_color"]] != UNKNOWN]
    assert len(compared) == 1
    one, other = (scene.things[i] for i in question.objects)
    assert bool(compared[0, COLUMN["same_color"]]) == (one.color == other.color)
    assert bool(compared[0, COLUMN["same_shape"]]) == (one.shape == other.shape)
    (x0, y0), (x1, y1) = (scene.facts.centres[i, 0] for i in question.objects)
    assert bool(compared[0, COLUMN["right"]]) == (x1 > x0)
    assert bool(compared[0, COLUMN["below"]]) == (y1 > y0)
    before = batch.guidance.pointing["before"]
    assert (before.keys[0][before.wanted[0]] < before.queries[0]).all()
    assert set(before.keys[0][before.wanted[0]].tolist()) <= set(batch.text["slots"].tolist())


def test_motion_is_told_where_first_and_last_are_compared(model):
    scene, question = asked("motion", True, "motion")
    batch = language_batch([(scene, [question])], model.config, model.tokenizer, 0)
    told = batch.guidance.labels[:, COLUMN["motion"]]
    assert told[told != UNKNOWN].tolist() == [MOTIONS.index(scene.motions[question.objects[0]])]
    first = batch.guidance.pointing["first"]
    assert ("last" in batch.guidance.pointing) == (model.kind == "full")
    place = {int(slot): int(row) for slot, row in zip(batch.text["slots"], batch.text["rows"], strict=True)}
    rows = [place[int(key)] for key in first.keys[0][first.wanted[0]]]
    thing = scene.things[question.objects[0]]
    if model.kind == "lite":  # the object's own tokens of the first frame
        assert rows == list(range(model.config.mask_num))
    else:  # vision tokens that show it
        cells = batch.cells[torch.tensor(rows) - len(batch.objects)]
        assert {SHAPES[i] for i in cells[:, len(COLORS) : len(COLORS) + len(SHAPES)].argmax(1).tolist()} == {
            thing.shape
        }


def test_pointers_read_the_attention_that_the_model_computes(model):
    """The share of a head's attention, against transformers' own eager attention."""
    scene, question = asked("by color", False, "selection")
    batch = language_batch([(scene, [question])], model.config, model.tokenizer, 0)
    eager = copy.deepcopy(model.network.llm)
    learner = LanguageModel(model.network.llm, len(CATEGORIES))
    tokens = torch.cat([learner.symbols.object_embed(batch.objects), learner.symbols.cell_embed(batch.cells)])
    hidden = read_text(model.network.llm, tokens, batch.text, every_layer=True).hidden_states
    eager.set_attn_implementation("eager")
    length = len(batch.text["input_ids"])
    weights = eager.model(inputs_embeds=hidden[0][:, :length], output_attentions=True).attentions
    for name, (layer, head) in POINTERS.items():
        if name not in batch.guidance.pointing:
            continue
        pointing = batch.guidance.pointing[name]
        rows = weights[layer][0, head][pointing.queries]
        looked = rows.gather(1, pointing.keys.clamp(min=0)) * pointing.wanted
        expected = -looked.sum(1).log().mean()
        found = _looks_elsewhere(model.network.llm.model, hidden, batch.text["position_ids"], pointing, layer, head)
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_guidance_reaches_the_layers_below_it(model):
    data = LanguageData(
        model.config,
        model.tokenizer,
        [(0, [SceneShare(World(1000, 0, video=False, rounds=2, categories=("selection", "relation")), 3)])],
    )
    batch = data.make(0)["batch"]
    learner = LanguageModel(model.network.llm.requires_grad_(True), len(CATEGORIES))
    tokens = torch.cat([learner.symbols.object_embed(batch.objects), learner.symbols.cell_embed(batch.cells)])
    hidden = read_text(model.network.llm, tokens, batch.text, every_layer=True).hidden_states
    loss = learner.guide(model.network.llm, hidden, batch.text, batch.guidance)
    assert torch.isfinite(loss)
    loss.backward()
    layers = model.network.llm.model.layers
    assert all(layers[i].self_attn.q_proj.weight.grad.abs().sum() > 0 for i in range(LAYERS + 1))
    assert layers[LAYERS].mlp.up_proj.weight.grad is None


def test_what_nobody_knows_costs_nothing(model):
    """Without hints or pointers the loss is zero, and not NaN."""
    guide = Guide(model.network.llm.config)
    hidden = [torch.zeros(1, 4, 48)] * 4
    from recipe.guidance import Guidance

    nothing = Guidance(torch.tensor([1]), torch.full((1, len(HINTS)), UNKNOWN), {})
    text = {"position_ids": torch.arange(4)}
    assert guide(model.network.llm, hidden, text, nothing) == 0
    pointing = Pointing(torch.tensor([2]), torch.tensor([[0, 1, 2, -1]]), torch.tensor([[True, True, True, False]]))
    everything = _looks_elsewhere(model.network.llm.model, hidden, text["position_ids"], pointing, 1, 3)
    assert float(everything.detach()) == pytest.approx(0, abs=1e-6)


def test_a_model_too_small_to_be_guided_is_told_so(tokenizer):
    model = fresh_model(mini_config("lite", num_hidden_layers=2), tokenizer, 0)
    with pytest.raises(ValueError, match="expected at least 3 layers of 5 heads"):
        LanguageModel(model.network.llm, len(CATEGORIES))


def test_looks_begin_as_their_words(model):
    learner = LanguageModel(model.network.llm, len(CATEGORIES))
    embedding = model.network.llm.get_input_embeddings()
    learner.symbols.name(embedding, model.tokenizer)
    for i, color in enumerate(COLORS):
        ids = model.tokenizer(f" {color}", add_special_tokens=False)["input_ids"]
        own = embedding.weight[ids].mean(0)
        torch.testing.assert_close(learner.symbols.object_embed.weight[:, i], own)
        torch.testing.assert_close(learner.symbols.cell_embed.weight[:, i], own)
    own = learner.symbols.object_embed.weight[:, : sum(map(len, LOOKS))]
    for linear in (learner.symbols.object_embed, learner.symbols.cell_embed):
        assert float((linear.weight[:, -2 * ALIKE :].std() / own.std()).detach()) == pytest.approx(1, abs=0.1)
    for color, shape in NEIGHBOUR_LOOKS:  # as loud, and nobody's word
        for first, looks in ((color, COLORS), (shape, SHAPES)):
            others = learner.symbols.object_embed.weight[:, first : first + len(looks)]
            assert float((others.std() / own.std()).detach()) == pytest.approx(1, abs=0.1)
            assert torch.cosine_similarity(others[:, :, None], own[:, None], dim=0).detach().abs().max() < 0.8
