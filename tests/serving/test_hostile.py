"""Callers that are slow, huge, gone, too many or malformed; files that are not shared; a stop while something runs."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import os
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from served import get, png_url, running

from pixelrefer_fast.regions import Region
from pixelrefer_fast.segmenting import Segment
from pixelrefer_fast.serving import Limits, create_app

MALFORMED = 10_000


def body(url: str, box: list[int], **more: Any) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": url}, "regions": [{"box": box}]},
        {"type": "text", "text": "Describe <region>."},
    ]
    return {"model": "lite", "messages": [{"role": "user", "content": parts}], **more}


def connect(address: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(address.partition("//")[2], timeout=60)


def post(address: str, content: Any) -> tuple[int, dict[str, Any], Any]:
    connection = connect(address)
    connection.request("POST", "/v1/chat/completions", json.dumps(content), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read()), answer.headers
    connection.close()
    return found


def test_bodies_that_are_too_large_or_too_slow_are_refused(lite: Any, url: str, box: list[int]) -> None:
    with running(create_app({"lite": lite}, Limits(body_bytes=1000, body_seconds=0.5))) as address:
        status, told, _ = post(address, body(url, box, user="x" * 2000))
        assert (status, told["error"]["type"]) == (413, "invalid_request_error")
        assert "expected at most 1000 bytes" in told["error"]["message"]
        connection = connect(address)
        pieces = (b"x" * 500 for _ in range(4))  # chunked: no length is told
        connection.request("POST", "/v1/chat/completions", pieces, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 413
        with socket.create_connection((connection.host, connection.port)) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{")
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        with socket.create_connection((connection.host, connection.port)) as half:
            half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{")
            half.shutdown(socket.SHUT_WR)
        assert get(address, "/health")[0] == 200


def test_limits_on_pixels_regions_and_time_are_told(lite: Any, url: str, box: list[int]) -> None:
    tight = Limits(pixels=100, regions=1)
    with running(create_app({"lite": lite}, tight)) as address:
        assert "image_url: expected at most 100 pixels" in post(address, body(url, box))[1]["error"]["message"]
        small = png_url(np.zeros((10, 10, 3), np.uint8))
        content = body(small, box)
        content["messages"][0]["content"][0]["regions"] = [{"box": [0, 0, 5, 5]}] * 2
        assert "regions: expected at most 1, got 2" in post(address, content)[1]["error"]["message"]
    with running(create_app({"lite": lite}, Limits(seconds=0.001))) as address:
        status, told, _ = post(address, body(url, box))
        assert (status, told["error"]["type"]) == (504, "server_error")


def test_a_video_of_too_many_frames_is_refused(lite: Any) -> None:
    file = io.BytesIO()
    first, *others = (Image.new("RGB", (20, 20), (number * 60, 0, 0)) for number in range(3))
    first.save(file, "GIF", save_all=True, append_images=others)
    url = "data:image/gif;base64," + base64.b64encode(file.getvalue()).decode()
    part = {"type": "video_url", "video_url": {"url": url}, "regions": [{"frames": {"0": {"box": [1, 1, 9, 9]}}}]}
    content = {"model": "lite", "messages": [{"role": "user", "content": [part]}]}
    for frames, status in ((2, 400), (3, 200)):
        with running(create_app({"lite": lite}, Limits(frames=frames, tokens=1))) as address:
            told = post(address, content)
            assert told[0] == status
            assert status == 200 or "video_url: expected at most 2 frames, got 3" in told[1]["error"]["message"]


class _Held:
    """A segmenter that makes no mask before it is told to, and counts how often it is asked."""

    name = "held"

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked = 0

    def open(self, media: Any) -> _Held:
        return self

    def masks(self, *prompt: Any, frame: int | None = None) -> list[Any]:
        self.asked += 1
        assert self.go_on.wait(60)
        return [Segment(Region.from_box(xyxy=(1, 1, 9, 9)))]


POINTS = [{"points": [[5, 5]]}]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/segment", {"points": [[5, 5]]}),
        ("/encode", {"model": "lite", "regions": POINTS}),
        ("/regions", {"model": "lite", "regions": POINTS}),
        ("/chat/completions", {"stream": False}),
        ("/chat/completions", {"stream": True}),
    ],
)
def test_work_that_takes_too_long_is_dropped_and_counts_until_it_ends(
    lite: Any, url: str, path: str, content: dict[str, Any]
) -> None:
    """No thread can be stopped: who was told that time is over is gone, and the thread's room is not given away."""
    held: Any = _Held()
    content = content | {"image": url}
    if path.startswith("/chat"):
        content = body(url, [], stream=content["stream"])
        content["messages"][0]["content"][0]["regions"] = POINTS
    app = create_app({"lite": lite}, Limits(seconds=0.2, open_requests=1), segmenter=held)
    state = app.state.shared
    with running(app) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError, match=r"expected an answer within 0\.2 s") as told:
            client.post(path, body=content, cast_to=object)
        assert told.value.status_code == 504
        assert state.gate.open == 1
        with pytest.raises(openai.RateLimitError):
            client.post(path, body=content, cast_to=object)
        assert held.asked == 1
        held.go_on.set()
        deadline = time.monotonic() + 60
        while state.gate.open and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state.gate.open == 0
        assert state.encoded.bytes == 0


def test_too_many_at_once_are_asked_to_come_again(lite: Any, url: str, box: list[int]) -> None:
    app = create_app({"lite": lite}, Limits(open_requests=2))
    with running(app) as address:
        with app.state.shared.gate.admitted(2):
            status, told, headers = post(address, body(url, box))
            assert (status, told["error"]["type"]) == (429, "rate_limit_error")
            assert 1 <= int(headers["Retry-After"]) <= 60
            assert get(address, "/ready")[0] == 503
            assert get(address, "/health")[0] == 200
        assert post(address, body(url, box, n=3))[0] == 413
        assert post(address, body(url, box))[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_is_not_answered(lite: Any, url: str, box: list[int], stream: bool) -> None:
    app = create_app({"lite": lite})
    with running(app) as address:
        connection = connect(address)
        endless = {"min_p": 0.0, "logit_bias": {}, "max_tokens": 1024, "temperature": 5.0, "seed": 1}
        content = json.dumps(body(url, box, stream=stream, n=16, **endless))
        connection.request("POST", "/v1/chat/completions", content, {"Content-Type": "application/json"})
        if stream:
            assert connection.getresponse().read(20)
        else:
            deadline = time.monotonic() + 30
            while not app.state.shared.gate.open and time.monotonic() < deadline:
                time.sleep(0.005)
        connection.close()
        deadline = time.monotonic() + 60
        while app.state.shared.gate.open and time.monotonic() < deadline:
            time.sleep(0.02)
        assert app.state.shared.gate.open == 0
        assert post(address, body(url, box))[0] == 200
        assert lite.decoder.counts()["running"] == 0  # the step of the next one let the others go


def test_only_shared_files_are_read_and_no_path_is_told(lite: Any, tmp_path: Path, box: list[int]) -> None:
    shared, other = tmp_path / "shared", tmp_path / "other"
    for folder in (shared, other):
        folder.mkdir()
        Image.new("RGB", (40, 40), (200, 30, 30)).save(folder / "a.png")
    os.symlink(other / "a.png", shared / "link.png")
    os.mkfifo(shared / "pipe")
    with running(create_app({"lite": lite}, roots=[shared])) as address:
        assert post(address, body(f"file://{shared}/a.png", [1, 1, 30, 30]))[0] == 200
        for name in (
            *(f"{shared}/link.png", f"{shared}/../other/a.png", f"{shared}/%2e%2e/other/a.png", f"{other}/a.png"),
            *(f"{shared}/pipe", f"{shared}", f"{shared}/none.png", f"{shared}/a\0.png", "/" + "a" * 5000),
        ):
            status, told, _ = post(address, body(f"file://{name}", box))
            assert status == 400, name
            assert "a file that this server shares" in told["error"]["message"]
            assert str(tmp_path) not in json.dumps(told)


def test_a_stop_finishes_what_runs(lite: Any, url: str, box: list[int]) -> None:
    app, found = create_app({"lite": lite}), []
    with running(app) as address:
        asking = threading.Thread(
            target=lambda: found.append(post(address, body(url, box, n=8, temperature=2.0, seed=1)))
        )
        asking.start()
        while not app.state.shared.gate.open:
            assert asking.is_alive()
            time.sleep(0.002)
    asking.join(30)
    status, told, _ = found[0]
    assert status == 200
    assert len(told["choices"]) == 8


def test_malformed_bodies_are_the_callers_fault(lite: Any, url: str, box: list[int]) -> None:
    """Straight into the application: no time goes to sockets."""
    draw = random.Random(0)
    app = create_app({"lite": lite}, Limits(tokens=1))
    whole = json.dumps(body("data:image/png;base64,AA", box)).encode()
    paths = ("/v1/chat/completions", "/v1/regions", "/v1/segment", "/v1/encode")

    async def send(path: str, content: bytes) -> int:
        statuses: list[int] = []
        messages = [{"type": "http.request", "body": content, "more_body": False}]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Future()

        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers}
        scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "client": None, "server": None}
        scope |= {"root_path": "", "asgi": {"version": "3.0"}}
        await app(scope, receive, told)
        return statuses[0]

    async def all_of_them() -> set[int]:
        found = set()
        for _ in range(MALFORMED):
            found.add(await send(draw.choice(paths), damaged(whole, draw)))
        return found

    assert asyncio.run(all_of_them()) <= {400, 404}


def damaged(content: bytes, draw: random.Random) -> bytes:
    kind = draw.randrange(4)
    if kind == 0:
        return draw.randbytes(draw.randrange(200))
    if kind == 1:
        return content[: draw.randrange(len(content))]
    if kind == 2:
        return b"[" * draw.randrange(1, 3000)
    at = draw.randrange(len(content))
    odd = draw.choice([b"null", b"-1", b"1e999", b"NaN", b"{}", b"[]", b'"\\ud800"', b"\x00", b"true", b"9" * 400])
    return content[:at] + odd + content[at + draw.randrange(20) :]


def test_the_client_reads_what_is_refused(address: str) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="expected Bearer and a key of this server"):
        client.models.list()
