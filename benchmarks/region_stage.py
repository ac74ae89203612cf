"""Region stage: the reference's code, or a plain PyTorch loop, against ours; one process, same weights.

    python benchmarks/region_stage.py --reference DIR     DIR: a checkout of the reference, which this repository lacks
    python benchmarks/region_stage.py                     against the plain loop of _plain.py
    python benchmarks/region_stage.py --device cuda       on a GPU, in bfloat16 unless --dtype says otherwise

Full width (D=1152, LLM width 1536, 8 heads, n=32), random weights. Measured are

* the region stage, from features to object tokens, with 1, 4 and 16 objects of one image;
* pixels to object tokens with 8 objects of one image, on a vision encoder of 4 layers of full width.

Both sides start k-means alike: from what the rival draws. A case that is wrong shows no speed-up and makes the exit
status 1: in float32 one whose outputs differ by more than 1e-4 (largest difference over largest value), in 16 bits one
whose error against ours in float32 exceeds twice the rival's by more than that.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from _plain import Plain
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from pixelrefer_fast.bench.measure import machine, timing
from pixelrefer_fast.bench.measure.timing import Run
from pixelrefer_fast.bench.reference import RegionStage, recorded_permutations
from pixelrefer_fast.bench.report import results, tables
from pixelrefer_fast.bench.run import workloads
from pixelrefer_fast.checkpoint.config import VisionConfig

LIMIT = 1e-4
DTYPES = ("float32", "bfloat16", "float16")
LAYERS = 4
MAX_LENGTH = 16384
HEIGHT, WIDTH = 720, 1280
REGION_OBJECTS, PIXEL_OBJECTS = (1, 4, 16), 8
SEED = 11
Runs = dict[str, Run]
Models = dict[str, Any]  # "ours" and, for 16 bits, "exact": the same weights in float32
# against the reference, on a CPU and on a GPU
CPU_GOALS = {"region stage, 16 objects": 5.0, "pixels to tokens, 8 objects": 3.0}
GPU_GOALS = {"region stage, 16 objects": 100.0, "pixels to tokens, 8 objects": 10.0}


class _OpCounter(TorchDispatchMode):
    """Counts the operations that reach PyTorch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _cpu_attention_flops(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


# PyTorch counts the attention kernels of a GPU only.
UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}


def count(run: Run) -> dict[str, int]:
    """FLOPs (multiply-adds times two, of matrix products, convolutions and attention) and framework operations.

    Launches of Triton kernels count as an operation each, with the FLOPs that they declare.
    """
    from pixelrefer_fast.device.launches import Launch, listen

    flops, operations = FlopCounterMode(display=False, custom_mapping=UNCOUNTED), _OpCounter()
    launches: list[Launch] = []
    with flops, listen(launches.append):
        run()
    with operations:
        run()
    declared = sum(launch.flops for launch in launches)
    return {"flops": flops.get_total_flops() + declared, "operations": operations.count + len(launches)}


def vision_config() -> VisionConfig:
    """Full width, few layers."""
    return VisionConfig.from_dict({**workloads.VISION, "num_hidden_layers": LAYERS}, "region_stage")


def our_model(weights: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> Any:
    """A PixelReferLite on these weights, around the smallest LLM of the right width (which is not run)."""
    import pixelrefer_fast as pf
    from pixelrefer_fast.checkpoint import open_checkpoint
    from pixelrefer_fast.checkpoint.config import ModelConfig

    llm = {
        "hidden_size": workloads.LLM_WIDTH,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 267,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    config = ModelConfig("lite", vision_config(), llm, workloads.TOKENS, MAX_LENGTH, 2, raw={})
    tokenizer = open_checkpoint(str(files("pixelrefer_fast.assets") / "lite")).tokenizer()
    model = pf.PixelReferLite(config, tokenizer, {})
    slots = model.network.encoder.checkpoint_slots() | model.network.object_tokenizer.checkpoint_slots()
    if slots.keys() != weights.keys():
        raise RuntimeError(f"the benchmark's weights are not the model's: {sorted(slots.keys() ^ weights.keys())[:5]}")
    with torch.no_grad():
        for name, slot in slots.items():
            slot.copy_(weights[name])
    return model.to(device, dtype)


def region_case(rival: RegionStage | Plain, models: Models, objects: int) -> tuple[Runs, dict[str, int]]:
    """Features to object tokens: what to run on either side, and the sizes."""
    from pixelrefer_fast.device.transfers import upload
    from pixelrefer_fast.encoding.object_tokenizer import kmeans_starts
    from pixelrefer_fast.planning.selection import select_patches
    from pixelrefer_fast.planning.views import Mark, plan_views
    from pixelrefer_fast.regions.boxed_mask import BoxedMask

    masks = workloads.blobs(objects, HEIGHT, WIDTH, SEED)
    marks = [Mark(0, BoxedMask.of(mask), f"region {i}") for i, mask in enumerate(masks)]
    like = models["ours"]
    plan = plan_views(like.config, [(HEIGHT, WIDTH)], marks, objects)
    features = [
        workloads.normal((*view.grid, workloads.WIDTH), 3000 + i).to(like.device, like.dtype)
        for i, view in enumerate(plan.views)
    ]
    packed = torch.cat([f.flatten(0, 1) for f in features])

    def of(view: int | None) -> torch.Tensor:
        assert view is not None
        return features[view]

    arguments = (
        [of(m.crop) for m in plan.marks],
        [m.mask_grid.to(like.device) for m in plan.marks],
        [of(m.local_view) for m in plan.marks],
        [of(m.global_view) for m in plan.marks],
        [(m.box, *m.image_size) for m in plan.marks],
    )
    theirs = _seeded(functools.partial(rival.region_stage, *arguments), like.device)
    starts = _starts(theirs, plan)
    read = packed[select_patches(plan).reads.to(like.device)]  # the encoder makes no other features

    def run_of(model: Any) -> Run:
        own = read.to(model.dtype)

        @torch.inference_mode()
        def run() -> torch.Tensor:
            selection = select_patches(plan)
            first = kmeans_starts(selection.counts, workloads.TOKENS, starts)
            return model.network.object_tokenizer(own, selection.to(model.device), *upload([first], model.device))

        return _waiting(run, model.device)

    return {"rival": theirs, **{side: run_of(model) for side, model in models.items()}}, _sizes(plan)


def pixel_case(rival: RegionStage | Plain, models: Models) -> tuple[Runs, dict[str, int]]:
    """Pixels to object tokens: what to run on either side, and the sizes."""
    from pixelrefer_fast.planning.views import Mark, plan_views
    from pixelrefer_fast.regions.boxed_mask import BoxedMask

    image = workloads.picture(HEIGHT, WIDTH, SEED)
    masks = workloads.blobs(PIXEL_OBJECTS, HEIGHT, WIDTH, SEED)
    marks = [Mark(0, BoxedMask.of(mask), f"region {i}") for i, mask in enumerate(masks)]
    like = models["ours"]
    plan = plan_views(like.config, [(HEIGHT, WIDTH)], marks, PIXEL_OBJECTS)
    theirs = _seeded(functools.partial(rival.pixels_to_tokens, image, torch.from_numpy(masks)), like.device)
    starts = _starts(theirs, plan)

    def run_of(model: Any) -> Run:
        return _waiting(lambda: model.encode(image, list(masks), kmeans_start=starts).tokens, model.device)

    return {"rival": theirs, **{side: run_of(model) for side, model in models.items()}}, _sizes(plan)


def _seeded(run: Run, device: torch.device) -> Run:
    def seeded() -> torch.Tensor:
        torch.manual_seed(SEED)
        # what the rival makes without naming a device belongs where its weights are
        with torch.device(device) if device.type != "cpu" else contextlib.nullcontext():
            return run()

    return _waiting(seeded, device)


def _waiting(run: Run, device: torch.device) -> Run:
    """The run until its result is there."""
    if device.type == "cpu":
        return run

    def waiting() -> torch.Tensor:
        result = run()
        torch.cuda.synchronize()
        return result

    return waiting


def _starts(theirs: Run, plan: Any) -> list[list[int] | None]:
    """First centroids of each mark as the rival draws them: one permutation for each mark of more than n patches."""
    with recorded_permutations() as drawn:
        theirs()
    selected = [int((m.mask_grid > 0).sum()) for m in plan.marks]
    left = iter(drawn)
    starts = [next(left)[: workloads.TOKENS].tolist() if count > workloads.TOKENS else None for count in selected]
    if [len(p) for p in drawn] != [count for count in selected if count > workloads.TOKENS]:
        raise RuntimeError(f"k-means starts: expected permutations of {selected}, got {[len(p) for p in drawn]}")
    return starts


def _sizes(plan: Any) -> dict[str, int]:
    crops = [plan.views[m.crop].patches for m in plan.marks]
    selected = [int((m.mask_grid > 0).sum()) for m in plan.marks]
    return {
        "objects": len(crops),
        "crop_patches_min": min(crops),
        "crop_patches_max": max(crops),
        "selected_min": min(selected),
        "selected_max": max(selected),
    }


def measure(name: str, runs: Runs, sizes: dict[str, int], repeats: int) -> dict[str, Any]:
    """One row of the result."""
    runs = dict(runs)
    exact = runs.pop("exact", None)
    for run in runs.values():
        run()
    counted = {side: count(run) for side, run in runs.items()}
    seconds, outputs = timing.interleaved(runs, repeats)
    error, limit = results.relative_error(outputs["ours"], outputs["rival"]), LIMIT
    if exact is not None:
        wanted = exact()
        error, theirs = (results.relative_error(outputs[side].float(), wanted) for side in ("ours", "rival"))
        limit = LIMIT + 2 * theirs
    row: dict[str, Any] = {"case": name, **sizes, "repeats": repeats, "error": error, "ok": error <= limit}
    for side in runs:
        row[side] = {"seconds": timing.quantiles(seconds[side]), **counted[side]}
    if row["ok"]:
        rounds = [a / b for a, b in zip(seconds["rival"], seconds["ours"], strict=True)]
        row["speedup"] = timing.quantiles(rounds)
    return row


def benchmark(
    reference: Path | None, repeats: int, pixel_repeats: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Measure every case."""
    weights = {k: w.to(dtype) for k, w in (workloads.region_weights() | workloads.vision_weights(LAYERS)).items()}
    heads = workloads.VISION["num_attention_heads"]
    rival: RegionStage | Plain
    if reference is None:
        there = {name: weight.to(device) for name, weight in weights.items()}
        rival = Plain(there, heads, workloads.TOKENS, MAX_LENGTH)
    else:
        rival = RegionStage(reference, weights, vision_config(), workloads.TOKENS, MAX_LENGTH, device, dtype)
    models = {"ours": our_model(weights, device, dtype)}
    if dtype != torch.float32:
        models["exact"] = our_model(weights, device, torch.float32)
    rows = []
    for objects in REGION_OBJECTS:
        name = f"region stage, {objects} object{'s' if objects > 1 else ''}"
        print(f"{name} ...", file=sys.stderr)
        rows.append(measure(name, *region_case(rival, models, objects), repeats))
    name = f"pixels to tokens, {PIXEL_OBJECTS} objects"
    print(f"{name} ...", file=sys.stderr)
    rows.append(measure(name, *pixel_case(rival, models), pixel_repeats))
    return {
        "benchmark": "region_stage",
        "rival": "reference" if reference else "plain PyTorch",
        "rival_commit": None if reference is None else machine.git(reference, "rev-parse", "HEAD") or None,
        **machine.provenance(),
        "measured_on": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "rows": rows,
    }


def measured_on(result: dict[str, Any]) -> tuple[str, str]:
    """Device type and dtype of a result; older results, which name neither, are of a CPU in float32."""
    return result.get("measured_on", "cpu"), result.get("dtype", "float32")


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings (the cases) and lines (what was measured), as text."""
    rows, rival = result["rows"], result["rival"]
    goals = GPU_GOALS if measured_on(result)[0] == "cuda" else CPU_GOALS

    def line(name: str, cells: Iterable[str]) -> list[str]:
        return [name, *cells]

    def goal(row: dict[str, Any]) -> str:
        wanted = goals.get(row["case"]) if rival == "reference" else None
        if wanted is None:
            return ""
        met = row["ok"] and row["speedup"]["median"] >= wanted
        return f"at least {wanted:g}x: {'met' if met else 'missed'}"

    sides = {"rival": rival, "ours": "ours"}
    return ["", *(row["case"] for row in rows)], [
        line("patches of a crop", (f"{r['crop_patches_min']} to {r['crop_patches_max']}" for r in rows)),
        *(line(f"{name}, ms", (_spread(r[side]["seconds"], 1e3) for r in rows)) for side, name in sides.items()),
        line("speed-up", (_spread(r["speedup"], 1, "x") if r["ok"] else "none: outputs differ" for r in rows)),
        line("goal", map(goal, rows)),
        line("error", (f"{r['error']:.1e}" for r in rows)),
        *(line(f"{name}, GFLOP", (f"{r[side]['flops'] / 1e9:,.1f}" for r in rows)) for side, name in sides.items()),
        *(line(f"{name}, operations", (f"{r[side]['operations']:,}" for r in rows)) for side, name in sides.items()),
    ]


def _spread(values: dict[str, float], scale: float, unit: str = "") -> str:
    low, middle, high = (values[key] * scale for key in ("q10", "median", "q90"))
    digits = 1 if middle < 100 else 0
    return f"{middle:,.{digits}f}{unit} ({low:,.{digits}f} to {high:,.{digits}f})"


def markdown(result: dict[str, Any]) -> str:
    """The page for docs/, made from a result."""
    libraries = ", ".join(f"{name} {version}" for name, version in result["libraries"].items() if version)
    device_type, dtype = measured_on(result)
    device = result["device"] if device_type == "cuda" else None
    where = f"{result['cpu']}, {result['cores']} cores, {result['threads']} threads"
    where += f"; {device['name']}, driver {device['driver']}" if device else ""
    rival = "the reference's own code" if result["rival"] == "reference" else "the plain PyTorch loop of `_plain.py`"
    if result["rival_commit"]:
        rival += f" (commit {result['rival_commit'][:12]})"
    commit = "no commit yet" if result["commit"] is None else f"commit {result['commit'][:12]}"
    judged = "largest difference between the two outputs of the same round over the largest value; above"
    judged += f" {LIMIT:g} no speed-up is shown"
    if dtype != "float32":
        judged = "largest difference from our own result in float32 over the largest value; where it exceeds twice the"
        judged += f" rival's by more than {LIMIT:g} no speed-up is shown"
    return f"""# Region stage on a {"GPU" if device else "CPU"}

Made by `{result["command"]}`; do not edit.

{result["date"]}, {commit}{", with changes" if result["dirty"] else ""}; {where}; Python {result["python"]}, \
{libraries}.

Against {rival}, in one process, calls in turn, {dtype}, random weights of full width (D=1152, LLM width 1536,
8 heads, n=32); the vision encoder of the last row has {LAYERS} layers. Times are medians with the 10 % and 90 %
quantiles, the speed-up is taken round by round. The error is the {judged}. FLOPs are those of matrix products,
convolutions and attention (a k-means that computes its distances without matrix products has none) and what Triton
kernels declare, operations those that reach PyTorch's dispatcher and launches of Triton kernels.

{tables.markdown(*table(result))}"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Region stage, ours against the reference or a plain loop.")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="checkout of the reference")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--repeats", type=int, default=11, help="rounds of the region stage (default: 11)")
    parser.add_argument("--pixel-repeats", type=int, default=5, help="rounds from pixels (default: 5)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="result file to append to")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="page to write")
    parser.add_argument("--render", action="store_true", help="measure nothing: --markdown from the last of --json")
    options = parser.parse_args(arguments)
    if options.render and not (options.json and options.markdown):
        parser.error("--render needs --json and --markdown")
    if min(options.repeats, options.pixel_repeats) < 1:
        parser.error("--repeats and --pixel-repeats: expected at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: there is no CUDA device")
    dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    if options.threads:
        torch.set_num_threads(options.threads)

    if options.render:
        result = results.latest(options.json)
    else:
        try:
            where = torch.device(options.device), getattr(torch, dtype)
            result = benchmark(options.reference, options.repeats, options.pixel_repeats, *where)
        except FileNotFoundError as error:
            parser.error(f"--reference: {error}")
        if options.json:
            results.append(options.json, result)
    tables.terminal(f"ours against the {result['rival']}", *table(result))
    if options.markdown:
        options.markdown.write_text(markdown(result))
    return 0 if all(row["ok"] for row in result["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
