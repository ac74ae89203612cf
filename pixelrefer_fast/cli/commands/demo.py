"""`demo`: both embedded models on a scene and a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pixelrefer_fast.checks.printable import write_json
from pixelrefer_fast.cli.options import AsJson, examples
from pixelrefer_fast.cli.output import reserved_stdout

EXAMPLES = examples("demo", "demo --seed 7 --out /tmp --json")


def demo(
    folder: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Where the pictures go; made if missing.")
    ] = "out",
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="Of the scene and the video.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask both embedded models about a scene and a video that they were not trained on, and draw what they say."""
    from pixelrefer_fast.cli.demo.run import run_demo

    with reserved_stdout() as out:
        report = run_demo(Path(folder), seed, None if as_json else out)
        if as_json:
            write_json(report, out)
