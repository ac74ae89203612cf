"""A packed batch computes what its samples compute alone, through the prompts that questions have at inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from passes import encode_plan

import pixelrefer_fast as pf
from pixelrefer_fast.media import open_media
from pixelrefer_fast.planning.merge import join
from pixelrefer_fast.planning.request import FrameSource, Request
from pixelrefer_fast.regions import Region
from pixelrefer_fast.train.batch import Sample, collate
from pixelrefer_fast.train.module import TrainingModel

IMAGE = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
FRAMES = [np.full((64, 96, 3), 40, np.uint8) for _ in range(3)]
FRAMES[1][10:40, 20:60] = 200
FRAMES[2][30:60, 40:90] = 120


def box(x: int, y: int, side: int = 30) -> Region:
    return Region.from_box(xyxy=(x, y, x + side, y + side))


def samples(kind: str) -> list[list[Sample]]:
    """Of an image: two questions about one request, one about two objects, a conversation; of a video: two."""
    image = FrameSource.of_images([IMAGE])
    scene = [0] if kind == "full" else []
    one = Request(image, [box(5, 8)], [(0,)], scene)
    two = Request(image, [box(40, 20), box(5, 8)], [(0,), (0,)], scene)
    turns = (("Is <region> red?", "no"), ("And <region>?", "yes, it is"))
    clip = FrameSource.of(open_media(FRAMES, times=(0.0, 1.0, 2.5)))
    frames = (1,) if kind == "full" else (0, 1)
    region = Region.from_frames({f: np.pad(np.ones((30, 30), bool), ((5, 29), (9, 57))) for f in frames})
    video = Request(clip, [region], [frames], [0, 1, 2] if kind == "full" else [])
    return [
        [
            Sample(one, (("What is <region>?", "a cat"),)),
            Sample(one, (("Describe <region>.", "a small red dot"),)),
            Sample(two, (("Is <region> left of <region>?", "no"),)),
            Sample(two, turns),
        ],
        [
            Sample(video, (("How does <region> move?", "it turns"),)),
            Sample(video, (("Describe <region>.", "x"),)),
        ],
    ]


@pytest.fixture
def lite(assets):
    """Of this file's own: training changes how a model attends."""
    return pf.load(assets / "lite", device="cpu")


@pytest.fixture
def full(assets):
    return pf.load(assets / "full", device="cpu")


@pytest.fixture(params=["lite", "full"])
def model(request, lite, full):
    return {"lite": lite, "full": full}[request.param]


def logits_of(model, items: list[list[Sample]]) -> torch.Tensor:
    packed = collate(items, model.config, model.tokenizer)
    assert torch.equal(packed["labels"], packed["batch"].targets)
    with torch.no_grad():
        return TrainingModel(model.network).logits(packed["batch"])


def test_packed_samples_are_those_alone(model):
    items = samples(model.kind)
    alone = [logits_of(model, [[sample]]) for item in items for sample in item]
    together = logits_of(model, items)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_a_question_is_the_prompt_that_it_is_at_inference(model):
    """The first answer token's logits are those of `ask`."""
    for item in samples(model.kind):
        for sample in item:
            if len(sample.turns) > 1:
                continue
            (question, answer), request = sample.turns[0], sample.request
            plan = model.network.plan(request)
            tokens, scene = encode_plan(model, plan, request.source)
            objects = model.network.objects_of(request, [m.tokens for m in plan.marks], tokens, scene, "")
            embeds = model.network.embed_prompt(model.network.build_prompt(question, objects), objects)
            with torch.inference_mode():
                wanted = model.network.llm(inputs_embeds=embeds[None], use_cache=False).logits[0, -1]
            got = logits_of(model, [[sample]])
            assert len(got) == len(model.tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1
            torch.testing.assert_close(got[0], wanted, rtol=1e-4, atol=1e-4)


def test_a_scene_s_prefix_stands_once(full, lite):
    for model, shared in ((full, True), (lite, False)):
        item = samples(model.kind)[0]
        packed = collate([item], model.config, model.tokenizer)["batch"]
        alone = [collate([[s]], model.config, model.tokenizer)["batch"] for s in item]
        lengths = [len(b.input_ids) for b in alone]
        assert (packed.keys is not None) is shared
        assert (len(packed.input_ids) < sum(lengths)) is shared
        assert len(packed.kept) == len(alone[0].kept)  # the image's vision tokens
        # objects of one request are encoded once
        assert len(packed.selection.counts) < sum(len(b.selection.counts) for b in alone)


def test_only_answers_and_their_ends_are_learnt(lite):
    packed = collate(samples("lite"), lite.config, lite.tokenizer)["batch"]
    end = lite.tokenizer.eos_token_id
    said = [answer for item in samples("lite") for s in item for _, answer in s.turns]
    ids = [t for text in said for t in (*lite.tokenizer(text, add_special_tokens=False)["input_ids"], end)]
    assert packed.targets.tolist() == ids
    assert packed.input_ids[packed.learnt + 1].tolist() == ids


def test_the_loss_is_a_mean_over_all_tokens_of_a_step(lite):
    packed = collate(samples("lite"), lite.config, lite.tokenizer)
    model = TrainingModel(lite.network)
    with torch.no_grad():
        alone = model(packed["batch"])["loss"]
        half = model(packed["batch"], packed["labels"], 2 * len(packed["labels"]))["loss"]
    torch.testing.assert_close(alone, 2 * half)


def test_joined_requests_are_planned_as_alone(model):
    requests = list({id(s.request): s.request for item in samples(model.kind) for s in item}.values())
    joint = join(model.config, requests)
    assert [len(part.marks) for part in joint.parts] == [r.num_marks for r in requests]
    for request, part in zip(requests, joint.parts, strict=True):
        own = join(model.config, [request])
        assert [own.plan.views[v].grid for v in own.parts[0].scene] == [joint.plan.views[v].grid for v in part.scene]
        for a, b in zip(own.plan.marks, [joint.plan.marks[i] for i in part.marks], strict=True):
            assert (a.box, a.tokens) == (b.box, b.tokens)
            assert np.array_equal(a.mask_grid, b.mask_grid)
            assert own.plan.views[a.crop].grid == joint.plan.views[b.crop].grid
    frames = list(joint.source.read([0, 3, 1]))
    assert np.array_equal(frames[0], IMAGE)
    assert np.array_equal(frames[1], FRAMES[2])
    assert np.array_equal(frames[2], FRAMES[0])
