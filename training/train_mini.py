"""Makes the two embedded models from nothing: tokenizer, pretrained parts, the stages of training/configs/mini-*.yaml.

    python training/train_mini.py encoder OUT        # `torchrun --nproc_per_node 2` instead of python shares the work
    python training/train_mini.py language OUT       # of both models
    python training/train_mini.py lite OUT           # and full: after these, each by itself or both at once

The parts of a model are pretrained: the vision encoder that both begin with, the language model (told in symbols what
is marked; Full's goes on from Lite's with what is seen), and then the vision side, which learns to say the same. After
the stages the encoder gets more layers, the model is refined on questions and whole images at once, a further stage
(training/configs/settle-*.yaml; Full: the mean of two) settles it on questions of all kinds, and at last its language
model learns in how many words people ask them (training/recipe/speaking.py).

    python training/train_mini.py ship OUT           # into pixelrefer_fast/assets/
    python training/train_mini.py ask-lite OUT       # and ask-full: held-out questions to the shipped model

Everything is drawn from seeds. What is there already is gone on with, so an interrupted run is simply started again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import cv2
import torch
from recipe.alignment import VISION as VISION_FILE
from recipe.alignment import align, load_vision
from recipe.language import LANGUAGE as LANGUAGE_FILE
from recipe.language import load_language, pretrain_language
from recipe.pretrain import ENCODER, load_encoder, pretrain
from recipe.refining import REFINED, deepen, load_refined, refine
from recipe.sizes import NAMES, fresh_model, make_tokenizer, mini_config, world_texts
from recipe.speaking import SPOKEN as SPOKEN_FILE
from recipe.speaking import teach_speech
from safetensors.torch import load_file, save_file

from pixelrefer_fast._version import __version__
from pixelrefer_fast.loading import load
from pixelrefer_fast.model import PixelRefer, PixelReferLite
from pixelrefer_fast.train.config import World, load_config
from pixelrefer_fast.train.run import LOG, train
from pixelrefer_fast.train.scenes import SceneShare
from pixelrefer_fast.world.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "pixelrefer_fast" / "assets"
SEED = 0
TOKENIZER_SCENES = 3000
QUESTIONS = 4500
LAST_ENTRIES = 10  # of a refining's log
# of the encoder, one after the other: close-ups of single objects, then the views that the models look at
PRETRAINING: dict[str, dict[str, Any]] = {
    "close-ups": {"steps": 900, "scenes": 0, "close": 64, "learning_rate": 3e-3},
    "views-1": {"steps": 420, "scenes": 6, "close": 12, "learning_rate": 2e-3, "first_seed": 1_000_000},
    "views-2": {"steps": 650, "scenes": 6, "close": 12, "learning_rate": 2.5e-3, "first_seed": 1_500_000},
    "views-3": {"steps": 1400, "scenes": 6, "close": 12, "learning_rate": 2.5e-3, "first_seed": 1_700_000},
    "views-4": {"steps": 900, "scenes": 6, "close": 12, "learning_rate": 2e-3, "first_seed": 1_800_000},
    "views-5": {"steps": 3500, "scenes": 4, "close": 8, "whole": 16, "learning_rate": 2.5e-3, "first_seed": 2_000_000},
    "views-6": {"steps": 800, "scenes": 4, "close": 8, "whole": 16, "learning_rate": 2.5e-3, "first_seed": 2_500_000},
    "views-7": {"steps": 2400, "scenes": 4, "close": 8, "whole": 16, "learning_rate": 2.2e-3, "first_seed": 2_600_000},
}
LAST = "views-7"
MANY = 10**5
MOVING = ("motion", "relation", "selection", "description", "context", "counting")
NEAR = ("context", "counting", "motion")


def _compared(first_seed: int, scenes: int, category: str) -> SceneShare:
    return SceneShare(World(MANY, first_seed, video=False, rounds=8, categories=(category,)), scenes)


def _mixed(first_seed: int) -> tuple[SceneShare, ...]:
    """Everything, and more of what needs several objects or the whole image."""
    return (
        _compared(first_seed, 2, "relation"),
        _compared(first_seed + 20_000_000, 2, "selection"),
        _compared(first_seed + 40_000_000, 2, "counting"),
        SceneShare(World(MANY, first_seed + 60_000_000, video=True, rounds=2, categories=MOVING), 2),
        _compared(first_seed + 80_000_000, 2, "context"),
        SceneShare(World(MANY, first_seed + 100_000_000, video=False, questions=14), 3),
    )


def _around(first_seed: int) -> tuple[SceneShare, ...]:
    """More of what is around an object: what is near it, and how many are like it."""
    return (
        _compared(first_seed, 3, "context"),
        _compared(first_seed + 20_000_000, 4, "counting"),
        SceneShare(World(MANY, first_seed + 30_000_000, video=True, rounds=4, categories=NEAR), 3),
        _compared(first_seed + 40_000_000, 1, "relation"),
        _compared(first_seed + 50_000_000, 1, "selection"),
        SceneShare(World(MANY, first_seed + 60_000_000, video=True, rounds=2, categories=MOVING), 2),
        SceneShare(World(MANY, first_seed + 80_000_000, video=False, questions=14), 2),
    )


# the first step of each lesson, and what is asked in its batches
LESSONS = (
    (0, (_compared(20_000_000, 5, "relation"), _compared(40_000_000, 4, "selection"))),
    (170, _mixed(160_000_000)),
)
# each with the one it goes on from
LANGUAGE: dict[str, tuple[str | None, dict[str, Any]]] = {
    "lite": (None, {"steps": 340, "learning_rate": 3e-3, "lessons": LESSONS}),
    "lite-again": ("lite", {"steps": 750, "learning_rate": 2.5e-3, "lessons": ((0, _mixed(460_000_000)),)}),
    "lite-around": ("lite-again", {"steps": 990, "learning_rate": 2.5e-3, "lessons": ((0, _around(1_100_000_000)),)}),
    "full": ("lite-again", {"steps": 480, "learning_rate": 2.5e-3, "lessons": ((0, _mixed(760_000_000)),)}),
    "full-around": ("full", {"steps": 1000, "learning_rate": 2.5e-3, "lessons": ((0, _around(1_300_000_000)),)}),
}
SPOKEN = {"lite": ("lite", "lite-again", "lite-around"), "full": ("lite", "lite-again", "full", "full-around")}
ALIGNMENT: dict[str, dict[str, Any]] = {
    "lite": {"steps": 800, "learning_rate": 2e-3},
    "full": {"steps": 560, "learning_rate": 2e-3},
}
LAYERS = 6  # of the encoder in the end
REFINING: dict[str, Any] = {
    "learning_rate": 1.5e-3,
    "parts": {
        "encoder.layers.4.": 1.0,
        "encoder.layers.5.": 1.0,
        "vision_encoder": 0.7,
        "region_encoder": 0.5,
        "projector": 0.5,
        "llm": 0.2,
    },
    "shares": (
        SceneShare(World(MANY, 31_000_000, video=False, rounds=6, categories=("counting",)), 1),
        SceneShare(World(MANY, 32_000_000, questions=10), 1),
    ),
    "whole": 24,
    "crowds": 8,
    "first_seed": 3_500_000,
}
REFINING_STEPS = {"lite": 2600, "full": 3600}
# how people ask: what they said; that and all that its parts can be put together to; the same of objects by their names
SPEAKING: dict[str, dict[str, Any]] = {
    "spoken": {
        "steps": 600,
        "learning_rate": 8e-4,
        "images": 4,
        "videos": 2,
        "plain": 12,
        "rounds": 1,
        "named": (0.15, 0.0),
        "first_seed": 51_000_000,
    },
    "composed": {
        "steps": 320,
        "learning_rate": 7e-4,
        "images": 2,
        "videos": 1,
        "plain": 8,
        "rounds": 2,
        "named": (0.15, 0.5),
        "first_seed": 52_000_000,
    },
    "named": {
        "steps": 320,
        "learning_rate": 6e-4,
        "images": 2,
        "videos": 1,
        "plain": 8,
        "rounds": 2,
        "named": (0.5, 0.75),
        "first_seed": 53_000_000,
    },
}
# the parts whose mean ships: Full's motion suffers in the later ones
SHIPPED = {"lite": ("named",), "full": ("composed", "named")}
SEEN = (SceneShare(World(MANY, 500_000_000, video=False), 5), SceneShare(World(MANY, 600_000_000, video=True), 3))


def make_encoder(out: Path) -> None:
    """Pretrain the encoder that both models begin with."""
    start: Path | None = None
    for name, settings in PRETRAINING.items():
        folder = out / f"encoder-{name}"
        if not (folder / ENCODER).exists():
            configs = mini_config("lite"), mini_config("full")
            pretrain(*configs, folder, seed=SEED, start=start, resume=_begun(folder), **settings)
        start = folder / ENCODER


def make_language(out: Path) -> None:
    """Pretrain the language models."""
    for name, (earlier, settings) in LANGUAGE.items():
        folder = out / f"language-{name}"
        if not (folder / LANGUAGE_FILE).is_file():
            start = None if earlier is None else out / f"language-{earlier}" / LANGUAGE_FILE
            model = _fresh(name.partition("-")[0])
            pretrain_language(model, folder=folder, seed=SEED, start=start, resume=_begun(folder), **settings)


def make_start(kind: str, out: Path) -> None:
    """A model of pretrained parts."""
    start = out / f"start-{kind}"
    if start.exists():
        return
    encoder, language = out / f"encoder-{LAST}" / ENCODER, out / f"language-{SPOKEN[kind][-1]}" / LANGUAGE_FILE
    for part, file in (("encoder", encoder), ("language", language)):
        if not file.is_file():
            raise SystemExit(f"{file}: make it first (training/train_mini.py {part} {out})")
    model = _fresh(kind)
    symbols = load_language(model, language)
    seen = out / f"vision-{kind}"
    if not (seen / VISION_FILE).is_file():
        load_encoder(model.network.encoder, encoder)
        align(model, symbols, SEEN, seen, seed=SEED, resume=_begun(seen), **ALIGNMENT[kind])
    load_vision(model, seen / VISION_FILE)
    model.save(start)


def _fresh(kind: str) -> PixelRefer | PixelReferLite:
    return fresh_model(mini_config(kind), make_tokenizer(world_texts(TOKENIZER_SCENES)), SEED)


def _begun(folder: Path) -> bool:
    return any(folder.glob("checkpoint-*"))


def make_refined(kind: str, out: Path) -> None:
    """The model of the stages with a deeper encoder, refined."""
    folder = out / f"refined-{kind}"
    model = deepen(load(out / f"out-{kind}" / "model", device="cpu", dtype="float32"), LAYERS, SEED)
    if not (folder / REFINED).is_file():
        refine(model, folder=folder, steps=REFINING_STEPS[kind], seed=SEED, resume=_begun(folder), **REFINING)
    load_refined(model, folder / REFINED)
    shutil.rmtree(folder / "model", ignore_errors=True)
    model.to(torch.bfloat16).save(folder / "model")


def make_spoken(kind: str, out: Path) -> None:
    """The settled model, whose language model has learnt how people ask."""
    settled = out / f"settled-{kind}"
    start = settled / "model"
    if (settled / "1-settling" / "model").is_dir():
        start = settled / "mean"
        shutil.rmtree(start, ignore_errors=True)
        shutil.copytree(settled / "model", start)
        weights = [folder / "model.safetensors" for folder in (start, settled / "1-settling" / "model")]
        save_file(_mean(weights), weights[0], metadata={"format": "pt"})
    model = load(start, device="cpu", dtype="float32")
    for part, settings in SPEAKING.items():
        folder = out / f"{part}-{kind}"
        if not (folder / SPOKEN_FILE).is_file():
            teach_speech(model, folder, seed=SEED, resume=_begun(folder), **settings)
        load_refined(model, folder / SPOKEN_FILE)
    save_file(
        _mean([out / f"{part}-{kind}" / SPOKEN_FILE for part in SHIPPED[kind]]), out / f"spoken-{kind}.safetensors"
    )
    load_refined(model, out / f"spoken-{kind}.safetensors")
    shutil.rmtree(out / f"final-{kind}", ignore_errors=True)
    model.to(torch.bfloat16).save(out / f"final-{kind}")


def make_model(kind: str, out: Path) -> None:
    """A model of pretrained parts, then the stages of its config, what refines and settles it, and how people ask."""
    make_start(kind, out)
    began = time.time()
    instruction = _stages(f"mini-{kind}", out)
    make_refined(kind, out)
    settling = _stages(f"settle-{kind}", out)
    make_spoken(kind, out)
    facts = {
        "name": NAMES[kind],
        "version": __version__,
        "commit": _commit(),
        "seed": SEED,
        "config": (out / f"mini-{kind}.yaml").read_text(encoding="utf-8"),
        "settling": (out / f"settle-{kind}.yaml").read_text(encoding="utf-8"),
        "pretraining": {
            **{f"encoder, {name}": settings for name, settings in PRETRAINING.items()},
            **{f"language model, in symbols, {name}": {"steps": LANGUAGE[name][1]["steps"]} for name in SPOKEN[kind]},
            "alignment of the vision side": ALIGNMENT[kind],
        },
        "tokenizer_scenes": TOKENIZER_SCENES,
        "stages": [
            *stages_of(instruction),
            pretraining_of(out / f"refined-{kind}" / LOG, "refining"),
            *stages_of(settling),
            *(pretraining_of(out / f"{part}-{kind}" / LOG, part) for part in SPEAKING),
        ],
        "minutes_of_the_last_run": round((time.time() - began) / 60, 1),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)",
        "torch": torch.__version__,
    }
    (out / f"training-{kind}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _stages(name: str, out: Path) -> Path:
    """Run the stages of a config of training/configs/, and go on with what there is of them; their log."""
    written = out / f"{name}.yaml"
    shutil.copyfile(ROOT / "training" / "configs" / written.name, written)
    config = load_config(written)
    train(config, resume=config.output.exists(), tell=_tell, say=print)
    return config.output / LOG


def stages_of(log: Path) -> list[dict[str, Any]]:
    """Steps, seconds and last values of each stage, from the whole log: a run may have been gone on with."""
    stages: dict[str, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        own = stages.setdefault(entry["stage"], {"name": entry["stage"], "seconds": 0.0})
        own |= {"steps": entry["step"], "loss": entry["loss"], "accuracy": entry["accuracy"]}
        own["seconds"] += entry["seconds"]
    return list(stages.values())


def pretraining_of(log: Path, name: str) -> dict[str, Any]:
    """The same of a refining or speaking: the means of the last steps, since each has few questions."""
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    last = [entry for entry in entries if "loss" in entry][-LAST_ENTRIES:]
    return {
        "name": name,
        "steps": last[-1]["step"],
        "accuracy": sum(entry["accuracy/answers"] for entry in last) / len(last),
        "seconds": sum(entry["train_runtime"] for entry in entries if "train_runtime" in entry),
    }


def ship(out: Path) -> None:
    """Put the trained models into the package, with what the model cards and curves are made from."""
    for kind, name in NAMES.items():
        target = ASSETS / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(out / f"final-{kind}", target)
        shutil.copyfile(out / f"training-{kind}.json", target / "training.json")
        stages = ((out / f"{folder}-{kind}" / LOG).read_text(encoding="utf-8") for folder in ("out", "settled"))
        (ROOT / "training" / "logs" / f"log-{kind}.jsonl").write_text("".join(stages), encoding="utf-8")
        for part, folder in (("refining", "refined"), ("vision", "vision"), *((part, part) for part in SPEAKING)):
            log = out / f"{folder}-{kind}" / LOG
            shutil.copyfile(log, ROOT / "training" / "logs" / f"log-{part}-{kind}.jsonl")
    for part in LANGUAGE:
        shutil.copyfile(out / f"language-{part}" / LOG, ROOT / "training" / "logs" / f"log-language-{part}.jsonl")
    for part in PRETRAINING:
        shutil.copyfile(out / f"encoder-{part}" / LOG, ROOT / "training" / "logs" / f"log-encoder-{part}.jsonl")


def _mean(files: list[Path]) -> dict[str, torch.Tensor]:
    """The mean of files of weights: it keeps nearly all that any of them knows better."""
    states = [load_file(file) for file in files]
    return {
        name: torch.stack([state[name].float() for state in states]).mean(0).to(weight.dtype)
        for name, weight in states[0].items()
    }


def ask(kind: str) -> None:
    """Ask a shipped model held-out questions; its eval.json is what cards, tables and tests are made from."""
    model = load(ASSETS / NAMES[kind], device="cpu", dtype="float32")
    found = evaluate(model, questions=QUESTIONS)
    document = {
        "model": NAMES[kind],
        "weights": model.fingerprint,
        "split": "heldout",
        "questions": len(found.results),
        "accuracy": found.accuracy,
        "seconds": round(found.seconds, 1),
        "categories": found.by_category(),
        "images": found.by_category(lambda result: not result.video),
        "videos": found.by_category(lambda result: result.video),
        "unseen": found.by_category(lambda result: result.unseen),
    }
    path = ASSETS / NAMES[kind] / "eval.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _tell(stage: object, step: int, steps: int, entry: dict[str, float]) -> None:
    name = getattr(stage, "name", stage)
    print(f"{name} {step}/{steps} loss {entry['loss']:.3f} accuracy {entry['accuracy']:.3f}", flush=True)


def _commit() -> str:
    run = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("encoder", "language", "lite", "full", "ship", "ask-lite", "ask-full"))
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if options.what == "encoder":
        make_encoder(options.out)
    elif options.what == "language":
        make_language(options.out)
    elif options.what == "ship":
        ship(options.out)
    elif options.what.startswith("ask-"):
        ask(options.what.removeprefix("ask-"))
    else:
        make_model(options.what, options.out)


if __name__ == "__main__":
    main()
