"""An OpenAI-style endpoint on loopback whose replies a test writes, and replies for the texts of published_files."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Messages = list[dict[str, Any]]


@dataclass
class JudgeStub:
    """What it was asked.

    Attributes:
        url: as `--judge-url` takes it.
        requests: bodies, in the order in which they came.
        keys: the Authorization header of each.
        failures: status codes that the next requests get instead of a reply.
        delay: seconds before a reply.
    """

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    delay: float = 0.0


@contextmanager
def judging(reply: Callable[[Messages], str | bytes]) -> Iterator[JudgeStub]:
    """A stub that replies with what `reply` makes of the messages; bytes are sent as the whole body."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                stub.requests.append(body)
                stub.keys.append(self.headers.get("Authorization"))
                failure = stub.failures.pop(0) if stub.failures else None
            time.sleep(stub.delay)
            if failure is not None:
                self._send(failure, b'{"error": {"message": "not now"}}')
                return
            said = reply(body["messages"])
            if isinstance(said, bytes):
                self._send(200, said)
                return
            message = {"role": "assistant", "content": said}
            document = {"id": "x", "object": "chat.completion", "created": 1, "model": f"{body['model']}-of-today"}
            document |= {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            self._send(200, json.dumps(document | {"usage": {"total_tokens": 3}}).encode())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status in (301, 302, 307):
                self.send_header("Location", "http://127.0.0.1:9/v1/chat/completions")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub = JudgeStub(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def text_of(messages: Messages) -> str:
    """The text of the user's message."""
    content = messages[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def reply_from(folder: Path) -> Callable[[Messages], str]:
    """A judge who knows the texts of a folder, and replies as they say."""
    ratings, dlc, clair, reviews = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("ratings", "dlc", "clair", "reviews")
    )

    def reply(messages: Messages) -> str:
        text = text_of(messages)
        for row in ratings:
            if f"##Correct answer: {row['Answer']}\n" in text:
                return row["reply"]
        for row in reviews:
            if f"\n{row['pred']}\n\n[End of" in text:
                return row["reply"]
        for row in dlc.values():
            if row["pred"] in text:
                asked = [number for number, one in enumerate(row["questions"], 1) if one["question"] in text]
                return row["replies"][asked[0] if asked else 0]
        for row in clair:
            if f"- {row['pred']}\n" in text:
                return row["reply"]
        return " ".join(text.split(" ")[:4]).lower()  # a description to be condensed

    return reply
