"""Options that several commands share: single ones, and groups that a command takes as one parameter.

A group is a frozen dataclass of options; `cli.groups` spells it out for typer. Options of one command stand in its own
file in `cli.commands`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixelrefer_fast.cli.models import MODEL_VARIABLE

if TYPE_CHECKING:
    from pixelrefer_fast.batching.engines import EngineModel
    from pixelrefer_fast.model import PixelRefer, PixelReferLite

NATIVE = "native"

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
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]

_REGIONS = "Regions (repeat and mix them; numbered from 0 in the order given)"


def _mark(name: str, metavar: str, text: str) -> Any:
    return typer.Option(name, metavar=metavar, help=text, rich_help_panel=_REGIONS, show_default=False)


@dataclass(frozen=True)
class Marks:
    """What is marked; `cli.regions` reads it."""

    boxes: Annotated[
        list[str] | None, _mark("--box", "X0,Y0,X1,Y1", "Box by two corners in pixels; the second is outside.")
    ] = None
    sized_boxes: Annotated[list[str] | None, _mark("--xywh", "X,Y,W,H", "Box by its top left corner and its size.")] = (
        None
    )
    masks: Annotated[
        list[str] | None,
        _mark(
            "--mask", "FILE.png", "Mask of the image's size: marked where not black (or, with alpha, not transparent)."
        ),
    ] = None
    rles: Annotated[list[str] | None, _mark("--rle", "FILE.json", "COCO run lengths or an annotation with them.")] = (
        None
    )
    polygons: Annotated[list[str] | None, _mark("--polygon", '"X,Y X,Y X,Y"', "Polygon by its corners.")] = None
    scribbles: Annotated[
        list[str] | None, _mark("--scribble", '"X,Y X,Y:WIDTH"', "Line through points, WIDTH pixels thick.")
    ] = None
    points: Annotated[
        list[str] | None,
        _mark(
            "--point",
            '"X,Y X,Y:0"',
            "Points on an object, or with :0 beside it; a segmenter makes the mask, which is told on stderr.",
        ),
    ] = None
    region_files: Annotated[
        list[str] | None,
        _mark("--regions", "FILE.json", "One region or a list, each as Region.to_json writes it, an RLE, a box, ..."),
    ] = None
    frame: Annotated[
        int | None,
        typer.Option(
            "--frame", metavar="N", min=0, help="Video: the frame that the regions mark.", rich_help_panel=_REGIONS
        ),
    ] = None
    segmenter: Annotated[
        str,
        typer.Option(
            "--segmenter",
            metavar="NAME|FOLDER|ID",
            help="Makes masks of points: grabcut, or a SAM, SAM 2, SAM 3 or EdgeTAM in transformers' format.",
            rich_help_panel=_REGIONS,
        ),
    ] = "grabcut"


@dataclass(frozen=True)
class Writing:
    """How an answer is written."""

    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest answer.")
    ] = None
    temperature: Annotated[
        float | None, typer.Option("--temperature", metavar="T", min=0.0, help="0 is greedy, the default.")
    ] = None
    top_p: Annotated[
        float | None, typer.Option("--top-p", metavar="P", min=0.0, max=1.0, help="Sample from this share of the mass.")
    ] = None
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of the sampling.")] = None
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            metavar="N",
            min=0,
            help="Sample from the N most likely tokens; 0 is all; default: as the checkpoint says.",
        ),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p", metavar="P", min=0.0, max=1.0, help="Sample tokens of at least this part of the likeliest."
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        typer.Option("--repetition-penalty", metavar="X", help="1 is none; default: as the checkpoint says."),
    ] = None
    min_new_tokens: Annotated[
        int | None, typer.Option("--min-new-tokens", metavar="N", min=0, help="Shortest answer.")
    ] = None
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End an answer before this text; repeatable.")
    ] = None

    def given(self) -> dict[str, Any]:
        """Keyword arguments of the model's methods, those that were given."""
        return _given(vars(self) | {"stop": self.stop or None})


@dataclass(frozen=True)
class SeenFrames:
    """Which frames of a video the model sees whole."""

    fps: Annotated[
        float | None,
        typer.Option("--fps", metavar="N", help="Video, Full model: frames per second that it sees whole."),
    ] = None
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", metavar="N", min=1, help="Video, Full model: at most so many.")
    ] = None
    frames: Annotated[
        str | None,
        typer.Option(
            "--frames", metavar="N,N,...", help="Video, Full model: the frames that it sees whole, themselves."
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Keyword arguments of the model's methods, those that were given.

        Raises:
            ValueError: --frames holds something else than numbers.
        """
        options = _given(vars(self))
        if self.frames is not None:
            try:
                options["frames"] = [int(number) for number in self.frames.split(",")]
            except ValueError:
                raise ValueError(f"--frames: expected numbers like 0,12,24, got {self.frames!r}") from None
        return options

    def refuse(self, got: str) -> None:
        """ValueError that names the first of these options that was given, and what there is instead of a video."""
        for name in _given(vars(self)):
            raise ValueError(f"--{name.replace('_', '-')}: expected a video, got {got}")


@dataclass(frozen=True)
class Computing:
    """Where a model runs, and on what."""

    device: Device = "auto"
    dtype: Dtype = "auto"
    backend: Backend = "auto"

    def load(self, model: str) -> tuple[PixelRefer | PixelReferLite, float]:
        """The model and the seconds it took."""
        import pixelrefer_fast

        start = time.perf_counter()
        loaded = pixelrefer_fast.load(model, device=self.device, dtype=self.dtype, backend=self.backend)
        return loaded, time.perf_counter() - start


@dataclass(frozen=True)
class Answering:
    """Which engine answers."""

    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="native, or vllm: vLLM runs the language model.")
    ] = NATIVE
    engine_options: Annotated[
        list[str] | None,
        typer.Option(
            "--engine-option",
            metavar="NAME=VALUE",
            help="Of another engine than native: tensor_parallel_size=2, ...; repeat it.",
            show_default=False,
        ),
    ] = None

    def check(self, computing: Computing) -> None:
        """ValueError for what no engine takes, before anything is loaded or written."""
        from pixelrefer_fast.loading import engines

        if self.engine not in (known := (NATIVE, *engines())):
            raise ValueError(f"--engine: expected one of {', '.join(known)}, got {self.engine!r}")
        given = self.named_options()
        if self.engine == NATIVE and given:
            raise ValueError("--engine-option: expected --engine vllm or another, which take them, got the native one")
        if self.engine != NATIVE and (computing.device, computing.backend) != ("auto", "auto"):
            raise ValueError(f"--engine {self.engine}: expected --dtype alone with it, got --device or --backend")

    def named_options(self) -> dict[str, object]:
        """What NAME=VALUE say; a value is JSON, or a text."""
        from pixelrefer_fast.checks.safe_files import parse_json_value
        from pixelrefer_fast.checks.values import shown

        options: dict[str, object] = {}
        for one in self.engine_options or ():
            name, equals, value = one.partition("=")
            if not equals or not name:
                raise ValueError(f"--engine-option: expected NAME=VALUE, got {shown(one)}")
            try:
                options[name.replace("-", "_")] = parse_json_value(value.encode(), name)
            except ValueError:
                options[name.replace("-", "_")] = value
        return options

    @contextlib.contextmanager
    def loaded(self, model: str, computing: Computing) -> Iterator[PixelRefer | PixelReferLite | EngineModel]:
        """The model until the end of the context, where another engine ends; ValueError as `check` and `load`."""
        import pixelrefer_fast

        self.check(computing)
        if self.engine == NATIVE:
            yield computing.load(model)[0]
            return
        options = self.named_options()
        other = pixelrefer_fast.load(model, dtype=computing.dtype, engine=self.engine, engine_options=options)
        with contextlib.closing(other):
            yield other


def examples(*lines: str) -> str:
    """An epilog with one example a line."""
    return "Examples:\n\n" + "\n\n".join(f"$ pixelrefer-fast {line}".replace("[", r"\[") for line in lines)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
