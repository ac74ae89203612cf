"""`bench`: whole questions, Full against Lite, ours against the reference, and scaling curves, on this machine."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pixelrefer_fast.checkpoint.embedded import EMBEDDED_FULL, EMBEDDED_LITE
from pixelrefer_fast.cli.models import RELEASED
from pixelrefer_fast.cli.output import progress_bar

RESULTS = "bench.json"
NONE, FULL, REFERENCE = "none", "full", "reference"
SIZES = ("2b", "7b")  # of models with random weights
DEFAULT = {"cuda": "lite-2b", "cpu": EMBEDDED_LITE}
SECONDS = {True: 120.0, False: 1200.0}  # of a quick run and of another
# what needs no download stands in for itself; of other models the other one is named
FREE_PAIRS = ((EMBEDDED_LITE, EMBEDDED_FULL), *((f"lite-{size}", f"full-{size}") for size in SIZES))
RELEASED_PAIRS = tuple((name.replace("PixelRefer-", "PixelRefer-Lite-"), name) for name in RELEASED[:2])
TITLES = {
    **dict.fromkeys((name for pair in FREE_PAIRS[1:] for name in pair), "random weights in a released model's shape"),
    EMBEDDED_LITE: "the small embedded Lite",
    EMBEDDED_FULL: "the small embedded Full",
}


@dataclass(frozen=True)
class BenchPlan:
    """What a run measures.

    Attributes:
        model: its name.
        pair: names of the Lite and the Full that are set against each other, None where none are.
        reference: checkout of the reference, None where it is not compared with.
        device, dtype: how models are loaded.
        graph_bytes: that captures may keep, as `model.warmup` takes it.
        quick: fewer points and calls.
        curves: whether time is measured against each size.
        seconds: that the run takes, about.
        folder: where results and pictures go.
    """

    model: str
    pair: tuple[str, str] | None
    reference: Path | None
    device: Any
    dtype: Any
    graph_bytes: int | None
    quick: bool
    curves: bool
    seconds: float
    folder: Path


def planned(
    model: str | None,
    against: Sequence[str],
    reference: str | None,
    device: str,
    dtype: str,
    graph_bytes: int | None,
    quick: bool,
    curves: bool,
    seconds: float | None,
    folder: str,
) -> BenchPlan:
    """What the command line asks for, checked before anything is loaded.

    Raises:
        ValueError: naming the option, what was expected and what came.
    """
    from pixelrefer_fast.bench.report import results
    from pixelrefer_fast.device.graphs import cuda_capturer
    from pixelrefer_fast.loading import auto_device, auto_dtype

    chosen = auto_device(device)
    name = model or DEFAULT[chosen.type if chosen.type in DEFAULT else "cuda"]
    wanted = list(against) + [REFERENCE] * (reference is not None and REFERENCE not in against)
    if REFERENCE in wanted and reference is None:
        raise ValueError("--against reference: expected --reference DIR, a checkout of the reference, too; got none")
    if reference is not None and not Path(reference).is_dir():
        raise ValueError(f"--reference {reference}: expected a folder, a checkout of the reference")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"--seconds: expected a number above 0, got {seconds:g}")
    if graph_bytes and (reason := cuda_capturer().unusable(chosen)):
        raise ValueError(f"--graph-bytes: expected 0 on {chosen}, got {graph_bytes}: {reason}")
    target = Path(folder)
    results.check_path(target / RESULTS)
    return BenchPlan(
        name,
        _pair(name, [what for what in wanted if what != REFERENCE]),
        None if reference is None else Path(reference),
        chosen,
        auto_dtype(dtype, chosen),
        graph_bytes,
        quick,
        curves,
        SECONDS[quick] if seconds is None else seconds,
        target,
    )


def _pair(name: str, wanted: list[str]) -> tuple[str, str] | None:
    """The Lite and the Full to compare: what is asked for, else, where it costs no download, the model's other one."""
    if wanted == [NONE]:
        return None
    if not wanted:
        return next((pair for pair in FREE_PAIRS if name in pair), None)
    if len(wanted) > 1:
        raise ValueError(f"--against: expected one of full, none or a model's name beside reference, got {wanted}")
    if wanted != [FULL]:
        return name, wanted[0]
    pair = next((pair for pair in (*FREE_PAIRS, *RELEASED_PAIRS) if name in pair), None)
    if pair is None:
        raise ValueError(f"--against full: whose Full {name} is not known; name it: --against FOLDER|ID")
    return pair


def run_bench(plan: BenchPlan, told: Callable[[str], Any]) -> dict[str, Any]:
    """The document of a run, which is appended to the folder's result file.

    Raises:
        ValueError: a model cannot be loaded or is of the wrong kind, the reference cannot be used.
    """
    from pixelrefer_fast.bench.measure import rates
    from pixelrefer_fast.bench.report import results
    from pixelrefer_fast.bench.run import effort as efforts
    from pixelrefer_fast.bench.run import whole
    from pixelrefer_fast.bench.run.against import run_against_rival, run_pairs

    effort = efforts.QUICK_EFFORT if plan.quick else efforts.FULL_EFFORT
    told("rates of this machine")
    measured = rates.measured(plan.device, [plan.dtype])
    time_limit = efforts.TimeLimit(plan.seconds)
    rows = []
    weights = {}
    with _loaded(plan, plan.model) as model:
        kind = model.kind
        weights[plan.model] = model.fingerprint
        if plan.pair is not None and plan.pair[kind == "full"] != plan.model:
            raise ValueError(f"--model {plan.model}: expected a Lite, to set a Full against it, got a {kind} model")
        rows += whole.run_cases(model, plan.model, effort, time_limit, told)
        rows += whole.run_stages(model, plan.model, effort, time_limit, told)
        if plan.pair is not None:
            rows += run_pairs(model, plan.model, effort, time_limit, told)
        if plan.reference is not None:
            rival, own = _rival(plan, model)
            rows += run_against_rival(rival, own, plan.model, effort, time_limit, told)
            del rival, own
    if plan.pair is not None:
        other = plan.pair[kind == "lite"]
        with _loaded(plan, other) as model:
            if model.kind == kind:
                raise ValueError(f"--against {other}: expected the other kind than {plan.model}'s, got {kind} too")
            weights[other] = model.fingerprint
            rows += run_pairs(model, other, effort, time_limit, told)
    if plan.curves:
        with _loaded(plan, plan.model) as model:
            rows += whole.run_curves(model, plan.model, effort, time_limit, told)
    document = results.document(
        "bench",
        rows,
        measured,
        measured_on=plan.device.type,
        quick=plan.quick,
        seconds=plan.seconds,
        graph_bytes=plan.graph_bytes,
        model=plan.model,
        weights=weights,
        dtype=str(plan.dtype).removeprefix("torch."),
        pair=None if plan.pair is None else list(plan.pair),
        reference=None if plan.reference is None else _commit(plan.reference),
    )
    results.append(plan.folder / RESULTS, document)
    return document


@contextlib.contextmanager
def _loaded(plan: BenchPlan, name: str) -> Iterator[Any]:
    from pixelrefer_fast.bench.run import workloads

    model = workloads.load_model(name, plan.device, plan.dtype)
    if plan.device.type == "cuda":
        model.warmup(plan.graph_bytes)
    try:
        yield model
    finally:
        del model
        gc.collect()
        if plan.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()


def _rival(plan: BenchPlan, model: Any) -> tuple[Any, Any]:
    from pixelrefer_fast.bench.reference import Reference, with_released_views

    own = with_released_views(model)
    try:
        return Reference(plan.reference or "", own), own
    except FileNotFoundError as error:
        raise ValueError(f"--reference {plan.reference}: {error}") from error


def _commit(folder: Path) -> str | None:
    from pixelrefer_fast.bench.measure.machine import git

    return git(folder, "rev-parse", "HEAD") or None


def steps(plan: BenchPlan) -> int:
    """How many times `told` is called."""
    from pixelrefer_fast.bench.run import effort as efforts
    from pixelrefer_fast.bench.run import loads
    from pixelrefer_fast.bench.run.against import PAIRS

    effort = efforts.QUICK_EFFORT if plan.quick else efforts.FULL_EFFORT
    count = 2 + loads.CASES
    if plan.curves:
        count += sum(map(len, effort.curves.values()))
    if plan.pair is not None:
        count += 2 * len(PAIRS)
    return count + (loads.CASES if plan.reference is not None else 0)


@contextlib.contextmanager
def telling(plan: BenchPlan) -> Iterator[Callable[[str], Any]]:
    """A bar on a terminal; elsewhere a line for each step."""
    with progress_bar("bench", steps(plan)) as progress:
        yield progress or (lambda name: print(f"bench: {name}", file=sys.stderr))


def draw(document: dict[str, Any], folder: Path) -> list[Path]:
    """The pictures; none, and a word why, where matplotlib is missing: the numbers are there without them."""
    from pixelrefer_fast.bench.report import plots

    try:
        return plots.every_plot(document, folder)
    except ValueError as error:
        print(f"warning: {error}", file=sys.stderr)
        return []


def print_bench(document: dict[str, Any], plan: BenchPlan, pictures: Sequence[Path], file: TextIO) -> None:
    """Tables, and where everything is."""
    from pixelrefer_fast.bench.report import tables

    what = TITLES.get(plan.model, "")
    print(
        f"{plan.model}{f' ({what})' if what else ''}, {document['dtype']}, {tables.machine_name(document)}", file=file
    )
    known = {name: f"{rate / 1e9:,.0f}" for name, rate in document["rates"].items()}
    print(
        f"measured in this run: copy {known.pop('copy')} GB/s; matrix products "
        + ", ".join(f"{name} {rate} GFLOP/s" for name, rate in known.items()),
        file=file,
    )
    for title, table in tables.every_table(document):
        print(file=file)
        tables.terminal(title, *tables.without_empty(table), file=file)
    print(f"\nresult added to {plan.folder / RESULTS}", file=file)
    if pictures:
        print(f"pictures: {', '.join(str(p) for p in pictures if p.suffix == '.png')} (and as SVG)", file=file)


def wrong(document: dict[str, Any]) -> list[str]:
    """Cases that were run and whose check fails."""
    return [f"{row['suite']}: {row['case']}" for row in document["rows"] if not row["ok"] and "reason" not in row]
