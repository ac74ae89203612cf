"""`eval score`: answers -> scores, their provenance, and a table with the paper's numbers beside them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from pixelrefer_fast.bench.measure.machine import provenance
from pixelrefer_fast.bench.report.tables import markdown, terminal
from pixelrefer_fast.cli.evaluating.options import PublishedFiles, Scoring
from pixelrefer_fast.cli.evaluating.published import named_benchmark, out_folder
from pixelrefer_fast.evaluating.benchmark import Benchmark, Metric, Tools
from pixelrefer_fast.evaluating.corrections import CORRECTIONS, chosen_corrections
from pixelrefer_fast.evaluating.folder import RunFolder
from pixelrefer_fast.evaluating.judging.checkout import checkout_prompts
from pixelrefer_fast.evaluating.judging.endpoint import Endpoint
from pixelrefer_fast.evaluating.judging.judge import Judge
from pixelrefer_fast.evaluating.judging.prompts import OWN, JudgePrompts
from pixelrefer_fast.evaluating.paper import ROWS, number, row_of

NOTHING = "-"
HEADINGS = ("", "ours", "paper", "difference")


def score_answers(name: str | None, files: PublishedFiles, scoring: Scoring) -> dict[str, Any]:
    """Score what `--out` holds, and write it beside the answers.

    Args:
        name: of the benchmark, where it was given; it has to be the run's.

    Returns:
        The document of `scores.json`.

    Raises:
        ValueError: bad options, an incomplete run, or a library that is missing.
        JudgeError: a judge did not answer; what it answered is kept.
    """
    folder = out_folder(files)
    asked = folder.asked()
    benchmark = named_benchmark(asked["benchmark"])
    if name not in (None, benchmark.name):
        raise ValueError(f"--out {folder.path}: expected answers to {name}, got those to {benchmark.name}")
    row = scoring.row or row_of(asked["model"])
    replies = folder.replies()
    tools = _tools(benchmark, folder, files, scoring)
    late = {name for name in tools.corrections if CORRECTIONS[name].asks} - set(asked["corrections"])
    if late:
        raise ValueError(f"--correct: expected {', '.join(sorted(late))} when the questions were asked, got it now")
    corrections = tools.corrections | set(asked["corrections"])
    scores = benchmark.score(replies, replace(tools, corrections=corrections))
    failures = folder.failures()
    document = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "metrics": {
            metric.name: _metric(metric, scores.values.get(metric.name), number(benchmark.name, row, metric.name))
            for metric in benchmark.metrics
        },
        "unavailable": scores.unavailable,
        "items": len(replies),
        "without_answer": sum(reply.text is None for reply in replies),
        "failures": failures[:5],
        "counts": scores.counts,
        "corrections": sorted(corrections),
        "paper_row": row,
        "judge": None if tools.judge is None else tools.judge.name() | {"prompts": tools.prompts.provenance()},
        "encoder": None if tools.encoder is None else str(tools.encoder),
        "speed": folder.speed(),
        "asked": asked,
        "provenance": provenance(),
    }
    folder.write_scores(document, scores.details, markdown(HEADINGS, table_rows(document)))
    return document


def check_scoring(name: str, files: PublishedFiles, scoring: Scoring) -> None:
    """ValueError for what would keep answers from being scored, before there are any."""
    benchmark = named_benchmark(name)
    tools = _tools(benchmark, out_folder(files), files, scoring)
    if tools.encoder is not None and not tools.encoder.is_dir():
        raise ValueError(f"--encoder: expected a folder, got {scoring.encoder}")


def _tools(benchmark: Benchmark, folder: RunFolder, files: PublishedFiles, scoring: Scoring) -> Tools:
    if scoring.row not in (None, *ROWS):
        raise ValueError(f"--row: expected one of {', '.join(ROWS)}, got {scoring.row!r}")
    tools = Tools(
        encoder=None if scoring.encoder is None else Path(scoring.encoder),
        judge=_judge(benchmark, folder, scoring),
        prompts=JudgePrompts() if scoring.reference is None else checkout_prompts(Path(scoring.reference)),
        corrections=chosen_corrections(files.correct or (), benchmark.corrections),
    )
    benchmark.check(tools)
    return tools


def _judge(benchmark: Benchmark, folder: RunFolder, scoring: Scoring) -> Judge | None:
    given = (scoring.judge_url, scoring.judge_model)
    if given == (None, None):
        return None
    if scoring.judge_url is None or scoring.judge_model is None:
        raise ValueError("--judge-url, --judge-model: expected both, got one")
    if not benchmark.judged:
        raise ValueError(f"--judge-url: expected a benchmark that a judge scores, got {benchmark.name}")
    if scoring.judge_image and benchmark.name != "dlc":
        raise ValueError(f"--judge-image: expected dlc, got {benchmark.name}")
    endpoint = Endpoint(scoring.judge_url, scoring.judge_model)
    return Judge(endpoint, folder.judge, scoring.judge_workers, scoring.judge_image)


def _metric(metric: Metric, value: float | None, paper: float | None) -> dict[str, Any]:
    ours = None if value is None else value * metric.scale
    difference = None if ours is None or paper is None else ours - paper
    return {"value": value, "ours": ours, "paper": paper, "difference": difference, "digits": metric.digits}


def table_rows(document: dict[str, Any]) -> list[list[str]]:
    """A line for each metric, and for the speed of the same run."""
    rows = []
    for name, metric in document["metrics"].items():
        digits = metric["digits"]
        rows.append([name, *(_shown(metric[key], digits, key == "difference") for key in HEADINGS[1:])])
    speed = document["speed"]
    rows.append(["objects a second", _shown(speed["objects_a_second"], 2), NOTHING, NOTHING])
    rows.append(["seconds an item", _shown(speed["seconds_an_item"], 3), NOTHING, NOTHING])
    return rows


def print_scores(document: dict[str, Any], file: TextIO) -> None:
    """The table on the terminal, and below it what it depends on."""
    asked, judge = document["asked"], document["judge"]
    title = f"{document['title']}: {document['items']} items, {asked['model']}"
    if document["paper_row"]:
        title += f", beside the paper's {document['paper_row']}"
    terminal(title, HEADINGS, table_rows(document), file)
    for name, reason in document["unavailable"].items():
        print(f"{name}: not available: {reason}", file=file)
    if document["without_answer"]:
        first = document["failures"][0] if document["failures"] else "no text"
        print(f"{document['without_answer']} items without an answer count as empty: {first}", file=file)
    if unread := document["counts"].get("unread"):
        print(f"{unread} replies of the judge could not be read: details.jsonl has them", file=file)
    if judge is not None:
        print(f"judge: {judge['model']} at {judge['url']}, {judge['prompts']['origin']} prompts", file=file)
    if judge is not None and judge["prompts"]["origin"] == OWN:
        print("the paper's judges were told other words: --reference takes them from a checkout", file=sys.stderr)
    if asked["limit"] is not None:
        print(f"of the first {asked['limit']} items alone: no number of the whole benchmark", file=file)


def _shown(value: float | None, digits: int, signed: bool = False) -> str:
    return NOTHING if value is None else f"{value:{'+' if signed else ''}.{digits}f}"
