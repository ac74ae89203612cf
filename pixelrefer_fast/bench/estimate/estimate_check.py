"""The cost model held against what was counted and measured: here and now, or in a result file of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pixelrefer_fast.bench.estimate import costs
from pixelrefer_fast.bench.estimate.estimate import ITEMS, Estimate, config_of, estimate
from pixelrefer_fast.bench.estimate.gpus import THIS, Gpu, this_machine
from pixelrefer_fast.bench.estimate.workload import Workload
from pixelrefer_fast.bench.report import results
from pixelrefer_fast.bench.report.results import Row
from pixelrefer_fast.device.counters import Counts
from pixelrefer_fast.planning.request import REGION_TAG

UNITS = ("tokens", "FLOP", "bytes", "launches", "s")
SUITES = ("whole", "scaling", "against", "stages")  # of result files, whose rows the model can say something of
OURS = ("ours", "pixelrefer_fast")
MEASURED_SUITE = "estimate"
# result files of before 2026-11-28 have one stage for both
TOGETHER = {"region": ("pooling", "infusion")}


@dataclass(frozen=True)
class Quantity:
    """One number, estimated and measured.

    Attributes:
        name: what it is of ("encoder", "object tokens", ...).
        unit: one of UNITS.
    """

    name: str
    unit: str
    estimated: float
    measured: float

    @property
    def error(self) -> float | None:
        """Of the estimate, relative to what was measured; None where nothing was."""
        return None if not self.measured else self.estimated / self.measured - 1

    def to_json(self) -> dict[str, Any]:
        return {"unit": self.unit, "estimated": self.estimated, "measured": self.measured, "error": self.error}


@dataclass(frozen=True)
class EstimateCheck:
    """One case: its estimate and every quantity of it that was measured too."""

    case: str
    estimate: Estimate
    quantities: tuple[Quantity, ...]

    def row(self) -> Row:
        """A row of a result file."""
        workload = self.estimate.workload
        sizes: dict[str, int | float | str] = {
            "objects": workload.objects,
            "frames": workload.frames or 1,
            "marked": workload.marked,
            "height": workload.height,
            "width": workload.width,
            "batch": workload.batch,
            "answer": workload.answer,
        }
        return Row(
            suite=MEASURED_SUITE,
            case=self.case,
            by="cost model",
            model=self.estimate.model,
            dtype=self.estimate.dtype,
            sizes=sizes,
            ok=True,
            extra={
                "kind": self.estimate.kind,
                "quantities": {f"{q.name}, {q.unit}": q.to_json() for q in self.quantities},
            },
        )


def measure(
    name: str,
    workload: Workload,
    device: str = "auto",
    dtype: str = "auto",
    repeats: int = 3,
    gpu: Gpu | None = None,
    tick: Callable[[str], None] | None = None,
) -> EstimateCheck:
    """Ask a model here, and hold the estimate against what that took.

    Pictures are random; videos move, so that all their vision tokens are kept. Answers go on to their length.

    Args:
        name: of the model, as `workloads.load_model` takes it.
        workload: what is asked: one image or video and one question about all its objects.
        device, dtype: as `load` takes them.
        repeats: how often each stage is timed.
        gpu: the rates of this machine, if they are known already.
        tick: called with what is done next.

    Raises:
        ValueError: several images, or a question for each object; too little memory; or what `estimate` says of the
            workload.
    """
    import torch

    from pixelrefer_fast.bench.measure import memory
    from pixelrefer_fast.bench.run import stages, workloads
    from pixelrefer_fast.bench.run.askers import as_measured
    from pixelrefer_fast.device.memory import free_memory
    from pixelrefer_fast.loading import auto_device, auto_dtype

    if workload.batch > 1 or workload.each:
        raise ValueError("--measure: expected one image or video and one question about all its objects")
    target = auto_device(device)
    precision = auto_dtype(dtype, target)
    kind = str(precision).removeprefix("torch.")
    # what cannot be is refused before anything is loaded
    needed, free = estimate(name, workload, dtype=kind).memory["peak"], free_memory(target)
    if needed > free:
        raise ValueError(f"--measure: expected {needed / 1e9:.3g} GB of free memory for {name}, got {free / 1e9:.3g}")
    tick = tick or (lambda what: None)
    tick("loading")
    model = workloads.load_model(name, target, precision)
    tick("rates of this machine")
    gpu = gpu or this_machine(kind, str(target))
    media, regions, question = _question(workload)
    with as_measured(model):
        found = stages.run(model, media, question, regions, workload.answer, repeats, tick)
        tick("memory")
        weights = [*model.parameters(), *model.buffers()]
        model.decoder.clear()
        with torch.inference_mode(), memory.watching(target, weights) as watched:
            model.ask(media, question, regions, max_new_tokens=workload.answer)
    by_name = {stage.name: stage for stage in found}
    projector, prompt = by_name["projector"].sizes, by_name["prefill"].sizes["tokens"]
    # the rule is told how long the question's own words are, and guesses what stands around them
    words = len(model.tokenizer(question.replace(REGION_TAG, ""), add_special_tokens=False)["input_ids"])
    by_rule = estimate(name, replace(workload, question=words), gpu, kind)
    text = prompt - projector["tokens"] - projector["vision_tokens"]
    guess = estimate(name, replace(workload, text=text), gpu, kind)
    seconds: dict[str, float] = {
        stage.name: (stage.device_seconds if stage.device_seconds is not None else stage.seconds)["median"]
        for stage in found
    }
    counted: dict[str, dict[str, int]] = {stage.name: _counted(stage.counts) for stage in found}
    # ours has both in one
    begun, seconds["prefill"] = counted.pop("prompt"), seconds["prefill"] + seconds.pop("prompt")
    counted["prefill"] = {what: number + begun[what] for what, number in counted["prefill"].items()}
    quantities = [
        Quantity("patches", "tokens", guess.tokens["patches"], by_name["encoder"].sizes["patches"]),
        Quantity("object", "tokens", guess.tokens["object"], projector["tokens"]),
        Quantity("vision", "tokens", guess.tokens["vision"], projector["vision_tokens"]),
        Quantity("prompt, its text by rule", "tokens", by_rule.tokens["prompt"], prompt),
        *_numbers(guess, counted),
        *(Quantity(s.name, "s", s.seconds or 0.0, seconds[s.name]) for s in guess.stages),
        Quantity("first token", "s", guess.first_token or 0.0, sum(seconds.values()) - seconds["decode"]),
        Quantity("all", "s", guess.seconds or 0.0, sum(seconds.values())),
        Quantity("weights", "bytes", guess.memory["weights"], sum(p.nbytes for p in model.parameters())),
        Quantity("memory, at the most", "bytes", guess.memory["peak"], watched.peak),
    ]
    return EstimateCheck(_case(workload), guess, tuple(quantities))


def _counted(counts: Counts) -> dict[str, int]:
    return {"flops": counts.flops, "moved": counts.moved, "launches": counts.launches.total()}


def _question(workload: Workload) -> tuple[Any, list[Any], str]:
    from pixelrefer_fast.bench.run import workloads
    from pixelrefer_fast.media import open_media

    frames, size = workload.frames, (workload.height, workload.width)
    question = "What is " + " and ".join([REGION_TAG] * workload.objects) + "?"
    masks = list(workload.masks())
    if frames is None:
        return workloads.picture(*size, 0), masks, question
    # a frame a second: Full sees as many
    media = open_media(list(workloads.video(frames, *size, 0)), times=[float(i) for i in range(frames)])
    return media, [dict.fromkeys(workload.frames_marked(), mask) for mask in masks], question


def check_file(path: Path) -> Iterator[EstimateCheck]:
    """Every row of a result file's last documents that the model can say something of.

    Raises:
        ValueError: the file is none, or holds no such row.
    """
    found = False
    for document in _documents(path):
        gpu = gpu_of(document)
        for row in document.get("rows", ()):
            if row.get("suite") not in SUITES or row.get("by") not in OURS or "seconds" not in row:
                continue
            check = _of_row(row, gpu)
            if check is not None:
                found = True
                yield check
    if not found:
        raise ValueError(f"--check {path}: expected rows of {', '.join(SUITES)} of models that are known, found none")


def gpu_of(document: dict[str, Any]) -> Gpu:
    """The machine of a result file, with the rates that were measured in the same run."""
    device = document.get("device")
    return Gpu(
        name=THIS,
        title=device["name"] if device else str(document.get("cpu")),
        memory=device["memory"] if device else 0,
        bandwidth=0.0,
        matrix={},
        source="a result file",
        measured=document.get("rates") or {},
        measured_source="measured in the same run",
        gap=Gpu.gap if device else 0.0,
        kind="cuda" if device else "cpu",
    )


def _documents(path: Path) -> list[dict[str, Any]]:
    """The last document of each benchmark."""
    last = {document["benchmark"]: document for document in results.read(path)}
    return list(last.values())


def _of_row(row: Row, gpu: Gpu) -> EstimateCheck | None:
    sizes: dict[str, Any] = dict(row["sizes"])
    name, dtype = row.get("model", ""), row.get("dtype", "")
    if not {"height", "width", "answer"} <= sizes.keys() or dtype not in ITEMS or "copy" not in gpu.measured:
        return None
    if not gpu.computes(dtype) or row.get("extra", {}).get("curve") == "n":
        return None
    batch, frames = int(sizes.get("batch", 1)), int(sizes.get("frames", 1))
    video = frames > 1 or "video" in row["case"] or row.get("extra", {}).get("curve") == "frames"
    workload = Workload(
        objects=max(1, int(sizes.get("objects", 1)) // batch),
        frames=frames if video else None,
        marked=int(sizes.get("marked", 1)),
        height=int(sizes["height"]),
        width=int(sizes["width"]),
        ellipses=True,
        batch=batch,
        each=True,
        answer=int(sizes["answer"]),
        shared=False,  # the benchmarks keep no prefixes
        seed=0,
    )
    try:
        config_of(name)
    except ValueError:
        return None  # a checkpoint that is not here
    extra = row.get("extra", {})
    if row["suite"] == "stages":
        stage = extra.get("stage", "")
        if stage not in costs.STAGES:
            return None
        guess = _with_prompt(name, workload, gpu, dtype, sizes.get("tokens") if stage == "prefill" else None)
        own = guess.stage(stage)
        counted = _numbers(guess, {stage: dict(row)}, total=False)
        return EstimateCheck(
            row["case"], guess, (*counted, Quantity(stage, "s", own.seconds or 0.0, row["seconds"]["median"]))
        )
    tokens = extra.get("tokens", {})
    guess = _with_prompt(name, workload, gpu, dtype, tokens.get("prompt"))
    quantities = [
        Quantity(what, "tokens", guess.tokens[what], tokens[what]) for what in ("object", "vision") if what in tokens
    ]
    quantities += _numbers(guess, extra.get("stages", {}))
    if "first" in extra:
        quantities.append(Quantity("first token", "s", guess.first_token or 0.0, extra["first"]["median"]))
    quantities.append(Quantity("all", "s", guess.seconds or 0.0, row["seconds"]["median"]))
    if "peak_bytes" in row:
        quantities.append(Quantity("memory, at the most", "bytes", guess.memory["peak"], row["peak_bytes"]))
    return EstimateCheck(f"{row['suite']}: {row['case']}", guess, tuple(quantities))


def _with_prompt(name: str, workload: Workload, gpu: Gpu, dtype: str, prompt: Any) -> Estimate:
    """The estimate with as many tokens of text as the measured prompts had, where that is known."""
    guess = estimate(name, workload, gpu, dtype)
    if not prompt:
        return guess
    text = round((prompt - guess.tokens["object"] - guess.tokens["vision"]) / guess.tokens["prompts"])
    return estimate(name, replace(workload, text=max(0, text)), gpu, dtype)


def _numbers(guess: Estimate, measured: dict[str, Any], total: bool = True) -> list[Quantity]:
    """FLOPs, bytes and launches of the stages that both have, and of all those together."""
    found = []
    estimated = {stage.name: stage for stage in guess.stages}
    for unit, field in (("FLOP", "flops"), ("bytes", "moved"), ("launches", "launches")):
        sums = [0.0, 0.0]
        for name, counts in measured.items():
            own = [estimated[part] for part in TOGETHER.get(name, (name,)) if part in estimated]
            if not own or (name == "views" and (guess.gpu is None or guess.gpu.kind == "cpu")):
                continue  # NumPy, OpenCV and Pillow cut the views, of which nothing is counted
            number = counts[field]
            guessed = sum(getattr(stage, field) for stage in own)
            sums[0], sums[1] = sums[0] + guessed, sums[1] + number
            if guessed or number:
                found.append(Quantity(name, unit, guessed, number))
        if total:
            found.append(Quantity("all", unit, *sums))
    return found


def document(checks: Sequence[EstimateCheck]) -> dict[str, Any]:
    """A document for a result file, with the rates that were taken.

    Raises:
        ValueError: two checks of one case.
    """
    gpu = checks[0].estimate.gpu if checks else None
    return results.document(MEASURED_SUITE, [check.row() for check in checks], None if gpu is None else gpu.measured)


def _case(workload: Workload) -> str:
    objects = f"{workload.objects} object{'s' if workload.objects > 1 else ''}"
    size = f"{workload.height}x{workload.width}"
    if workload.frames is None:
        return f"image of {size}, {objects}"
    frames = "a frame" if workload.marked == 1 else f"{workload.marked} frames"
    return f"{workload.frames}-frame video of {size}, {objects} marked in {frames}"
