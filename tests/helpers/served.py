"""A server in a thread, and pictures as it takes them."""

from __future__ import annotations

import base64
import http.client
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image


def png_url(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of a server that runs in a thread."""
    import uvicorn

    from pixelrefer_fast.serving.run import Server

    server = Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def get(address: str, path: str, key: str | None = None) -> tuple[int, str]:
    """Status and body."""
    connection = http.client.HTTPConnection(address.partition("//")[2], timeout=30)
    connection.request("GET", path, headers={} if key is None else {"Authorization": f"Bearer {key}"})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found
