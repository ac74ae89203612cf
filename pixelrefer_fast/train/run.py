"""A whole training: its data, its stages one after the other, logs, checkpoints, and the trained model."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from pixelrefer_fast._version import __version__
from pixelrefer_fast.checkpoint import Checkpoint, open_checkpoint
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.checks.safe_files import brief, read_json
from pixelrefer_fast.loading import auto_device, load
from pixelrefer_fast.network import Network
from pixelrefer_fast.train.config import Stage, TrainConfig, World
from pixelrefer_fast.train.data import Items, Source
from pixelrefer_fast.train.logs import Log
from pixelrefer_fast.train.malformed import MalformedLog
from pixelrefer_fast.train.parts import learning_state, learning_weights, merge, set_learning
from pixelrefer_fast.train.processes import own_device, process, together, wait
from pixelrefer_fast.train.records_source import RecordsSource
from pixelrefer_fast.train.scenes import WorldSource

MODEL = "model"  # the trained model's folder, and that of each stage before the last
SETTINGS = "training.json"
LOG = "log.jsonl"
MALFORMED = "malformed.jsonl"

Tell = Callable[[Stage, int, int, dict[str, float]], None]


def train(
    config: TrainConfig,
    resume: bool = False,
    tell: Tell | None = None,
    say: Callable[[str], None] | None = None,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Run the stages of a config that are not done yet, and write the trained model.

    Args:
        config: the configuration.
        resume: continue the run in the output folder; without it the folder must be new or empty.
        tell: called with the stage, the step, the number of steps, and each log entry.
        say: called with progress lines for people.
        callbacks: transformers callbacks, added to every stage's Trainer.

    Returns:
        A report with model (the folder), stages (those of this run, each with its steps, last loss and accuracy, and
            seconds), malformed (the number of samples left out), malformed_log and seconds.

    Raises:
        ValueError: the checkpoint, the data or the output folder cannot be used.
        ImportError: a package of the extra `train` is missing.
        FloatingPointError: the loss became infinite or NaN.
    """
    check_packages(config)
    started = time.perf_counter()
    device = own_device(training_device(config))
    checkpoint = open_checkpoint(config.model)
    saved_as = _saved_as(config, checkpoint)
    main = process() == 0
    say = say if say is not None and main else _silent
    output = config.output
    malformed = MalformedLog(output / MALFORMED, config.strict)
    folders = [output / f"{number}-{stage.name}" for number, stage in enumerate(config.stages, 1)]
    targets = [*(folder / MODEL for folder in folders[:-1]), output / MODEL]
    with together(device), ExitStack() as stack:
        if main:
            _check_output(config, resume)
        wait()
        done = next((n for n in range(len(targets), 0, -1) if (targets[n - 1] / "config.json").is_file()), 0)
        for stage in config.stages[:done]:
            say(f"stage {stage.name}: done before")
        data = [stage_items(stage, checkpoint.config, malformed, say) for stage in config.stages[done:]]
        log = None
        if main:
            _begin(config)
            log = stack.enter_context(
                closing(Log(output / LOG, output / "tensorboard" if config.tensorboard else None))
            )
        reports: list[dict[str, Any]] = []
        model: Any = None
        for number, items in enumerate(data, done):
            if model is None:
                model = load(targets[number - 1] if number else config.model, device=device, dtype="float32")
            reports.append(_run_stage(model.network, number, config, items, folders[number], log, tell, say, callbacks))
            if number == len(config.stages) - 1:
                model.to(saved_as)
            if main:
                model.save(targets[number])
                for path in folders[number].glob("checkpoint-*"):  # they only served to resume
                    shutil.rmtree(path)
            wait()
    return {
        "model": str(output / MODEL),
        "stages": reports,
        "malformed": malformed.count(),
        "malformed_log": str(output / MALFORMED),
        "seconds": time.perf_counter() - started,
    }


def _silent(line: str) -> None:
    pass


def check_packages(config: TrainConfig) -> None:
    """Raise an ImportError, in one line, if a package that this training needs is missing."""
    wanted = {"accelerate": True, "peft": any(s.lora for s in config.stages), "tensorboard": config.tensorboard}
    missing = [name for name, needed in wanted.items() if needed and importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{config.source}: training needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
            'not installed: pip install "pixelrefer-fast[train]"'
        )


def training_device(config: TrainConfig) -> torch.device:
    """The device of a training.

    Raises:
        ValueError: the device does not exist here, or does not support the requested precision.
    """
    device = auto_device(config.device)
    if config.precision == "fp16" and device.type == "cpu":  # accelerate would take float32 instead, and not say so
        raise ValueError(f"{config.source}: precision: expected fp32 or bf16 on a CPU, got fp16")
    return device


def stage_items(
    stage: Stage, model: ModelConfig, malformed: MalformedLog, say: Callable[[str], None] | None = None
) -> Items:
    """Read the files of a stage through once and return its items; malformed samples are reported and counted.

    Raises:
        ValueError: a file cannot be read, or no samples are left.
    """
    sources: list[tuple[Source, int]] = []
    for source in stage.data:
        if isinstance(source, World):
            sources.append((WorldSource(source, model.kind, model.mask_num), 1))
        else:
            sources.append((RecordsSource(source, model, malformed, say), source.repeat))
    return Items(sources, malformed)


def _run_stage(
    network: Network,
    number: int,
    config: TrainConfig,
    items: Items,
    folder: Path,
    log: Log | None,
    tell: Tell | None,
    say: Callable[[str], None],
    callbacks: Sequence[Any],
) -> dict[str, Any]:
    """Train one stage from its last checkpoint or from its start; the model then has its weights, adapters merged."""
    from transformers import set_seed

    from pixelrefer_fast.train.module import TrainingModel
    from pixelrefer_fast.train.trainer import Report, StageTrainer, check_finite, last_checkpoint

    started = time.perf_counter()
    stage = config.stages[number]
    set_seed(config.seed + number)  # of the adapters' first values
    adapters = set_learning(network, stage.learning_rate, stage.lora)
    if config.gradient_checkpointing:
        network.llm.gradient_checkpointing_enable({"use_reentrant": False})
    last: dict[str, float] = {}

    def report(step: int, steps: int, entry: dict[str, float]) -> None:
        last.update(entry)
        if log is not None:
            log.add(stage.name, step, entry)
        if tell is not None:
            tell(stage, step, steps, entry)

    folder.mkdir(parents=True, exist_ok=True)
    trainer = StageTrainer(
        TrainingModel(network), stage, config, items, folder, config.seed + number, [Report(report), *callbacks]
    )
    checkpoint = last_checkpoint(folder)
    wait()
    if log is not None:
        log.rewind(stage.name, 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2]))
    learning = sum(parameter.numel() for _, _, parameter in learning_weights(network))
    say(
        f"stage {stage.name}: {trainer.args.max_steps} steps, {len(items)} items, {learning:,} weights learn"
        + ("" if checkpoint is None else f", from {checkpoint.name}")
    )
    try:
        result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        if config.gradient_checkpointing:
            network.llm.gradient_checkpointing_disable()
    check_finite(learning_state(network), f"stage {stage.name}, its end")
    merge(adapters)
    network.eval().requires_grad_(False)
    return {
        "name": stage.name,
        "steps": result.global_step,
        "loss": last.get("loss"),
        "accuracy": last.get("accuracy"),
        "seconds": time.perf_counter() - started,
    }


def _saved_as(config: TrainConfig, checkpoint: Checkpoint) -> torch.dtype:
    if config.save_dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.save_dtype]
    sizes: Counter[torch.dtype] = Counter()
    for info in checkpoint.tensors.values():
        sizes[info.dtype] += info.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def _check_output(config: TrainConfig, resume: bool) -> None:
    """Create the output folder if needed; it must belong to the run to resume, or contain no run."""
    output = config.output
    try:
        if output.exists() and (not output.is_dir() or any(p.name != MALFORMED for p in output.iterdir())):
            if not resume:
                raise ValueError(
                    f"{output}: expected a new or empty folder to write to, got one with files in it, or a file "
                    "(--resume goes on with what is in it)"
                )
            if not (output / SETTINGS).is_file():
                raise ValueError(f"{output}: expected the folder of a training to resume, got one without {SETTINGS}")
            _same_settings(config, output / SETTINGS)
        else:
            output.mkdir(parents=True, exist_ok=True)
            (output / MALFORMED).unlink(missing_ok=True)  # of a training whose data was not good enough to begin
    except OSError as error:
        raise ValueError(f"{output}: cannot be written: {error.strerror or error}") from error


def _begin(config: TrainConfig) -> None:
    """Write the settings of a run if it has none yet: from then on the folder can only be resumed."""
    path = config.output / SETTINGS
    if path.is_file():
        return
    try:
        part = path.with_suffix(".part")
        document = {"library": __version__, "config": config.decisive()}
        part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror or error}") from error


def _same_settings(config: TrainConfig, path: Path) -> None:
    before = read_json(path).get("config")
    difference = _difference(before, config.decisive(), "")
    if difference is not None:
        key, old, new = difference
        raise ValueError(
            f"{config.source}: {key}: expected what the training in {path.parent} began with, {brief(old)}, "
            f"got {brief(new)}"
        )


def _difference(old: Any, new: Any, name: str) -> tuple[str, Any, Any] | None:
    """The first place where two settings differ: (key, old, new)."""
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(f"{name}.{key}".lstrip("."), old.get(key), new.get(key)) for key in sorted({*old, *new})]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(f"{name} {i}", a, b) for i, (a, b) in enumerate(zip(old, new, strict=True), 1)]
    elif old != new:
        return name, old, new
    return next((found for key, a, b in pairs if (found := _difference(a, b, key)) is not None), None)
