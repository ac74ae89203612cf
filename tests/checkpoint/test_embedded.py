"""The embedded models answer right: held-out questions of every category through every backend that can run here."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sampling import at_most, least_right, lower_bound

import pixelrefer_fast as pf
from pixelrefer_fast.checkpoint.embedded import EMBEDDED_FULL, EMBEDDED_LITE, TITLES, embedded_folder
from pixelrefer_fast.ops.extension import load as extension
from pixelrefer_fast.world import CATEGORIES, ask_about, make_scene, normalise
from pixelrefer_fast.world.evaluate import Evaluation, evaluate
from pixelrefer_fast.world.marked import scene_media, scene_region

SAMPLE = 180  # questions: twenty of each category
OTHER_SCENES = 2_000_000  # none of those that eval.json is about
MEGABYTES = 12  # of a model on disk


@pytest.fixture(scope="module", params=[EMBEDDED_LITE, EMBEDDED_FULL])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return pf.load(name, device="cpu")


@pytest.fixture(scope="module")
def known(name: str) -> dict[str, Any]:
    return json.loads((embedded_folder(name) / "eval.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sample(model: Any) -> Evaluation:
    return evaluate(model, SAMPLE, seed=OTHER_SCENES)


def test_held_out_questions_are_answered_as_well_as_the_card_says(sample: Evaluation, known: dict[str, Any]) -> None:
    found = sample.by_category()
    assert tuple(found) == CATEGORIES
    for category, score in found.items():
        expected = known["categories"][category]
        right = round(score["accuracy"] * score["n"])
        least = least_right(expected["accuracy"], expected["n"], score["n"])
        assert right >= least, f"{category}: {right} of {score['n']} are right, {least} at least by {expected}"
        assert expected["n"] >= 150
    total = sum(r.right for r in sample.results)
    assert total >= least_right(known["accuracy"], known["questions"], SAMPLE)


def test_the_card_s_numbers_are_of_the_weights_that_ship(model: Any, known: dict[str, Any]) -> None:
    assert known["weights"] == model.fingerprint, "run: python training/train_mini.py ask-..."


def test_the_bounds_would_notice_a_model_that_guesses(known: dict[str, Any]) -> None:
    """A bound that any model passes shows nothing."""
    of_each = SAMPLE // len(CATEGORIES)
    for category in CATEGORIES:
        expected = known["categories"][category]
        if expected["accuracy"] >= 0.85:
            assert least_right(expected["accuracy"], expected["n"], of_each) >= 0.4 * of_each, category
    # guessing the most frequent answer of each category gives less than a third
    assert least_right(known["accuracy"], known["questions"], SAMPLE) > 0.45 * SAMPLE


def test_the_extension_gives_the_same_answers(name: str, sample: Evaluation) -> None:
    if (reason := extension.reason("cpu")) is not None:
        pytest.skip(f"the compiled extension is not usable here: {reason}")
    compiled = evaluate(pf.load(name, device="cpu", backend="cuda"), SAMPLE // 4, seed=OTHER_SCENES)
    plain = evaluate(pf.load(name, device="cpu", backend="torch"), SAMPLE // 4, seed=OTHER_SCENES)
    assert [r.answer for r in compiled.results] == [r.answer for r in plain.results]
    assert compiled.accuracy > 0.5


@pytest.mark.kernel
def test_the_kernels_give_the_same_answers(name: str, model: Any, kernel_device: Any) -> None:
    kernels = pf.load(name, device=kernel_device, dtype="float32", backend="triton")
    scene = make_scene(OTHER_SCENES, "heldout", video=False)
    (question,) = ask_about(scene, 0, ["description"], limit=1)
    regions = [scene_region(scene, i, model.kind) for i in question.objects]
    answer = kernels.ask(scene.frames[0], question.text, regions, max_new_tokens=2)
    assert answer == model.ask(scene.frames[0], question.text, regions, max_new_tokens=2)
    assert normalise(answer).split()[0] in ("small", "medium", "large")


def test_lite_is_what_is_loaded_without_a_name() -> None:
    model = pf.load(device="cpu")
    assert model.kind == "lite"
    scene = make_scene(3, "heldout", video=False)
    texts = model.describe(scene.frames[0], [mask[0] for mask in scene.masks])
    assert len(texts) == len(scene.things)
    words = {word for text in texts for word in text.split()}
    assert len(words & {thing.shape for thing in scene.things}) >= 1
    assert len(words & {thing.color for thing in scene.things}) >= 1
    assert pf.load(EMBEDDED_FULL, device="cpu").kind == "full"


def test_the_folders_are_checkpoints_small_enough_to_ship(name: str) -> None:
    folder = embedded_folder(name)
    assert folder.name == TITLES[name]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MEGABYTES * 10**6


def test_model_cards_are_what_is_made_of_the_results(name: str, known: dict[str, Any]) -> None:
    folder = embedded_folder(name)
    tool = runpy.run_path(str(Path(__file__).parents[2] / "training" / "model_card.py"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == tool["card"](folder), "run training/model_card.py"
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert f"# {TITLES[name]}\n" in card
    assert "make mini" in card
    assert f"| all | {known['questions']} | {known['accuracy']:.1%} |" in card
    with pytest.raises(ValueError, match=r"config\.json: expected a JSON file"):
        tool["card"](folder / "none")


def test_names_of_models_that_are_not_embedded() -> None:
    with pytest.raises(ValueError, match=r"embedded:lite or embedded:full .*got 'embedded:big'"):
        pf.load("embedded:big")
    with pytest.raises(ValueError, match="embedded:lite"):
        embedded_folder("lite")


def test_a_folder_of_that_name_is_taken_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "embedded:lite").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json"):
        pf.load("./embedded:lite")


def test_answers_are_the_same_alone_and_in_a_batch(model: Any, sample: Evaluation) -> None:
    """The evaluation asks in batches; one by one, the same is said."""
    for result in sample.results[:6]:
        scene = make_scene(result.scene, "heldout", result.video)
        regions = [scene_region(scene, i, model.kind) for i in result.question.objects]
        assert model.ask(scene_media(scene), result.question.text, regions, max_new_tokens=24) == result.answer


def test_bounds() -> None:
    assert at_most(1, 2, 0.5) == pytest.approx(0.75)
    assert lower_bound(1.0, 100, 0.05) == pytest.approx(0.05 ** (1 / 100))
    assert lower_bound(0.0, 10, 0.05) == 0.0
    # 97 of 100 are compatible with less than 0.97, and 20 questions with fewer right than that
    assert 0.85 < lower_bound(0.97, 100, 1e-3) < 0.95
    assert np.all([12 <= least_right(0.97, 500, 20) <= 18])
    assert least_right(0.0, 100, 20) == 0
