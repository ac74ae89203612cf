"""`eval world`: the share of questions about scenes of the synthetic world that models answer right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO

from pixelrefer_fast.checkpoint.embedded import EMBEDDED_FULL, EMBEDDED_LITE, TITLES
from pixelrefer_fast.cli.options import Answering, Computing

KINDS = {"lite": EMBEDDED_LITE, "full": EMBEDDED_FULL}


def models_asked(names: str, model: str | None) -> dict[str, str]:
    """What to load, by the name that the report gives it: of the embedded models, and `model` where one is given.

    Raises:
        ValueError: an embedded model that does not exist.
    """
    if model:
        return {model: model}
    kinds = [name.strip() for name in names.split(",")]
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"--models: expected some of {','.join(KINDS)}, got {names!r}")
    return {kind: KINDS[kind] for kind in kinds}


def run_eval(
    models: Mapping[str, str],
    questions: int,
    split: str,
    seed: int,
    videos: float,
    computing: Computing,
    answering: Answering,
) -> dict[str, Any]:
    """The report: `models` with `n` and `accuracy` of every category, and beside it where the questions come from,
    the same by images, videos and unseen combinations, and the time."""
    from pixelrefer_fast.batching.progress import Tick, batch_progress
    from pixelrefer_fast.world.evaluate import draw_questions, evaluate

    draw_questions(questions, split, seed, videos)  # bad numbers are told before a model is loaded
    answering.check(computing)
    report: dict[str, Any] = {"models": {}, "split": split, "seed": seed, "questions": questions, "videos": videos}
    report["engine"] = answering.engine
    report |= {"overall": {}, "image": {}, "video": {}, "unseen": {}, "seconds": {}}
    for name, path in models.items():
        with answering.loaded(path, computing) as model, batch_progress(name, None) as tick:

            def told(done: int, tick: Tick = tick) -> None:
                tick(done, questions)

            evaluation = evaluate(model, questions, split, seed, videos, progress=told)
        report["models"][name] = evaluation.by_category()
        report["overall"][name] = {"n": len(evaluation.results), "accuracy": evaluation.accuracy}
        report["image"][name] = evaluation.by_category(lambda result: not result.video)
        report["video"][name] = evaluation.by_category(lambda result: result.video)
        report["unseen"][name] = evaluation.by_category(lambda result: result.unseen)
        report["seconds"][name] = evaluation.seconds
    return report


def print_eval(report: dict[str, Any], file: TextIO) -> None:
    """A table: a category in each line, and of each model the accuracy on all, on images and on videos."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = 140
    table = Table(box=None, pad_edge=False)
    table.add_column("right answers")
    for name in report["models"]:
        title = TITLES.get(KINDS.get(name, ""), name)
        for heading in (title, "image", "video", "n"):
            table.add_column(heading, justify="right", overflow="fold", style="dim" if heading == "n" else "")
    for category in next(iter(report["models"].values())):
        table.add_row(category, *(cell for name in report["models"] for cell in _cells(report, name, category)))
    overall = [
        cell for name in report["models"] for cell in (_percent(report["overall"][name]), "", "", _n(report, name))
    ]
    table.add_row("all", *overall, style="bold")
    console.print(table)
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report["seconds"].items())
    console.print(
        f"{report['questions']} questions about scenes of the {report['split']} split from {report['seed']}; {spent}"
    )


def _cells(report: dict[str, Any], name: str, category: str) -> tuple[str, ...]:
    parts = [report[part][name].get(category) for part in ("models", "image", "video")]
    return (*map(_percent, parts), str(parts[0]["n"]))


def _n(report: dict[str, Any], name: str) -> str:
    return str(report["overall"][name]["n"])


def _percent(score: dict[str, Any] | None) -> str:
    return "-" if score is None else f"{100 * score['accuracy']:.1f} %"
