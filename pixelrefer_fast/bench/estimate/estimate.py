"""What a question will cost on a machine that is not here: tokens, FLOPs, bytes, memory and time, without weights.

The real planner says which views a question needs, from sizes and masks alone; `costs` says what they cost; a
`Gpu` says how long that takes at least. `docs/estimating.md` has the assumptions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from pixelrefer_fast.bench.estimate import costs
from pixelrefer_fast.bench.estimate.costs import Machine, Sizes, Work
from pixelrefer_fast.bench.estimate.gpus import Gpu
from pixelrefer_fast.bench.estimate.planned import sizes_of
from pixelrefer_fast.bench.estimate.workload import Workload
from pixelrefer_fast.checkpoint.config import VISION_FILE, VISION_KEY, ModelConfig, VisionConfig, read_config

ITEMS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class StageEstimate:
    """One stage of a question.

    Attributes:
        name: as in `bench.stages`.
        flops, moved, launches: of all requests together.
        seconds: at least, on the GPU that was asked about; None without one.
        limit: what takes the longest of it: "matrix" or "memory" rate, "launches" (gaps between them on a device),
            "host" (which issues them) or "upload" of pixels; None without a GPU.
        works: the launches.
    """

    name: str
    flops: int
    moved: int
    launches: int
    seconds: float | None
    limit: str | None
    works: tuple[Work, ...]


@dataclass(frozen=True)
class Estimate:
    """What was estimated.

    Attributes:
        model: as it was asked for.
        kind: "lite" or "full".
        dtype: of the weights.
        workload: what is asked.
        tokens: "patches", "read" (patches whose features are used), "object", "vision" (kept ones), "prompt", "answer"
            of all requests together, and "prompts", how many.
        stages: in order.
        paper_flops: of the LLM as the paper counts them (see `paper_flops`).
        memory: bytes, as `costs.memory` names them.
        gpu: where.
    """

    model: str
    kind: str
    dtype: str
    workload: Workload
    tokens: dict[str, int]
    stages: tuple[StageEstimate, ...]
    paper_flops: int
    memory: dict[str, int]
    gpu: Gpu | None

    @property
    def flops(self) -> int:
        return sum(stage.flops for stage in self.stages)

    @property
    def moved(self) -> int:
        return sum(stage.moved for stage in self.stages)

    @property
    def launches(self) -> int:
        return sum(stage.launches for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        return None if self.gpu is None else sum(stage.seconds or 0.0 for stage in self.stages)

    @property
    def first_token(self) -> float | None:
        """Seconds from opened media to the first token."""
        return None if self.gpu is None else sum(s.seconds or 0.0 for s in self.stages if s.name != "decode")

    @property
    def step(self) -> float | None:
        """Seconds of a decode step: of one token of all sequences that run together."""
        decode = self.stage("decode").seconds
        return None if decode is None or self.workload.answer < 2 else decode / (self.workload.answer - 1)

    @property
    def fits(self) -> bool | None:
        """Whether the memory that is needed is there."""
        return None if self.gpu is None else self.memory["peak"] <= self.gpu.memory

    def stage(self, name: str) -> StageEstimate:
        return next(stage for stage in self.stages if stage.name == name)

    def to_json(self) -> dict[str, Any]:
        gpu = None
        if self.gpu is not None:
            gpu = asdict(self.gpu) | {
                "used": {"copy": self.gpu.copy, self.dtype: self.gpu.rate(self.dtype)},
                "basis": self.gpu.basis(self.dtype),
            }
        return {
            "model": self.model,
            "kind": self.kind,
            "dtype": self.dtype,
            "workload": asdict(self.workload),
            "tokens": self.tokens,
            "stages": [asdict(stage) for stage in self.stages],
            "flops": self.flops,
            "paper_flops": self.paper_flops,
            "moved": self.moved,
            "launches": self.launches,
            "memory": self.memory,
            "gpu": gpu,
            "seconds": self.seconds,
            "first_token": self.first_token,
            "step": self.step,
            "fits": self.fits,
        }


def estimate(
    model: str | ModelConfig,
    workload: Workload | None = None,
    gpu: Gpu | None = None,
    dtype: str = "bfloat16",
    graphs: bool = False,
    **options: Any,
) -> Estimate:
    """What a question costs.

    Args:
        model: a configuration, or a name as `config_of` takes it.
        workload: what is asked; or its fields as `options`.
        gpu: where; None: no time is predicted, and the code is a GPU's.
        dtype: of the weights.
        graphs: whether encoder passes and decode steps are captured as CUDA graphs.
        options: fields of `Workload`.

    Raises:
        ValueError: naming what cannot be: a model that is not there, a workload that the planner refuses, a prompt
            beyond the model's context, a dtype that the GPU does not multiply.
    """
    config = config_of(model) if isinstance(model, str) else model
    given = Workload(**options) if workload is None else replace(workload, **options)
    if dtype not in ITEMS:
        raise ValueError(f"dtype: expected one of {', '.join(ITEMS)}, got {dtype}")
    if gpu is not None:
        gpu.rate(dtype)
    sizes, tokens = sizes_of(config, given)
    machine = Machine("cuda" if gpu is None else gpu.kind, ITEMS[dtype], graphs)
    return Estimate(
        model=model if isinstance(model, str) else config.kind,
        kind=config.kind,
        dtype=dtype,
        workload=given,
        tokens=tokens,
        stages=tuple(
            _stage(name, works, sizes, gpu, dtype, graphs)
            for name, works in costs.stages(config, sizes, machine).items()
        ),
        paper_flops=_paper_flops(config, given, tokens),
        memory=costs.memory(config, sizes, machine),
        gpu=gpu,
    )


def config_of(name: str) -> ModelConfig:
    """A model's sizes by name; no weights are read.

    Args:
        name: one of `workloads.NAMES` ("lite-2b", "full-7b", ...), "embedded:lite", "embedded:full", a checkpoint's
            folder, or a hub id, of which the configuration alone is downloaded. A checkpoint without the sizes of its
            vision encoder is taken to have the released one's.

    Raises:
        ValueError: there is no such model.
    """
    from pixelrefer_fast.bench.run import workloads
    from pixelrefer_fast.checkpoint.hub import checkpoint_folder
    from pixelrefer_fast.checks.safe_files import file_in

    if name in workloads.NAMES:
        return workloads.model_config(name)
    try:
        folder = checkpoint_folder(name, progress=False, sizes_only=True)
    except ValueError as error:
        raise ValueError(f"{error}; {', '.join(workloads.NAMES)} need no file") from None
    path, raw = read_config(folder)
    if raw.get(VISION_KEY) is None and file_in(folder, VISION_FILE) is None:
        vision = VisionConfig.from_dict({**workloads.VISION, "num_hidden_layers": workloads.LAYERS}, "released")
        return ModelConfig.from_dict(raw, vision, str(path))
    return ModelConfig.from_folder(folder, {})


def other_kind(config: ModelConfig) -> ModelConfig:
    """Full's sizes for Lite's, and the other way round."""
    return replace(config, kind="full" if config.kind == "lite" else "lite")


def paper_flops(config: ModelConfig, object_tokens: int, vision_tokens: int, marks: int = 1) -> int:
    """The LLM's FLOPs as the paper counts them (equation 9), of one prompt.

    L tokens (objects' and vision's; no text) through the layers, a multiply-add being one operation:
    2 L C² + 2 L C C_kv + 2 L² C + 3 L C C_mlp for each layer. For Lite the infusion is added in the same way. Neither
    the vision encoder nor the text nor decoding is in it. The paper's own table is lower than this formula with
    Qwen2.5's sizes, by up to 1.4 times for Full and 8 times for Lite: do not set these numbers beside the table's.

    Args:
        config: the model's.
        object_tokens, vision_tokens: of the prompt.
        marks: of Lite, how many infusions there are.
    """
    llm, tokens = config.llm, object_tokens + vision_tokens
    width, inner = llm["hidden_size"], llm["intermediate_size"]
    keys = width // llm["num_attention_heads"] * llm["num_key_value_heads"]
    layer = 2 * tokens * width * (width + keys) + 2 * tokens**2 * width + 3 * tokens * width * inner
    found = llm["num_hidden_layers"] * layer
    if config.kind == "lite":
        own = config.vision.hidden_size
        for side in (config.local_view_size, config.global_view_size):
            rows = (side // 14) ** 2
            found += marks * (2 * rows * own**2) + 2 * object_tokens * own**2 + 2 * object_tokens * rows * own
    return int(found)


def _paper_flops(config: ModelConfig, workload: Workload, tokens: dict[str, int]) -> int:
    prompts, marks = tokens["prompts"], workload.marked * (1 if workload.each else workload.objects)
    return prompts * paper_flops(config, tokens["object"] // prompts, tokens["vision"] // prompts, marks)


def _stage(name: str, works: list[Work], sizes: Sizes, gpu: Gpu | None, dtype: str, graphs: bool) -> StageEstimate:
    flops, moved, launches = (
        sum(work.flops * work.times for work in works),
        sum(work.moved * work.times for work in works),
        sum(work.launches * work.times for work in works),
    )
    if gpu is None:
        return StageEstimate(name, flops, moved, launches, None, None, tuple(works))
    computing = [work.times * work.flops * (1 - work.spared) / gpu.rate(dtype) for work in works]
    moving = [work.times * work.moved / gpu.copy for work in works]
    device = sum(map(max, computing, moving)) + launches * gpu.gap
    issue = 0.0 if graphs and name in ("encoder", "decode") else launches * gpu.issue
    upload = sizes.pixels / gpu.upload if name == "views" and gpu.kind == "cuda" else 0.0
    # a CPU computes what it has issued before it issues the next; a device goes on by itself
    seconds = device + issue if gpu.kind == "cpu" else max(device + upload, issue)
    limits = {"matrix": sum(computing), "memory": sum(moving), "launches": launches * gpu.gap}
    limits |= {"host": issue, "upload": upload}
    return StageEstimate(name, flops, moved, launches, seconds, max(limits, key=lambda k: limits[k]), tuple(works))
