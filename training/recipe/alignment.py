"""The vision side learns to give the tokens that the language model was told in (`language.py`): object tokens, and in
the full model vision tokens, are drawn to the linear map of what is true of their object or cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.media import Video
from pixelrefer_fast.planning.request import FrameSource, Request
from pixelrefer_fast.regions import Region
from pixelrefer_fast.train.batch import PackedBatch, Sample, collate
from pixelrefer_fast.train.module import TrainingModel
from pixelrefer_fast.train.processes import wait
from pixelrefer_fast.train.scenes import SceneShare, WorldSource
from pixelrefer_fast.world import Scene
from pixelrefer_fast.world.marked import scene_media
from recipe.language import Symbols, scene_grids
from recipe.pretraining import EndlessBatches, run_pretraining
from recipe.symbols import CELL_FACTS, COUNT_FACTS, cell_symbols, object_symbols, shown_objects

VISION = "vision.safetensors"
NAMES = {"lite": ("objects",), "full": ("objects", "cells")}
QUIET = 0.1  # of the mean square of a fact's symbols: what is told by less is read off in part
RARE = 0.01  # variance of a fact in a batch, below which it counts less
COUNTED = 3.0  # weight of how many are alike: what is hardest to see
MARKS = 2  # frames in which Lite is shown each object of a video


@dataclass(frozen=True)
class AlignmentBatch:
    """What is seen, and what is true of it.

    Attributes:
        seen: of a text that names every object once.
        objects: (T, OBJECT_FACTS) float32 of each object token.
        cells: (Z, CELL_FACTS) float32 of each kept vision token.
    """

    seen: PackedBatch
    objects: torch.Tensor
    cells: torch.Tensor


class AlignmentModel(nn.Module):
    """All of a model but its language model, and the tokens that this one was told in."""

    def __init__(self, model: Any, symbols: Symbols) -> None:
        super().__init__()
        self.vision = TrainingModel(model.network)
        self.symbols = symbols.requires_grad_(False)
        model.requires_grad_(True)
        model.network.llm.requires_grad_(False)

    def forward(self, batch: AlignmentBatch) -> dict[str, torch.Tensor]:
        """{"loss": share of the tokens' variance that is not explained and of the facts', summed over the kinds of
        tokens, "accuracy": share of the facts' that is explained, of each of NAMES}."""
        tokens = self.vision.tokens(batch.seen).float()
        kinds = [(tokens[: len(batch.objects)], batch.objects, self.symbols.object_embed)]
        if self.vision.network.kind == "full":
            kinds.append((tokens[len(batch.objects) :], batch.cells, self.symbols.cell_embed))
        with torch.autocast(tokens.device.type, enabled=False):
            missed = torch.stack([_missed(*kind) for kind in kinds])
        return {"loss": missed.sum(), "accuracy": 1 - missed[:, 1].detach()}


def _missed(tokens: torch.Tensor, facts: torch.Tensor, symbols: nn.Linear) -> torch.Tensor:
    """(2,) shares that tokens do not explain: of the variance of what is wanted, and of that of the facts, each fact
    alike but the counts. The first alone is mostly that of the places, which are told loudest."""
    wanted = symbols(facts)
    missed = tokens - wanted
    varied = (facts - facts.mean(0)).square().mean(0)
    of_facts = (missed @ _readout(symbols.weight)).square().mean(0) / (varied + RARE)
    of_tokens = missed.square().sum() / (wanted - wanted.mean(0)).square().sum().clamp(min=1e-6)
    weights = torch.ones_like(of_facts)
    weights[COUNT_FACTS] = COUNTED
    return torch.stack([of_tokens, (of_facts * weights).sum() / weights.sum()])


def _readout(weight: torch.Tensor) -> torch.Tensor:
    """(C, facts) from tokens to facts: the symbols' inverse, in which what they hardly tell is not made loud."""
    gram = weight.T @ weight
    return weight @ torch.linalg.inv(gram + QUIET * gram.diagonal().mean() * torch.eye(len(gram)).to(gram))


class AlignmentData(EndlessBatches):
    """Batches of scenes whose objects are all marked.

    Args:
        config, tokenizer: the model's.
        shares: of a batch.
    """

    def __init__(self, config: ModelConfig, tokenizer: Any, shares: Sequence[SceneShare]) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.sources = [(WorldSource(share.world, config.kind, config.mask_num), share.scenes) for share in shares]

    def make(self, number: int) -> dict[str, AlignmentBatch]:
        scenes = [source.scene(number * count + i) for source, count in self.sources for i in range(count)]
        return {"batch": alignment_batch(scenes, self.config, self.tokenizer, number)}


def alignment_batch(scenes: Sequence[Scene], config: ModelConfig, tokenizer: Any, seed: int) -> AlignmentBatch:
    """Every object of scenes, each a request of its own; `seed` draws the frames in which a video's are marked."""
    rng = np.random.default_rng(seed)
    full = config.kind == "full"
    items: list[list[Sample]] = []
    marks: list[tuple[Scene, int, int]] = []
    cells: list[np.ndarray] = []
    for scene in scenes:
        media = scene_media(scene)
        source = FrameSource.of(media)
        whole = range(len(scene.frames)) if full else ()
        own = []
        for i in range(len(scene.things)):
            frames = _frames(scene, i, 1 if full else MARKS, rng)
            if not frames:
                continue
            region = (
                Region.from_frames({f: scene.masks[i, f] for f in frames})
                if isinstance(media, Video)
                else Region.from_mask(scene.masks[i, 0])
            )
            own.append(Sample(Request(source, [region], [frames], whole), (("<region>", "."),)))
            marks += [(scene, i, f) for f in frames]
        if own:
            items.append(own)
        if own and full:
            grids = scene_grids(config, own[0].request)
            cells += [cell_symbols(scene, f, shown_objects(scene.masks[:, f], *grid)) for f, grid in enumerate(grids)]
    seen = collate(items, config, tokenizer)["batch"]
    tokens = [min(config.mask_num, count) if full else config.mask_num for count in seen.selection.counts]
    objects = [
        np.repeat(object_symbols(*mark, alike=not full)[None], count, axis=0)
        for mark, count in zip(marks, tokens, strict=True)
    ]
    told = np.concatenate(cells) if cells else np.zeros((0, CELL_FACTS), np.float32)
    return AlignmentBatch(seen, torch.from_numpy(np.concatenate(objects)), torch.from_numpy(told)[seen.kept])


def _frames(scene: Scene, i: int, most: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Some of the frames that show an object, in order."""
    shown = np.flatnonzero(scene.facts.areas[i])
    return tuple(sorted(int(f) for f in rng.permutation(shown)[:most]))


def align(
    model: Any,
    symbols: Symbols,
    shares: Sequence[SceneShare],
    folder: Path,
    steps: int,
    learning_rate: float = 2e-3,
    encoder_rate: float = 0.3,
    seed: int = 0,
    start: Path | None = None,
    resume: bool = False,
) -> Path:
    """Train all of a model but its language model and write these weights.

    Args:
        model: PixelRefer or PixelReferLite, trained in place.
        symbols: of `load_language`.
        shares: of each batch.
        folder: for checkpoints, the log and the result.
        steps, learning_rate, seed, resume: as in `run_pretraining`.
        encoder_rate: the vision encoder's learning rate as a part of the others'.
        start: result of an earlier alignment to go on from.

    Returns:
        The file of the weights, float32, which `load_vision` takes.
    """
    torch.manual_seed(seed)
    if start is not None:
        load_vision(model, start)
    learner = AlignmentModel(model, symbols)
    data = AlignmentData(model.config, model.tokenizer, shares)
    slower = {"vision.network.encoder.": encoder_rate}
    if run_pretraining(learner, data, NAMES[model.kind], folder, steps, learning_rate, seed, resume, slower):
        weights = {k: v.contiguous() for k, v in model.network.state_dict().items() if not k.startswith("llm.")}
        save_file(weights, folder / VISION)
    wait()
    return folder / VISION


def load_vision(model: Any, path: Path) -> None:
    """Give a model the weights that `align` wrote."""
    missing = model.network.load_state_dict(load_file(path), strict=False).missing_keys
    if any(not key.startswith("llm.") for key in missing):
        raise ValueError(f"{path}: expected all weights of this model but its language model's, it lacks {missing[:3]}")
