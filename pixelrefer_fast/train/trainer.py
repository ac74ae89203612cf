"""One stage of a training: transformers' Trainer over packed batches, with a learning rate for each part."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pixelrefer_fast.train.config import Stage, TrainConfig
from pixelrefer_fast.train.data import Collator, Items, TokenBatches, begin_worker
from pixelrefer_fast.train.module import TrainingModel
from pixelrefer_fast.train.optimizer import MuonAdamW
from pixelrefer_fast.train.parts import learning_state, load_learning_state, parameter_groups
from pixelrefer_fast.train.processes import gradient_backend

WEIGHTS = "learning.safetensors"  # of a checkpoint: what learns in this stage; the rest is where the stage started
STATE = "trainer_state.json"


class StageTrainer(Trainer):
    """Trains one stage.

    Weights and optimiser are float32; the arithmetic runs under autocast in the requested precision. A stage is one
    epoch of the Trainer, with the batches of `TokenBatches`: so a resumed run continues with the batch after the
    checkpoint.
    """

    def __init__(
        self,
        model: TrainingModel,
        stage: Stage,
        config: TrainConfig,
        items: Items,
        folder: Path,
        seed: int,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """
        Args:
            model: the model to train, in float32; `parts.set_learning` has chosen the weights that learn.
            stage, config: the stage and its config.
            items: the data.
            folder: folder for the stage's checkpoints.
            seed: seed for the order of the data and for dropout.
            callbacks: transformers callbacks.
        """
        self.stage = stage
        self.config = config
        self.items = items
        self.learner = model.network
        arguments = _arguments(stage, config, folder, seed)
        arguments._n_gpu = min(arguments.n_gpu, 1)  # several devices: one process for each (accelerate launch)
        self.batches = TokenBatches(
            items.costs,
            stage.batch_tokens,
            stage.batch_items,
            None if stage.steps is None else stage.steps * stage.accumulate,
            stage.epochs,
            seed,
            arguments.process_index,
            arguments.world_size,
        )
        arguments.max_steps = math.ceil(len(self.batches) / stage.accumulate)
        collator = Collator(items, model.network.config, model.network.tokenizer, config.kmeans_seed)
        super().__init__(
            model=model,
            args=arguments,
            data_collator=collator,
            train_dataset=items,
            callbacks=[_LogWhereSaved(), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True
        self._started = time.perf_counter()
        self._counts = dict.fromkeys(("tokens", "learnt", "correct", "patches"), 0)

    def get_train_dataloader(self) -> DataLoader:
        workers = self.config.workers
        return DataLoader(
            self.items,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=workers,
            worker_init_fn=begin_worker,
            persistent_workers=workers > 0,
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = parameter_groups(self.learner, self.stage)
            if self.stage.optimizer == "muon":
                self.optimizer = MuonAdamW(groups, self.stage.betas)
            else:
                self.optimizer = torch.optim.AdamW(groups, betas=self.stage.betas, eps=1e-8)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        batch = inputs["batch"]
        self._counts["tokens"] += len(batch.input_ids)
        self._counts["learnt"] += len(batch.targets)
        self._counts["patches"] += len(batch.patches)
        self._counts["correct"] = self._counts["correct"] + outputs["correct"]  # stays on the device until it is logged
        # DDP takes the mean over processes of what is already divided by the tokens of all of them
        loss = outputs["loss"] * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add learning rates by part, accuracy and throughput to the Trainer's log of a step.

        Raises:
            FloatingPointError: the loss is not finite; nothing is saved after that.
        """
        if "loss" not in logs:  # the Trainer's summary of the whole run
            return
        step = self.state.global_step
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(f"stage {self.stage.name}, step {step}: the loss is {logs['loss']}")
        now = time.perf_counter()
        counts = self._summed()
        seconds, self._started = now - self._started, now
        entry: dict[str, float] = {
            "loss": logs["loss"],
            "accuracy": counts["correct"] / max(counts["learnt"], 1),
            "grad_norm": logs.get("grad_norm", math.nan),
            "passes": self.batches.passes_after(step * self.stage.accumulate),
            "tokens": counts["tokens"],
            "learnt": counts["learnt"],
            "patches": counts["patches"],
            "seconds": seconds,
        }
        assert self.optimizer is not None  # the Trainer has made it before the first step
        entry |= {f"rate/{group['part']}": group["lr"] for group in self.optimizer.param_groups}
        super().log(entry)

    def _summed(self) -> dict[str, int]:
        """The counts since the last log entry, over all processes; resets them."""
        own = torch.tensor([int(value) for value in self._counts.values()], device=self.args.device)
        counts = dict(zip(self._counts, self.accelerator.reduce(own, "sum").tolist(), strict=True))
        self._counts = dict.fromkeys(self._counts, 0)
        return counts

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in learning_state(self.learner).items()}
        check_finite(state, f"stage {self.stage.name}, step {self.state.global_step}")
        save_file(state, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        path = Path(resume_from_checkpoint, WEIGHTS)
        load_learning_state(self.learner, load_file(path), str(path))


class _LogWhereSaved(TrainerCallback):
    """Ends an interval of the log at each checkpoint, so that a resumed run logs what an uninterrupted one would."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if control.should_save:
            control.should_log = True
        return control


class Report(TrainerCallback):
    """Passes each log entry on."""

    def __init__(self, tell: Callable[[int, int, dict[str, float]], None]) -> None:
        self._tell = tell

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and logs is not None:
            entry = {key: value for key, value in logs.items() if key != "epoch"}  # our stages are one epoch each
            self._tell(state.global_step, state.max_steps, entry)


def check_finite(weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise a FloatingPointError that names the first weight with NaN or infinity, if there is one."""
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise FloatingPointError(f"{where}: {name} is not finite any more (a lower learning rate may help)")


def last_checkpoint(folder: Path) -> Path | None:
    """The latest complete checkpoint in a stage's folder; the remains of an interrupted save are ignored."""
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))  # written last
            found.append((int(state["global_step"]), path))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(found)[1] if found else None


def _arguments(stage: Stage, config: TrainConfig, folder: Path, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        max_steps=1,  # set when the batches are known
        per_device_train_batch_size=1,
        gradient_accumulation_steps=stage.accumulate,
        learning_rate=max(stage.learning_rate.values()),
        lr_scheduler_type="constant_with_warmup" if stage.schedule == "constant" else stage.schedule,
        warmup_steps=stage.warmup,
        max_grad_norm=stage.max_grad_norm,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        use_cpu=config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()),
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        save_steps=config.save_every,
        save_total_limit=config.keep,
        seed=seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        log_level="error",
        ddp_find_unused_parameters=True,
        ddp_backend=gradient_backend(config.device),
    )
