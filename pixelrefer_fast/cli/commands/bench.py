"""`bench`: whole questions, Full against Lite, and how time grows."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pixelrefer_fast.checks.printable import write_json
from pixelrefer_fast.cli.options import AsJson, Device, Dtype, examples
from pixelrefer_fast.cli.output import reserved_stdout

EXAMPLES = examples(
    "bench --quick",
    "bench --model lite-2b --device cuda --out results/",
    "bench --model ./PixelRefer-Lite-2B --against ./PixelRefer-2B",
    "bench --against reference --reference ../PixelRefer --json",
)


def bench(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME|FOLDER|ID",
            help="lite-2b, lite-7b, full-2b, full-7b (random weights, no download; lite-2b is the default on a GPU), "
            "embedded:lite (the default on a CPU), embedded:full, or a checkpoint.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="WHAT",
            help="full: the model's Full (the default where that needs no download), another model's name, none, "
            "reference: the authors' code. May be given twice.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="DIR", help="A checkout of the authors' code.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points and calls: a minute or two.")] = False,
    curves: Annotated[
        bool, typer.Option("--curves/--no-curves", help="Whether time is measured against each size, too.")
    ] = True,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds", metavar="N", help="Begin nothing that would end later. Default: 1200, quick: 120.", min=0.0
        ),
    ] = None,
    graph_bytes: Annotated[
        int | None,
        typer.Option(
            "--graph-bytes", metavar="N", min=0, help="On a GPU: memory for CUDA graphs; 0 for none. Default: 1 GiB."
        ),
    ] = None,
    folder: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Where results and pictures go; made if missing.")
    ] = "out/bench",
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure whole questions, Full against Lite, the authors' code if given, and how time grows with each size."""
    from pixelrefer_fast.cli import bench as benchmark

    with reserved_stdout() as out:
        plan = benchmark.planned(
            model, against or [], reference, device, dtype, graph_bytes, quick, curves, seconds, folder
        )
        with benchmark.telling(plan) as told:
            document = benchmark.run_bench(plan, told)
        pictures = benchmark.draw(document, plan.folder)
        if as_json:
            write_json(document | {"saved": [str(path) for path in pictures]}, out)
        else:
            benchmark.print_bench(document, plan, pictures, out)
    if wrong := benchmark.wrong(document):
        print(f"failed: the check of {', '.join(wrong)}", file=sys.stderr)
        raise typer.Exit(1)
