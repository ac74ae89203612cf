"""What each part of the object tokens is worth, on the synthetic world: the paper's tables 7 to 9 on the small Lite.

    python training/ablate.py OUT [--only NAME ...] [--steps 200] [--questions 1800]

Every variant, the unchanged model among them, goes on from the embedded model for the same steps with its part taken
away (its weights zero and frozen) or with another number of tokens, and is then asked the same held-out questions.
OUT gets one JSON file a variant; `training/training_pages.py` makes the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import torch

from pixelrefer_fast.checkpoint import open_checkpoint
from pixelrefer_fast.checkpoint.embedded import embedded_folder
from pixelrefer_fast.loading import load
from pixelrefer_fast.model import PixelReferLite
from pixelrefer_fast.train.config import Stage, TrainConfig, World
from pixelrefer_fast.train.data import MalformedLog
from pixelrefer_fast.train.module import TrainingModel
from pixelrefer_fast.train.parts import set_learning
from pixelrefer_fast.train.run import MALFORMED, stage_items
from pixelrefer_fast.train.trainer import StageTrainer
from pixelrefer_fast.world.evaluate import evaluate


@dataclass(frozen=True)
class Variant:
    """A model with something else: a number of tokens, and weights of its object tokenizer that are zero."""

    name: str
    tokens: int = 4
    without: tuple[str, ...] = ()


POSITION = ("pos_linear.",)
LOCAL = ("infusion.local_step.out_proj.",)
GLOBAL = ("infusion.global_step.out_proj.",)
VARIANTS = (
    Variant("unchanged"),
    Variant("1 token", tokens=1),
    Variant("8 tokens", tokens=8),
    Variant("16 tokens", tokens=16),
    Variant("no position", without=POSITION),
    Variant("mask pooling", tokens=1, without=POSITION),  # one mean of the masked features, where nothing says where
    Variant("no local attention", without=LOCAL),
    Variant("no global attention", without=GLOBAL),
    Variant("no attention", without=(*LOCAL, *GLOBAL)),
)


def build(variant: Variant, start: Path, folder: Path) -> PixelReferLite:
    """The starting model with the variant's change, float32."""
    raw = json.loads((start / "config.json").read_text(encoding="utf-8")) | {"mask_num": variant.tokens}
    changed = folder / "start"
    if not changed.exists():
        shutil.copytree(start, changed)
        (changed / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    model = load(changed, device="cpu", dtype="float32")
    assert isinstance(model, PixelReferLite)
    return model


def run(variant: Variant, start: Path, out: Path, steps: int, questions: int) -> None:
    """Train one variant, ask it, and write what it answered."""
    folder = out / variant.name.replace(" ", "-")
    model = build(variant, start, folder)
    data = (
        World(80000, first_seed=7_000_000, video=False, questions=None),
        World(10000, first_seed=8_000_000, video=True, questions=8),
    )
    stage = Stage(
        name="ablation",
        data=data,
        steps=steps,
        epochs=None,
        learning_rate={"llm": 2e-4, "projector": 6e-4, "region_encoder": 6e-4},
        batch_items=8,
        batch_tokens=100_000,
        warmup=10,
        weight_decay=0.01,
        betas=(0.9, 0.98),
        optimizer="muon",
    )
    config = TrainConfig(str(start), folder, (stage,), tensorboard=False, save_every=10**9)
    set_learning(model.network, stage.learning_rate)
    for name, parameter in model.network.object_tokenizer.named_parameters():
        if name.startswith(variant.without):
            with torch.no_grad():
                parameter.zero_()
            parameter.requires_grad_(False)
    items = stage_items(stage, model.config, MalformedLog(folder / MALFORMED))
    trainer = StageTrainer(TrainingModel(model.network), stage, config, items, folder, seed=0)
    began = time.time()
    trainer.train()
    model.eval().requires_grad_(False)
    found = evaluate(model, questions).by_category()
    document = {
        "variant": variant.name,
        "tokens": variant.tokens,
        "steps": steps,
        "minutes": round((time.time() - began) / 60, 1),
        "categories": found,
    }
    (out / f"{folder.name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", choices=[v.name for v in VARIANTS])
    parser.add_argument("--start", type=Path, help="another checkpoint than the embedded PixelRefer-Lite-mini")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--questions", type=int, default=1800)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    start = (options.start or embedded_folder()).resolve()
    open_checkpoint(start)  # a wrong one is told before anything is trained
    for variant in VARIANTS:
        if options.only is None or variant.name in options.only:
            run(replace(variant), start, options.out, options.steps, options.questions)


if __name__ == "__main__":
    main()
