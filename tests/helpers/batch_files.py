"""Files of requests and of answers, in the folder where a test runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pixelrefer_fast.batching.queue import RequestQueue

BOX = [5, 5, 40, 40]
Run = Callable[..., SimpleNamespace]


def write(lines: list[Any]) -> None:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    Path("in.jsonl").write_text("\n".join(text) + "\n")


def records(path: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def many(count: int) -> list[dict[str, Any]]:
    return [{"id": i, "image": f"{i % 3}.png", "box": [5, 5, 20 + i % 7, 40]} for i in range(count)]


class Counting:
    """How many requests reach the model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests = 0
        submit = RequestQueue.submit

        def counted(queue: RequestQueue, lane: Any, value: Any) -> int:
            self.requests += 1
            return submit(queue, lane, value)

        monkeypatch.setattr(RequestQueue, "submit", counted)
