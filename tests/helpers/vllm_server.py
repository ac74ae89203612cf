"""`vllm serve` in a process of its own, and marked media as URLs."""

from __future__ import annotations

import base64
import io
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

import pixelrefer_fast as pf

START_SECONDS = 300  # on a machine that has other things to do


@contextmanager
def vllm_server(folder: Path, log: Path, *options: str) -> Iterator[str]:
    """The address of a server on loopback; its output goes into `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(folder), "--host", "127.0.0.1"]
    with log.open("w") as output:
        process = subprocess.Popen([*command, "--port", str(port), *options], stdout=output, stderr=output)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(START_SECONDS):
            assert process.poll() is None, log.read_text()[-2000:]
            if _healthy(address):
                break
            time.sleep(1)
        else:
            raise AssertionError(f"expected a server within {START_SECONDS} s: {log.read_text()[-2000:]}")
        yield address
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def content_of(media: Any) -> bytes:
    """A PNG of an image, an animated one of frames: nothing is lost."""
    file = io.BytesIO()
    if isinstance(media, list):
        first, *others = map(Image.fromarray, media)
        first.save(file, "PNG", save_all=True, append_images=others, duration=300)
    else:
        Image.fromarray(pf.load_image(media)).save(file, "PNG")
    return file.getvalue()


def url_of(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def marked_url(content: bytes, regions: list[Any], number: int) -> str:
    """An URL that says what is marked: in the alpha channel, as boxes, or as JSON, by the number of the request."""
    (first, *others) = regions
    if isinstance(first, np.ndarray) and not others and number % 2:
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        file = io.BytesIO()
        Image.fromarray(np.dstack([pixels, (first > 0).astype(np.uint8) * 255])).save(file, "PNG")
        return url_of(file.getvalue())
    if all(isinstance(own, list) for own in regions) and number % 2:
        boxes = [f"xywh={x0},{y0},{x1 - x0},{y1 - y0}" for x0, y0, x1, y1 in regions]
        return f"{url_of(content)}#{'&'.join(boxes)}"
    described = [pf.Region.of(own).to_json() for own in regions]
    return f"{url_of(content)}#region={quote(json.dumps(described))}"
