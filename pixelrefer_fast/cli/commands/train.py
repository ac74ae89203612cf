"""`train`: a checkpoint trained or fine-tuned."""

from __future__ import annotations

from typing import Annotated

import typer

from pixelrefer_fast.checks.printable import write_json
from pixelrefer_fast.cli.interrupts import clean_end
from pixelrefer_fast.cli.options import AsJson, examples
from pixelrefer_fast.cli.output import reserved_stdout

EXAMPLES = examples("train lite.yaml", "train lite.yaml --check", "train lite.yaml --resume --json")


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="What to train; docs/training.md has the keys.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in the output folder.")] = False,
    folder: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Write there instead of where the file says.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read all samples of the files and their media; no training.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train or fine-tune a checkpoint on samples in the released format."""
    from pixelrefer_fast.cli.train import print_check, print_training, run_check, run_training

    with reserved_stdout() as out, clean_end():
        report = run_check(config) if check else run_training(config, resume, folder)
        if as_json:
            write_json(report, out)
        else:
            (print_check if check else print_training)(report, out)
