"""A trained small model goes on with a deeper encoder: questions, and what whole images show, learnt at once.

What is to be counted is told once a scene, and an answer tells it for one object alone. So every step has many whole
images beside the questions, whose patches tell what they show and how many are like it (`perception.py`), while the
answers keep the rest of the model in step with an encoder that changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.encoding.encoder import EncoderLayer
from pixelrefer_fast.model import PixelRefer, PixelReferLite
from pixelrefer_fast.train.batch import PackedBatch, collate
from pixelrefer_fast.train.config import PARTS
from pixelrefer_fast.train.module import TrainingModel
from pixelrefer_fast.train.processes import wait
from pixelrefer_fast.train.scenes import SceneShare, WorldSource
from recipe.perception import (
    HEADS,
    PerceptionBatch,
    PerceptionData,
    PerceptionModel,
    without_budget,
)
from recipe.pretraining import EndlessBatches, each_once, run_pretraining
from recipe.sizes import fresh_model

REFINED = "refined.safetensors"
NAMES = ("answers", *HEADS)
ANSWERS = 10.0  # weight of the answers beside what patches tell
MODULES = dict(zip(PARTS, ("llm.", "projector.", "object_tokenizer.", "encoder."), strict=True))

Model = PixelRefer | PixelReferLite


def deepen(model: Model, layers: int, seed: int) -> Model:
    """The same model with a deeper vision encoder, whose new last layers change nothing before they are trained.

    Args:
        model: PixelRefer or PixelReferLite, float32.
        layers: of the new encoder.
        seed: of the new layers' weights.

    Raises:
        ValueError: the encoder has more layers already.
    """
    own = model.config.vision
    if layers < own.num_layers:
        raise ValueError(f"deepen: expected at least the encoder's {own.num_layers} layers, got {layers}")
    deeper = fresh_model(replace(model.config, vision=replace(own, num_layers=layers)), model.tokenizer, seed)
    deeper.network.load_state_dict(model.network.state_dict(), strict=False)
    for layer in list(deeper.network.encoder.layers)[own.num_layers :]:
        assert isinstance(layer, EncoderLayer)
        for last in (layer.out, layer.fc2):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    return deeper


@dataclass(frozen=True)
class RefiningBatch:
    """Questions, and whole images."""

    asked: PackedBatch
    seen: PerceptionBatch


class RefiningModel(nn.Module):
    """A model and the heads that tell what its encoder's patches show."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.answering = TrainingModel(model.network.requires_grad_(True))
        self.perception = PerceptionModel(model.network.encoder)

    def forward(self, batch: RefiningBatch) -> dict[str, torch.Tensor]:
        """{"loss": of answers and patches, "accuracy": of NAMES}."""
        asked, seen = self.answering(batch.asked), self.perception(batch.seen)
        right = asked["correct"] / len(batch.asked.targets)
        return {
            "loss": ANSWERS * asked["loss"] + seen["loss"],
            "accuracy": torch.cat([right[None], seen["accuracy"]]),
        }


class RefiningData(EndlessBatches):
    """Batches of questions and whole images.

    Args:
        config, tokenizer: the model's.
        shares: of the questions of a batch.
        whole, crowds: further scenes of a batch and crowds, of which patches tell what they show.
        first_seed: of the first of these.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Any,
        shares: Sequence[SceneShare],
        whole: int,
        crowds: int,
        first_seed: int,
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.sources = [(WorldSource(share.world, config.kind, config.mask_num), share.scenes) for share in shares]
        self.whole = PerceptionData([without_budget(config)], 0, 0, whole, first_seed, crowds)

    def make(self, number: int) -> dict[str, RefiningBatch]:
        items = [source[number * scenes + i] for source, scenes in self.sources for i in range(scenes)]
        asked = collate([item for item in items if item], self.config, self.tokenizer)["batch"]
        return {"batch": RefiningBatch(asked, self.whole.make(number)["batch"])}


def refine(
    model: Model,
    shares: Sequence[SceneShare],
    whole: int,
    crowds: int,
    folder: Path,
    steps: int,
    learning_rate: float,
    parts: Mapping[str, float],
    first_seed: int,
    seed: int = 0,
    start: Path | None = None,
    resume: bool = False,
) -> Path:
    """Train a model on questions and whole images and write its weights.

    Args:
        model: trained in place, float32.
        shares, whole, crowds, first_seed: of each batch, as in `RefiningData`.
        folder: for checkpoints, the log and the result.
        steps, learning_rate, seed, resume: as in `run_pretraining`.
        parts: of the learning rate: by the names that configs have for a model's parts, or by how the names of some
            weights in the model begin; the first that fits counts.
        start: result of an earlier refining to go on from.

    Returns:
        The file of the weights, float32, which `load_refined` takes.
    """
    torch.manual_seed(seed)
    if start is not None:
        load_refined(model, start)
    learner = RefiningModel(model)
    data = RefiningData(model.config, model.tokenizer, shares, whole, crowds, first_seed)
    slower = {f"answering.network.{MODULES.get(name, name)}": part for name, part in parts.items()}
    if run_pretraining(learner, data, NAMES, folder, steps, learning_rate, seed, resume, slower):
        save_file(each_once(model.network.state_dict()), folder / REFINED)
    wait()
    return folder / REFINED


def load_refined(model: Model, path: Path) -> None:
    """Give a model the weights that `refine` wrote."""
    missing = model.network.load_state_dict(load_file(path), strict=False).missing_keys
    if set(missing) - {"llm.lm_head.weight"}:  # tied: in the file once
        raise ValueError(f"{path}: expected all weights of this model, it lacks {missing[:3]}")
