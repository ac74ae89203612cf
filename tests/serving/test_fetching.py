"""URLs of other hosts: fetched from those that are named, never from private networks, and no further than that."""

from __future__ import annotations

import http.server
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from served import png_url, running

from pixelrefer_fast.serving import Limits, create_app, fetching
from pixelrefer_fast.serving.fetching import Fetcher, is_public
from pixelrefer_fast.serving.media import decoded

PICTURE = np.full((20, 30, 3), 90, np.uint8)


class _Host(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012  # the class is the handler of one server

    def do_GET(self) -> None:
        self.asked.append(self.headers["Host"] + self.path)
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                try:
                    self.wfile.write(b"x")
                    self.wfile.flush()
                except OSError:
                    return
                time.sleep(0.05)
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
        else:
            content = b"x" * 5000 if self.path == "/large" else decoded(png_url(PICTURE).partition(",")[2], "image")
            self.send_response(200 if self.path != "/none" else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def host() -> Iterator[str]:
    """`localhost:PORT` of a server on loopback."""
    _Host.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Host) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"localhost:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def as_if_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "is_public", lambda address: address in ("127.0.0.1", "::1"))
    found = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *a, **k: found("127.0.0.1", *a, **k))


@pytest.mark.usefixtures("as_if_public")
def test_a_url_of_a_named_host_is_asked_about(lite: Any, host: str) -> None:
    with running(create_app({"lite": lite}, hosts=[host])) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        url = f"http://{host}/a.png?b=1#xywh=2,2,10,10"
        content: Any = [
            {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What color is <region>?"}
        ]  # fmt: skip
        found = client.chat.completions.create(model="lite", messages=[{"role": "user", "content": content}])
        expected = lite.ask(PICTURE, "What color is <region>?", [[2, 2, 12, 12]])
        assert found.choices[0].message.content == expected
        assert _Host.asked == [f"{host}/a.png?b=1"]
        for path in ("/moved", "/none"):
            content[0]["image_url"]["url"] = f"http://{host}{path}"
            with pytest.raises(openai.BadRequestError, match="image_url: expected status 200 and no redirect, got"):
                client.chat.completions.create(model="lite", messages=[{"role": "user", "content": content}])
        assert _Host.asked[-2:] == [f"{host}/moved", f"{host}/none"]  # where it moved to is not asked


@pytest.mark.usefixtures("as_if_public")
def test_too_much_too_slow_and_too_little_are_refused(host: str) -> None:
    fetcher = Fetcher([host], 1000, 0.5)
    with pytest.raises(ValueError, match="image: expected at most 1000 bytes"):
        fetcher.fetch(f"http://{host}/large", "image")
    begin = time.monotonic()
    for path, what in (("slow", "TimeoutError"), ("cut", "IncompleteRead")):
        with pytest.raises(ValueError, match=f"image: expected an answer of 'localhost', got {what}"):
            fetcher.fetch(f"http://{host}/{path}", "image")
    assert time.monotonic() - begin < 4
    with pytest.raises(ValueError, match="expected an answer"):
        fetcher.fetch(f"http://{host}/".replace("http", "https"), "image")  # no TLS is spoken there


@pytest.mark.usefixtures("as_if_public")
def test_tls_is_spoken_with_those_whose_certificate_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2",
               "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"]  # fmt: skip
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Host) as server:
        server.socket = own.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            name = f"localhost:{server.server_address[1]}"
            fetcher = Fetcher([name, name.replace("localhost", "other.test")], 1000, 1)
            with pytest.raises(ValueError, match="expected an answer of 'localhost', got SSLCertVerificationError"):
                fetcher.fetch(f"https://{name}/a.png", "image")
            trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
            monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
            assert fetcher.fetch(f"https://{name}/a.png", "image").startswith(b"\x89PNG")
            with pytest.raises(ValueError, match="got SSLCertVerificationError"):  # another host's certificate
                fetcher.fetch(f"https://{name}/a.png".replace("localhost", "other.test"), "image")
            begin = time.monotonic()
            with pytest.raises(ValueError, match="got TimeoutError"):
                fetcher.fetch(f"https://{name}/slow", "image")
            assert time.monotonic() - begin < 3
        finally:
            server.shutdown()
            thread.join()


def test_private_networks_are_not_connected_to(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher = Fetcher([host, "mixed.test", "none.test"], 1000, 1)
    with pytest.raises(ValueError, match="image: expected a host with public addresses, got 'localhost'"):
        fetcher.fetch(f"http://{host}/a.png", "image")
    for address in ("127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
                    "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1",
                    "2002:7f00:1::", "ff02::1", "::ffff:127.0.0.1"):  # fmt: skip
        assert not is_public(address), address
    for address in ("8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"):
        assert is_public(address), address
    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in ("8.8.8.8", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: rows)
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("it was connected to"))
    with pytest.raises(ValueError, match="public addresses"):
        fetcher.fetch("http://mixed.test/", "image")

    def unknown(*arguments: Any, **options: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ValueError, match=r"image: expected a host that has an address, got 'none\.test'"):
        fetcher.fetch("https://none.test/", "image")


@pytest.mark.parametrize(
    "url",
    [
        "http://other.test/a.png", "http://own.test:81/a.png", "http://own.test@other.test/", "ftp://own.test/a.png",
        "http://me:secret@own.test/a.png", "http://own.test.other.test/", "gopher://own.test", "http:///a", "https://",
        "http://own.test:99999/", "http://[::1/", "own.test/a.png",
    ],
)  # fmt: skip
def test_other_urls_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("it was looked up"))
    with pytest.raises(ValueError, match=r"image: expected (an http: or https: URL|a URL of a host)"):
        Fetcher(["own.test"], 1000, 1).fetch(url, "image")
    with pytest.raises(ValueError, match=r"expected a data: URL \(this server fetches none\)"):
        Fetcher([], 1000, 1).fetch(url, "image")


def test_limits_are_the_servers(lite: Any) -> None:
    app = create_app({"lite": lite}, Limits(body_bytes=7, body_seconds=3), hosts=["a.test"])
    fetcher = app.state.shared.reader._fetcher
    assert (fetcher._most, fetcher._seconds) == (7, 3)
