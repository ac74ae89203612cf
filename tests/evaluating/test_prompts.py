"""Judges' words: ours have every hole, and a checkout's are read from where its scripts have them."""

from __future__ import annotations

from pathlib import Path

import pytest
from judge_stub import JudgeStub, text_of

from pixelrefer_fast.evaluating.benchmark import Tools
from pixelrefer_fast.evaluating.benchmarks import BENCHMARKS
from pixelrefer_fast.evaluating.items import Reply
from pixelrefer_fast.evaluating.judging.checkout import checkout_prompts
from pixelrefer_fast.evaluating.judging.endpoint import Endpoint
from pixelrefer_fast.evaluating.judging.judge import Judge
from pixelrefer_fast.evaluating.judging.prompts import (
    CANDIDATES,
    CAPTION,
    NAME,
    QUESTION,
    TARGETS,
    JudgePrompts,
    filled,
)

FILES = {
    "clair/clair.py": '_CLAIR_PROMPT = """C {candidate_statements} T {target_statements}"""\n',
    "dam/eval.py": """
prompt_eval = "D {pred_caption} Q {question_text_str}"
if plural:
    recognition_question = f"Are the objects in it {class_name}?"
else:
    recognition_question = f"Is the object in it {p.a(class_name)}?"
""",
    "refl4/gpt.py": 'prompt="shorten"\n',
    "ferret_bench/2.eval_ferret.py": 'x = [{"role": "system", "content": "review"}, {"role": "user", "content": y}]\n',
    "videorefer_bench_d/system.txt": "rate",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "PixelRefer/evaluation" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_words_of_a_checkout(checkout: Path) -> None:
    prompts = checkout_prompts(checkout)
    assert prompts == JudgePrompts(
        clair="C {candidate_statements} T {target_statements}",
        choice="D {pred_caption} Q {question_text_str}",
        one_object="Is the object in it {class_name}?",
        many_objects="Are the objects in it {class_name}?",
        rating="rate",
        condensing="shorten",
        review="review",
        origin="reference",
    )
    assert checkout_prompts(checkout / "PixelRefer/evaluation") == prompts
    own, theirs = JudgePrompts().provenance(), prompts.provenance()
    assert own["origin"] == "own"
    assert own["sha256"] != theirs["sha256"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("refl4/gpt.py", "x = 1", "expected one text prompt, got 0"),
        ("refl4/gpt.py", 'prompt = "a"\nprompt = "b"', "expected one text prompt, got 2"),
        ("refl4/gpt.py", "prompt = (", "expected Python"),
        ("clair/clair.py", '_CLAIR_PROMPT = "no holes"', "expected one text _CLAIR_PROMPT, got 0"),
        ("ferret_bench/2.eval_ferret.py", "", "of the role system, got 0"),
    ],
)
def test_another_checkout_is_refused(checkout: Path, name: str, text: str, words: str) -> None:
    (checkout / "PixelRefer/evaluation" / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        checkout_prompts(checkout)


def test_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--reference .*: expected PixelRefer/evaluation/clair/clair.py in it"):
        checkout_prompts(tmp_path)


def test_own_words_have_every_hole() -> None:
    own = JudgePrompts()
    assert CANDIDATES in own.clair
    assert TARGETS in own.clair
    assert CAPTION in own.choice
    assert QUESTION in own.choice
    assert NAME in own.one_object
    assert NAME in own.many_objects
    for name in ("Subject Correspondence", "Appearance Description", "Temporal Description", "Hallucination Detection"):
        assert f". {name}: N" in own.rating


def test_texts_in_holes_stay_as_they_are() -> None:
    text = filled("a {pred_caption} b {question_text_str}", pred_caption="{question_text_str}", question_text_str="x")
    assert text == "a {question_text_str} b x"
    assert filled("{other} {pred_caption}", pred_caption="{}") == "{other} {}"


def test_the_words_reach_the_judge(checkout: Path, stub: JudgeStub, tmp_path: Path) -> None:
    tools = Tools(judge=Judge(Endpoint(stub.url, "m"), tmp_path / "judge.jsonl"), prompts=checkout_prompts(checkout))
    BENCHMARKS["refl4-clair"].score([Reply("0", {"caption": "ab"}, "A red mug with a handle.")], tools)
    assert text_of(stub.requests[0]["messages"]) == "C - A red mug with a handle.\n T - a\n- b\n"
    BENCHMARKS["videorefer-d"].score([Reply("0", {"caption": "x"}, "y")], tools)
    assert stub.requests[1]["messages"][0] == {"role": "system", "content": "rate"}
    assert text_of(stub.requests[1]["messages"]) == "##Correct answer: x\n##Predicted answer: y\n"
