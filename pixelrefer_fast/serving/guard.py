"""What stands before every endpoint: keys, the size of a body and the time that it takes, counts of answers."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pixelrefer_fast.serving.errors import ApiError
from pixelrefer_fast.serving.limits import Limits
from pixelrefer_fast.serving.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/health", "/ready")
"""Endpoints without a key: whoever restarts a server has none."""
DRAINED_BYTES, DRAINED_SECONDS = 1 << 20, 0.5
"""How much more of a body that is too large is read, and for how long."""
ENDPOINTS = (
    "/v1/chat/completions", "/v1/models", "/v1/regions", "/v1/segment", "/v1/encode", "/metrics", *OPEN,
)  # fmt: skip


class Guard:
    """Reads each body whole, within the limits, before the endpoint sees it.

    Args:
        app: what it guards.
        limits: on bodies.
        keys: one of which a request brings; none: all are welcome.
        metrics: where answers are counted.
    """

    def __init__(self, app: ASGIApp, limits: Limits, keys: Sequence[str], metrics: Metrics) -> None:
        self._app = app
        self._limits = limits
        self._keys = [key.encode() for key in keys]
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = time.monotonic(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"]
        try:
            self._check_key(path, dict(scope["headers"]).get(b"authorization", b""))
            body = await self._body(dict(scope["headers"]), receive)
        except ApiError as error:
            await error.response()(scope, receive, counted)
        except _Gone:
            status = 499  # nginx's number for a client that closed the connection
        else:
            await self._app(scope, _replayed(body, receive), counted)
        finally:
            endpoint = path if path in ENDPOINTS else "other"
            self._metrics.requests.labels(endpoint, status).inc()
            self._metrics.seconds.labels(endpoint).observe(time.monotonic() - begin)

    def _check_key(self, path: str, given: bytes) -> None:
        if not self._keys or path in OPEN:
            return
        scheme, _, key = given.partition(b" ")
        # each is compared, in the same time wherever they differ
        known = [hmac.compare_digest(key.strip(), own) for own in self._keys]
        if scheme.lower() != b"bearer" or not any(known):
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, "Authorization: expected Bearer and a key of this server", None, headers)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        most = self._limits.body_bytes
        too_large = ApiError(413, f"body: expected at most {most} bytes, got more", None, {"Connection": "close"})
        claimed = headers.get(b"content-length", b"0")
        if claimed.isdigit() and int(claimed[:20]) > most:
            await _drain(receive)
            raise too_large
        body = bytearray()

        async def read() -> None:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                body.extend(message.get("body", b""))
                if len(body) > most:
                    if message.get("more_body", False):
                        await _drain(receive)
                    raise too_large
                if not message.get("more_body", False):
                    return

        try:
            await asyncio.wait_for(read(), self._limits.body_seconds)
        except asyncio.TimeoutError:
            raise ApiError(
                408, f"body: expected all of it within {self._limits.body_seconds:g} s", None, {"Connection": "close"}
            ) from None
        return bytes(body)


async def _drain(receive: Receive) -> None:
    """Read on for a little: who is still sending when the connection is closed sees a reset and not the answer."""

    async def read() -> None:
        left = DRAINED_BYTES
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), DRAINED_SECONDS)


class _Gone(Exception):
    """The client closed the connection."""


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body that was read, then what comes after it."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message
