"""A trained small model learns how people ask: many wordings of the questions it knows, vision side as it is.

Another wording changes nothing that is seen. So each scene is encoded once, without gradients, and asked in many
questions: only the language model learns, and a step costs about a tenth of one that trains the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.model import PixelRefer, PixelReferLite
from pixelrefer_fast.train.batch import PackedBatch, collate
from pixelrefer_fast.train.module import TrainingModel, answer_logits
from pixelrefer_fast.train.processes import wait
from pixelrefer_fast.train.scenes import scene_samples
from pixelrefer_fast.world import ask_about, make_scene
from pixelrefer_fast.world.composed import COMPOSED
from pixelrefer_fast.world.questions import PLAINLY, Question, Speech
from pixelrefer_fast.world.spelling import respell
from pixelrefer_fast.world.spoken import TRAINED
from recipe.pretraining import EndlessBatches, each_once, run_pretraining

SPOKEN = "spoken.safetensors"
NAMES = ("answers",)


class SpeakingModel(nn.Module):
    """A network whose language model learns; what is seen comes without gradients."""

    def __init__(self, model: PixelRefer | PixelReferLite) -> None:
        super().__init__()
        self.answering = TrainingModel(model.network.requires_grad_(False))
        model.network.llm.requires_grad_(True)

    def forward(self, batch: PackedBatch) -> dict[str, torch.Tensor]:
        """{"loss": mean cross-entropy of the answers' tokens, "accuracy": (1,) of those tokens}."""
        network = self.answering.network
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            tokens = self.answering.tokens(batch)
        logits = answer_logits(network.llm, tokens, vars(batch))
        right = (logits.detach().argmax(1) == batch.targets).float().mean()
        return {"loss": F.cross_entropy(logits, batch.targets), "accuracy": right[None]}


class SpeakingData(EndlessBatches):
    """Batches of questions about a few scenes.

    Args:
        config, tokenizer: the model's.
        images, videos: scenes of a batch.
        plain: most plain questions about each, so that what is asked plainly stays known.
        rounds: of questions about each beside these: in the words of people, then in composed ones, by turns.
        named: `Speech.named` and `Speech.others` of these.
        first_seed: of the scenes.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Any,
        images: int,
        videos: int,
        plain: int,
        rounds: int,
        named: tuple[float, float],
        first_seed: int,
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.images, self.videos, self.first_seed = images, videos, first_seed
        self.plain, self.rounds = plain, rounds
        self.speech = tuple(Speech(words, respell, *named) for words in (TRAINED, {**TRAINED, **COMPOSED}))

    def make(self, number: int) -> dict[str, PackedBatch]:
        scenes = self.images + self.videos
        items = []
        for i in range(scenes):
            seed = self.first_seed + number * scenes + i
            scene = make_scene(seed, "train", i >= self.images)
            asked = [
                *ask_about(scene, seed, limit=self.plain, speech=PLAINLY),
                *(
                    q
                    for t in range(self.rounds)
                    for q in ask_about(scene, seed + t, speech=self.speech[t % len(self.speech)])
                ),
            ]
            items.append(scene_samples(scene, _each_once(asked), self.config.kind))
        batch: PackedBatch = collate([item for item in items if item], self.config, self.tokenizer)["batch"]
        return {"batch": batch}


def _each_once(questions: Sequence[Question]) -> list[Question]:
    return list({(q.text, q.objects): q for q in questions}.values())


def teach_speech(
    model: PixelRefer | PixelReferLite,
    folder: Path,
    steps: int,
    learning_rate: float,
    images: int,
    videos: int,
    plain: int,
    rounds: int,
    named: tuple[float, float],
    first_seed: int,
    seed: int = 0,
    resume: bool = False,
) -> Path:
    """Train a model's language model on questions in the words of people and write the model's weights.

    Args:
        model: trained in place, float32.
        folder: for checkpoints, the log and the result.
        steps, learning_rate, seed, resume: as in `run_pretraining`.
        images, videos, plain, rounds, named, first_seed: of each batch, as in `SpeakingData`.

    Returns:
        The file of the weights, float32, which `refining.load_refined` takes.
    """
    torch.manual_seed(seed)
    learner = SpeakingModel(model)
    data = SpeakingData(model.config, model.tokenizer, images, videos, plain, rounds, named, first_seed)
    if run_pretraining(learner, data, NAMES, folder, steps, learning_rate, seed, resume):
        save_file(each_once(model.network.state_dict()), folder / SPOKEN)
    wait()
    return folder / SPOKEN
