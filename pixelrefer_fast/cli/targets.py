"""The files that commands write, checked before any model runs."""

from __future__ import annotations

import os
from collections.abc import Sequence

import typer

from pixelrefer_fast.checkpoint.embedded import EMBEDDED_LITE, embedded_folder, is_embedded


def check_target(ctx: typer.Context, option: str, path: str, suffixes: Sequence[str] | None = None) -> None:
    """ValueError that names the option unless `path` can be written, and is no file that the command reads.

    `suffixes`: how its name may end; None for those of pictures.
    """
    from pixelrefer_fast.pictures.answers import SUFFIXES, check_writable

    try:
        check_writable(path, suffixes or SUFFIXES)
    except ValueError as error:
        raise ValueError(f"{option} {error}") from error
    if not os.path.exists(path):
        return
    for file in _read_files(ctx):
        if os.path.exists(file) and os.path.samefile(path, file):  # by whichever name or link
            raise ValueError(f"{option} {path}: expected a file of its own, got an input of this command, {file}")


def _read_files(ctx: typer.Context) -> list[str]:
    """The media, the files of regions and requests, and the checkpoint; of folders what is in them."""
    given = [ctx.params[name] or "" for name in ("source", "model", "batch") if name in ctx.params]
    model = ctx.params.get("model") or EMBEDDED_LITE
    if is_embedded(model):
        given.append(str(embedded_folder(model)))
    given += [file for name in ("masks", "rles", "region_files") for file in ctx.params.get(name) or ()]
    inside = [os.path.join(path, name) for path in given if os.path.isdir(path) for name in os.listdir(path)]
    return given + inside
