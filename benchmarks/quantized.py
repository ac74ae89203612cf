"""Quantised weights of the LLM: memory, speed and how many answers change, on held-out questions of the world.

    python benchmarks/quantized.py --json benchmarks/results/quantized.json --markdown docs/quantized.md

Needs torchao; a kind that this device or dtype cannot do is listed with the reason.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pixelrefer_fast.bench.measure import machine
from pixelrefer_fast.bench.report import results, tables

KINDS = (None, "int8", "fp8", "int4")


def row(name: str, device: str, dtype: str, kind: str | None, questions: int) -> dict[str, Any]:
    """One kind: bytes of the LLM, seconds and answers; or why there are none."""
    import pixelrefer_fast as pf
    from pixelrefer_fast.checkpoint.quantization import weight_bytes
    from pixelrefer_fast.world.evaluate import evaluate

    try:
        model = pf.load(name, device=device, dtype=dtype, quantization=kind, feature_bytes=0)
    except ValueError as error:
        return {"kind": kind, "refused": str(error)}
    weights = model.fingerprint
    evaluate(model, questions=45)  # warm
    start = time.perf_counter()
    found = evaluate(model, questions=questions)
    return {
        "kind": kind,
        "bytes": weight_bytes(model.network.llm),
        "seconds": time.perf_counter() - start,
        "accuracy": found.accuracy,
        "weights": weights,
        "answers": [result.answer for result in found.results],
    }


def benchmark(name: str, device: str, dtype: str, questions: int) -> dict[str, Any]:
    rows = [row(name, device, dtype, kind, questions) for kind in KINDS]
    plain, plain_weights = rows[0]["answers"], rows[0]["weights"]
    for own in rows:
        if "answers" in own:
            del own["weights"]
            own["changed"] = sum(a != b for a, b in zip(own.pop("answers"), plain, strict=True))
    return {
        "benchmark": "quantized",
        "model": name,
        "weights": {name: plain_weights},
        **machine.provenance(),
        "measured_on": device,
        "dtype": dtype,
        "questions": questions,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines, one for each kind, as text."""
    lines = []
    for own in result["rows"]:
        kind = own["kind"] or result["dtype"]
        if "refused" in own:
            lines.append([kind, own["refused"], "", "", ""])
            continue
        changed = "" if own["kind"] is None else f"{own['changed']} of {result['questions']}"
        rate = f"{result['questions'] / own['seconds']:.1f}"
        lines.append([kind, f"{own['bytes'] / 1e6:.2f}", rate, f"{100 * own['accuracy']:.1f} %", changed])
    return ["weights", "MB of the LLM's layers", "questions a second", "right", "answers changed"], lines


def markdown(result: dict[str, Any]) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in result["libraries"].items() if version)
    commit = "no commit yet" if result["commit"] is None else f"commit {result['commit'][:12]}"
    return f"""# Quantised weights

Made by `{result["command"]}`; do not edit.

{result["date"]}, {commit}{", with changes" if result["dirty"] else ""}; {result["cpu"]}, {result["cores"]} cores, \
{result["threads"]} threads; {libraries}.

{result["model"]} on {result["measured_on"]}, {result["questions"]} held-out questions in batches,
from pixels to text, one run each.

{tables.markdown(*table(result))}"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Memory, speed and changed answers of quantised weights.")
    parser.add_argument("--model", default="embedded:lite", metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--questions", type=int, default=900)
    parser.add_argument("--json", type=Path, metavar="PATH", help="result file to append to")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="page to write")
    options = parser.parse_args(arguments)
    if options.questions < 9:
        parser.error("--questions: expected at least 9")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: there is no CUDA device")
    result = benchmark(options.model, options.device, options.dtype, options.questions)
    if options.json:
        results.append(options.json, result)
    if options.markdown:
        options.markdown.write_text(markdown(result))
    tables.terminal(f"quantised weights, {result['model']}", *table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
