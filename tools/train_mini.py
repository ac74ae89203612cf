"""Makes the two embedded models from nothing: tokenizer, pretrained encoder, and the stages of training/mini-*.yaml.

    python tools/train_mini.py encoder OUT        # `torchrun --nproc_per_node 2` instead of python shares the work
    python tools/train_mini.py lite OUT           # and full: after the encoder, each by itself or both at once
    python tools/train_mini.py ship OUT           # into pixelrefer_fast/assets/
    python tools/train_mini.py ask-lite OUT       # and ask-full: held-out questions to the shipped model

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

from pixelrefer_fast._version import __version__
from pixelrefer_fast.loading import load
from pixelrefer_fast.train.config import load_config
from pixelrefer_fast.train.mini import NAMES, fresh_model, make_tokenizer, mini_config, world_texts
from pixelrefer_fast.train.pretrain import ENCODER, load_encoder, pretrain
from pixelrefer_fast.train.run import LOG, train
from pixelrefer_fast.world.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "pixelrefer_fast" / "assets"
SEED = 0
TOKENIZER_SCENES = 3000
QUESTIONS = 4500
# of the encoder, one after the other: close-ups of single objects, then the views that the models look at
PRETRAINING = {
    "close-ups": {"steps": 900, "scenes": 0, "close": 64, "learning_rate": 3e-3},
    "views-1": {"steps": 420, "scenes": 6, "close": 12, "learning_rate": 2e-3, "first_seed": 1_000_000},
    "views-2": {"steps": 650, "scenes": 6, "close": 12, "learning_rate": 2.5e-3, "first_seed": 1_500_000},
}
LAST = "views-2"


def make_encoder(out: Path) -> None:
    """Pretrain the encoder that both models begin with."""
    start: Path | None = None
    for name, settings in PRETRAINING.items():
        folder = out / f"encoder-{name}"
        if not (folder / ENCODER).exists():
            pretrain(mini_config("lite"), mini_config("full"), folder, seed=SEED, start=start, **settings)
        start = folder / ENCODER


def make_model(kind: str, out: Path) -> None:
    """A fresh model around the pretrained encoder, then the stages of its config."""
    encoder = out / f"encoder-{LAST}" / ENCODER
    if not encoder.is_file():
        raise SystemExit(f"{encoder}: make the encoder first (tools/train_mini.py encoder {out})")
    start = out / f"start-{kind}"
    if not start.exists():
        model = fresh_model(mini_config(kind), make_tokenizer(world_texts(TOKENIZER_SCENES)), SEED)
        load_encoder(model.encoder, encoder)
        model.save(start)
    written = out / f"mini-{kind}.yaml"
    shutil.copyfile(ROOT / "training" / written.name, written)
    config = load_config(written)
    began = time.time()
    train(config, resume=config.output.exists(), tell=_tell, say=print)
    facts = {
        "name": NAMES[kind],
        "version": __version__,
        "commit": _commit(),
        "seed": SEED,
        "config": (ROOT / "training" / written.name).read_text(encoding="utf-8"),
        "pretraining": PRETRAINING,
        "tokenizer_scenes": TOKENIZER_SCENES,
        "stages": stages_of(config.output / LOG),
        "minutes_of_the_last_run": round((time.time() - began) / 60, 1),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)",
        "torch": torch.__version__,
    }
    (out / f"training-{kind}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def stages_of(log: Path) -> list[dict[str, Any]]:
    """Steps, seconds and last values of each stage, from the whole log: a run may have been gone on with."""
    stages: dict[str, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        own = stages.setdefault(entry["stage"], {"name": entry["stage"], "seconds": 0.0})
        own |= {"steps": entry["step"], "loss": entry["loss"], "accuracy": entry["accuracy"]}
        own["seconds"] += entry["seconds"]
    return list(stages.values())


def ship(out: Path) -> None:
    """Put the trained models into the package, with what the model cards and curves are made from."""
    for kind, name in NAMES.items():
        target = ASSETS / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(out / f"out-{kind}" / "model", target)
        shutil.copyfile(out / f"training-{kind}.json", target / "training.json")
        shutil.copyfile(out / f"out-{kind}" / LOG, ROOT / "training" / f"log-{kind}.jsonl")
    for part in PRETRAINING:
        shutil.copyfile(out / f"encoder-{part}" / LOG, ROOT / "training" / f"log-encoder-{part}.jsonl")


def ask(kind: str) -> None:
    """Ask a shipped model held-out questions; its eval.json is what cards, tables and tests are made from."""
    model = load(ASSETS / NAMES[kind], device="cpu", dtype="float32")
    found = evaluate(model, questions=QUESTIONS)
    document = {
        "model": NAMES[kind],
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
    parser.add_argument("what", choices=("encoder", "lite", "full", "ship", "ask-lite", "ask-full"))
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if options.what == "encoder":
        make_encoder(options.out)
    elif options.what == "ship":
        ship(options.out)
    elif options.what.startswith("ask-"):
        ask(options.what.removeprefix("ask-"))
    else:
        make_model(options.what, options.out)


if __name__ == "__main__":
    main()
