"""Pretraining of a vision encoder that begins from nothing (`perception.py` has its task), by transformers' Trainer."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.encoding.encoder import EncoderLayer, VisionEncoder
from pixelrefer_fast.train.processes import processes, wait
from recipe.perception import HEADS, PerceptionData, PerceptionModel, without_budget
from recipe.pretraining import run_pretraining

ENCODER = "encoder.safetensors"
FLOOR = 1e-4  # of the largest component's variance: what varies less is noise
WHITENED = 8  # batches whose patches are looked at before the training


def pretrain(
    lite: ModelConfig,
    full: ModelConfig,
    folder: Path,
    steps: int,
    scenes: int = 4,
    close: int = 32,
    whole: int = 0,
    learning_rate: float = 3e-3,
    start: Path | None = None,
    seed: int = 0,
    first_seed: int = 0,
    resume: bool = False,
) -> Path:
    """Train an encoder on the world's truth and write its weights.

    Args:
        lite, full: configs of one encoder, whose views it learns on.
        folder: for checkpoints, the log and the result.
        steps: optimiser steps.
        scenes, close, whole: of a step, as in `PerceptionData`.
        learning_rate: the highest, after a warm-up over 5 % of the steps and before a cosine to zero.
        start: weights to go on from, of an earlier pretraining; None: fresh ones.
        seed: of the weights.
        first_seed: of the scenes.
        resume: go on with the folder's last checkpoint.

    Returns:
        The file of the encoder's weights, float32, which `load_encoder` takes.
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    model = PerceptionModel(VisionEncoder(lite.vision))
    configs = without_budget(lite), without_budget(full)
    if start is None:
        look_around(model.encoder, lite.vision.num_layers - 1)
        some = PerceptionData(configs, scenes, close, whole, first_seed)  # the same in all processes
        whiten(model.encoder, torch.cat([some.make(i)["batch"].patches for i in range(WHITENED)]))
    else:
        load_encoder(model.encoder, start)
    scenes, close, whole = (number // processes() for number in (scenes, close, whole))
    data = PerceptionData(configs, scenes, close, whole, first_seed)
    if run_pretraining(model, data, list(HEADS), folder, steps, learning_rate, seed, resume):
        save_file({k: v.contiguous() for k, v in model.encoder.state_dict().items()}, folder / ENCODER)
    wait()  # nobody reads the file before it is written
    return folder / ENCODER


def whiten(encoder: VisionEncoder, patches: torch.Tensor) -> None:
    """Begin with a patch embedding whose channels are the patches' principal components, each of variance one.

    A patch's mean colour varies a hundred times more than its edges do, and from random weights edges are learnt last.

    Args:
        encoder: whose patch embedding is set.
        patches: (P, 588) float32 of some batches; more of them than the encoder has channels.
    """
    mean = patches.double().mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.double().T))
    width = encoder.config.hidden_size
    values, vectors = values[-width:], vectors[:, -width:]
    scale = (values + FLOOR * values[-1]).rsqrt()
    with torch.no_grad():
        encoder.patch_embedding.weight.copy_((vectors * scale).T)
        encoder.patch_embedding.bias.copy_(-(vectors * scale).T @ mean)


def look_around(encoder: VisionEncoder, layers: int, sharpness: float = 20.0) -> None:
    """Begin with heads that look at a patch's neighbours: above, below, left, right, and at itself.

    The rotary position turns a query's and a key's bias by where they stand, so that biases alone can make a head
    attend to a fixed offset; a small encoder needs long to find that out by itself.

    Args:
        encoder: whose query and key biases are set.
        layers: so many of the first.
        sharpness: of the two highest frequencies, before the softmax's 1 / sqrt(head size).
    """
    offsets = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))
    config = encoder.config
    quarter, half = config.head_dim // 4, config.head_dim // 2
    frequency = 10000.0 ** (-torch.arange(quarter) / quarter)
    amplitude = torch.zeros(half)
    amplitude.view(2, quarter)[:, :2] = sharpness**0.5  # rows, then columns
    for layer in list(encoder.layers)[:layers]:
        assert isinstance(layer, EncoderLayer)
        with torch.no_grad():
            bias = layer.qkv.bias.view(3, config.num_heads, config.head_dim)
            for head in range(config.num_heads):
                row, column = offsets[head % len(offsets)]
                turn = torch.cat([row * frequency, column * frequency])
                bias[0, head] = torch.cat([amplitude, torch.zeros(half)])
                bias[1, head] = torch.cat([amplitude * turn.cos(), -amplitude * turn.sin()])


def load_encoder(encoder: VisionEncoder, path: Path) -> None:
    """Give an encoder the weights that `pretrain` wrote."""
    encoder.load_state_dict(load_file(path))
