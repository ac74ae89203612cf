"""What the region stage asks of a device: launches, host waits, FLOPs and bytes, counted and not timed.

    python benchmarks/launches.py --markdown docs/kernels/launches.md
    python benchmarks/launches.py --device cuda --json PATH              beside what torch.profiler sees on a GPU

From features to object tokens at full width (D=1152, 8 heads, n=32, LLM width 1536), with the Triton kernels, on any
machine: kernels are counted by what they declare and not run, dense products run on whatever device there is.
On a GPU each pass runs once more under torch.profiler: of our own kernels it must have seen as many launches as are
counted, and no wait. What the vendor's library launches for a product is its own affair, and only told.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pixelrefer_fast.bench.profile import traces
from pixelrefer_fast.bench.report import results, tables
from pixelrefer_fast.bench.report.results import Row
from pixelrefer_fast.bench.run import workloads

PAGE = Path(__file__).resolve().parents[1] / "docs" / "kernels" / "launches.md"
RANGE = "the pass"
HEIGHT, WIDTH, SEED = 720, 1280, 11
SIZES = ((1, 1), (4, 1), (16, 1), (64, 1), (8, 8), (64, 8))  # objects, images
REFERENCE = 5.14e9  # FLOP of the reference for one object, ../shared/performance.md
GOALS = {(1, 1): 0.4, (16, 1): 0.2}  # at most this part of the reference's FLOPs
MOST, MOST_WHOLE = 11, 14  # launches of pooling and infusion, and with the projector


@dataclass(frozen=True)
class Pass:
    """The region stage on some objects, everything uploaded."""

    tokenizer: Any
    features: torch.Tensor
    selection: Any
    starts: torch.Tensor

    def run(self, backend: str = "triton") -> torch.Tensor:
        return self.tokenizer(self.features, self.selection, self.starts, backend)


def tokenizer(device: torch.device, dtype: torch.dtype, width: int = workloads.WIDTH, n: int = workloads.TOKENS) -> Any:
    """An object tokenizer of Lite with random weights."""
    from pixelrefer_fast.encoding.object_tokenizer import ObjectTokenizer

    torch.manual_seed(SEED)
    made = ObjectTokenizer(config(width, n)).requires_grad_(False).to(device, dtype)
    assert made.infusion is not None
    made.infusion.prepare()
    return made


def config(width: int, n: int) -> Any:
    from pixelrefer_fast.checkpoint.config import ModelConfig, VisionConfig

    return ModelConfig("lite", VisionConfig(width, 1, 4, 4 * width), {"hidden_size": 4 * width // 3}, n, 16384, 2, {})


def region_pass(
    module: Any, objects: int, images: int, width: int = workloads.WIDTH, n: int = workloads.TOKENS
) -> Pass:
    """Objects spread over images of 720 by 1280, with the views that a request for them gets."""
    from pixelrefer_fast.encoding.object_tokenizer import kmeans_starts
    from pixelrefer_fast.planning.selection import select_patches
    from pixelrefer_fast.planning.views import Mark, plan_views
    from pixelrefer_fast.regions.boxed_mask import BoxedMask

    masks = workloads.blobs(objects, HEIGHT, WIDTH, SEED)
    marks = [Mark(i % images, BoxedMask.of(mask), f"region {i}") for i, mask in enumerate(masks)]
    plan, _ = plan_views(config(width, n), [(HEIGHT, WIDTH)] * images, marks, objects).context_first()
    like = next(module.parameters())
    selection = select_patches(plan)
    features = workloads.normal((selection.first_rows[-1], width), SEED).to(like)
    starts = kmeans_starts(selection.counts, n).to(like.device)
    return Pass(module, features, selection.to(like.device), starts)


def count(of: Pass, dry: bool = True) -> tuple[Any, Any]:
    """Counts of the whole region stage, and of pooling and infusion alone."""
    from pixelrefer_fast.bench.run.askers import add_counts
    from pixelrefer_fast.device.counters import counting
    from pixelrefer_fast.device.stages import listen

    parts: list[Any] = []

    @contextmanager
    def keep(call: Any) -> Iterator[None]:
        with counting(of.features.device.type, dry) as found:
            yield
        if call.stage != "projector":
            parts.append(found)

    with torch.inference_mode():
        with counting(of.features.device.type, dry) as whole:
            of.run()
        with listen(keep):
            of.run()
    return whole, add_counts(parts)


def table(counted: dict[tuple[int, int], tuple[Any, Any]]) -> list[list[str]]:
    """A line for each number of objects and images."""
    lines = []
    for (objects, images), (whole, inner) in counted.items():
        part = whole.flops / (objects * REFERENCE)
        goal = GOALS.get((objects, images))
        lines.append(
            [
                f"{objects} of {images} image{'s' if images > 1 else ''}",
                str(sum(inner.launches.values())),
                str(sum(whole.launches.values())),
                str(sum(whole.waits.values())),
                f"{whole.flops / 1e9:,.2f}",
                f"{part:.1%}" + (f" (at most {goal:.0%}: {'met' if part <= goal else 'missed'})" if goal else ""),
                f"{whole.moved / 1e6:,.1f}",
            ]
        )
    return lines


HEADINGS = ("objects", "launches, pooling and infusion", "launches", "waits", "GFLOP", "of the reference's", "MB")


def markdown(counted: dict[tuple[int, int], tuple[Any, Any]]) -> str:
    """The page for docs/."""
    same: dict[str, list[str]] = {}
    for line, (whole, _) in zip(table(counted), counted.values(), strict=True):
        launches = ", ".join(f"{name} {n}x" for name, n in sorted(whole.launches.items()))
        same.setdefault(launches, []).append(line[0])
    launched = "\n".join(f"- {', '.join(rows)}: {launches}." for launches, rows in same.items())
    return f"""# Launches, waits, FLOPs and bytes of the region stage

Made by `python benchmarks/launches.py --markdown docs/kernels/launches.md`; do not edit.

From features to object tokens, PixelRefer-Lite at full width (D={workloads.WIDTH}, 8 heads, n={workloads.TOKENS}, \
LLM width
{workloads.LLM_WIDTH}), bfloat16, marks of {HEIGHT} by {WIDTH} pixel images, with the Triton kernels. Counted by
`pixelrefer_fast/device/counters.py` without a device and not timed; `tests/benchmarks/test_launches.py` holds these
numbers. A wait is a value that the host reads or a shape that depends on values. FLOPs are what the kernels declare and
those of dense products; the reference spends {REFERENCE / 1e9:g} GFLOP an object. Bytes are those of each launch's
inputs and outputs, each once.

{tables.markdown(HEADINGS, table(counted))}
What is launched differs where an infusion step projects keys and values (`infuse.attend`) instead of folding their
weights, which its planner decides by launches, FLOPs and bytes, and where an object has more than 32 patches
(`object_pool.gram` and `object_pool.cluster` instead of `object_pool.cluster_tile`). The forms of a step have as many
launches as each other:

{launched}
"""


def count_all(
    device: torch.device, all_sizes: Sequence[tuple[int, int]] = SIZES
) -> dict[tuple[int, int], tuple[Any, Any]]:
    """Counts at full width of each (objects, images)."""
    module = tokenizer(device, torch.bfloat16)
    return {sizes: count(region_pass(module, *sizes)) for sizes in all_sizes}


def seen(of: Pass) -> tuple[traces.Seen, Counter[str], Counter[str]]:
    """What the profiler sees of a pass on a GPU, and what our kernels are said to be launched meanwhile: by the names
    that are counted, and by those that they are compiled as, which several may share."""
    from pixelrefer_fast.device.launches import Launch, listen

    kernels: Counter[str] = Counter()
    functions: Counter[str] = Counter()

    def launched(launch: Launch) -> None:
        kernels[launch.kernel] += 1
        functions[launch.function] += 1

    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.inference_mode():
        of.run()  # compiles, and makes the vendor library's handles
        torch.cuda.synchronize()
        with listen(launched), torch.profiler.profile(activities=activities) as profiler:
            with torch.profiler.record_function(RANGE):
                of.run()
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    return traces.seen(events, RANGE), kernels, functions


def rows(counted: dict[tuple[int, int], tuple[Any, Any]], module: Any | None) -> list[Row]:
    """A row for each number of objects as it is counted and, with a tokenizer on a GPU, as it is seen there.

    What is counted must stand in the page, what is seen must be that.
    """
    page = PAGE.read_text(encoding="utf-8")
    made: list[Row] = []
    for line, (sizes, (whole, _)) in zip(table(counted), counted.items(), strict=True):
        row: Row = {"suite": "launches", "case": line[0], "sizes": dict(zip(("objects", "images"), sizes, strict=True))}
        ours = {name: n for name, n in whole.launches.items() if not name.startswith("aten.")}
        numbers: Row = {"launches": whole.launches.total(), "waits": whole.waits.total(), "flops": whole.flops}
        told = "| " + " | ".join(line) + " |" in page
        made.append({**row, "by": "counted", "ok": told, **numbers, "extra": {"own": ours}})
        if module is not None:
            found, own, functions = seen(region_pass(module, *sizes))
            numbers = {"launches": found.kernels.total(), "waits": found.waits.total()}
            extra = {
                "own": {name: found.kernels[name] for name in functions},
                "kernels": dict(found.kernels),
                "copies": dict(found.copies),
                "waiting": dict(found.waits),
            }
            there = all(found.kernels[name] == n for name, n in functions.items())
            fine = own == ours and there and not found.waits
            made.append({**row, "by": "seen", "ok": fine, **numbers, "extra": extra})
    return made


def row_table(made: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines, one for each row, as text."""
    lines = []
    for row in made:
        own = sum(row["extra"]["own"].values())
        fine = "as expected" if row["ok"] else "NOT AS EXPECTED"
        lines.append([f"{row['case']}, {row['by']}", str(row["launches"]), str(own), str(row["waits"]), fine])
    return ["", "launches", "of our kernels", "waits", ""], lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="page to write")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: beside what is seen there")
    parser.add_argument("--objects", type=int, help="at most (default: all)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="result file to append to")
    options = parser.parse_args(arguments)
    if options.markdown and options.objects is not None:
        parser.error("--markdown: expected it without --objects, as the page has all numbers of them")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: there is no CUDA device")
    chosen = [sizes for sizes in SIZES if options.objects is None or sizes[0] <= options.objects]
    if not chosen:
        parser.error(f"--objects: expected at least 1, got {options.objects}")
    device = torch.device(options.device)
    counted = count_all(device, chosen)
    if options.markdown:
        options.markdown.write_text(markdown(counted), encoding="utf-8")
    tables.terminal("region stage", HEADINGS, table(counted))
    if options.markdown:
        return 0
    made = rows(counted, tokenizer(device, torch.bfloat16) if options.device == "cuda" else None)
    if options.json:
        results.append(options.json, results.document("launches", made, measured_on=options.device))
    tables.terminal(f"held against {PAGE.name}", *row_table(made))
    return 0 if all(row["ok"] for row in made) else 1


if __name__ == "__main__":
    if "cuda" not in sys.argv:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: kernels then take tensors of the CPU
    sys.exit(main())
