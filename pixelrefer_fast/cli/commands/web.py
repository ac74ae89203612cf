"""`web`: a page for people, and the server behind it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from pixelrefer_fast.cli.commands.serve import LimitOptions, named_models
from pixelrefer_fast.cli.models import MODEL_VARIABLE
from pixelrefer_fast.cli.options import Computing, examples

EXAMPLES = examples(
    "web",
    "web --model lite=./PixelRefer-Lite-2B --model full=./PixelRefer-2B --segmenter facebook/sam2.1-hiera-tiny",
)


def web(
    *,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="[NAME=]FOLDER|ID",
            envvar=MODEL_VARIABLE,
            help="As for serve; several are asked side by side. Default: both embedded models.",
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", metavar="H", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="P", min=0, max=65535, help="Port to listen on; 0: one that is free.")
    ] = 7860,
    segmenter: Annotated[
        str, typer.Option("--segmenter", metavar="NAME|FOLDER|ID", help="Makes masks of clicks.")
    ] = "grabcut",
    limits: LimitOptions,
    computing: Computing,
) -> None:
    """Open a page on which regions are marked and asked about in a browser."""
    # set before Gradio is imported: nothing of it is told to anyone, and its files are this process's own
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="pixelrefer_fast-web-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "files")
        try:
            from pixelrefer_fast.page import create_page
            from pixelrefer_fast.serving import Limits
            from pixelrefer_fast.serving.run import serve
        except ImportError as error:
            raise ValueError(f"web: expected pip install 'pixelrefer-fast[web]', but {error}") from None
        from pixelrefer_fast.checkpoint.embedded import EMBEDDED_FULL, EMBEDDED_LITE, is_embedded
        from pixelrefer_fast.segmenting import load_segmenter

        named = named_models(models or [f"lite={EMBEDDED_LITE}", f"full={EMBEDDED_FULL}"])
        loaded = {name: computing.load(model)[0] for name, model in named.items()}
        own = Limits(**{field.name: getattr(limits, field.name) for field in fields(limits)})
        embedded = all(map(is_embedded, named.values()))
        serve(create_page(loaded, Path(folder), own, load_segmenter(segmenter), embedded), host, port)
