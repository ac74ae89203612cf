"""`eval`: scores of a model on the synthetic world or on a published benchmark."""

from __future__ import annotations

from typing import Annotated

import typer

from pixelrefer_fast.checks.printable import write_json
from pixelrefer_fast.cli.evaluating.options import EXAMPLES as EXAMPLES
from pixelrefer_fast.cli.evaluating.options import PublishedFiles, Scoring, WorldQuestions
from pixelrefer_fast.cli.models import chosen_model
from pixelrefer_fast.cli.options import Answering, AsJson, Computing
from pixelrefer_fast.cli.output import reserved_stdout

RUN, SCORE, WORLD = "run", "score", "world"


def evaluate(
    *,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[run|score] [BENCHMARK]", help="world where none is named.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="FOLDER|ID", help="A checkpoint; default: the embedded ones.", show_default=False
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="S",
            help="Of world: heldout or train; docs/evaluation.md has others.",
            show_default=False,
        ),
    ] = None,
    world: WorldQuestions,
    files: PublishedFiles,
    scoring: Scoring,
    answering: Answering,
    computing: Computing,
    as_json: AsJson = False,
) -> None:
    """Ask questions whose answers are known, and score what comes back, beside the paper's numbers."""
    with reserved_stdout() as out:
        step, benchmark = _asked_for(words or [], world.world)
        if benchmark == WORLD and step is None:
            from pixelrefer_fast.cli.evaluating.world import models_asked, print_eval, run_eval

            _refuse_published(files)
            models = models_asked(world.models, model)
            drawn = (world.questions, split or "heldout", world.seed, world.videos)
            report = run_eval(models, *drawn, computing, answering)
            if as_json:
                write_json(report, out)
            else:
                print_eval(report, out)
            return
        code = 0
        if step != SCORE:
            from pixelrefer_fast.cli.evaluating.published import answer_benchmark

            if benchmark is None or benchmark == WORLD:
                raise ValueError("eval run: expected a published benchmark: world is asked and scored in one step")
            if step is None:
                from pixelrefer_fast.cli.evaluating.scores import check_scoring

                check_scoring(benchmark, files, scoring)
            report, code = answer_benchmark(benchmark, split, chosen_model(model), files, computing, answering)
        if step != RUN:
            from pixelrefer_fast.cli.evaluating.scores import print_scores, score_answers

            report = score_answers(benchmark, files, scoring)
            if not as_json:
                print_scores(report, out)
        if as_json:
            write_json(report, out)
        raise typer.Exit(code)


def _asked_for(words: list[str], world: bool) -> tuple[str | None, str | None]:
    """The step, None for both, and the benchmark, None where `score` takes the run's own."""
    step = words[0] if words and words[0] in (RUN, SCORE) else None
    names = words[1:] if step else words
    if len(names) > 1 or (world and names not in ([], [WORLD])):
        raise ValueError(f"eval: expected one benchmark, got {', '.join([*names, *[WORLD] * world])}")
    if names:
        return step, names[0]
    return step, None if step else WORLD


def _refuse_published(files: PublishedFiles) -> None:
    """ValueError for options that the world has no use for."""
    for option, value in (("--data", files.data), ("--out", files.out), ("--limit", files.limit)):
        if value is not None:
            raise ValueError(f"{option}: expected with a published benchmark, got world")
