"""Questions and regions to token ids, against texts written out by hand from section 6 of the spec."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.decoding.prompt import build_prompt, expand_question, scene_text
from pixelrefer_fast.planning.request import ObjectTokens


def _regions(*counts: int) -> list[ObjectTokens]:
    return [ObjectTokens((c,)) for c in counts]


R, I = "<REGION>", "<image>"  # noqa: E741 (short, for the texts below)


@pytest.mark.parametrize(
    ("question", "objects", "expected"),
    [
        ("What is <region>?", _regions(2), f"What is [{R}{R}]?"),
        ("<region><region>", _regions(1, 3), f"[{R}][{R}{R}{R}]"),
        ("Is <region> left of\n<region> ?", _regions(1, 0), f"Is [{R}] left of\n[] ?"),
        ("No tag at all", [], "No tag at all"),
        ("Keep  inner   space <region>", _regions(1), f"Keep  inner   space [{R}]"),
        ("Back\\slash \\1 \\g<0> <region>", _regions(1), f"Back\\slash \\1 \\g<0> [{R}]"),
        (
            "Follow <region> and <region>.",
            [ObjectTokens((2, 1), (0.0, 2.54)), ObjectTokens((1,), (61.0,))],
            f"Follow [Time 0.0:{R}{R},Time 2.5:{R}] and [Time 61.0:{R}].",
        ),
    ],
)
def test_lite(question: str, objects: list[ObjectTokens], expected: str) -> None:
    assert expand_question(question, objects, None, None) == expected


@pytest.mark.parametrize(
    ("question", "scene", "expected"),
    [
        ("What is <region>?", [3], f"{I}{I}{I}\nWhat is [{R}]?"),
        ("<image>\nWhat is <region>?", [2], f"{I}{I}\nWhat is [{R}]?"),
        ("  <image> \n\n What is <region>?  ", [2], f"{I}{I}\nWhat is [{R}]?"),
        ("Look: <image> What is <region>?", [1], f"Look:{I}\nWhat is [{R}]?"),
        ("What is <region>? <image>", [1], f"What is [{R}]?{I}\n"),
        ("Is <image> like <image>? <region>", [1, 2], f"Is{I}\nlike{I}{I}\n? [{R}]"),
    ],
)
def test_full_image(question: str, scene: list[int], expected: str) -> None:
    assert expand_question(question, _regions(1), scene, None) == expected


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What does <region> do?", "{}\nWhat does [" + R + "] do?"),
        ("<video>\nWhat does <region> do?", "{}\nWhat does [" + R + "] do?"),
        ("In <video> \n: <region>", "In{}\n: [" + R + "]"),
    ],
)
def test_full_video(question: str, expected: str) -> None:
    frames = f"Time 0.0s:{I}{I},Time 1.0s:{I},Time 2.3s:"
    assert expand_question(question, _regions(1), [2, 1, 0], [0.0, 1.04, 2.26]) == expected.format(frames)


def test_scene_text() -> None:
    assert scene_text([2, 1], None) == f"{I}{I}\n{I}\n"
    assert scene_text([2, 1], [0.0, 0.5]) == f"Time 0.0s:{I}{I},Time 0.5s:{I}\n"
    assert scene_text([1], [7.06]) == f"Time 7.1s:{I}\n"
    with pytest.raises(ValueError, match="zip"):
        scene_text([1, 2], [0.0])


@pytest.mark.parametrize(
    ("question", "scene", "times", "message"),
    [
        ("", None, None, r"expected a text that is not empty, got ''"),
        (" \n", None, None, r"expected a text that is not empty, got ' \n'"),
        (None, None, None, r"expected a text that is not empty, got None"),
        (b"<region>", None, None, r"expected a text that is not empty, got b'<region>'"),
        ("What is <REGION>?", None, None, "<REGION> is reserved for object tokens; write <region> for each region"),
        ("What?", None, None, "expected a <region> tag for each of the 1 region(s), got 0 in 'What?'"),
        ("<region><region>", None, None, "expected a <region> tag for each of the 1 region(s), got 2 in '<region><re"),
        ("<image><region>", None, None, "PixelRefer-Lite sees marked objects only and takes no <image> tag"),
        ("<video><region>", None, None, "PixelRefer-Lite sees marked objects only and takes no <video> tag"),
        ("<video><region>", [1], None, "expected <image> for this input, got <video>"),
        ("<image><region>", [1], [0.0], "expected <video> for this input, got <image>"),
        ("<image><image><region>", [1], None, "expected 1 <image> tag(s), got 2 in "),
        ("<image><region>", [1, 1], None, "expected 2 <image> tag(s), got 1 in "),
        ("<region>", [1, 1], None, "expected 2 <image> tag(s), got 1 in "),
        ("<video><video><region>", [1], [0.0], "expected 1 <video> tag(s), got 2 in "),
    ],
)
def test_errors(question: Any, scene: Any, times: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^question: " + re.escape(message)):
        expand_question(question, _regions(1), scene, times)


# Token ids

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def test_ids_and_slots(full: Any) -> None:
    prompt = build_prompt(full.tokenizer, "Is <region> on <region>?", _regions(3, 1), scene=[4])
    text = CHAT.format(f"{I * 4}\nIs [{R * 3}] on [{R}]?")
    assert full.tokenizer.decode(prompt.input_ids) == text
    assert prompt.input_ids.dtype == torch.int64
    tokens = full.tokenizer.convert_ids_to_tokens(prompt.input_ids.tolist())
    assert [tokens[s] for s in prompt.region_slots] == [R] * 4
    assert [tokens[s] for s in prompt.image_slots] == [I] * 4
    assert tokens.count(R) == tokens.count(I) == 4
    for slots in (prompt.region_slots, prompt.image_slots):
        assert slots.tolist() == sorted(set(slots.tolist()))


def test_no_system_message_and_no_other_special_token(lite: Any) -> None:
    prompt = build_prompt(lite.tokenizer, "Hi <region>", _regions(1))
    special = [i for i in prompt.input_ids.tolist() if i in lite.tokenizer.all_special_ids]
    assert lite.tokenizer.convert_ids_to_tokens(special) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert len(prompt.image_slots) == 0


@given(
    words=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="<>|"), max_size=8), min_size=1, max_size=6),
    counts=st.data(),
)
def test_every_region_gets_its_tokens_in_order(lite: Any, words: list[str], counts: st.DataObject) -> None:
    numbers = counts.draw(st.lists(st.integers(0, 9), min_size=len(words) - 1, max_size=len(words) - 1))
    question = "<region>".join(words)
    if not question.strip():
        return
    prompt = build_prompt(lite.tokenizer, question, _regions(*numbers))
    tokens = lite.tokenizer.convert_ids_to_tokens(prompt.input_ids.tolist())
    assert len(prompt.region_slots) == sum(numbers)
    runs = []
    for slot in prompt.region_slots.tolist():
        if tokens[slot - 1] != R:
            runs.append(0)
        runs[-1] += 1
    assert runs == [n for n in numbers if n]


def test_a_tokenizer_without_the_tokens(lite: Any) -> None:
    class Forgetful:
        def __call__(self, text: str, **options: Any) -> dict:
            return lite.tokenizer(text.replace(R, "x"), **options)

        def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
            return lite.tokenizer.convert_tokens_to_ids(tokens)

    message = r"^question: expected 2 object and 0 vision tokens in the prompt, got 0 and 0$"
    with pytest.raises(ValueError, match=message):
        build_prompt(Forgetful(), "Hi <region>", _regions(2))
