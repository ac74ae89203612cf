"""Pretraining of a vision encoder that begins from nothing (`perception.py` has its task), by transformers' Trainer."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pixelrefer_fast.config import ModelConfig
from pixelrefer_fast.encoder import EncoderLayer, VisionEncoder
from pixelrefer_fast.train.optimizer import MuonAdamW, is_hidden_matrix
from pixelrefer_fast.train.perception import HEADS, PerceptionData, PerceptionModel, unwrap, without_budget
from pixelrefer_fast.train.processes import gradient_backend

ENCODER = "encoder.safetensors"
LOG = "log.jsonl"
FLOOR = 1e-4  # of the largest component's variance: what varies less is noise
WHITENED = 8  # batches whose patches are looked at before the training


class _PerceptionTrainer(Trainer):
    """Logs the accuracy of each head with the loss."""

    accuracy: torch.Tensor | None = None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            assert self.model is not None
            named = list(self.model.named_parameters())
            matrices = [p for n, p in named if is_hidden_matrix(n, p)]
            others = [p for n, p in named if not is_hidden_matrix(n, p)]
            rate, decay = self.args.learning_rate, self.args.weight_decay
            self.optimizer = MuonAdamW(
                [
                    {"params": matrices, "lr": rate, "weight_decay": decay, "muon": True},
                    {"params": others, "lr": rate, "weight_decay": 0.0, "muon": False},
                ],
                (0.9, 0.98),
            )
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader:
        # accelerate's loader asks each batch for a size, and ours has none
        assert isinstance(self.train_dataset, PerceptionData)
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=unwrap, num_workers=1)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        self.accuracy = outputs["accuracy"]
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.accuracy is not None:
            logs |= {f"accuracy/{name}": float(value) for name, value in zip(HEADS, self.accuracy, strict=True)}
        super().log(logs, start_time)


class _JsonLog(TrainerCallback):
    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


def pretrain(
    lite: ModelConfig,
    full: ModelConfig,
    folder: Path,
    steps: int,
    scenes: int = 4,
    close: int = 32,
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
        scenes, close: of a step, as in `PerceptionData`.
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
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        weight_decay=0.01,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=20,
        save_steps=400,
        save_total_limit=1,
        seed=seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        log_level="error",
        ddp_backend=gradient_backend("auto"),
    )
    processes = arguments.world_size
    data = PerceptionData(
        without_budget(lite),
        without_budget(full),
        scenes // processes,
        close // processes,
        first_seed,
        arguments.process_index,
        processes,
    )
    trainer = _PerceptionTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        callbacks=[_JsonLog(folder / LOG)],
    )
    trainer.remove_callback(PrinterCallback)
    if start is None:
        look_around(model.encoder, lite.vision.num_layers - 1)
        some = PerceptionData(data.configs[0], data.configs[1], scenes, close, first_seed)  # the same in all processes
        whiten(model.encoder, torch.cat([item["batch"].patches for item in islice(some, WHITENED)]))
    else:
        load_encoder(model.encoder, start)
    trainer.train(resume_from_checkpoint=resume)
    if trainer.is_world_process_zero():
        save_file({k: v.contiguous() for k, v in model.encoder.state_dict().items()}, folder / ENCODER)
    trainer.accelerator.wait_for_everyone()  # nobody reads the file before it is written
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
