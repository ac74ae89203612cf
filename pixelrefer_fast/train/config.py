"""The configuration of a training: a YAML file, checked before anything is loaded. docs/training.md lists the keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from pixelrefer_fast.checks.safe_files import brief, read_limited
from pixelrefer_fast.train.keys import Keys
from pixelrefer_fast.train.optimizer import OPTIMIZERS

PARTS = ("llm", "projector", "region_encoder", "vision_encoder")
PRECISIONS = ("fp32", "bf16", "fp16")
SAVED_AS = ("auto", "float32", "bfloat16", "float16")
SCHEDULES = ("constant", "linear", "cosine")
DEVICES = ("auto", "cpu", "cuda")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_CONFIG_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,63}")


@dataclass(frozen=True)
class Records:
    """A file of samples in the released format.

    Attributes:
        records: the JSON list or JSON-lines file.
        media_root: the folder that image and video paths are relative to.
        repeat: how often a pass over the stage's data takes each sample.
        fps, max_frames: choose the frames of a video that the full model sees whole, as in `EncodeOptions`.
    """

    records: Path
    media_root: Path
    repeat: int = 1
    fps: float | None = 1.0
    max_frames: int = 768


@dataclass(frozen=True)
class World:
    """Scenes of the synthetic world, drawn when they are needed.

    Attributes:
        scenes: number of scenes in a pass.
        first_seed: seed of the first scene; the next scenes have the following seeds.
        split: "train" or "heldout".
        video: only videos (True), only images (False), or both (None).
        questions: most questions about each scene; None: all.
        categories: categories of questions; None: all.
        rounds: how often questions are drawn about each scene; repeated questions count once.
        fps, max_frames: as in `Records`.
    """

    scenes: int
    first_seed: int = 0
    split: str = "train"
    video: bool | None = None
    questions: int | None = None
    categories: tuple[str, ...] | None = None
    rounds: int = 1
    fps: float | None = 1.0
    max_frames: int = 768


Source: TypeAlias = Records | World


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters in the LLM's linear layers, merged into them when the stage is saved."""

    rank: int = 64
    alpha: int = 128
    dropout: float = 0.0
    targets: tuple[str, ...] = LORA_TARGETS


@dataclass(frozen=True)
class Stage:
    """One stage of a training: its data, its learning rates, and how it learns.

    Attributes:
        name: name of the stage's folder.
        data: sources, mixed.
        steps: optimiser steps; None if `epochs` is given.
        epochs: passes over the data; None if `steps` is given.
        learning_rate: peak learning rate of each part; parts without one are frozen.
        batch_tokens: samples are packed into a batch until it has about this many tokens.
        batch_items: most items (samples of a file, scenes of the world) in a batch; None: no limit.
        accumulate: batches per optimiser step.
        warmup: warm-up steps; a value below 1 is a fraction of all steps.
        schedule: learning rate after the warm-up: "cosine", "linear" or "constant".
        weight_decay: weight decay of matrices; biases and norms have none.
        max_grad_norm: gradients are clipped to this norm; 0: no clipping.
        optimizer: "adamw", or "muon" (Muon for matrices, AdamW for the rest).
        betas: AdamW's betas.
        lora: adapters that learn instead of the LLM's own weights; None: no adapters.
    """

    name: str
    data: tuple[Source, ...]
    steps: int | None
    epochs: float | None
    learning_rate: dict[str, float]
    batch_tokens: int = 16384
    batch_items: int | None = None
    accumulate: int = 1
    warmup: float = 0.03
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    lora: Lora | None = None


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a whole training.

    Attributes:
        model: the checkpoint to start from, a folder or a hub id.
        output: folder for checkpoints, logs and the trained model.
        stages: the stages, in order.
        seed: seed for the order of the data, the adapters' initial values and dropout.
        precision: precision of the arithmetic; weights and optimiser are always float32.
        save_dtype: dtype of the trained model; "auto": the dtype of the checkpoint it started from.
        device: "auto", "cpu" or "cuda".
        gradient_checkpointing: whether the LLM's activations are computed twice, to keep fewer of them.
        kmeans_seed: draws the first centroids at random; None: evenly spaced, as at inference.
        log_every, save_every: steps between log entries and between checkpoints.
        keep: number of checkpoints of the running stage to keep.
        workers: processes that read data; 0: the training process reads it.
        tensorboard: whether to write TensorBoard event files.
        strict: whether to stop at the first malformed sample instead of leaving it out.
        source: name of the config file in messages.
    """

    model: str
    output: Path
    stages: tuple[Stage, ...]
    seed: int = 0
    precision: str = "bf16"
    save_dtype: str = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    kmeans_seed: int | None = None
    log_every: int = 10
    save_every: int = 500
    keep: int = 2
    workers: int = 0
    tensorboard: bool = True
    strict: bool = False
    source: str = field(default="config", compare=False)

    def decisive(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the interrupted one: all that change the weights."""
        values = asdict(self)
        for key in ("output", "log_every", "save_every", "keep", "workers", "tensorboard", "strict", "source"):
            del values[key]
        return _plain(values)


def load_config(path: str | Path, out: str | Path | None = None) -> TrainConfig:
    """Read and check a YAML config.

    Args:
        path: the file; relative paths inside it are relative to its folder.
        out: output folder, overriding the config's.

    Raises:
        ValueError: one line with the file, the key, what was expected and what was given.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected a YAML file, found none")
    try:
        values = yaml.load(read_limited(path, MAX_CONFIG_BYTES), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ValueError(f"{path}{where}: expected YAML, but {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{path}: expected YAML, but {brief(str(error))}") from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: expected a mapping of keys, got {brief(values)}")
    return parse_config(values, str(path), path.parent, out)


def parse_config(values: Mapping[str, Any], source: str, folder: Path, out: str | Path | None = None) -> TrainConfig:
    """Make a config from its values, as `load_config` does from a file; paths are relative to `folder`."""
    keys = Keys(source, values, folder)
    stages = keys.entries("stages")
    config = TrainConfig(
        model=_model(keys),
        output=Path(out) if out is not None else keys.path("output"),
        stages=tuple(_stage(entry, number) for number, entry in enumerate(stages, 1)),
        seed=keys.integer("seed", 0, 2**32 - 1, 0),
        precision=keys.choice("precision", PRECISIONS, "bf16"),
        save_dtype=keys.choice("save_dtype", SAVED_AS, "auto"),
        device=keys.choice("device", DEVICES, "auto"),
        gradient_checkpointing=keys.flag("gradient_checkpointing", False),
        kmeans_seed=keys.optional_integer("kmeans_seed", 0, 2**63 - 1),
        log_every=keys.integer("log_every", 1, 10**9, 10),
        save_every=keys.integer("save_every", 1, 10**9, 500),
        keep=keys.integer("keep", 1, 1000, 2),
        workers=keys.integer("workers", 0, 256, 0),
        tensorboard=keys.flag("tensorboard", True),
        strict=keys.flag("strict", False),
        source=source,
    )
    if out is not None:
        keys.text("output", "")
    keys.done()
    names = [stage.name for stage in config.stages]
    if len(set(names)) < len(names):
        raise ValueError(f"{source}: stages: expected a name of its own for each, got {', '.join(names)}")
    return config


def _model(keys: Keys) -> str:
    """A folder relative to the file where there is one, else a hub id."""
    name = keys.text("model")
    beside = keys.folder / name
    return str(beside) if beside.is_dir() else name


def _stage(keys: Keys, number: int) -> Stage:
    name = keys.text("name", f"stage{number}")
    if not _NAME.fullmatch(name):
        raise keys.error("name", "letters, digits, - and _")
    steps = keys.optional_integer("steps", 1, 10**9)
    epochs = keys.optional_number("epochs", 0, 1e6)
    if (steps is None) == (epochs is None):
        raise keys.error("steps", "either steps or epochs")
    rates = _rates(keys)
    lora = None
    if keys.given("lora"):
        if "llm" not in rates:
            raise keys.error("lora", "a learning_rate for llm, which is that of the adapters")
        lora = _lora(keys.mapping("lora"))
    beta1, beta2 = keys.numbers("betas", (0.9, 0.999))
    stage = Stage(
        name=name,
        data=tuple(_source(entry) for entry in keys.entries("data")),
        steps=steps,
        epochs=epochs,
        learning_rate=rates,
        batch_tokens=keys.integer("batch_tokens", 1, 10**9, 16384),
        batch_items=keys.optional_integer("batch_items", 1, 10**6),
        accumulate=keys.integer("accumulate", 1, 10**6, 1),
        warmup=keys.number("warmup", 0, 1e9, 0.03),
        schedule=keys.choice("schedule", SCHEDULES, "cosine"),
        weight_decay=keys.number("weight_decay", 0, 1e3, 0.0),
        max_grad_norm=keys.number("max_grad_norm", 0, 1e9, 1.0),
        optimizer=keys.choice("optimizer", OPTIMIZERS, "adamw"),
        betas=(beta1, beta2),
        lora=lora,
    )
    keys.done()
    return stage


def _rates(keys: Keys) -> dict[str, float]:
    """The learning rate of each part that learns, from one number for all or a mapping."""
    value = keys.values.get("learning_rate")
    if not isinstance(value, Mapping):
        rate = keys.number("learning_rate", 0, 1e3)
        rates = dict.fromkeys(PARTS, rate)
    else:
        given = keys.mapping("learning_rate")
        rates = {part: 0.0 if given.values.get(part) == "frozen" else given.number(part, 0, 1e3, 0.0) for part in PARTS}
        given.taken |= set(PARTS)
        given.done()
    rates = {part: rate for part, rate in rates.items() if rate > 0}
    if not rates:
        raise keys.error("learning_rate", f"a rate above 0 for one of {', '.join(PARTS)}")
    return rates


def _lora(keys: Keys) -> Lora:
    rank = keys.integer("rank", 1, 4096, 64)
    targets = keys.texts("targets", LORA_TARGETS)
    if not targets or not set(targets) <= set(LORA_TARGETS):
        raise keys.error("targets", f"some of {', '.join(LORA_TARGETS)}")
    lora = Lora(
        rank,
        alpha=keys.integer("alpha", 1, 10**6, 2 * rank),
        dropout=keys.number("dropout", 0, 0.99, 0.0),
        targets=targets,
    )
    keys.done()
    return lora


def _source(keys: Keys) -> Source:
    kinds = [kind for kind in ("records", "world") if keys.given(kind)]
    if len(kinds) != 1:
        raise keys.error("records", "either records or world")
    fps, max_frames = keys.optional_number("fps", 0, 1e6, 1.0), keys.integer("max_frames", 1, 10**6, 768)
    source: Source
    if kinds == ["records"]:
        file = keys.path("records")
        if not file.is_file():
            raise keys.error("records", "a file of samples", str(file))
        root = keys.path("media_root") if keys.given("media_root") else file.parent
        if not root.is_dir():
            raise keys.error("media_root", "an existing folder", str(root))
        source = Records(file, root, keys.integer("repeat", 1, 10**6, 1), fps, max_frames)
    else:
        world = keys.mapping("world")
        categories = world.texts("categories", ()) or None
        source = World(
            scenes=world.integer("scenes", 1, 10**8),
            first_seed=world.integer("first_seed", 0, 2**62, 0),
            split=world.choice("split", ("train", "heldout"), "train"),
            video=world.flag("video", None),
            questions=world.optional_integer("questions", 1, 64),
            categories=_checked_categories(world, categories),
            rounds=world.integer("rounds", 1, 64, 1),
            fps=fps,
            max_frames=max_frames,
        )
        world.done()
    keys.done()
    return source


def _checked_categories(keys: Keys, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    from pixelrefer_fast.world.questions import CATEGORIES

    if not set(given) <= set(CATEGORIES):
        raise keys.error("categories", f"some of {', '.join(CATEGORIES)}")
    return given


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key twice, and anchors, with which few bytes become many values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "it uses an alias", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {brief(key)} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _plain(value: Any) -> Any:
    """Values that JSON holds."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
