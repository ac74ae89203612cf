"""Options of `describe` that take a file of requests; the rest of it is imported when it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from pixelrefer_fast.cli.targets import check_target

_PANEL = "A file of requests"
SUFFIXES = (".jsonl", ".ndjson")
STANDARD = "-"  # standard input and output in the place of files
_LINE = r'{"id": 7, "image": "cat.jpg", "box": \[60, 50, 360, 275], "question": "What is <region>?"}'
_PARAGRAPHS = (
    f"A line of requests.jsonl: {_LINE}",
    "Its keys: image or video (a path); box, xywh, polygon, scribble, rle, mask (a path) or regions (a list), as the "
    "options or as JSON; frame; question, with one <region> for each region in turn or one for every region; id; "
    "max_new_tokens, min_new_tokens, temperature, top_k, top_p, min_p, seed, repetition_penalty, presence_penalty, "
    "frequency_penalty, stop, stop_token_ids, fps, max_frames, frames.",
    "A line of answers.jsonl has line, id, texts, finish and tokens, or error, in the order of the requests.",
    "The same command goes on after an interruption, but not with --batch - (a pipe), which writes answers at once. "
    "Exit code 2: some lines were bad, 1: some failed for another reason; answers.jsonl says why.",
)
BATCH_HELP = "\n\n" + "\n\n".join(_PARAGRAPHS)


@dataclass(frozen=True)
class BatchFiles:
    """The file of requests and where its answers go."""

    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            metavar="FILE.jsonl|-",
            help="Requests, a JSON object a line; - is standard input, with answers on standard output.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None
    out_file: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="OUT.jsonl",
            help="Answers, a line for each line of --batch; written beside it, moved there when complete.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Workers of Ray answer, --batch is a file or folder of .parquet, .jsonl or .tar, --out a folder of "
            "parquet; local starts Ray here, auto or HOST:PORT is a cluster.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            max=4096,
            help="At most so many requests at one time; default: 32 on a CPU, 64 on a GPU.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None


_NOT_WITH_BATCH = {
    "source": "IMAGE_OR_VIDEO",
    "save": "--save",
    "frame": "--frame",
    "boxes": "--box",
    "sized_boxes": "--xywh",
    "masks": "--mask",
    "rles": "--rle",
    "polygons": "--polygon",
    "points": "--point",
    "scribbles": "--scribble",
    "region_files": "--regions",
}


def batch_paths(ctx: typer.Context, files: BatchFiles) -> tuple[str, str] | None:
    """The files of requests and of answers, both STANDARD for standard input and output; None without --batch.

    Raises:
        ValueError: options that do not go together, or files that cannot be read or written.
    """
    if files.batch is None:
        for option, value in (("--out", files.out_file), ("--ray", files.ray), ("--batch-size", files.batch_size)):
            if value is not None:
                raise ValueError(f"{option}: expected with --batch FILE.jsonl only")
        return None
    for name, option in _NOT_WITH_BATCH.items():
        if ctx.params[name]:
            raise ValueError(f"{option}: expected on the lines of --batch, got it on the command line")
    if files.batch == STANDARD and files.ray is None:
        if files.out_file not in (None, STANDARD):
            raise ValueError("--out: expected none with --batch -, whose answers go to standard output")
        if ctx.params["as_json"]:
            raise ValueError("--json: expected none with --batch -, whose standard output is the answers")
        return STANDARD, STANDARD
    if files.out_file is None:
        raise ValueError("--batch: expected --out OUT.jsonl as well")
    if files.ray is not None:
        return files.batch, files.out_file
    from pixelrefer_fast.media.images import regular_file

    try:
        regular_file(files.batch)
        with open(files.batch, "rb"):
            pass
    except (ValueError, OSError) as error:
        raise ValueError(f"--batch {error}") from None
    check_target(ctx, "--out", files.out_file, SUFFIXES)
    return files.batch, files.out_file
