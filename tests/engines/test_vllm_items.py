"""What goes to vLLM's workers, without vLLM: the tokens of `encode` from items, digests, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from mixed_requests import mixed_requests

import pixelrefer_fast as pf
from pixelrefer_fast.batching.engines import EngineKeywords
from pixelrefer_fast.checkpoint.tokenizer import IMAGE_TOKEN
from pixelrefer_fast.engines import packed_pass
from pixelrefer_fast.engines.items import VisionItem, digest_of
from pixelrefer_fast.engines.packed_pass import embed_items
from pixelrefer_fast.engines.prompts import Vision, place_tokens
from pixelrefer_fast.engines.vllm import Marked, chat_prompt
from pixelrefer_fast.engines.vllm.fragments import read_fragment
from pixelrefer_fast.engines.vllm.marked import read_items
from pixelrefer_fast.engines.vllm.writing import VllmOptions
from pixelrefer_fast.engines.writer import PromptWriter
from pixelrefer_fast.planning.options import EncodeOptions, read_options

PICTURE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
BOXES = [[5, 5, 50, 60], [40, 20, 110, 80], [60, 60, 80, 85]]


def items(model: Any, ask: pf.Ask) -> list[VisionItem]:
    """As processors make them."""
    encode = read_options({k: v for k, v in ask.options.items() if k != "max_new_tokens"}, EncodeOptions)
    writer = PromptWriter(model.config, model.tokenizer, 4096)
    return writer.write(chat_prompt(ask.question or ""), pf.open_media(ask.media), ask.regions, encode)[1]


def sent(given: Sequence[VisionItem]) -> list[VisionItem]:
    """After the way to a worker."""
    return [VisionItem.from_tensors({k: v.clone() for k, v in one.to_tensors().items()}) for one in given]


@pytest.fixture(params=["lite", "full"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_items_of_many_requests_in_one_pass_have_the_tokens_of_encode(model: Any) -> None:
    asks = mixed_requests(model.kind, 12, seed=3)
    given = [sent(items(model, ask)) for ask in asks]
    tokens = iter(embed_items(model.network, [one for own in given for one in own]))
    for ask, own in zip(asks, given, strict=True):
        options = {k: v for k, v in ask.options.items() if k != "max_new_tokens"}
        objects = model.encode(ask.media, ask.regions, **options)
        found = [next(tokens) for _ in own]
        assert [len(one) for one in found] == [one.tokens for one in own]
        if objects.scene is not None:
            scene = found.pop(0)
            assert torch.equal(own[0].kept, objects.scene.kept)
            torch.testing.assert_close(scene, objects.scene.tokens, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.cat(found), objects.tokens, rtol=1e-5, atol=1e-5)


def test_views_that_items_share_are_encoded_once(lite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = sent(items(lite, pf.Ask(PICTURE, "<region><region><region>", BOXES)))
    grids = []
    features = lite.network.features
    monkeypatch.setattr(
        lite.network, "features", lambda packed, views, reads: grids.append(views) or features(packed, views, reads)
    )
    embed_items(lite.network, own)
    assert len(grids[0]) == 2 + len(BOXES)  # one global and one local view, and a crop for each


def test_many_items_go_through_several_passes(lite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = sent(items(lite, pf.Ask(PICTURE, "<region><region><region>", BOXES)))
    together = embed_items(lite.network, own)
    passes = []
    views = lite.network.views
    monkeypatch.setattr(lite.network, "views", lambda plan, *rest: passes.append(plan) or views(plan, *rest))
    monkeypatch.setattr(packed_pass, "PATCHES", max(one.plan.first_rows[-1] for one in own))
    for tokens, expected in zip(embed_items(lite.network, own), together, strict=True):
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)
    assert len(passes) == len(own)


def test_a_digest_covers_mask_pixels_and_the_requests_first_mask(model: Any) -> None:
    def digests(picture: np.ndarray, boxes: list[list[int]], **options: Any) -> list[str]:
        question = "<region>" * len(boxes)
        return [digest_of(one.to_tensors()) for one in items(model, pf.Ask(picture, question, boxes, **options))]

    base = digests(PICTURE, BOXES)
    assert digests(PICTURE.copy(), BOXES) == base
    assert len(set(base)) == len(base)
    moved = digests(PICTURE, [[6, 5, 51, 60], *BOXES[1:]])
    if model.kind == "lite":  # all look at the first object's local view
        assert not set(moved) & set(base)
    else:  # the scene and the other objects are what they were
        assert len(set(moved) & set(base)) == len(base) - 1
    other = PICTURE.copy()
    other[20, 20] ^= 1
    assert digests(other, BOXES)[-len(BOXES)] != base[-len(BOXES)]
    fewer = digests(PICTURE, BOXES[:1])
    if model.kind == "full":
        assert fewer[0] == base[0]


@pytest.mark.parametrize("question", ["What is <region>?", "  <region> ", "Wie groß ist <region>,\n und warum?"])
def test_a_prompt_is_that_of_ask(model: Any, question: str) -> None:
    frames = [PICTURE, PICTURE.copy(), PICTURE[::-1].copy()]
    region = {1: BOXES[0], 2: BOXES[1]} if model.kind == "lite" else {1: BOXES[0]}
    for media, regions in ((PICTURE, BOXES[:1]), (frames, [region])):
        objects = model.encode(media, regions)
        prompt = model.network.build_prompt(question, objects)
        scene = objects.scene
        vision = None if scene is None else Vision(scene.counts, objects.times, scene.kept)
        placed = place_tokens(model.tokenizer, chat_prompt(question), objects.objects, vision)
        keep = torch.ones(len(prompt.input_ids), dtype=torch.bool)
        if scene is not None:
            keep[prompt.image_slots] = scene.kept
        assert placed.ids == prompt.input_ids[keep].tolist()
        region_id, image_id = model.tokenizer.convert_tokens_to_ids(["<REGION>", IMAGE_TOKEN])
        assert [placed.ids[i] for own in placed.marks for i in own.tolist()] == [region_id] * len(objects.tokens)
        assert [placed.ids[i] for i in placed.vision.tolist()] == [image_id] * len(placed.vision)


def test_later_turns_have_their_own_tags(lite: Any) -> None:
    objects = lite.encode(PICTURE, BOXES[:2]).objects
    text = chat_prompt("What is <region>?") + "a star<|im_end|>\n" + chat_prompt("And <region>?")
    placed = place_tokens(lite.tokenizer, text, objects, None)
    first = place_tokens(lite.tokenizer, chat_prompt("What is <region>?"), objects[:1], None)
    assert placed.ids[: len(first.ids)] == first.ids
    assert len(placed.marks) == 2
    with pytest.raises(ValueError, match=r"for each of the 1 region\(s\), got 2"):
        place_tokens(lite.tokenizer, text, objects[:1], None)


def test_fragments_mark_boxes_and_anything_that_has_json() -> None:
    regions, options = read_fragment("xywh=1,2,30,40&xywh=percent:50,50,25,25", 80, 120)
    assert [region.mask(80, 120).sum() for region in regions] == [30 * 40, 30 * 20]
    assert options == {}
    rle = '{"size":[4,3],"counts":[2,4,6]}'
    (region,), options = read_fragment(f"region={rle}&fps=2&max_frames=8", 4, 3)
    assert region.mask(4, 3).sum() == 4
    assert options == {"fps": 2, "max_frames": 8}
    regions, _ = read_fragment('region=[[0,0,2,2],{"type":"box","xywh":[0,0,1,1]}]', 4, 3)
    assert [region.mask(4, 3).sum() for region in regions] == [4, 1]
    for fragment, message in (
        ("xywh=1,2", "xywh: expected"),
        ("xywh=inch:1,2,3,4", "xywh: expected"),
        ("region={", "fragment: expected JSON"),
        ("t=3", "fragment: expected xywh="),
        ("region=3", "region 0"),
    ):
        with pytest.raises(ValueError, match=message):
            read_fragment(fragment, 4, 3)


def test_an_alpha_channel_marks_and_several_images_must_be_one() -> None:
    alpha = np.zeros((90, 120), np.uint8)
    alpha[10:20, 30:50] = 255
    read = read_items([np.dstack([PICTURE, alpha])])
    assert np.array_equal(read.regions[0].mask(90, 120), alpha > 0)
    assert np.array_equal(read.media, PICTURE)
    joined = read_items([Marked(PICTURE, BOXES[:1]), Marked(PICTURE.copy(), BOXES[1:])])
    assert len(joined.regions) == 3
    with pytest.raises(ValueError, match="one image or video in a prompt"):
        read_items([Marked(PICTURE, BOXES[:1]), Marked(PICTURE[::-1].copy(), BOXES[1:])])
    with pytest.raises(ValueError, match="the same with each region"):
        read_items([Marked(PICTURE, BOXES[:1], fps=1), Marked(PICTURE, BOXES[1:], fps=2)])
    with pytest.raises(ValueError, match="expected a Marked or an image"):
        read_items(["cat.jpg"])


def test_type_checkers_know_the_options_of_engines() -> None:
    assert EngineKeywords.__annotations__.keys() >= {own.name for own in fields(VllmOptions)}
