"""Runs a server until it is asked to stop."""

from __future__ import annotations

from pathlib import Path

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


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; then no request is taken, and what runs is finished."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="info",
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
