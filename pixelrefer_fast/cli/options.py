"""Options that several commands of `pixelrefer-fast` share; those that mark regions are in `cli.regions`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pixelrefer_fast.checkpoint.embedded import EMBEDDED_LITE, LIMITS, TITLES

RELEASED = tuple(f"Alibaba-DAMO-Academy/PixelRefer-{name}" for name in ("2B", "7B", "Lite-2B", "Lite-7B"))
MODEL_VARIABLE = "PIXELREFER_FAST_MODEL"

OptionalSource = Annotated[
    str | None,
    typer.Argument(metavar="IMAGE_OR_VIDEO", help="An image, a video or a folder of frames.", show_default=False),
]
Source = Annotated[str, typer.Argument(metavar="IMAGE_OR_VIDEO", help="An image, a video or a folder of frames.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FOLDER|ID",
        envvar=MODEL_VARIABLE,
        help="A checkpoint's folder, its id on the Hugging Face hub, embedded:lite (the default) or embedded:full.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="T", help="auto, float32, bfloat16 or float16.")]
Backend = Annotated[
    str, typer.Option("--backend", metavar="B", help="Who computes the operations: auto, torch, triton or cuda.")
]
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest answer.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", metavar="T", min=0.0, help="0 is greedy, the default.")
]
TopP = Annotated[
    float | None, typer.Option("--top-p", metavar="P", min=0.0, max=1.0, help="Sample from this share of the mass.")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of the sampling.")]
Fps = Annotated[
    float | None, typer.Option("--fps", metavar="N", help="Video, Full model: frames per second that it sees whole.")
]
MaxFrames = Annotated[
    int | None, typer.Option("--max-frames", metavar="N", min=1, help="Video, Full model: at most so many.")
]
Frames = Annotated[
    str | None,
    typer.Option("--frames", metavar="N,N,...", help="Video, Full model: the frames that it sees whole, themselves."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]


def examples(*lines: str) -> str:
    """An epilog with one example a line."""
    return "Examples:\n\n" + "\n\n".join(f"$ pixelrefer-fast {line}".replace("[", r"\[") for line in lines)


def chosen_model(model: str | None) -> str:
    """The model asked for; without one the embedded Lite, said to be what it is."""
    if model:
        return model
    print(
        f"no --model and no {MODEL_VARIABLE}: using {TITLES[EMBEDDED_LITE]}, which is embedded; {LIMITS}. "
        f"Released models: {', '.join(RELEASED)}",
        file=sys.stderr,
    )
    return EMBEDDED_LITE
