"""`doctor`: what is here, what is not, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from pixelrefer_fast.cli.options import AsJson, examples

EXAMPLES = examples("doctor", "doctor --json", "doctor --build")


def doctor(
    as_json: AsJson = False,
    build: Annotated[bool, typer.Option("--build", help="Compile the extension of csrc/ here; no report.")] = False,
) -> None:
    """Report versions, devices, providers of every operation, caches and settings."""
    from pixelrefer_fast.doctor import probes as diagnosis

    if code := diagnosis.main(["--json"] * as_json + ["--build"] * build):
        raise typer.Exit(code)
