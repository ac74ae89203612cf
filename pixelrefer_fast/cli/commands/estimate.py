"""`estimate`: what a question costs, from sizes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pixelrefer_fast.checks.printable import write_json
from pixelrefer_fast.cli.options import AsJson, examples
from pixelrefer_fast.cli.output import progress_bar, reserved_stdout

if TYPE_CHECKING:
    from pixelrefer_fast.bench.estimate.workload import Workload

EXAMPLES = examples(
    "estimate --model lite-2b --objects 8 --image-size 1080x1920 --gpu H200 --against full",
    "estimate --model full-7b --frames 20 --image-size 448x616 --gpu A100-40 --answer-tokens 32",
    "estimate --model ./PixelRefer-Lite-2B --batch 64 --gpu this --json",
    "estimate --model embedded:lite --objects 2 --image-size 168 --dtype float32 --measure --out estimate.json",
    "estimate --check out/bench/bench.json",
)


@dataclass(frozen=True)
class WorkloadOptions:
    """Of the media, of what is marked, and of questions and answers."""

    objects: Annotated[int, typer.Option("--objects", metavar="N", min=1, help="Marked in each image or video.")] = 1
    frames: Annotated[
        int | None, typer.Option("--frames", metavar="N", min=1, help="A video of so many frames; without it an image.")
    ] = None
    marked: Annotated[
        int, typer.Option("--marked", metavar="N", min=1, help="Video, Lite: frames in which each object is marked.")
    ] = 1
    seen: Annotated[
        int | None,
        typer.Option("--seen", metavar="N", min=1, help="Video, Full: frames that it sees whole. Default: all."),
    ] = None
    size: Annotated[
        str, typer.Option("--image-size", metavar="HxW", help="Height and width of images and frames, in pixels.")
    ] = "1080x1920"
    box: Annotated[
        str | None,
        typer.Option(
            "--box-size",
            metavar="HxW",
            help="Height and width of what is marked. Default: a ninth of the height, a twelfth of the width.",
            show_default=False,
        ),
    ] = None
    area: Annotated[
        float | None,
        typer.Option("--area", metavar="A", help="Instead: its share of the picture, 0.01 for a hundredth."),
    ] = None
    kept: Annotated[
        float,
        typer.Option(
            "--kept", metavar="A", min=0.0, max=1.0, help="Video, Full: share of the vision tokens that changed."
        ),
    ] = 1.0
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Images or videos at once.")] = 1
    each: Annotated[
        bool, typer.Option("--each", help="A question for each object (`describe`), not one about all (`ask`).")
    ] = False
    prompt: Annotated[
        int, typer.Option("--prompt-tokens", metavar="N", min=0, help="Tokens of the question's own words.")
    ] = 16
    answer: Annotated[int, typer.Option("--answer-tokens", metavar="N", min=1, help="Tokens of each answer.")] = 64

    def workload(self) -> Workload:
        """As the cost model takes them.

        Raises:
            ValueError: a size that cannot be read, or sizes that do not go together.
        """
        from pixelrefer_fast.bench.estimate.workload import Workload
        from pixelrefer_fast.cli.estimate import boxed, parsed_size

        height, width = parsed_size("--image-size", self.size)
        if self.box is not None and self.area is not None:
            raise ValueError("--area: expected without --box-size")
        box = None if self.box is None else parsed_size("--box-size", self.box)
        if self.area is not None:
            box = boxed(self.area, height, width)
        return Workload(
            objects=self.objects,
            frames=self.frames,
            marked=self.marked,
            seen=self.seen,
            height=height,
            width=width,
            box=box,
            kept=self.kept,
            batch=self.batch,
            each=self.each,
            question=self.prompt,
            answer=self.answer,
        )


def estimate(
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME|FOLDER|ID",
            help="lite-2b, lite-7b, full-2b, full-7b, embedded:lite, embedded:full, a checkpoint's folder or its id on "
            "the Hugging Face hub, of which config.json alone is read.",
        ),
    ] = "lite-2b",
    sizes: WorkloadOptions,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            help="H200, H100, A100, B200, L40S, L4, A10G, RTX-4090, T4, ... or this: measured here. "
            "Without it no time is predicted.",
        ),
    ] = None,
    graphs: Annotated[
        bool, typer.Option("--graphs", help="Encoder passes and decode steps captured as CUDA graphs.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="full|lite|NAME", help="Another model beside it: full is the same sizes."),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option("--check", metavar="RESULT.json", help="Hold the model against the rows of a result file."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Load and ask the model here, and hold the estimate against that.")
    ] = False,
    out_file: Annotated[
        str | None, typer.Option("--out", metavar="FILE.json", help="With --measure or --check: append the errors.")
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="D", help="Of `--gpu this` and --measure.")] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="T", help="auto, float32, bfloat16 or float16.", show_default=False)
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """FLOPs, bytes, memory and least time of a question, without a GPU and without weights."""
    from pixelrefer_fast.cli import estimate as command

    with reserved_stdout() as out:
        target = command.checked_target(out_file)
        if target is not None and not (measure or check):
            raise ValueError("--out: expected --measure or --check, whose errors are written, got neither")
        if check is not None:
            if measure:
                raise ValueError("--check: expected without --measure")
            command.tell(command.checks_of_file(check), target, as_json, out)
            return
        workload = sizes.workload()
        if measure:
            with progress_bar("measuring", command.MEASURED_STEPS) as tick:
                checks = [command.measured(model, workload, device, dtype, tick)]
            command.tell(checks, target, as_json, out)
            return
        machine, precision = command.machine_of(gpu, device, dtype)
        found = command.estimated(model, workload, machine, precision, graphs, against)
        if as_json:
            write_json(command.to_json(found), out)
        else:
            command.print_estimate(found, out)
