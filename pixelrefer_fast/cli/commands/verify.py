"""`verify`: recorded cases of the reference, replayed."""

from __future__ import annotations

from typing import Annotated

import typer

from pixelrefer_fast.checks.printable import write_json
from pixelrefer_fast.cli.options import AsJson, Backend, Device, Dtype, examples
from pixelrefer_fast.cli.output import progress_bar, reserved_stdout

EXAMPLES = examples(
    "verify", "verify ./golden/lite", "verify ./golden/full --device cuda --dtype float32 --backend triton --json"
)


def verify(
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="FOLDER",
            help="A checkpoint with case_*.safetensors beside it; without one those that ship are replayed.",
            show_default=False,
        ),
    ] = None,
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Replay recorded cases of the reference and compare every stage: is this install right? Exit 0 if all hold."""
    with reserved_stdout() as out:
        from pixelrefer_fast.cli.verify import print_report
        from pixelrefer_fast.verify.replay import case_paths
        from pixelrefer_fast.verify.replay import verify as replay

        with progress_bar("verify", len(case_paths(folder))) as progress:
            report = replay(folder, backend=backend, device=device, dtype=dtype, progress=progress)
        if as_json:
            write_json(report, out)
        else:
            print_report(report, out)
    if not report["ok"]:
        raise typer.Exit(1)
