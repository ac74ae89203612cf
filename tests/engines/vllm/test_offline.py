"""`LLM.generate` and `LLM.chat` with regions as Python objects: the tokens of `ask`, chunked and cached."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm_requests import FOLDERS, SMALL, differing, params_of, prompts_of

import pixelrefer_fast as pf
from pixelrefer_fast.engines.vllm import Marked, chat_prompt
from pixelrefer_fast.world import make_scene


@pytest.fixture(scope="module")
def llm(kind: str) -> Iterator[Any]:
    """An engine that takes 64 tokens of prompts at a time."""
    from vllm import LLM

    engine = LLM(str(FOLDERS[kind]), max_num_batched_tokens=64, **SMALL)
    yield engine
    engine.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    return pf.load(f"embedded:{kind}", dtype="float32")


def test_tokens_are_those_of_ask_in_chunks_and_from_a_warm_cache(llm: Any, kind: str, requests_of: Any) -> None:
    asks, answers = requests_of(kind)
    prompts, params = prompts_of(asks), params_of(asks)
    cold = llm.generate(prompts, params, use_tqdm=False)
    assert differing(answers, cold) == []
    warm = llm.generate(prompts, params, use_tqdm=False)
    assert differing(answers, warm) == []
    assert sum(output.num_cached_tokens for output in warm) > sum(output.num_cached_tokens for output in cold)


def test_questions_about_one_scene_share_its_cached_tokens(llm: Any, kind: str) -> None:
    """PixelRefer's vision tokens are an item of their own, whatever is marked."""
    scene = make_scene(1200, "heldout", False)
    picture = np.asarray(scene.frames[0])
    boxes = [[2, 2, 40, 40], [20, 30, 90, 80]]
    prompts = prompts_of([pf.Ask(picture, "What is <region>?", [box], max_new_tokens=1) for box in boxes])
    found = [llm.generate([prompt], use_tqdm=False)[0].num_cached_tokens for prompt in prompts]
    if kind == "full":
        assert found[1] > 32
    else:
        assert found[1] == 0  # the object comes within the first block


def test_other_regions_are_other_items(llm: Any, model: Any) -> None:
    """A hash that left out the mask would answer about the first region again."""
    scene = make_scene(1201, "heldout", False)
    picture = np.asarray(scene.frames[0])
    masks = [mask[0] for mask in scene.masks]
    for regions in ([masks[0], masks[1]], [masks[1], masks[0]], [masks[1], masks[1]]):
        question = "Which of <region> and <region> is larger?"
        prompt = {"prompt": chat_prompt(question), "multi_modal_data": {"image": Marked(picture, regions)}}
        found = llm.generate(prompt, params_of([pf.Ask(0, max_new_tokens=12)]), use_tqdm=False)[0]
        assert found.outputs[0].text == model.ask(picture, question, regions, max_new_tokens=12)


def test_chat_takes_marked_media_and_alpha_channels(llm: Any, model: Any) -> None:
    scene = make_scene(1202, "heldout", False)
    picture, mask = np.asarray(scene.frames[0]), scene.masks[0, 0]
    expected = model.ask(picture, "What color is <region>?", [mask], max_new_tokens=12)
    transparent = Image.fromarray(np.dstack([picture, mask.astype(np.uint8) * 255]))
    for image in (Marked(picture, [mask]), transparent):
        content = [{"type": "image_pil", "image_pil": image}, {"type": "text", "text": "What color is <region>?"}]
        (found,) = llm.chat(
            [{"role": "user", "content": content}], params_of([pf.Ask(0, max_new_tokens=12)]), use_tqdm=False
        )
        assert found.outputs[0].text == expected


@pytest.mark.parametrize(
    ("question", "regions", "message"),
    [
        ("What is it?", 1, r"expected a <region> tag for each of the 1 region\(s\), got 0"),
        ("Which of <region> and <region>?", 1, r"expected a <region> tag for each of the 1 region\(s\), got 2"),
        ("What is <region>?", 2, r"expected a <region> tag for each of the 2 region\(s\), got 1"),
        ("What is <region>?", 0, "regions: expected at least one, got none"),
    ],
)
def test_wrong_numbers_of_tags_are_named(llm: Any, question: str, regions: int, message: str) -> None:
    marked = Marked(np.zeros((60, 60, 3), np.uint8), [[5, 5, 30, 30]] * regions)
    with pytest.raises(ValueError, match=message):
        llm.generate({"prompt": chat_prompt(question), "multi_modal_data": {"image": marked}}, use_tqdm=False)


def test_images_of_one_prompt_are_one_image(llm: Any, model: Any) -> None:
    picture = np.random.default_rng(4).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    boxes = [[5, 5, 40, 40], [30, 20, 80, 70]]
    question = "Which of <region> and <region> is larger?"
    each = [Marked(picture.copy(), [box]) for box in boxes]
    prompt = {"prompt": chat_prompt(question), "multi_modal_data": {"image": each}}
    found = llm.generate(prompt, params_of([pf.Ask(0, max_new_tokens=8)]), use_tqdm=False)[0]
    assert found.outputs[0].text == model.ask(picture, question, boxes, max_new_tokens=8)
    other = [each[0], Marked(picture[::-1].copy(), [boxes[1]])]
    with pytest.raises(ValueError, match=re.escape("expected one image or video in a prompt")):
        llm.generate({"prompt": chat_prompt(question), "multi_modal_data": {"image": other}}, use_tqdm=False)
