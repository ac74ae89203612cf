"""The whole recipe of the embedded models, each part in one step: `make mini` still makes what it says."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

import pixelrefer_fast as pf

ROOT = Path(__file__).parents[2]
STEPS = 1  # of each part
ENCODER = {"steps": STEPS, "close": 2, "learning_rate": 1e-3}


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """training/train_mini.py with one step a part, which reads configs from and ships into a temporary folder."""
    module = importlib.import_module("train_mini")
    configs = tmp_path / "training" / "configs"
    configs.mkdir(parents=True)
    (tmp_path / "training" / "logs").mkdir()
    for path in (ROOT / "training" / "configs").glob("*.yaml"):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config |= {"save_every": 1}
        for stage in config["stages"]:
            stage |= {"steps": STEPS, "warmup": 0, "batch_items": 1}
        (configs / path.name).write_text(yaml.safe_dump(config), encoding="utf-8")

    def fewer(settings: dict[str, object]) -> dict[str, object]:
        if "lessons" in settings:
            shares = tuple(replace(share, scenes=1) for share in module._mixed(0)[:2])
            return settings | {"steps": STEPS, "lessons": ((0, shares),)}
        return settings | {"steps": STEPS}

    settings = {
        "ROOT": tmp_path,
        "ASSETS": tmp_path / "assets",
        "TOKENIZER_SCENES": 60,
        "QUESTIONS": 9,
        "PRETRAINING": {"close-ups": ENCODER | {"scenes": 0}, "views-7": ENCODER | {"scenes": 1, "whole": 1}},
        "LANGUAGE": {name: (earlier, fewer(own)) for name, (earlier, own) in module.LANGUAGE.items()},
        "ALIGNMENT": {kind: fewer(own) for kind, own in module.ALIGNMENT.items()},
        "SEEN": tuple(replace(share, scenes=1) for share in module.SEEN),
        "REFINING": module.REFINING | {"whole": 1, "crowds": 1},
        "SPEAKING": {part: own | {"steps": STEPS, "images": 1, "videos": 1} for part, own in module.SPEAKING.items()},
        "REFINING_STEPS": dict.fromkeys(module.REFINING_STEPS, STEPS),
    }
    for name, value in settings.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("recipe.pretraining.LOG_STEPS", 1)
    return module


def test_every_part_of_the_recipe_runs(recipe: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe.make_encoder(out)
    recipe.make_language(out)
    for kind in ("lite", "full"):
        recipe.make_model(kind, out)
    recipe.ship(out)
    for kind, name in recipe.NAMES.items():
        recipe.ask(kind)
        folder = tmp_path / "assets" / name
        facts = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        assert [stage["steps"] for stage in facts["stages"]] == [STEPS] * len(facts["stages"])
        assert json.loads((folder / "eval.json").read_text(encoding="utf-8"))["questions"] == recipe.QUESTIONS
        model = pf.load(folder, device="cpu", dtype="float32")
        assert model.config.vision.num_layers == recipe.LAYERS
        assert model.encode(np.zeros((40, 60, 3), np.uint8), [[5, 5, 30, 30]]).tokens.isfinite().all()
    # Full ships the mean of its two settling stages
    parts = [load_file(out / "settled-full" / part / "model.safetensors") for part in ("model", "1-settling/model")]
    shipped = load_file(tmp_path / "assets" / recipe.NAMES["full"] / "model.safetensors")
    name = "model.vision_encoder.vision_encoder.post_layernorm.weight"  # which speaking leaves alone
    mean = (parts[0][name].float() + parts[1][name].float()) / 2
    assert (shipped[name] == mean.to(shipped[name].dtype)).all()
    logs = {path.name for path in (tmp_path / "training" / "logs").iterdir()}
    assert {"log-lite.jsonl", "log-full.jsonl", "log-refining-lite.jsonl", "log-encoder-close-ups.jsonl"} <= logs
