"""Objects a second: requests of the synthetic world one at a time and in batches, with one model, in one process.

    python benchmarks/throughput.py                            embedded:lite, on a CPU
    python benchmarks/throughput.py --model embedded:full      another model
    python benchmarks/throughput.py --device cuda              on a GPU, in bfloat16 unless --dtype says otherwise

Two loads:

* many masks: all objects of a few images, each described by itself;
* mixed: objects of images and videos, a question about each, of every kind.

Every batch size answers the same requests. In float32 its answers must be those of one at a time, token for token; a
load for which they are not shows no speed-up and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pixelrefer_fast.bench.measure import machine, timing
from pixelrefer_fast.bench.report import results, tables

SIZES = (1, 8, 32, 128)
GOAL_SIZE, GOAL = 32, 3.0  # on a CPU, the embedded model
LOADS = ("many masks", "mixed")
DTYPES = ("float32", "bfloat16", "float16")
FIRST_SCENE = 3_000_000  # far from those that a model was trained or evaluated on
MASKS = 16  # of one image, at most
Answers = tuple[tuple[int, ...], ...]


def requests(load: str, kind: str, count: int, tokens: int) -> list[Any]:
    """So many requests, each about one object.

    Args:
        load: of LOADS.
        kind: of the model.
        count: how many.
        tokens: of an answer, at most.
    """
    from pixelrefer_fast import Ask
    from pixelrefer_fast.world import ask_about, make_scene
    from pixelrefer_fast.world.marked import scene_media, scene_region

    asks: list[Any] = []
    seed = FIRST_SCENE
    while len(asks) < count:
        scene = make_scene(seed, "heldout", video=False if load == "many masks" else None)
        seed += 1
        media = scene_media(scene)
        if load == "many masks":
            regions = [scene_region(scene, i, kind) for i in range(len(scene.things))]
            # each object and the boxes around and within it, as a tool that marks everything would give them
            boxes = [_box(scene.masks[i][0], grow) for grow in (0, 3, 6, -2) for i in range(len(regions))]
            asks += [Ask(media, None, [region], max_new_tokens=tokens) for region in (regions + boxes)[:MASKS]]
        else:
            for question in ask_about(scene, seed, limit=4):
                regions = [scene_region(scene, i, kind) for i in question.objects]
                asks.append(Ask(media, question.text, regions, max_new_tokens=tokens))
    return asks[:count]


def _box(mask: Any, grow: int) -> list[int]:
    height, width = mask.shape
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    left, top = max(0, int(columns[0]) - grow), max(0, int(rows[0]) - grow)
    return [left, top, max(left + 2, min(width, int(columns[-1]) + 1 + grow)), min(height, int(rows[-1]) + 1 + grow)]


def measure(model: Any, load: str, count: int, tokens: int, repeats: int, sizes: Sequence[int]) -> dict[str, Any]:
    """One row of the result: a load at every batch size."""
    asks = requests(load, model.kind, count, tokens)
    outputs: dict[str, Answers] = {}

    def run_of(size: int) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            answers = model.ask_batch(asks, batch_size=size, progress=False)
            wrong = next((answer.error for answer in answers if not answer.ok), None)
            if wrong is not None:
                raise RuntimeError(f"{load}, batches of {size}: {wrong}")
            outputs[str(size)] = tuple(answer.tokens for answer in answers)
            return torch.empty(0)

        return run

    runs = {str(size): run_of(size) for size in sizes}
    for run in runs.values():  # warm
        run()
    seconds, _ = timing.interleaved(runs, repeats)
    alone = outputs[str(sizes[0])]
    equal = {size: sum(a == b for a, b in zip(own, alone, strict=True)) for size, own in outputs.items()}
    return {
        "load": load,
        "requests": len(asks),
        "objects": sum(len(ask.regions) for ask in asks),
        "tokens": sum(map(len, alone)) / len(alone),
        "repeats": repeats,
        "equal": equal,
        "ok": model.dtype != torch.float32 or set(equal.values()) == {len(asks)},
        "seconds": {size: timing.quantiles(own) for size, own in seconds.items()},
        "speedup": {
            size: timing.quantiles([a / b for a, b in zip(seconds[str(sizes[0])], own, strict=True)])
            for size, own in seconds.items()
        },
    }


def benchmark(
    name: str, device: str, dtype: str, count: int, tokens: int, repeats: int, sizes: Sequence[int]
) -> dict[str, Any]:
    """Measure every load."""
    import pixelrefer_fast as pf

    model = pf.load(name, device=device, dtype=dtype, feature_bytes=0)
    rows = []
    for load in LOADS:
        print(f"{load} ...", file=sys.stderr)
        rows.append(measure(model, load, count, tokens, repeats, sizes))
    return {
        "benchmark": "throughput",
        "model": name,
        "weights": {name: model.fingerprint},
        "kind": model.kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        **machine.provenance(),
        "measured_on": device,
        "dtype": dtype,
        "sizes": list(sizes),
        "rows": rows,
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines, one for each load and batch size, as text."""
    lines = []
    for row in result["rows"]:
        for size in map(str, result["sizes"]):
            seconds, speedup = row["seconds"][size], row["speedup"][size]
            rate = row["objects"] / seconds["median"]
            shown = f"{speedup['median']:.1f}x ({speedup['q10']:.1f} to {speedup['q90']:.1f})" if row["ok"] else "none"
            goal = ""
            if int(size) == GOAL_SIZE and result["measured_on"] == "cpu":
                met = row["ok"] and speedup["median"] >= GOAL
                goal = f"at least {GOAL:g}x: {'met' if met else 'missed'}"
            equal = f"{row['equal'][size]} of {row['requests']}"
            lines.append([f"{row['load']}, {size} at a time", f"{rate:,.1f}", shown, goal, equal])
    return ["", "objects a second", "against one at a time", "goal", "answers alike"], lines


def markdown(result: dict[str, Any]) -> str:
    """The page for docs/, made from a result."""
    libraries = ", ".join(f"{name} {version}" for name, version in result["libraries"].items() if version)
    device = result["device"] if result["measured_on"] == "cuda" else None
    where = f"{result['cpu']}, {result['cores']} cores, {result['threads']} threads, load {result['load']}"
    where += f"; {device['name']}, driver {device['driver']}" if device else ""
    commit = "no commit yet" if result["commit"] is None else f"commit {result['commit'][:12]}"
    first = result["rows"][0]
    lengths = ", ".join(f"{row['load']} {row['tokens']:.1f}" for row in result["rows"])
    return f"""# Throughput on a {"GPU" if device else "CPU"}

Made by `{result["command"]}`; do not edit.

{result["date"]}, {commit}{", with changes" if result["dirty"] else ""}; {where}; Python {result["python"]}, \
{libraries}.

{result["model"]} ({result["kind"]}, {result["parameters"] / 1e6:.1f} million parameters) in {result["dtype"]};
{first["requests"]} requests about images and videos of the synthetic world through `model.ask_batch`, from pixels to
text; tokens of an answer on average: {lengths}. Medians of {first["repeats"]} rounds, calls in turn; the ratio is taken
round by round, with its 10 % and 90 % quantiles. Answers are compared with those of one at a time, token for token.

{tables.markdown(*table(result))}"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Objects a second, one at a time and in batches.")
    parser.add_argument("--model", default="embedded:lite", metavar="NAME", help="default: embedded:lite")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--requests", type=int, default=256, help="of each load (default: 256)")
    parser.add_argument("--tokens", type=int, default=24, help="of an answer, at most (default: 24)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="batch sizes, the first to compare with")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="result file to append to")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="page to write")
    parser.add_argument("--render", action="store_true", help="measure nothing: --markdown from the last of --json")
    options = parser.parse_args(arguments)
    if options.render and not (options.json and options.markdown):
        parser.error("--render needs --json and --markdown")
    if min(options.repeats, options.requests, options.tokens) < 1:
        parser.error("--repeats, --requests and --tokens: expected at least 1")
    try:
        sizes = [int(size) for size in options.sizes.split(",")]
    except ValueError:
        parser.error(f"--sizes: expected numbers like 1,8,32, got {options.sizes!r}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: there is no CUDA device")
    dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.render:
        result = results.latest(options.json)
    else:
        numbers = (options.requests, options.tokens, options.repeats)
        result = benchmark(options.model, options.device, dtype, *numbers, sizes)
        if options.json:
            results.append(options.json, result)
    tables.terminal(f"throughput, {result['model']}", *table(result))
    if options.markdown:
        options.markdown.write_text(markdown(result))
    return 0 if all(row["ok"] for row in result["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
