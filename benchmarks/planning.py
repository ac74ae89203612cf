"""From masks to a plan of views, against one read of the same masks by `np.count_nonzero`.

    python benchmarks/planning.py --json PATH

Timed is all that happens between the masks of a segmenter, bool arrays of 1080p, and the plan of Lite-2B: regions,
request, plan. Both sides run in turn on one thread, and of each the fastest call counts: what else runs on the machine
only adds. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelrefer_fast.bench.measure import machine
from pixelrefer_fast.bench.report import results, tables
from pixelrefer_fast.bench.run.workloads import NAMES, blobs, model_config
from pixelrefer_fast.planning.merge import plan_request
from pixelrefer_fast.planning.request import FrameSource, Request, bind_regions
from pixelrefer_fast.regions import as_regions

HEIGHT, WIDTH = 1080, 1920
OBJECTS = (1, 16, 64)
LIMIT = 3.0  # times count_nonzero (../shared/performance.md)


def fastest(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Milliseconds of the fastest call of each, the runs in turn."""
    best = [float("inf")] * len(runs)
    for _ in range(repeats):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[i] = min(best[i], 1e3 * (time.perf_counter() - start))
    return best


def benchmark(name: str, repeats: int) -> dict[str, Any]:
    """Both times by number of objects."""
    config = model_config(name)
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)  # only its size is looked at
    scene = [0] if config.kind == "full" else []
    plan_ms, count_ms = {}, {}
    for objects in OBJECTS:
        masks = list(blobs(objects, HEIGHT, WIDTH, seed=0).astype(bool))

        def plan(masks: list[np.ndarray] = masks) -> None:
            source = FrameSource.of(picture)
            regions = as_regions(masks)
            plan_request(config, Request(source, regions, bind_regions(source, regions), scene))

        def count(masks: list[np.ndarray] = masks) -> None:
            for mask in masks:
                np.count_nonzero(mask)

        plan_ms[str(objects)], count_ms[str(objects)] = fastest([plan, count], repeats * OBJECTS[-1] // objects)
    return {
        "benchmark": "planning",
        **machine.provenance(),
        "model": name,
        "height": HEIGHT,
        "width": WIDTH,
        "repeats": repeats,
        "plan_ms": plan_ms,
        "count_nonzero_ms": count_ms,
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines, one for each number of objects, as text."""
    lines = []
    for objects, plan in result["plan_ms"].items():
        count = result["count_nonzero_ms"][objects]
        lines.append([objects, f"{plan:.3f}", f"{count:.3f}", f"{plan / count:.1f}x", f"at most {LIMIT:.0f}x"])
    return ["objects", "masks to plan, ms", "count_nonzero, ms", "", "goal"], lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Planning against one read of the masks.")
    parser.add_argument("--model", choices=NAMES, default="lite-2b", help="whose rules (default: lite-2b)")
    parser.add_argument("--repeats", type=int, default=40, help="calls with 64 objects, more with fewer (default: 40)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="result file to append to")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats: expected at least 1")
    result = benchmark(options.model, options.repeats)
    if options.json:
        results.append(options.json, result)
    tables.terminal("planning", *table(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
