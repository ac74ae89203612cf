"""What the pretrainings of the embedded models' parts share: transformers' Trainer with Muon and a plain log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pixelrefer_fast.train.optimizer import MuonAdamW, is_hidden_matrix
from pixelrefer_fast.train.processes import gradient_backend, process, processes

LOG = "log.jsonl"

LOG_STEPS = 20  # between two entries of the log
SAVE_STEPS = 400  # between two checkpoints


def run_pretraining(
    model: nn.Module,
    data: IterableDataset[Any],
    names: Sequence[str],
    folder: Path,
    steps: int,
    learning_rate: float,
    seed: int = 0,
    resume: bool = False,
    slower: Mapping[str, float] | None = None,
    schedule: str = "cosine",
) -> bool:
    """Train by Muon and AdamW in mixed precision.

    Args:
        model: takes a batch of `data` by keywords and gives {"loss": ..., "accuracy": (names,)}; what needs no
            gradient is left alone.
        data: whole batches, each as a mapping, without end; every process has its own.
        names: of the accuracies.
        folder: for checkpoints and the log.
        steps: optimiser steps.
        learning_rate: the highest.
        seed: of what torch draws.
        resume: go on with the folder's last checkpoint.
        slower: parts of the learning rate for parameters whose names begin so.
        schedule: how the learning rate falls: "cosine", or "late", in the last quarter of the steps.

    Returns:
        Whether this process is the one that writes results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine" if schedule == "cosine" else "warmup_stable_decay",
        lr_scheduler_kwargs={} if schedule == "cosine" else {"num_decay_steps": steps // 4},
        warmup_steps=max(1, min(20, steps // 20)) if schedule == "late" else max(1, steps // 20),
        weight_decay=0.01,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=LOG_STEPS,
        save_steps=SAVE_STEPS,
        save_total_limit=1,
        seed=seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        log_level="error",
        ddp_backend=gradient_backend("auto"),
    )
    trainer = _PretrainingTrainer(
        names,
        slower or {},
        model=model,
        args=arguments,
        train_dataset=data,
        callbacks=[_JsonLog(folder / LOG)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer.is_world_process_zero()


def each_once(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous weights without the second name of one that has two (a head tied to its embedding), which safetensors
    refuses to write."""
    first = {weight.data_ptr(): name for name, weight in reversed(list(weights.items()))}
    return {name: weight.contiguous() for name, weight in weights.items() if first[weight.data_ptr()] == name}


class EndlessBatches(IterableDataset[dict[str, Any]]):
    """Batches by number, without end: each process of a training, and each worker of a process, has its own."""

    def make(self, number: int) -> dict[str, Any]:
        """One batch, the same for the same number."""
        raise NotImplementedError

    def __iter__(self) -> Any:
        worker = torch.utils.data.get_worker_info()
        number, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        number, step = process() + number * processes(), step * processes()
        while True:
            yield self.make(number)
            number += step


class _PretrainingTrainer(Trainer):
    """Logs accuracies with the loss."""

    def __init__(self, names: Sequence[str], slower: Mapping[str, float], **arguments: Any) -> None:
        self.names, self.slower = names, slower
        super().__init__(**arguments)
        self.accuracy: torch.Tensor | None = None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            assert self.model is not None
            groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    part = next((part for start, part in self.slower.items() if name.startswith(start)), 1.0)
                    groups.setdefault((part, is_hidden_matrix(name, parameter)), []).append(parameter)
            rate, decay = self.args.learning_rate, self.args.weight_decay
            self.optimizer = MuonAdamW(
                [
                    {"params": parameters, "lr": rate * part, "weight_decay": decay * muon, "muon": muon}
                    for (part, muon), parameters in groups.items()
                ],
                (0.9, 0.98),
            )
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader:
        # accelerate's loader asks each batch for a size, and ours has none
        assert self.train_dataset is not None
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=_unwrap, num_workers=1)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        self.accuracy = outputs["accuracy"]
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert self.model is not None
        super()._save(output_dir, each_once(self.model.state_dict() if state_dict is None else state_dict))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        pass  # a checkpoint lacks the second name of a weight (`each_once`); and only transformers' models can be asked

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.accuracy is not None:
            logs |= {f"accuracy/{name}": float(value) for name, value in zip(self.names, self.accuracy, strict=True)}
        super().log(logs, start_time)


class _JsonLog(TrainerCallback):
    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


def _unwrap(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the Trainer's loader makes of an item that is a whole batch already."""
    return batch[0]
