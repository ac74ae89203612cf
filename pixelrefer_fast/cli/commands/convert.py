"""`convert`: a checkpoint as one folder."""

from __future__ import annotations

from typing import Annotated

import typer

from pixelrefer_fast.checks.printable import write_json
from pixelrefer_fast.cli.interrupts import clean_end
from pixelrefer_fast.cli.options import AsJson, examples
from pixelrefer_fast.cli.output import reserved_stdout

EXAMPLES = examples("convert ./PixelRefer-2B ./PixelRefer-2B-one-folder")


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Checkpoint: a folder or a hub id.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Folder to write; must not exist or be empty.")],
    as_json: AsJson = False,
) -> None:
    """Rewrite a checkpoint as one self-contained safetensors folder."""
    with reserved_stdout() as out:
        from pixelrefer_fast.loading import convert as rewrite

        with clean_end():  # what is written by then may be as large as the weights
            report = rewrite(source, target)
        if as_json:
            write_json(report, out)
        else:
            print(f"{target}: written", file=out)
            for key, value in report.items():
                print(f"  {key}: {value}", file=out)
