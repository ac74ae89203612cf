"""Questions in the words of people: the same questions about the same objects, and wordings that no training has."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pixelrefer_fast.world import CATEGORIES, ask_about, make_scene
from pixelrefer_fast.world.questions import REGION, SPOKEN_ONLY, UNKNOWN, Speech
from pixelrefer_fast.world.spelling import respell
from pixelrefer_fast.world.spoken import HELD_OUT, SPOKEN, TRAINED
from pixelrefer_fast.world.things import SIZES
from pixelrefer_fast.world.wordings import PLAIN

SCENES = [make_scene(seed, "heldout", video) for seed in range(40) for video in (False, True)]


def _slots(wording: str) -> list[str]:
    return sorted(re.findall(r"\{\w*\}", wording))


def _bare(wording: str) -> str:
    return " ".join(re.findall(r"[a-z']+|\{\w*\}", wording.lower())).replace("'", "")


def test_about_a_third_of_each_kind_is_in_no_training() -> None:
    assert SPOKEN.keys() == TRAINED.keys() == HELD_OUT.keys()
    for kind, own in SPOKEN.items():
        assert len(set(own)) == len(own)
        assert {*TRAINED[kind], *HELD_OUT[kind]} <= set(own)
        assert len(own) // 3 - 3 <= len(HELD_OUT[kind]) <= len(own) // 3
        assert HELD_OUT[kind]
        assert len(TRAINED[kind]) == len(own) - len(own) // 3


def test_no_wording_held_out_differs_from_a_trained_one_in_capitals_and_marks_alone() -> None:
    for kind, own in HELD_OUT.items():
        assert not {_bare(wording) for wording in own} & {_bare(wording) for wording in TRAINED[kind]}, kind


def test_wordings_ask_for_what_the_plain_ones_of_their_kind_ask() -> None:
    for kind, own in SPOKEN.items():
        plain = {tuple(_slots(wording)) for wording in PLAIN.get(kind, ())}
        for wording in own:
            assert not plain or tuple(_slots(wording)) in plain, (kind, wording)


@pytest.mark.parametrize("scene", SCENES[:30], ids=lambda scene: f"{scene.seed}-{'video' if scene.video else 'image'}")
def test_spoken_questions_are_the_plain_ones_and_three_kinds_more(scene) -> None:
    plain = ask_about(scene, scene.seed)
    spoken = ask_about(scene, scene.seed, speech=Speech(SPOKEN))
    assert {q.category for q in spoken} <= {*CATEGORIES, *SPOKEN_ONLY}
    kinds = {q.kind for q in plain} - {"description"}
    for kind in kinds:
        assert any(q.kind == kind for q in spoken), kind
    for question in spoken:
        assert question.text.count(REGION) == len(question.objects) == len(set(question.objects)) >= 1
        assert "{" not in question.text
        assert question.answer == question.answer.lower()


def test_sizes_checks_and_what_nobody_can_know() -> None:
    answers: dict[str, set[str]] = {kind: set() for kind in SPOKEN_ONLY}
    for scene in SCENES:
        for question in ask_about(scene, scene.seed, speech=Speech(SPOKEN)):
            if question.kind in SPOKEN_ONLY:
                answers[question.kind].add(question.answer)
            if question.kind == "size":
                assert question.answer == scene.things[question.objects[0]].size
    assert answers == {"size": set(SIZES), "check": {"yes", "no"}, "unknown": {UNKNOWN}}


def test_another_spelling_keeps_regions_and_comes_from_the_generator() -> None:
    text = "What is the color of the largest object left of <region>, compared with <region>?"
    drawn = [respell(text, np.random.default_rng(seed)) for seed in range(60)]
    assert drawn == [respell(text, np.random.default_rng(seed)) for seed in range(60)]
    assert all(one.count(REGION) == 2 for one in drawn)
    assert len(set(drawn)) > 20
    assert any("colour" in one for one in drawn)
    assert any(one == one.lower() for one in drawn)


def test_named_objects_are_asked_about_by_their_names_among_others() -> None:
    speech = Speech(PLAIN, named=0.3, others=1.0)
    found = 0
    for scene in SCENES:
        for question in ask_about(scene, scene.seed, speech=speech):
            first, _, rest = question.text.partition("\n")
            if not rest or "There is one object" in first:
                continue
            assert re.findall(r"<object(\d+)><region>", first) == [str(i) for i in range(len(question.objects))]
            asked = [question.objects[int(place)] for place in re.findall(r"<object(\d+)>", rest)]
            assert len(set(asked)) == len(asked) >= 1
            found += len(asked) < len(question.objects)
            if question.kind == "color":
                assert question.answer == scene.things[asked[0]].color
            if question.kind == "name":
                assert question.answer == scene.things[asked[0]].shape
    assert found > 50
