"""One request to an OpenAI-style endpoint: repeated while it may still succeed, a bounded number of times."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import IO, Any

from pixelrefer_fast.checks.values import shortened

KEY_VARIABLE = "PIXELREFER_FAST_JUDGE_KEY"
ATTEMPTS = 5
SECONDS = 300.0  # for one answer
PAUSE = 1.0  # before the second attempt; doubled before each further one
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
MAX_REPLY = 1 << 24  # bytes

Message = dict[str, Any]


class JudgeError(RuntimeError):
    """A judge who cannot be asked, or who did not answer after all attempts."""


@dataclass(frozen=True)
class JudgeReply:
    """What came back.

    Attributes:
        text: of the answer.
        model: as the endpoint names who answered.
        usage: tokens, as it tells them.
        attempts: how often it was asked.
        seconds: the last attempt took.
    """

    text: str
    model: str | None
    usage: dict[str, Any] | None
    attempts: int
    seconds: float


@dataclass(frozen=True)
class Endpoint:
    """Where judges answer.

    Attributes:
        url: what comes before /chat/completions.
        model: the judge's name there.
        attempts: how often one question is asked at most.
        pause: seconds before the second attempt.
    """

    url: str
    model: str
    attempts: int = ATTEMPTS
    pause: float = PAUSE

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"--judge-url: expected an address such as http://localhost:8000/v1, got {self.url!r}")

    def ask(self, messages: list[Message]) -> JudgeReply:
        """The judge's answer, at temperature 0.

        Raises:
            JudgeError: it refused, or gave no answer after all attempts.
        """
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0}).encode()
        reason = ""
        for attempt in range(1, self.attempts + 1):
            if attempt > 1:
                time.sleep(self.pause * 2 ** (attempt - 2))
            start = time.perf_counter()
            try:
                text, document = _answer(self._post(body))
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {_said(error)}"
                if error.code not in PASSING:
                    raise JudgeError(f"{self.url}: refused: {shortened(reason)}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = str(error) or type(error).__name__
            else:
                return JudgeReply(
                    text, document.get("model"), document.get("usage"), attempt, time.perf_counter() - start
                )
        raise JudgeError(f"{self.url}: no answer after {self.attempts} attempts: {shortened(reason)}")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", body, headers)
        with _without_redirections().open(request, timeout=SECONDS) as answer:
            return answer.read(MAX_REPLY)


def _without_redirections() -> urllib.request.OpenerDirector:
    """A redirection would take the key to another address: it is an error here."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    return urllib.request.build_opener(Stay)


def _answer(data: bytes) -> tuple[str, dict[str, Any]]:
    """The text of a completion, and the whole document; ValueError for anything else."""
    document = json.loads(data)
    try:
        text = document["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f"expected a chat completion with a text, got {shortened(repr(data[:200]))}")
    return text, document


def _said(error: IO[bytes]) -> str:
    try:
        return error.read(2000).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
