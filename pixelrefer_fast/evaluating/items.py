"""One question of a benchmark, and what came back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class BenchmarkItem:
    """A question about marked objects of one image or video.

    Attributes:
        id: its name in the benchmark, different for each item.
        media: the image, the video, or the folder of its frames.
        regions: the marked objects as JSON that `Region.from_json` reads, in the order of the question's tags.
        question: with a <region> tag for each of them.
        gold: what the answer is compared with, whatever of the published files that takes, as plain JSON.
        video: whether `media` is a video.
    """

    id: str
    media: Path
    regions: tuple[Json, ...]
    question: str
    gold: Json
    video: bool = False

    def request(self, max_new_tokens: int) -> Json:
        """A line that `describe --batch` answers: greedily, as the authors' scripts do."""
        return {
            "id": self.id,
            "video" if self.video else "image": str(self.media),
            "regions": list(self.regions),
            "question": self.question,
            "max_new_tokens": max_new_tokens,
        }


@dataclass(frozen=True)
class Reply:
    """The model's answer to one item.

    Attributes:
        id, gold: of the item.
        media: path of the image or video, for judges who look at it.
        regions: as the item's.
        text: the answer; None where the model gave none.
    """

    id: str
    gold: Json
    text: str | None
    media: str = ""
    regions: tuple[Json, ...] = ()

    @property
    def said(self) -> str:
        """The answer, empty where there is none."""
        return self.text or ""
