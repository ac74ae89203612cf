"""`eval`: the share of questions answered right."""

from __future__ import annotations

from typing import Annotated

import typer

from pixelrefer_fast.checks.printable import write_json
from pixelrefer_fast.cli.options import AsJson, Computing, examples
from pixelrefer_fast.cli.output import reserved_stdout

EXAMPLES = examples("eval --world", "eval --world --questions 5000 --json", "eval --world --model ./my-model")


def evaluate(
    *,
    world: Annotated[
        bool, typer.Option("--world", help="Ask about the synthetic world: the one set of questions there is.")
    ] = False,
    split: Annotated[str, typer.Option("--split", metavar="S", help="heldout or train.")] = "heldout",
    questions: Annotated[int, typer.Option("--questions", metavar="N", help="How many, of all categories.")] = 2000,
    models: Annotated[str, typer.Option("--models", metavar="lite,full", help="Which embedded ones.")] = "lite,full",
    model: Annotated[
        str | None, typer.Option("--model", metavar="FOLDER|ID", help="Another one instead.", show_default=False)
    ] = None,
    videos: Annotated[
        float, typer.Option("--videos", metavar="SHARE", help="Of the questions but those about motion.")
    ] = 0.4,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the first scene.")] = 1_000_000,
    computing: Computing,
    as_json: AsJson = False,
) -> None:
    """Ask questions whose answers are known, and count the right ones by category."""
    from pixelrefer_fast.cli.eval import models_asked, print_eval, run_eval

    with reserved_stdout() as out:
        if not world:
            raise ValueError("eval: expected --world, the one set of questions there is, got none")
        report = run_eval(models_asked(models, model), questions, split, seed, videos, computing)
        if as_json:
            write_json(report, out)
        else:
            print_eval(report, out)
