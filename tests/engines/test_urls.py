"""URLs in rows: read where their scheme is allowed, else refused before anything is fetched."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pixelrefer_fast.engines import urls
from pixelrefer_fast.engines.urls import Urls, is_url


class _Handler(BaseHTTPRequestHandler):
    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.path)
        if self.path == "/to-file":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/secret")
            self.end_headers()
        elif self.path == "/data":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"12345")
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """An address on this machine, and the paths that were asked for."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("Handler", (_Handler,), {"seen": []})
    with HTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", handler.seen
        running.shutdown()
        thread.join()


def test_what_is_a_url() -> None:
    assert all(map(is_url, ("http://a/b", "s3://bucket/x", "file:///x", "abfs+x://y")))
    assert not any(map(is_url, ("a.png", "/x/y", "c://x", "a:b", "x/http://")))


def test_an_allowed_url_is_read(server: tuple[str, list[str]]) -> None:
    assert Urls(["http"]).read(f"{server[0]}/data") == b"12345"


def test_nothing_else_is_fetched(server: tuple[str, list[str]]) -> None:
    for schemes in ((), ("https", "s3")):
        with pytest.raises(ValueError, match="expected a path or a URL of an allowed scheme"):
            Urls(schemes).read(f"{server[0]}/data")
    assert server[1] == []


def test_a_redirection_to_another_scheme_is_refused(server: tuple[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        Urls(["http"]).read(f"{server[0]}/to-file")


@pytest.mark.parametrize("path", ["/none", "/none\n"])
def test_a_url_that_cannot_be_read_says_so(server: tuple[str, list[str]], path: str) -> None:
    with pytest.raises(ValueError, match="cannot be read") as caught:
        Urls(["http"]).read(server[0] + path)
    assert "\n" not in str(caught.value)


def test_too_much_is_refused(server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "MAX_BYTES", 4)
    with pytest.raises(ValueError, match="expected at most 4 bytes, got more"):
        Urls(["http"]).read(f"{server[0]}/data")


@pytest.mark.parametrize("schemes", ["https", [3], ["a b"], [""]])
def test_schemes_are_words(schemes: object) -> None:
    with pytest.raises(ValueError, match="url_schemes: expected"):
        Urls(schemes)  # type: ignore[arg-type]
