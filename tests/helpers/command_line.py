"""What the tests of the command line share: a model that answers at once, marks, and the one line of an error."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from PIL import Image

import pixelrefer_fast
from pixelrefer_fast import Answer, Region
from pixelrefer_fast.decoding import Event

ASSETS = Path(pixelrefer_fast.__file__).parent / "assets"
HEIGHT, WIDTH = 60, 80


def default_signals() -> None:
    """For a child that is ended by a signal: it would inherit what nohup or a shell's background ignores."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


class FakeModel:
    """Answers at once, in the way that `finish` and `silent` tell, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.finish: Literal["stop", "length"] = "stop"
        self.silent = False

    def describe(
        self, media: Any, regions: list[Region], question: str | None = None, *, details: bool, **options: Any
    ) -> list[Answer]:
        assert details
        self.calls.append({"media": media, "regions": regions, "question": question, "options": options})
        print("a library says hello")
        texts = ["" if self.silent else f"text {i}\x1b[31m" for i in range(len(regions))]
        return [Answer(i, text, finish=self.finish) for i, text in enumerate(texts)]

    def ask(self, media: Any, question: str, regions: Any = None, *, details: bool, **options: Any) -> Answer:
        assert details
        self.calls.append({"media": media, "regions": regions, "question": question, "options": options})
        return Answer(0, "" if self.silent else "an answer\x07", finish=self.finish)

    def stream(
        self, media: Any, question: str, regions: Any = None, *, events: bool, **options: Any
    ) -> Iterator[Event]:
        assert events
        self.calls.append({"media": media, "regions": regions, "question": question, "options": options})
        if not self.silent:
            yield from (Event("an ", 1), Event("ans", 2), Event("", 3))
        yield Event("" if self.silent else "wer\x07", finish_reason=self.finish)


def mask_file(path: Path, x0: int, y0: int, x1: int, y1: int, mode: str = "L") -> str:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    if mode == "RGBA":  # a cut-out: colours everywhere, transparent outside
        Image.fromarray(np.dstack([pixels * 0 + 7] * 3 + [pixels])).save(path)
    elif mode == "P":
        labels = Image.fromarray((pixels > 0).astype(np.uint8), "P")
        labels.putpalette([0, 0, 0, 200, 10, 10])
        labels.save(path)
    else:
        Image.fromarray(pixels).convert(mode).save(path)
    return str(path)


def marked(region: Region, frame: int | None = None) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(region.mask(HEIGHT, WIDTH, frame))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def one_error_line(result: SimpleNamespace, *parts: str) -> None:
    assert result.code == 2, result
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
