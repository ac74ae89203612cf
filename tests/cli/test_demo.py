"""`demo`: both embedded models on a held-out scene and a held-out video."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import one_error_line
from PIL import Image

from pixelrefer_fast.checkpoint.embedded import EMBEDDED_FULL, EMBEDDED_LITE
from pixelrefer_fast.cli.demo import picture as demo_picture
from pixelrefer_fast.cli.demo.run import CATEGORIES, SEED, chosen_questions
from pixelrefer_fast.world import make_scene

LINES = [
    demo_picture.DemoQuestion(
        "Which is larger, <region> or <region>?",
        (1, 0),
        "the first",
        {"Lite": ("the first", True), "Full": ("a very long answer that ends nowhere " * 9, False)},
    ),
    demo_picture.DemoQuestion("What is <region>?", (0,), "a circle", {"Lite": ("", False), "Full": ("a circle", True)}),
]


def test_demo(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    result = run("demo", "--out", str(tmp_path / "new"))
    assert result.code == 0, result.err
    assert "PixelRefer-Lite-mini" in result.out
    assert "encoder" in result.out
    for name in ("image", "video"):
        assert f"{name}.png" in result.out.replace("\n", "")
        with Image.open(tmp_path / "new" / f"{name}.png") as picture:
            assert picture.width == demo_picture.WIDTH
            assert 500 < picture.height < 1800


def test_demo_as_json(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    result = run("demo", "--out", str(tmp_path), "--seed", "3", "--json")
    report = json.loads(result.out)
    assert report["seed"] == 3
    assert list(report["models"]) == [EMBEDDED_LITE, EMBEDDED_FULL]
    asked = sum(len(report[what]["questions"]) for what in ("image", "video"))
    for name in report["models"]:  # guessing the most frequent answers gives a quarter
        assert sum(report[what]["right"][name] for what in ("image", "video")) >= 0.4 * asked
    for what in ("image", "video"):
        part = report[what]
        assert part["scene"]["kind"] == what
        assert part["scene"]["split"] == "heldout"
        assert Path(part["saved"]).is_file()
        assert len(part["questions"]) >= 5
        for name in report["models"]:
            answers = [entry["answers"][name] for entry in part["questions"]]
            assert all(answer["seconds"] > 0 for answer in answers)
            assert part["right"][name] == sum(answer["right"] for answer in answers)
        lite, full = part["costs"][EMBEDDED_LITE], part["costs"][EMBEDDED_FULL]
        assert (lite["vision_tokens"], full["vision_tokens"] > 0) == (0, True)
        assert full["prompt_tokens"] > lite["prompt_tokens"]
        assert full["prefill_flops"] > lite["prefill_flops"] > 0
        for costs in (lite, full):
            stages = [costs[f"{stage}_flops"] for stage in ("encoder", "region", "prefill", "decode")]
            assert min(stages) > 0
            assert costs["flops"] == sum(stages)
            assert costs["memory"] > 10**7
            assert costs["seconds"] > 0


def test_bad_targets(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one_error_line(run("demo", "--out", str(tmp_path / "file")), "--out")
    assert run("demo", "--seed", "-1").code == 2


@pytest.mark.parametrize("video", [False, True])
def test_questions_are_of_all_categories_and_of_different_objects(video: bool) -> None:
    scene = make_scene(SEED, "heldout", video)
    questions = chosen_questions(scene, SEED)
    assert sorted(q.category for q in questions) == sorted(CATEGORIES[video])
    assert len({(q.text, q.objects) for q in questions}) == len(questions)
    assert {i for q in questions for i in q.objects} == set(range(len(scene.things)))
    assert not any("\n" in q.text for q in questions)


def test_pictures_show_every_object_and_hide_none() -> None:
    scene = make_scene(SEED, "heldout", video=False)
    picture = np.asarray(demo_picture.marked_frame(scene, 0, 560, 600, 20))
    tall, wide = scene.size
    assert picture.shape[1] / picture.shape[0] == pytest.approx(wide / tall, rel=0.02)
    scale = picture.shape[1] / wide
    plain = np.asarray(Image.fromarray(scene.frames[0]).resize(picture.shape[1::-1], Image.Resampling.BICUBIC))
    for mask in scene.masks[:, 0]:
        rows, columns = np.nonzero(mask)
        inside = ((rows + 0.5) * scale).astype(int), ((columns + 0.5) * scale).astype(int)
        difference = np.abs(picture[inside].astype(int) - plain[inside]).max(axis=1)
        assert np.median(difference) < 40  # most of what is seen of it is seen in the picture


def test_long_and_missing_answers_stay_in_the_picture() -> None:
    for video, draw in ((False, demo_picture.scene_picture), (True, demo_picture.video_picture)):
        picture = np.asarray(draw(make_scene(SEED, "heldout", video), "title", "subtitle", LINES, ["a", "b"]))
        edge = np.concatenate([picture[:, -20:].reshape(-1, 3), picture[:, :20].reshape(-1, 3)])
        assert (edge == 255).all()
        assert picture.shape[1] == demo_picture.WIDTH
        assert (picture == demo_picture.WRONG).all(axis=2).sum() > 50
