"""The server with a page at its root: what the page shows as a request, the same server answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from gradio.utils import get_upload_folder
from starlette.routing import Mount

from pixelrefer_fast.page.answering import PageModel
from pixelrefer_fast.page.examples import PATH, make_examples
from pixelrefer_fast.page.layout import Page, asset
from pixelrefer_fast.page.visit import Desk
from pixelrefer_fast.segmenting import Segmenter, load_segmenter
from pixelrefer_fast.serving import Limits, create_app

FONTS = ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
"""Those that a browser has: nothing is fetched from elsewhere."""
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def create_page(
    models: Mapping[str, PageModel],
    folder: Path,
    limits: Limits | None = None,
    segmenter: Segmenter | None = None,
    embedded: bool = False,
) -> FastAPI:
    """An application with a page for people at / and the server's endpoints below /v1.

    Args:
        models: by the names that requests give them; the page asks each.
        folder: an empty one, for examples and pictures; the caller's to remove.
        limits: on what a request may cost; the page keeps to them as well.
        segmenter: makes masks of clicks; default: GrabCut.
        embedded: whether the models are those that ship, so that the page says what they do not know.

    Raises:
        ValueError: as `serving.create_app`.
    """
    limits, segmenter = limits or Limits(), segmenter or load_segmenter()
    app = create_app(models, limits, segmenter=segmenter)
    uploads = Path(get_upload_folder())
    offered, pictures = folder / "examples", uploads / "pictures"
    offered.mkdir()
    pictures.mkdir(parents=True, exist_ok=True)
    examples = make_examples(offered)
    shared = app.state.shared
    desk = Desk(segmenter, shared.reader, uploads, pictures)
    page = Page(models, desk, limits, shared.gate, examples, embedded)
    app.mount(PATH, StaticFiles(directory=offered))
    theme = gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=list(FONTS), font_mono=list(MONO))
    gr.mount_gradio_app(
        app, page.blocks(), path="/", theme=theme, css=asset("page.css"), footer_links=[], run_history=False,
        ssr_mode=False, max_file_size=limits.body_bytes, show_error=False, enable_monitoring=False, mcp_server=False,
        pwa=False,
    )  # fmt: skip
    mounted = app.routes[-1]
    assert isinstance(mounted, Mount)
    app.state.endless.append(mounted.app.stop_event.set)  # browsers hold a connection for as long as they are open
    return app
