"""`world`: scenes of the synthetic world with their questions, as a training set."""

from __future__ import annotations

from typing import Annotated

import typer

from pixelrefer_fast.checks.printable import write_json
from pixelrefer_fast.cli.interrupts import clean_end
from pixelrefer_fast.cli.options import AsJson, examples
from pixelrefer_fast.cli.output import reserved_stdout

EXAMPLES = examples("world ./world --scenes 1000", "world ./held --split heldout --annotation --lines")


def world(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder to write; must not exist or be empty.")],
    scenes: Annotated[int, typer.Option("--scenes", metavar="N", min=1, help="How many images and videos.")] = 100,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the first scene.")] = 0,
    split: Annotated[str, typer.Option("--split", metavar="S", help="train or heldout.")] = "train",
    one_frame: Annotated[
        bool, typer.Option("--one-frame", help="Mark objects of a video in one frame, as PixelRefer takes them.")
    ] = False,
    annotation: Annotated[bool, typer.Option("--annotation", help="Videos' masks in VideoRefer-700K's form.")] = False,
    lines: Annotated[bool, typer.Option("--lines", help="One sample a line instead of a JSON list.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write scenes of the synthetic world with their questions, in the released training format."""
    from pixelrefer_fast.cli.train import run_world

    with reserved_stdout() as out, clean_end():
        report = run_world(folder, scenes, seed, split, "full" if one_frame else "lite", annotation, lines)
        if as_json:
            write_json(report, out)
        else:
            print(
                f"{report['file']}: {report['samples']} samples about {report['images']} images and "
                f"{report['videos']} videos",
                file=out,
            )
