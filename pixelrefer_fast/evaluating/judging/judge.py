"""A judge who is asked many questions: at the same time, each once, with every raw reply kept."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from pixelrefer_fast.evaluating.judging.endpoint import Endpoint, JudgeError, Message
from pixelrefer_fast.evaluating.judging.pictures import with_pictures

WORKERS = 8
REFUSALS = 3  # after so many the rest would be refused as well


class Judge:
    """Asks an endpoint, and remembers.

    Args:
        endpoint: who answers.
        replies: a file with a line for each raw reply, which is only ever added to. What is in it is not asked again.
        workers: questions under way at one time.
        sees_images: whether questions about an image show it.

    Attributes:
        asked, reused: questions that went to the endpoint, and that the file answered.
        answered_by: names under which the endpoint answered.
    """

    def __init__(self, endpoint: Endpoint, replies: Path, workers: int = WORKERS, sees_images: bool = False) -> None:
        self.endpoint = endpoint
        self.replies = replies
        self.workers = workers
        self.sees_images = sees_images
        self.asked = 0
        self.reused = 0
        self.answered_by: set[str] = set()
        self._lock = threading.Lock()
        self._known = self._read()

    def ask(
        self, questions: Sequence[list[Message]], told: Callable[[int, int], None] = lambda done, all_of: None
    ) -> list[str]:
        """The reply to each question, in their order.

        Args:
            questions: messages of each.
            told: called with the questions answered so far, and all.

        Raises:
            JudgeError: some got no answer. All others are kept, and asking again asks those only.
        """
        keys = [self._key(messages) for messages in questions]
        missing = {key: messages for key, messages in zip(keys, questions, strict=True) if key not in self._known}
        self.reused += len(set(keys)) - len(missing)
        self._ask_missing(missing, told)
        for key in keys:
            if name := self._known[key].get("answered_by"):
                self.answered_by.add(name)
        return [self._known[key]["reply"] for key in keys]

    def name(self) -> dict[str, Any]:
        """Who judged, for results."""
        return {
            "model": self.endpoint.model,
            "answered_by": sorted(self.answered_by),
            "url": self.endpoint.url,
            "temperature": 0,
            "attempts": self.endpoint.attempts,
            "sees_images": self.sees_images,
            "asked": self.asked,
            "reused": self.reused,
            "replies": self.replies.name,
        }

    def _ask_missing(self, missing: dict[str, list[Message]], told: Callable[[int, int], None]) -> None:
        failures: list[str] = []
        with ThreadPoolExecutor(self.workers) as pool:
            running = {pool.submit(self._ask_one, key, messages) for key, messages in missing.items()}
            try:
                for done, future in enumerate(as_completed(running), 1):
                    try:
                        future.result()
                    except JudgeError as error:
                        failures.append(str(error))
                        if len(failures) >= REFUSALS:
                            break
                    told(done, len(missing))
            finally:
                for future in running:
                    future.cancel()
        if failures:
            left = sum(key not in self._known for key in missing)
            raise JudgeError(
                f"judge: {left} of {len(missing)} questions without an answer, which the same command asks again: "
                f"{failures[0]}"
            )

    def _ask_one(self, key: str, messages: list[Message]) -> None:
        reply = self.endpoint.ask(with_pictures(messages))
        record = {
            "key": key,
            "judge": self.endpoint.model,
            "url": self.endpoint.url,
            "answered_by": reply.model,
            "messages": messages,
            "reply": reply.text,
            "usage": reply.usage,
            "attempts": reply.attempts,
            "seconds": reply.seconds,
            "time": time.time(),
        }
        with self._lock:
            with self.replies.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self._known[key] = record
            self.asked += 1

    def _key(self, messages: list[Message]) -> str:
        """What tells a question to this judge from all others."""
        text = json.dumps([self.endpoint.model, messages], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _read(self) -> dict[str, dict[str, Any]]:
        """What was answered before; a kill may have torn the last line, which is asked again."""
        known: dict[str, dict[str, Any]] = {}
        if not self.replies.exists():
            return known
        content = self.replies.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            self.replies.write_bytes(whole)
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                known[record["key"]] = record | {"reply": str(record["reply"])}
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{self.replies}: line {number}: expected a judge's reply, got something else"
                ) from None
        return known
