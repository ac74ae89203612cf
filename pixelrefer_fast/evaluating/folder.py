"""The folder of one run: what was asked, what came back, what it is worth, and what all that was made from.

| file | holds |
| :--- | :--- |
| `run.json` | benchmark, model, published files by digest, and the time of each session |
| `questions.jsonl` | the questions, as `describe --batch` takes them |
| `items.jsonl` | what the answers are compared with |
| `answers.jsonl` | the answers; while it grows, `answers.jsonl.part` and its companions |
| `judge.jsonl` | every raw reply of a judge |
| `scores.json`, `details.jsonl`, `table.md` | the scores, those of each item, and the table |
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pixelrefer_fast.checks.new_files import new_file
from pixelrefer_fast.checks.safe_files import brief, read_json
from pixelrefer_fast.evaluating.items import BenchmarkItem, Reply

MAX_RUN_BYTES = 1 << 24
CHUNK = 1 << 22


class RunFolder:
    """The files of a run by their names.

    Args:
        path: of the folder; `begin` makes it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.run = self.path / "run.json"
        self.questions = self.path / "questions.jsonl"
        self.items = self.path / "items.jsonl"
        self.answers = self.path / "answers.jsonl"
        self.judge = self.path / "judge.jsonl"
        self.scores = self.path / "scores.json"
        self.details = self.path / "details.jsonl"
        self.table = self.path / "table.md"

    @property
    def begun(self) -> bool:
        return self.run.exists()

    def begin(self, items: Sequence[BenchmarkItem], asked: Mapping[str, Any], max_new_tokens: int) -> None:
        """Write the questions of a new run.

        Args:
            items: what is asked, in order.
            asked: what tells this run from others.
            max_new_tokens: of each answer.

        Raises:
            ValueError: the folder holds something else already, or two items have one id.
        """
        own = (self.questions.name, self.items.name)  # what a kill may leave
        if self.path.exists() and any(path.name not in own for path in self.path.iterdir()):
            raise ValueError(f"--out {self.path}: expected a folder that is new, empty or of this command, got files")
        if len({item.id for item in items}) != len(items):
            raise ValueError(f"{asked.get('benchmark')}: expected items of different ids, got one twice")
        self.path.mkdir(parents=True, exist_ok=True)
        _write_lines(self.questions, (item.request(max_new_tokens) for item in items))
        _write_lines(self.items, ({"id": item.id, "gold": item.gold} for item in items))
        self._write_run({"asked": dict(asked), "sessions": []})  # last: what is before it is whole

    def asked(self) -> dict[str, Any]:
        """What tells this run from others; ValueError where the folder holds no run."""
        return self._read_run()["asked"]

    def compare(self, asked: Mapping[str, Any]) -> None:
        """ValueError unless the run in the folder is this one."""
        before = self.asked()
        for key in sorted({*before, *asked}):
            if before.get(key) != asked.get(key):
                raise ValueError(
                    f"--out {self.path}: expected the {key} it was begun with, {brief(before.get(key))}, "
                    f"got {brief(asked.get(key))}"
                )

    def answered(self) -> int:
        """How many answers there are, whole ones and those of a run that was broken off."""
        part = self.answers.with_name(f"{self.answers.name}.part")
        path = self.answers if self.answers.exists() else part
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def objects(self, first: int, last: int) -> int:
        """Marked objects of the questions from `first` up to `last`, which is not counted."""
        with self.questions.open("rb") as file:
            return sum(len(json.loads(line)["regions"]) for line in file.readlines()[first:last])

    def add_session(self, session: Mapping[str, Any]) -> None:
        """Note what one session answered, and how long it took."""
        run = self._read_run()
        run["sessions"].append(dict(session))
        self._write_run(run)

    def speed(self) -> dict[str, Any]:
        """Items and objects a second over all sessions that ended by themselves or by an error."""
        sessions = self._read_run()["sessions"]
        seconds = sum(session["seconds"] for session in sessions)
        items, objects = (sum(session[key] for session in sessions) for key in ("items", "objects"))
        return {
            "items": items,
            "objects": objects,
            "seconds": seconds,
            "objects_a_second": objects / seconds if seconds and objects else None,
            "seconds_an_item": seconds / items if items else None,
            "sessions": sessions,
        }

    def replies(self) -> list[Reply]:
        """The answers beside what they are compared with, in the order of the items.

        Raises:
            ValueError: the run is not complete, or its files do not belong together.
        """
        if not self.answers.exists():
            raise ValueError(
                f"--out {self.path}: expected all answers, got {self.answered()}; eval run with --resume goes on"
            )
        replies = []
        with self.items.open("rb") as items, self.questions.open("rb") as questions, self.answers.open("rb") as answers:
            for number, lines in enumerate(zip(items, questions, answers, strict=True), 1):
                item, question, answer = map(json.loads, lines)
                if not item["id"] == question["id"] == answer.get("id"):
                    raise ValueError(f"{self.answers}: line {number}: expected the answer to {brief(item['id'])}")
                texts = answer.get("texts") or [None]
                media = str(question.get("image") or question.get("video"))
                replies.append(Reply(item["id"], item["gold"], texts[0], media, tuple(question["regions"])))
        return replies

    def failures(self) -> list[str]:
        """What the first answers that failed say."""
        with self.answers.open("rb") as file:
            return [str(record["error"]) for record in map(json.loads, file) if "error" in record]

    def write_scores(self, document: Mapping[str, Any], details: Mapping[str, Any], table: str) -> None:
        """The three files of scores, each whole or as it was."""
        _write_lines(self.details, ({"id": name, **own} for name, own in details.items()))
        _write_text(self.table, table)
        _write_text(self.scores, json.dumps(document, indent=1) + "\n")

    def _read_run(self) -> dict[str, Any]:
        if not self.run.exists():
            raise ValueError(f"--out {self.path}: expected the folder of a run, got one without run.json")
        return read_json(self.run, MAX_RUN_BYTES)

    def _write_run(self, run: Mapping[str, Any]) -> None:
        _write_text(self.run, json.dumps(run, indent=1) + "\n")


def digest(path: Path) -> str:
    """Of a published file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with new_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _write_text(path: Path, text: str) -> None:
    with new_file(path) as beside:
        beside.write_text(text, encoding="utf-8")
