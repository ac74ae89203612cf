"""The server as an ASGI application."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pixelrefer_fast._version import __version__
from pixelrefer_fast.segmenting import Segmenter, load_segmenter
from pixelrefer_fast.serving.admission import Gate
from pixelrefer_fast.serving.encoded import EncodedObjects
from pixelrefer_fast.serving.errors import RESPONSES, ApiError
from pixelrefer_fast.serving.guard import Guard
from pixelrefer_fast.serving.limits import Limits
from pixelrefer_fast.serving.media import MediaReader
from pixelrefer_fast.serving.metrics import Metrics
from pixelrefer_fast.serving.routes import about, chat, regions
from pixelrefer_fast.serving.state import Model, State

LOG = logging.getLogger("pixelrefer_fast.serving")


def create_app(
    models: Mapping[str, Model],
    limits: Limits | None = None,
    keys: Sequence[str] = (),
    roots: Sequence[str | Path] = (),
    segmenter: Segmenter | None = None,
    hosts: Sequence[str] = (),
) -> FastAPI:
    """An application that answers requests with these models.

    Args:
        models: by the names that requests give them.
        limits: on what a request may cost.
        keys: one of which each request must bring; none: all are welcome.
        roots: folders below which file: URLs are read; none: no file is.
        segmenter: makes masks of points; default: GrabCut.
        hosts: from which http: and https: URLs are fetched, each `HOST` or `HOST:PORT`; none: no URL is.

    Raises:
        ValueError: no model, or a root that is no folder.
    """
    if not models:
        raise ValueError("models: expected at least one, got none")
    for root in roots:
        if not Path(root).is_dir():
            raise ValueError(f"roots: expected folders, got {os.fspath(root)!r}")
    limits = limits or Limits()
    gate = Gate(int(limits.open_requests))
    metrics = Metrics(lambda: gate.open)
    encoded = EncodedObjects(int(limits.encoded_bytes), limits.encoded_seconds)
    for name, model in models.items():
        for counted, text in _COUNTS.items():
            metrics.gauge(f"pixelrefer_decoder_{counted}", text, _reader(model, counted), name)
    app = FastAPI(title="pixelrefer_fast", version=__version__, docs_url=None, redoc_url=None, responses=RESPONSES)
    app.state.shared = State(
        dict(models),
        segmenter or load_segmenter(),
        limits,
        gate,
        MediaReader(limits, tuple(map(Path, roots)), hosts),
        encoded,
        metrics,
        ThreadPoolExecutor(max(2, os.cpu_count() or 1), "pixelrefer_fast serving"),
        int(time.time()),
    )
    app.state.endless = []
    for routes in (about, chat, regions):
        app.include_router(routes.router)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _unknown)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(Guard, limits=limits, keys=tuple(keys), metrics=metrics)
    return app


_COUNTS = {
    "running": "Sequences that are decoded together.",
    "waiting": "Sequences that wait for room.",
    "cache_used": "Bytes of keys and values that are held.",
}


def _reader(model: Model, counted: str) -> Callable[[], float]:
    return lambda: model.decoder.counts().get(counted, 0)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _malformed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    if "json" not in request.headers.get("content-type", ""):  # a form that a foreign page sends is not read
        return ApiError(400, "Content-Type: expected application/json", "Content-Type").response()
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])[:100] or "body"
    return ApiError(400, f"{place}: {first['msg'][:200]}", place).response()


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, str(error.detail), None, error.headers).response()


async def _failed(request: Request, error: Exception) -> JSONResponse:
    LOG.error("%s: %s", request.url.path, type(error).__name__, exc_info=error)
    return ApiError(500, f"server: {type(error).__name__}; its log tells more").response()
