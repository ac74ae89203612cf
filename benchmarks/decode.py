"""Decoding and the way to the first token against the memory's speed: models of the released sizes, random weights.

    python benchmarks/decode.py --model lite-2b lite-7b --json PATH       on a GPU
    python benchmarks/decode.py --model embedded:lite --device cpu        anywhere, without limits beside the rows

Measured are, from opened pixels on,

* decode: the time of a step with 1, 8 and 64 sequences, and the share of the measured copy bandwidth at which the
  weights are read (they are read once a step, whatever the batch);
* ends: tokens a second of answers that end by themselves, and slot-steps run to those that the answers needed
  (`slot_steps.py`); in all other rows answers have a fixed number of tokens;
* first token: one object of a 1080p picture, from pixels to the first token;
* description: the same with 64 tokens, against the time that reading the weights 64 times would take;
* objects: 64 objects of one picture described with 64 tokens each, in one batch;
* memory: at the most, with one object, against the weights; beside it what captured passes, prompts and steps hold, and
  the cache that they keep in place for all answers that may run together.

As `pf.load` does it, passes, prompts and steps are captured on a GPU before; `--graph-bytes 0` shows the same without.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pixelrefer_fast.bench.measure import machine, memory, rates, timing
from pixelrefer_fast.bench.report import results, tables
from pixelrefer_fast.bench.run.askers import as_measured
from pixelrefer_fast.bench.run.workloads import NAMES, boxes, load_model, picture, weight_bytes
from pixelrefer_fast.device import trust

ENDS = 8  # about so many tokens of answers that end by themselves


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        picture: height and width.
        batches: sequences that are decoded at once.
        prompt, tokens: of a sequence.
        objects: described in one batch.
        answers: that end by themselves.
    """

    picture: tuple[int, int] = (1080, 1920)
    batches: tuple[int, ...] = (1, 8, 64)
    prompt: int = 96
    tokens: int = 64
    objects: int = 64
    answers: int = 128


SMOKE = Sizes((120, 160), (1, 2), 8, 3, 2, 5)
# on an H200 (../shared/performance.md): what each row is set against
GOALS: dict[str, str | dict[str, str]] = {
    "decode, 1": {"lite-2b": "at least 70 % of copy", "lite-7b": "at least 85 % of copy"},
    "decode, 8": "at least 85 % of copy",
    "first token": {"lite-2b": "at most 10 ms"},
    "description": {"lite-2b": "at most 75 ms", "lite-7b": "at most 350 ms"},
    "objects": {"lite-2b": "at least 400 a second"},
    "memory": "at most 1.15x the weights",
}


def decode_rows(model: Any, device: str, repeats: int, copy: float | None, sizes: Sizes) -> list[dict[str, Any]]:
    """The time of a step: that of an answer less that of its first token, by steps."""
    from pixelrefer_fast.decoding.options import Generation

    _, read = weight_bytes(model)
    width = model.network.llm.config.hidden_size
    rows = []
    for batch in sizes.batches:
        prompts = [torch.randn(sizes.prompt, width, device=device, dtype=model.dtype) * 0.02 for _ in range(batch)]

        def run(tokens: int, prompts: list[torch.Tensor] = prompts) -> None:
            sequences = [model.decoder.submit(p, Generation(max_new_tokens=tokens)) for p in prompts]
            for sequence in sequences:
                assert len(sequence.result().tokens) == tokens

        long = timing.sample(partial(run, sizes.tokens + 1), device, repeats)
        short = timing.sample(partial(run, 1), device, repeats)
        steps = [(a - b) / sizes.tokens for a, b in zip(long, short, strict=True)]
        row = _row(f"decode, {batch}", "ms a step", [1e3 * s for s in steps])
        if copy is not None:
            # a copy reads and writes: its rate counts both
            row["percent_of_copy"] = 100 * read / (row["values"]["median"] / 1e3) / copy
        rows.append(row)
    return rows


def ends_row(model: Any, device: str, repeats: int, sizes: Sizes) -> dict[str, Any]:
    """Answers that end by themselves: one token in ENDS ends one."""
    from pixelrefer_fast.decoding.options import Generation

    config = model.network.llm.config
    generator = torch.Generator().manual_seed(0)
    shape = sizes.prompt, config.hidden_size
    prompts = [torch.randn(shape, generator=generator) * 0.02 for _ in range(sizes.answers)]
    prompts = [prompt.to(device, model.dtype) for prompt in prompts]
    # sampled, since greedy answers of random weights soon repeat themselves
    options = [Generation(max_new_tokens=sizes.tokens, temperature=1.0, seed=i) for i in range(sizes.answers)]
    decoder = model.decoder

    def run() -> int:
        sequences = [decoder.submit(prompt, own) for prompt, own in zip(prompts, options, strict=True)]
        return sum(len(sequence.result().tokens) for sequence in sequences)

    with as_measured(model, frozenset(range(0, config.vocab_size, ENDS))):
        tokens = run()
        counts = decoder.counts()
        times = timing.sample(run, device, repeats)
    row = _row("ends", "tokens a second", [tokens / s for s in times])
    return row | {"slot_steps": counts["slot_steps"], "needed": tokens - sizes.answers}


def pipeline_rows(model: Any, device: str, repeats: int, copy: float | None, sizes: Sizes) -> list[dict[str, Any]]:
    """From pixels to text."""
    everything, read = weight_bytes(model)
    image = picture(*sizes.picture, 0)
    one, many = boxes(1, *sizes.picture), boxes(sizes.objects, *sizes.picture)

    def describe(regions: list[list[int]], tokens: int) -> None:
        model.describe(image, regions, max_new_tokens=tokens)

    def describe_one(tokens: int) -> list[float]:
        return timing.sample(lambda: describe(one, tokens), device, repeats)

    rows: list[dict[str, Any]] = [_row("first token", "ms", [1e3 * s for s in describe_one(1)])]
    description = _row("description", "ms", [1e3 * s for s in describe_one(sizes.tokens)])
    if copy is not None:
        description["limit_ms"] = 1e3 * sizes.tokens * read / copy
    rows.append(description)
    if device == "cuda":
        held = {name: model.decoder.memory()[name] for name in ("cache_bytes", "graph_bytes")}
        with model.decoder.aside(), memory.watching(device) as watched:  # a cache as large as one answer needs
            describe(one, sizes.tokens)
        peak = everything + watched.peak - watched.start
        rows.append(_row("memory", "x the weights", [peak / everything]) | {"bytes": peak} | held)
    times = timing.sample(lambda: describe(many, sizes.tokens), device, max(1, repeats // 2))
    rows.append(_row("objects", "a second", [sizes.objects / s for s in times]))
    return rows


def _row(case: str, unit: str, values: list[float]) -> dict[str, Any]:
    return {"case": case, "unit": unit, "values": timing.quantiles(values)}


def captures(model: Any) -> dict[str, Any]:
    """How many passes, prompts and steps are captured, and why others are not."""
    passes, counts = model.network.captured, model.decoder.counts()
    return {
        "passes": 0 if passes is None else passes.store.counts()["graphs"],
        "prompts": counts.get("prefill_graph_graphs", 0),
        "steps": counts.get("graph_graphs", 0),
        "replays": counts.get("graph_replays", 0),
        "refused": {} if passes is None else {str(key): why for key, why in passes.store.refused.items()},
    }


def benchmark(
    names: Sequence[str], device: str, dtype: torch.dtype, repeats: int, graphs: int | None, sizes: Sizes
) -> dict[str, Any]:
    """All rows of all models."""
    copy = None
    if device == "cuda":
        copy = rates.copy_rate(device) / 2  # bytes that are read
    models = []
    for name in names:
        model = load_model(name, device, dtype)
        if device == "cuda":
            model.warmup(graphs)
        with as_measured(model):  # every answer has as many tokens as it may
            rows = decode_rows(model, device, repeats, copy, sizes)
            rows += pipeline_rows(model, device, repeats, copy, sizes)
            captured = captures(model)
        rows.append(ends_row(model, device, repeats, sizes))
        models.append({"model": name, "weights": weight_bytes(model)[0], "captured": captured, "rows": rows})
        print(f"{name}: done", file=sys.stderr)
        del model
        if device == "cuda":
            torch.cuda.empty_cache()
    return {
        "benchmark": "decode",
        **machine.provenance(),
        "measured_on": device,
        "dtype": str(dtype).removeprefix("torch."),
        "graph_bytes": graphs,
        "read_bandwidth": copy,
        "trust": trust.counts(),
        "models": models,
    }


def table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines, one for each case, as text."""
    lines = []
    for model in result["models"]:
        for row in model["rows"]:
            values = row["values"]
            goal = GOALS.get(row["case"], "")
            if isinstance(goal, dict):
                goal = goal.get(model["model"], "")
            notes = []
            if "percent_of_copy" in row:
                notes.append(f"{row['percent_of_copy']:.0f} % of copy")
            if "limit_ms" in row:
                notes.append(f"{values['median'] / row['limit_ms']:.2f}x the limit of {row['limit_ms']:.0f} ms")
            if "needed" in row:
                notes.append(f"{row['slot_steps'] / row['needed']:.2f}x the slot-steps needed")
            shown = f"{values['median']:.4g} {row['unit']} ({values['q10']:.4g} to {values['q90']:.4g})"
            goal = goal if result["measured_on"] == "cuda" else ""
            lines.append([f"{model['model']}, {row['case']}", shown, ", ".join(notes), goal])
    return ["", "median (10 % to 90 %)", "", "goal on an H200"], lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Decoding and the way to the first token.")
    parser.add_argument(
        "--model", nargs="+", default=["lite-2b"], metavar="NAME", help=f"{', '.join(NAMES)}, or a checkpoint"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="where (default: cuda)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default=None)
    parser.add_argument("--smoke", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--repeats", type=int, default=10, help="calls of each case (default: 10)")
    parser.add_argument("--graph-bytes", type=int, help="for what is captured, on a GPU; 0: nothing (default: 1 GiB)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="result file to append to")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: there is no CUDA device")
    if options.repeats < 1:
        parser.error("--repeats: expected at least 1")
    dtype = getattr(torch, options.dtype or ("bfloat16" if options.device == "cuda" else "float32"))
    sizes = SMOKE if options.smoke else Sizes()
    result = benchmark(options.model, options.device, dtype, options.repeats, options.graph_bytes, sizes)
    if options.json:
        results.append(options.json, result)
    tables.terminal("decode", *table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
