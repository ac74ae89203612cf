"""`serve`: an OpenAI-style server."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixelrefer_fast.cli.models import MODEL_VARIABLE, chosen_model
from pixelrefer_fast.cli.options import Computing, examples

if TYPE_CHECKING:
    from pixelrefer_fast.serving.state import Model

EXAMPLES = examples(
    "serve --model ./PixelRefer-Lite-2B --api-key-file keys.txt",
    "serve --model ./PixelRefer-2B --model ./PixelRefer-Lite-2B --port 8001 --segmenter facebook/sam2.1-hiera-tiny",
)
NATIVE = "native"
"""The engine of this package."""
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
    engine: Annotated[
        str, typer.Option("--engine", metavar="native|NAME", help="vllm: vLLM runs the language model.")
    ] = NATIVE,
    engine_options: Annotated[
        list[str] | None,
        typer.Option(
            "--engine-option", metavar="NAME=VALUE", help="Of that engine: tensor_parallel_size=2, ...; repeat it."
        ),
    ] = None,
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
    own_engine = None
    if engine != NATIVE:
        own_engine = engine, _engine_options(engine_options or [])
    elif engine_options:
        raise ValueError("--engine-option: expected --engine vllm or another, which take them, got the native one")
    loaded = {name: _loaded(model, computing, own_engine) for name, model in named.items()}
    own = Limits(**{field.name: getattr(limits, field.name) for field in fields(limits)})
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


def _loaded(model: str, computing: Computing, engine: tuple[str, dict[str, object]] | None) -> Model:
    if engine is None:
        return computing.load(model)[0]
    import pixelrefer_fast

    return pixelrefer_fast.load(model, dtype=computing.dtype, engine=engine[0], engine_options=engine[1])


def _engine_options(given: list[str]) -> dict[str, object]:
    """What NAME=VALUE say; a value is JSON, or a text."""
    from pixelrefer_fast.checks.safe_files import parse_json_value
    from pixelrefer_fast.checks.values import shown

    options: dict[str, object] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise ValueError(f"--engine-option: expected NAME=VALUE, got {shown(one)}")
        try:
            options[name.replace("-", "_")] = parse_json_value(value.encode(), name)
        except ValueError:
            options[name.replace("-", "_")] = value
    return options
