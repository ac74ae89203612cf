"""Options of `describe` that take a file of requests; the rest of it is imported when it is used."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pixelrefer_fast.cli.targets import check_target

_PANEL = "A file of requests"
SUFFIXES = (".jsonl", ".ndjson")
_LINE = r'{"id": 7, "image": "cat.jpg", "box": \[60, 50, 360, 275], "question": "What is <region>?"}'
_PARAGRAPHS = (
    f"A line of requests.jsonl: {_LINE}",
    "Its keys: image or video (a path); box, xywh, polygon, scribble, rle, mask (a path) or regions (a list), as the "
    "options or as JSON; frame; question, with one <region> for each region in turn or one for every region; id; "
    "max_new_tokens, temperature, top_p, seed, fps, max_frames, frames.",
    "A line of answers.jsonl has line, id, texts, finish and tokens, or error, in the order of the requests.",
    "The same command goes on after an interruption. Exit code 2: some lines were bad, 1: some failed for another "
    "reason; answers.jsonl says why.",
)
BATCH_HELP = "\n\n" + "\n\n".join(_PARAGRAPHS)

BatchFile = Annotated[
    str | None,
    typer.Option(
        "--batch",
        metavar="FILE.jsonl",
        help="Requests, a JSON object a line.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
BatchOut = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="OUT.jsonl",
        help="Answers, a line for each line of --batch; written beside it, moved there when complete.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
BatchSize = Annotated[
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
]
_NOT_WITH_BATCH = {
    "source": "IMAGE_OR_VIDEO",
    "save": "--save",
    "frame": "--frame",
    "boxes": "--box",
    "sized_boxes": "--xywh",
    "masks": "--mask",
    "rles": "--rle",
    "polygons": "--polygon",
    "scribbles": "--scribble",
    "region_files": "--regions",
}


def check_batch_options(ctx: typer.Context) -> bool:
    """Whether a file of requests is given.

    Raises:
        ValueError: options that do not go together, or files that cannot be read or written.
    """
    given: dict[str, Any] = ctx.params
    if given["batch"] is None:
        for name, option in (("out_file", "--out"), ("batch_size", "--batch-size")):
            if given[name] is not None:
                raise ValueError(f"{option}: expected with --batch FILE.jsonl only")
        return False
    for name, option in _NOT_WITH_BATCH.items():
        if given[name]:
            raise ValueError(f"{option}: expected on the lines of --batch, got it on the command line")
    if given["out_file"] is None:
        raise ValueError("--batch: expected --out OUT.jsonl as well")
    from pixelrefer_fast.media.images import regular_file

    try:
        regular_file(given["batch"])
        with open(given["batch"], "rb"):
            pass
    except (ValueError, OSError) as error:
        raise ValueError(f"--batch {error}") from None
    check_target(ctx, "--out", given["out_file"], SUFFIXES)
    return True
