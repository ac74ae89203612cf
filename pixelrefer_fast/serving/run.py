"""Runs a server until it is asked to stop."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

GRACE_SECONDS = 60
"""Within which a server that stops finishes what runs."""
MOST_CONNECTIONS = 4096


def read_keys(file: str | Path) -> list[str]:
    """The keys of a file, one a line.

    Raises:
        ValueError: it cannot be read, or holds none.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--api-key-file {str(file)!r}: expected a text file, but {error}") from None
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise ValueError(f"--api-key-file {str(file)!r}: expected a key in a line, got none")
    return keys


class Server(uvicorn.Server):
    """Ends what never ends by itself when it is asked to stop: the functions of `app.state.endless` do so.

    Args:
        config: uvicorn's, with the application itself.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        assert isinstance(app, FastAPI)
        for end in app.state.endless:
            end()
        await super().shutdown(sockets)


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; then no request is taken, and what runs is finished."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="info",
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    signal.signal(signal.SIGTERM, _leave)  # what uvicorn raises again then ends what stands around this, too
    server = Server(config)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once all is finished
        server.run()
    if not server.started:  # its log says why
        raise SystemExit(1)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
