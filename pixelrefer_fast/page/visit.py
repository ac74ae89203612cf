"""What one visitor looks at, and what each of their actions makes of it."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from pixelrefer_fast.checks.values import is_integer, is_number, shown
from pixelrefer_fast.media import Video
from pixelrefer_fast.page.answering import Told
from pixelrefer_fast.page.asked import PageAsk, PageFile
from pixelrefer_fast.page.board import Board, BoardMarks, Step
from pixelrefer_fast.page.view import board_view, save_picture
from pixelrefer_fast.segmenting import Segmenter
from pixelrefer_fast.serving.media import MediaReader

LOG = logging.getLogger("pixelrefer_fast.page")
NOTHING_OPEN = "picture: expected one to be opened first, got none"


@dataclass(eq=False)
class Visit:
    """Of one visitor; actions that overlap are done one after the other.

    Attributes:
        board: what is open and marked; None: nothing yet.
        source: its file.
        told, ask: the last answers, and what was asked.
        answered: the objects that it was asked about.
        picture: where the browser finds what is looked at.
        version: of what the browser was told last.
    """

    board: Board | None = None
    source: PageFile = field(default_factory=lambda: PageFile(""))
    told: list[Told] = field(default_factory=list)
    ask: PageAsk | None = None
    answered: tuple[BoardMarks, ...] = ()
    picture: str = ""
    version: int = 0
    _lock: Lock = field(default_factory=Lock)

    def do(self, change: Callable[[Board | None], Board]) -> dict[str, Any]:
        """A change, and what the browser is told: the board after it, or why it was not done."""
        with self._lock:
            message, bad = "", False
            try:
                self.board = change(self.board)
                message = _hint(self.board)
            except ValueError as error:
                message, bad = str(error), True
            except Exception as error:
                message, bad = failed(error), True
            self.version += 1
            view = None if self.board is None else board_view(self.board)
            return {
                "version": self.version, "message": message, "bad": bad, "view": view, "picture": self.picture
            }  # fmt: skip

    def tell(self, message: str) -> dict[str, Any]:
        """Why something was not done, for the browser; the board stays as it is."""

        def refused(_: Board | None) -> Board:
            raise ValueError(message)

        return self.do(refused)

    def opened(self) -> Board:
        """The board; ValueError where nothing is open."""
        if self.board is None:
            raise ValueError(NOTHING_OPEN)
        return self.board


def failed(error: Exception) -> str:
    """What a visitor is told of an error that is nobody's input; the log has all of it."""
    LOG.error("page: %s", type(error).__name__, exc_info=error)
    return f"server: {type(error).__name__}; its log tells more"


def _hint(board: Board) -> str:
    if not board.objects:
        return "Click on an object, or drag a box around it."
    rough = [str(number) for number, marks in enumerate(board.objects)
             if (mark := marks.get(board.frame)) is not None and mark.rough]  # fmt: skip
    if rough:
        return (
            f"The outline of {', '.join(rough)} is a guess: correct it with Not this, Brush or Eraser, or take a box."
        )
    return ""


class Desk:
    """Opens what visitors bring.

    Args:
        segmenter: makes masks.
        reader: opens files within the server's limits.
        uploads: the folder of what browsers have sent; nothing else is read.
        pictures: the folder of what browsers may load.
    """

    def __init__(self, segmenter: Segmenter, reader: MediaReader, uploads: Path, pictures: Path) -> None:
        self._segmenter = segmenter
        self._reader = reader
        self._uploads = uploads.resolve()
        self._pictures = pictures

    def open_file(self, visit: Visit, path: object, name: object) -> dict[str, Any]:
        """What a browser has sent."""
        return visit.do(lambda _: self._open(visit, self.uploaded(path), PageFile(plain_name(name))))

    def open_example(self, visit: Visit, file: Path, source: PageFile) -> dict[str, Any]:
        """One of the page's own."""
        return visit.do(lambda _: self._open(visit, file, source))

    def step(self, visit: Visit, what: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a visitor does to the board."""

        def stepped(board: Board | None) -> Board:
            if board is None:
                raise ValueError(NOTHING_OPEN)
            other = self._step(what, given)(board)
            if other.frame != board.frame:
                visit.picture = self._shown(other)
            return other

        return visit.do(stepped)

    def uploaded(self, path: object) -> Path:
        """A file that a browser has sent; ValueError for any other."""
        if isinstance(path, str) and "\0" not in path:
            found = Path(path).resolve()
            if found.is_relative_to(self._uploads) and found.is_file():
                return found
        raise ValueError("file: expected one that was uploaded, got another")

    def _open(self, visit: Visit, file: Path, source: PageFile) -> Board:
        media = self._reader.read(file.read_bytes(), source.name)
        board = Board(media, self._segmenter.open(media), 0 if isinstance(media, Video) else None)
        visit.picture = self._shown(board)
        visit.source, visit.told, visit.ask = source, [], None
        return board

    def _shown(self, board: Board) -> str:
        height, width = board.size
        suffix = ".png" if max(height, width) <= 512 else ".jpg"
        return f"gradio_api/file={save_picture(board, self.folder() / f'picture{suffix}')}"

    def folder(self) -> Path:
        """A new one of what browsers may load, which nobody guesses."""
        made = self._pictures / secrets.token_hex(16)
        made.mkdir()
        return made

    def _step(self, what: str, given: Mapping[str, Any]) -> Step:
        if what == "click":
            x, y = _number(given, "x"), _number(given, "y")
            label = given.get("label")
            if label not in (0, 1):
                raise ValueError(f"label: expected 0 or 1, got {shown(label)}")
            return lambda board: board.clicked(x, y, label)
        if what == "box":
            corners = given.get("corners")
            if not isinstance(corners, list):
                raise ValueError(f"box: expected four numbers, got {shown(corners)}")
            return lambda board: board.boxed(corners, given.get("cut") is True)
        if what == "paint":
            points, width = given.get("points"), _number(given, "width")
            if not isinstance(points, list):
                raise ValueError(f"stroke: expected points, got {shown(points)}")
            return lambda board: board.painted(points, width, erase=given.get("erase") is True)
        if what == "mask":
            mask = read_mask(self.uploaded(given.get("path")).read_bytes(), plain_name(given.get("name")), self._reader)
            return lambda board: board.masked(mask)
        number = given.get("number")
        if number is not None and not is_integer(number):
            raise ValueError(f"number: expected an integer, got {shown(number)}")
        if what == "choose":
            return lambda board: board.choosing(number)
        if what == "remove":
            return lambda board: board.removed(-1 if number is None else number)
        if what == "look":
            return lambda board: board.at(-1 if number is None else number)
        if what == "track":
            return Board.tracked
        if what == "undo":
            return Board.undone
        raise ValueError(f"page: expected something that it knows, got {shown(what)}")


def _number(given: Mapping[str, Any], name: str) -> float:
    value: Any = given.get(name)
    if not is_number(value) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a number, got {shown(value)}")
    return float(value)


def plain_name(name: object) -> str:
    """Of a file as a visitor calls it: no folder, and nothing that would break a line."""
    last = str(name).replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(character if character.isprintable() else "_" for character in last)[:100] or "file"


def read_mask(content: bytes, name: str, reader: MediaReader) -> np.ndarray:
    """(H, W) bool: where a picture is opaque, if it is transparent in parts; else where it is not black.

    Raises:
        ValueError: it is no picture, or is too large.
    """
    opaque = reader.check_image(content, name)
    if opaque is not None:
        return opaque
    media = reader.read(content, name)
    if isinstance(media, Video):
        raise ValueError(f"{name}: expected a picture of a mask, got a video")
    return np.asarray(media.any(axis=2))
