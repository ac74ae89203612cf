"""What the connector fetches: nothing, or from hosts that are named, without following them elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm_server import content_of

PICTURE = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)


class Pictures(BaseHTTPRequestHandler):
    """/picture is one, /away sends on to it."""

    def do_GET(self) -> None:
        away = self.path == "/away"
        self.send_response(302 if away else 200)
        if away:
            self.send_header("Location", "/picture")
        self.end_headers()
        if not away:
            self.wfile.write(content_of(PICTURE))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from pixelrefer_fast.engines.vllm.links import DEFAULTS, use_for_this_process

    for name in DEFAULTS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    use_for_this_process()
    server = HTTPServer(("127.0.0.1", 0), Pictures)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def connector(*hosts: str, folder: str = "") -> Any:
    import vllm.envs
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

    return MEDIA_CONNECTOR_REGISTRY.load(
        vllm.envs.VLLM_MEDIA_CONNECTOR,
        media_io_kwargs={},
        allowed_local_media_path=folder,
        allowed_media_domains=list(hosts),
    )


def test_a_named_host_is_fetched_from_and_not_followed(address: str) -> None:
    marked = connector("127.0.0.1").fetch_image(f"{address}/picture#xywh=1,2,10,20")
    assert np.array_equal(marked.media, PICTURE)
    assert marked.regions[0].mask(40, 50).sum() == 200
    with pytest.raises(ValueError, match="expected an image file"):  # a redirection has no picture in it
        connector("127.0.0.1").fetch_image(f"{address}/away#xywh=1,2,10,20")
    with pytest.raises(ValueError, match="allowed domains"):
        connector("example.com").fetch_image(f"{address}/picture#xywh=1,2,10,20")
    with pytest.raises(ValueError, match="--allowed-media-domains"):
        connector().fetch_image(f"{address}/picture#xywh=1,2,10,20")


def test_files_lie_below_a_folder_that_is_named(address: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for place in (tmp_path / "in" / "cat.png", tmp_path / "cat.png"):
        place.write_bytes(content_of(PICTURE))
    inside = connector(folder=str(tmp_path / "in"))
    assert np.array_equal(inside.fetch_image(f"file://{tmp_path}/in/cat.png#xywh=1,2,9,9").media, PICTURE)
    with pytest.raises(ValueError, match="must be a subpath"):
        inside.fetch_image(f"file://{tmp_path}/cat.png#xywh=1,2,9,9")
    with pytest.raises(ValueError, match="audio"):
        inside.fetch_audio("data:audio/wav;base64,")
