"""`serve`: an OpenAI-style server."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from pixelrefer_fast.cli.models import MODEL_VARIABLE, chosen_model
from pixelrefer_fast.cli.options import Answering, Computing, examples

EXAMPLES = examples(
    "serve --model ./PixelRefer-Lite-2B --api-key-file keys.txt",
    "serve --model ./PixelRefer-2B --model ./PixelRefer-Lite-2B --port 8001 --segmenter facebook/sam2.1-hiera-tiny",
)
_LIMITS = "Limits"


def _limit(name: str, text: str) -> Any:
    return typer.Option(name, metavar="N", min=1, help=text, rich_help_panel=_LIMITS)


@dataclass(frozen=True)
class LimitOptions:
    """Those of `serving.Limits` that a command line sets, by the same names."""

    body_bytes: Annotated[int, _limit("--max-body-bytes", "Bytes of a request.")] = 64 * 2**20
    pixels: Annotated[int, _limit("--max-pixels", "Pixels of an image or a frame.")] = 40_000_000
    frames: Annotated[int, _limit("--max-video-frames", "Frames of a video.")] = 4096
    regions: Annotated[int, _limit("--max-regions", "Regions of a request.")] = 256
    tokens: Annotated[int, _limit("--max-tokens", "Tokens of an answer.")] = 1024
    seconds: Annotated[int, _limit("--timeout", "Seconds of a request.")] = 600
    open_requests: Annotated[int, _limit("--max-requests", "Requests at one time; more get 429.")] = 1024


def serve(
    *,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="[NAME=]FOLDER|ID",
            envvar=MODEL_VARIABLE,
            help="As for other commands; repeat it for several. NAME is what requests call it; default: as given.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", metavar="H", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="P", min=0, max=65535, help="Port to listen on; 0: one that is free.")
    ] = 8000,
    key_file: Annotated[
        str | None,
        typer.Option("--api-key-file", metavar="FILE", help="Keys, one a line; requests bring one as a Bearer token."),
    ] = None,
    roots: Annotated[
        list[str] | None,
        typer.Option("--media-root", metavar="FOLDER", help="file: URLs of what lies below it are read; repeat it."),
    ] = None,
    hosts: Annotated[
        list[str] | None,
        typer.Option("--media-host", metavar="HOST", help="http: and https: URLs of this host are fetched; repeat it."),
    ] = None,
    segmenter: Annotated[
        str, typer.Option("--segmenter", metavar="NAME|FOLDER|ID", help="Makes masks of points.")
    ] = "grabcut",
    answering: Answering,
    limits: LimitOptions,
    computing: Computing,
) -> None:
    """Answer requests over HTTP as OpenAI's chat completions, with regions."""
    try:
        from pixelrefer_fast.serving import Limits, create_app
        from pixelrefer_fast.serving.run import read_keys, serve
    except ImportError as error:
        raise ValueError(f"serve: expected pip install 'pixelrefer-fast[serve]', but {error}") from None
    from pixelrefer_fast.segmenting import load_segmenter

    keys = [] if key_file is None else read_keys(key_file)
    named = named_models(models or [chosen_model(None)])
    own = Limits(**{field.name: getattr(limits, field.name) for field in fields(limits)})
    with ExitStack() as held:
        loaded = {name: held.enter_context(answering.loaded(model, computing)) for name, model in named.items()}
        serve(create_app(loaded, own, keys, roots or (), load_segmenter(segmenter), hosts or ()), host, port)


def named_models(models: list[str]) -> dict[str, str]:
    """What each `[NAME=]FOLDER|ID` is called, and where it is.

    Raises:
        ValueError: two have one name.
    """
    named = {}
    for model in models:
        name, equals, rest = model.partition("=")
        if name in named:
            raise ValueError("--model: expected a name of its own for each, got one twice; give NAME=FOLDER")
        named[name] = rest if equals else model
    return named
