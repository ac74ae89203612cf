"""`profile`: where the time of one question goes."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from pixelrefer_fast.checks.printable import write_json
from pixelrefer_fast.cli.models import MODEL_VARIABLE, chosen_model
from pixelrefer_fast.cli.options import AsJson, Computing, Marks, examples
from pixelrefer_fast.cli.output import reserved_stdout
from pixelrefer_fast.cli.regions import given_regions
from pixelrefer_fast.cli.targets import check_target

EXAMPLES = examples(
    "profile",
    "profile street.jpg --objects 8 --model lite-2b --device cuda --trace trace.json",
    "profile clip.mp4 --frame 0 --box 10,20,90,180 --model ./PixelRefer-2B --json",
    "profile --model lite-2b --kernel infuse.scores --calls calls.safetensors",
    "profile street.jpg --objects 2 --kernels",
)


def profile(
    ctx: typer.Context,
    *,
    source: Annotated[
        str | None,
        typer.Argument(metavar="IMAGE_OR_VIDEO", help="Default: a picture from a seed.", show_default=False),
    ] = None,
    marks: Marks,
    objects: Annotated[
        int | None,
        typer.Option("--objects", metavar="N", min=1, help="Boxes from a seed instead of marks. Default: 1."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME|FOLDER|ID",
            envvar=MODEL_VARIABLE,
            help="lite-2b, lite-7b, full-2b, full-7b (random weights, no download), embedded:lite (the default), "
            "embedded:full, or a checkpoint.",
            show_default=False,
        ),
    ] = None,
    question: Annotated[
        str | None, typer.Option("--question", metavar="Q", help="With a <region> for each object.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest answer.")] = 64,
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="Timed runs of each stage.")] = 5,
    trace: Annotated[
        str | None, typer.Option("--trace", metavar="OUT.json", help="A trace for Perfetto or chrome://tracing.")
    ] = None,
    calls: Annotated[
        str | None,
        typer.Option("--calls", metavar="OUT.safetensors", help="The operations' calls, for bench.run_kernel."),
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option("--kernel", metavar="NAME", help="All about one, with commands for ncu and nsys: infuse.scores."),
    ] = None,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels", help="Count what each kernel does, in the PTX emulator of a checkout: without a GPU."
        ),
    ] = False,
    once: Annotated[
        bool, typer.Option("--once", help="Measure nothing: each stage once, in NVTX ranges, under ncu or nsys.")
    ] = False,
    computing: Computing,
    as_json: AsJson = False,
) -> None:
    """Show where the time of one question goes: stages, operations and kernels."""
    from pixelrefer_fast.cli import kernel_counts as counting
    from pixelrefer_fast.cli import profile as profiling

    profiling.quiet_profiler()
    with reserved_stdout() as out:
        for option, path, suffix in (("--trace", trace, ".json"), ("--calls", calls, ".safetensors")):
            if path is not None:
                check_target(ctx, option, path, (suffix,))
        if kernel is not None:
            profiling.check_kernel(kernel)
        if kernels:
            counting.check({"--kernel": kernel, "--trace": trace, "--once": once or None})
        media, regions = _marks_or_boxes(ctx, source, marks, objects)
        name = chosen_model(model)
        asked = profiling.Asked(
            media,
            regions,
            question if question is not None else profiling.default_question(len(regions)),
            source or profiling.OWN_PICTURE,
            name,
            profiling.command_of(sys.argv),
        )
        loaded = profiling.load_model(name, computing)
        if once:
            from pixelrefer_fast.bench.profile.profile import once as run_once

            run_once(loaded, media, asked.question, regions, max_new_tokens)
            return
        if kernels:
            counting.show(asked, loaded, max_new_tokens, calls, as_json, out)
            return
        found = profiling.run_profile(asked, loaded, max_new_tokens, repeats, trace, calls)
        if as_json:
            write_json(profiling.to_json(asked, found, trace, calls, kernel), out)
        else:
            profiling.print_profile(asked, found, trace, calls, kernel, out)


def _marks_or_boxes(ctx: typer.Context, source: str | None, marks: Marks, objects: int | None) -> tuple[Any, list[Any]]:
    """The media, or a picture from a seed, and what is marked on the command line, else boxes from a seed."""
    from pixelrefer_fast.cli.profile import own_picture, seeded_boxes
    from pixelrefer_fast.media import open_media

    media = own_picture() if source is None else open_media(source)
    marked = given_regions(ctx, media, marks)
    if marked and objects is not None:
        raise ValueError(f"--objects {objects}: expected without marks, got {len(marked)}")
    return media, [one.region for one in marked] if marked else seeded_boxes(media, objects or 1)
