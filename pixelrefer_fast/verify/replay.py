"""Replay recorded cases of the reference and report the error of every stage.

A folder holds a checkpoint and `case_*.safetensors`: the inputs, intermediates and outputs of one request each, with
the k-means starts that were drawn. A few cases of each kind of model ship with small random checkpoints, so that an
install can be checked without anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch

from pixelrefer_fast.decoding.options import Generation
from pixelrefer_fast.device.stages import StageCall, StageName, listen
from pixelrefer_fast.encoding.object_tokenizer import kmeans_starts
from pixelrefer_fast.encoding.objects import Objects
from pixelrefer_fast.loading import load
from pixelrefer_fast.model import PixelRefer, PixelReferLite
from pixelrefer_fast.ops.view_patches import resize_view
from pixelrefer_fast.planning.request import FrameSource, ObjectTokens
from pixelrefer_fast.planning.selection import Selection
from pixelrefer_fast.planning.views import Mark, ViewPlan, plan_views
from pixelrefer_fast.regions.boxed_mask import BoxedMask
from pixelrefer_fast.verify.case import RecordedCase

GREY_LEVELS = 1  # a resized value may differ by so many levels ...
GREY_SHARE = 1e-3  # ... on this share of the values


@dataclass(frozen=True)
class Tolerances:
    """Largest errors that hold in a dtype: relative to the largest recorded value; logits absolute.

    `tie` is the relative gap between two distances below which a clustering is a tie: either outcome is right.
    In 16-bit formats everything is their rounding (eps): several of it through the whole stack, and a gap that small is
    decided by it. There a greedy choice between near-equal logits may differ as well, so text is not judged.
    """

    stack: float
    logits: float
    tie: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Tolerances:
        if dtype == torch.float32:
            return cls(stack=1e-4, logits=1e-3, tie=1e-5)
        eps = torch.finfo(dtype).eps
        return cls(stack=4 * eps, logits=16 * eps, tie=8 * eps)


STAGES = ("crops", "patches", "features", "object_tokens", "input_ids", "inputs_embeds", "logits", "text")


SHIPPED = ("lite", "full")  # folders in assets/, a checkpoint and cases each


def verify(
    folder: str | Path | None = None,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Replay every case of a folder, or those that ship, of both kinds of model.

    Args:
        folder: holds a checkpoint and at least one `case_*.safetensors`; None: the cases that ship, whose names begin
            with the kind of their model.
        backend, device, dtype: as `load` takes them.
        progress: called with the name of each case before it runs.

    Returns:
        {"ok", "backend", "device", "dtype", "cases": [{"name", "ok", "stages": {stage: {"error", "limit", "ok"}}}]};
        a stage with "note" says what was left out of it and why.

    Raises:
        ValueError: no folder, no case, a damaged case, or a checkpoint that cannot be loaded.
    """
    if folder is None:
        return _merged({kind: verify(_assets() / kind, backend, device, dtype, progress) for kind in SHIPPED})
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder with a checkpoint and case_*.safetensors, found none")
    paths = case_paths(folder)
    if not paths:
        raise ValueError(f"{folder}: expected at least one case_*.safetensors, found none")
    model = load(folder, device=device, dtype=dtype, backend=backend, feature_bytes=0)
    for path in paths:  # a damaged file is told before the first case runs; all at once need not fit into memory
        RecordedCase.read(path, model.kind)
    cases = []
    for path in paths:
        if progress is not None:
            progress(path.stem)
        stages: dict[str, dict[str, Any]] = {}
        try:
            replay(model, RecordedCase.read(path, model.kind), stages)
        except (ValueError, FloatingPointError) as error:  # a request that we refuse fails, the next case goes on
            for stage in STAGES[len(stages) :]:
                stages[stage] = _failed(str(error))
        cases.append({"name": path.stem, "ok": all(s["ok"] for s in stages.values()), "stages": stages})
    return {
        "ok": all(c["ok"] for c in cases),
        "backend": backend,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "cases": cases,
    }


def case_paths(folder: str | Path | None) -> list[Path]:
    """The cases that `verify` replays."""
    folders = [_assets() / kind for kind in SHIPPED] if folder is None else [Path(folder)]
    return [path for one in folders for path in sorted(one.glob("case_*.safetensors"))]


def _assets() -> Path:
    return Path(str(files("pixelrefer_fast"))) / "assets"


def _merged(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    cases = [case | {"name": f"{kind}/{case['name']}"} for kind, own in reports.items() for case in own["cases"]]
    return {**reports[SHIPPED[0]], "ok": all(own["ok"] for own in reports.values()), "cases": cases}


def replay(model: PixelRefer | PixelReferLite, case: RecordedCase, stages: dict[str, dict[str, Any]]) -> None:
    """Run one case and fill in `stages`; each goes on from our own results, but for ties in the clustering."""
    limits = Tolerances.of(model.dtype)
    exact = model.dtype == torch.float32
    network = model.network
    source, plan = _plan(model, case)
    stages["crops"] = _compare_crops(case, source, plan)

    starts = RecordedStarts(case, network.config.mask_num)
    passed: dict[StageName, object] = {}  # what the stages of the pass returned

    @contextmanager
    def keep(call: StageCall) -> Iterator[None]:
        yield
        passed.setdefault(call.stage, call.result)

    with listen(keep):
        plan, _ = plan.context_first()  # as `encode` has it
        tokens, (scene,) = network.encode(plan, source, starts, [tuple(plan.scene)])
    patches, selection, _ = cast("tuple[torch.Tensor, Selection, torch.Tensor]", passed["views"])
    calls = _calls(plan, model.kind)
    stages["patches"] = _compare_patches(case, plan, patches, calls)
    features = cast(torch.Tensor, passed["encoder"])
    stages["features"] = _compare_features(case, plan, selection, features, calls, limits)
    tokens, stages["object_tokens"] = _compare_tokens(case, plan, starts, tokens, limits)
    objects = Objects(model.kind, tokens, _grouped(case, plan), tuple(case.times or ()) or None, scene)
    prompt = network.build_prompt(case.question, objects)
    recorded = case.tensors["input_ids"][0]
    stages["input_ids"] = _equal(prompt.input_ids.tolist(), recorded.tolist())
    embeds = network.embed_prompt(prompt, objects)
    stages["inputs_embeds"] = _stage(_relative(embeds, case.tensors["inputs_embeds"][0]), limits.stack)

    steps = list(model.decoder.steps(embeds, Generation(max_new_tokens=case.tensors["output_ids"].shape[1])))
    output = [s.token for s in steps]
    wanted = case.tensors["output_ids"][0].tolist()
    common = next(
        (i for i, (a, b) in enumerate(zip(output, wanted, strict=False)) if a != b), min(map(len, (output, wanted)))
    )
    # past the first token that differs, the two decode different texts
    judged = min(common + 1, len(steps), len(wanted))
    logits = torch.stack([s.logits for s in steps[:judged]]).cpu()
    difference = (logits - case.tensors["scores"][:judged, 0]).abs().max().item()
    stages["logits"] = _stage(difference, limits.logits)
    text = model.decoder.text(output)
    stages["text"] = _equal((output, text), (wanted, case.text.strip()))
    if not stages["text"]["ok"]:
        stages["text"]["note"] = f"token {common} of {len(wanted)} is the first that differs"
        stages["text"]["ok"] = not exact


def _plan(model: PixelRefer | PixelReferLite, case: RecordedCase) -> tuple[FrameSource, ViewPlan]:
    source = FrameSource.of_images([i.numpy() for i in case.series("image")], case.times)
    frames = case.tensors["mask_ids"].tolist()
    marks: Iterator[Mark] = (
        Mark(frame, BoxedMask.of(mask.numpy()), f"mask {i}")
        for i, (frame, mask) in enumerate(zip(frames, case.tensors["masks"], strict=True))
    )
    scene = range(len(source.sizes)) if model.kind == "full" else ()
    merge = model.config.spatial_merge_size if source.video else 1
    return source, plan_views(model.config, source.sizes, marks, len(frames), scene, merge)


def _calls(plan: ViewPlan, kind: str) -> list[list[int]]:
    """The views of each of the reference's encoder calls, repeated as it repeats them."""
    crops = [m.crop for m in plan.marks]
    if kind == "full":
        return [plan.scene, crops] if any(m.tokens for m in plan.marks) else [plan.scene]
    shared = [
        [v for v in views if v is not None]
        for views in zip(*((m.global_view, m.local_view) for m in plan.marks), strict=True)
    ]
    return [crops, *shared]


def _compare_crops(case: RecordedCase, source: FrameSource, plan: ViewPlan) -> dict[str, Any]:
    """Share of the crops' values that differ; sizes, boxes, token counts and selected patches must be equal."""
    boxes = [[*m.box, *m.image_size] for m in plan.marks]
    if boxes != case.tensors["box_params"].tolist():
        return _failed(f"expected boxes {case.tensors['box_params'].tolist()}, got {boxes}")
    counts = [m.tokens for m in plan.marks]
    if counts != case.tensors["mask_nums"].tolist():
        return _failed(f"expected token counts {case.tensors['mask_nums'].tolist()}, got {counts}")
    pairs = []
    for i, mark in enumerate(plan.marks):
        view = plan.views[mark.crop]
        image = next(source.read([view.image])) if view.image >= 0 else None
        row = plan.table()[mark.crop].tolist()
        own = resize_view(image, [*row[:8], view.height, view.width, 1])
        pairs.append((torch.from_numpy(own.copy()), case.tensors[f"crop.{i}"]))
        grid, recorded = mark.mask_grid, case.tensors[f"crop_mask.{i}"]
        if grid.shape != recorded.shape or not torch.equal(grid > 0, recorded > 0):
            return _failed(f"mask {i}: other patches are selected than recorded")
    return _levels(pairs)


def _compare_patches(
    case: RecordedCase, plan: ViewPlan, patches: torch.Tensor, calls: list[list[int]]
) -> dict[str, Any]:
    first = plan.first_rows
    pairs = []
    for j, (call, recorded) in enumerate(zip(calls, case.series("vision_patches_uint8"), strict=True)):
        grids = [[1, *plan.views[v].grid] for v in call]
        wanted = case.tensors[f"vision_grid_thw.{j}"].tolist()
        if grids != wanted:
            return _failed(f"call {j}: expected grids {wanted}, got {grids}")
        own = torch.cat([patches[first[v] : first[v + 1]] for v in call]).cpu()
        pairs.append((((own + 1) * 127.5).round().to(torch.uint8), recorded))
    return _levels(pairs)


def _compare_features(
    case: RecordedCase,
    plan: ViewPlan,
    selection: Selection,
    features: torch.Tensor,
    calls: list[list[int]],
    limits: Tolerances,
) -> dict[str, Any]:
    """The features that anybody reads; the encoder makes no others."""
    first, rows = plan.first_rows, selection.first_rows
    errors = []
    for call, recorded in zip(calls, case.series("vision_features"), strict=True):
        own = torch.cat([features[rows[v] : rows[v + 1]] for v in call])
        read = torch.cat([selection.reads[first[v] : first[v + 1]] for v in call])
        errors.append(_relative(own, recorded[read]) if len(read) == len(recorded) else math.inf)
    return _worst(errors, limits.stack)


class RecordedStarts:
    """The first centroids that the reference drew, as `Network.encode` asks for them.

    Attributes:
        clustered: the marks that are clustered.
        mistaken: why what was recorded does not fit the clusterings; None: it does. The default starts are used then.
    """

    def __init__(self, case: RecordedCase, clusters: int) -> None:
        self.clustered: list[int] = []
        self.mistaken: str | None = None
        self._clusters = clusters
        self._permutations = case.series("kmeans_perm")

    def __call__(self, counts: Sequence[int]) -> torch.Tensor:
        self.clustered = [i for i, count in enumerate(counts) if count > self._clusters]
        sizes = [len(p) for p in self._permutations]
        if [counts[i] for i in self.clustered] != sizes:
            self.mistaken = f"expected clusterings of {sizes} patches, got {[counts[i] for i in self.clustered]}"
            return kmeans_starts(counts, self._clusters)
        given: list[list[int] | None] = [None] * len(counts)
        for i, permutation in zip(self.clustered, self._permutations, strict=True):
            given[i] = permutation[: self._clusters].tolist()
        return kmeans_starts(counts, self._clusters, given)


def _compare_tokens(
    case: RecordedCase, plan: ViewPlan, starts: RecordedStarts, tokens: torch.Tensor, limits: Tolerances
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The object tokens that the prompt is made of: ours, but recorded ones at ties and where ours cannot be judged."""
    recorded = case.tensors["object_tokens"]
    if starts.mistaken is not None:
        return recorded, _failed(starts.mistaken)
    if tokens.shape != recorded.shape:
        return recorded, _failed(f"expected {tuple(recorded.shape)} object tokens, got {tuple(tokens.shape)}")
    gaps = case.tensors.get("kmeans_gap", torch.zeros(0)).tolist()
    tied = {i for i, gap in zip(starts.clustered, gaps, strict=True) if gap < limits.tie}
    sizes = [m.tokens for m in plan.marks]
    own, wanted = tokens.split(sizes), recorded.to(tokens).split(sizes)
    judged = [i for i in range(len(sizes)) if i not in tied]
    scale = recorded.abs().max().item() if len(recorded) else 1.0
    stage = _worst([_relative(own[i], wanted[i], scale) for i in judged], limits.stack)
    if tied:
        errors = {f"mask {i}": _relative(own[i], wanted[i], scale) for i in sorted(tied)}
        stage["note"] = f"ties in the clustering, reported and not judged: {errors}"
        tokens = torch.cat([wanted[i] if i in tied else own[i] for i in range(len(sizes))])
    return tokens, stage


def _grouped(case: RecordedCase, plan: ViewPlan) -> tuple[ObjectTokens, ...]:
    counts = [m.tokens for m in plan.marks]
    if case.mark_frames is None or case.times is None:
        return tuple(ObjectTokens((count,)) for count in counts)
    left = iter(counts)
    return tuple(
        ObjectTokens(tuple(next(left) for _ in frames), tuple(case.times[f] for f in frames))
        for frames in case.mark_frames
    )


def _relative(own: torch.Tensor, recorded: torch.Tensor, scale: float | None = None) -> float:
    """Largest difference, relative to the largest recorded value; infinite for another shape or a NaN."""
    if own.shape != recorded.shape:
        return math.inf
    if not own.numel():
        return 0.0
    difference = (own.double().cpu() - recorded.double().cpu()).abs().max().item()
    scale = scale or recorded.double().abs().max().item() or 1.0
    return math.inf if math.isnan(difference) else difference / scale


def _levels(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Any]:
    """Share of grey levels that differ; none may differ by more than one."""
    different = total = 0
    for i, (own, recorded) in enumerate(pairs):
        if own.shape != recorded.shape:
            return _failed(f"number {i}: expected shape {tuple(recorded.shape)}, got {tuple(own.shape)}")
        off = (own.int() - recorded.int()).abs()
        if off.numel() and int(off.max()) > GREY_LEVELS:
            return _failed(f"number {i}: a value is {int(off.max())} grey levels off")
        different += int((off > 0).sum())
        total += off.numel()
    return _stage(different / max(total, 1), GREY_SHARE)


def _stage(error: float, limit: float) -> dict[str, Any]:
    return {"error": error if math.isfinite(error) else None, "limit": limit, "ok": error <= limit}


def _worst(errors: list[float], limit: float) -> dict[str, Any]:
    return _stage(max(errors, default=0.0), limit)


def _equal(own: Any, recorded: Any) -> dict[str, Any]:
    return _stage(0.0 if own == recorded else 1.0, 0.0)


def _failed(note: str) -> dict[str, Any]:
    return {"error": None, "limit": 0.0, "ok": False, "note": note}
