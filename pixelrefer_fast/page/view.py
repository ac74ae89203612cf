"""A board as the browser draws it, answers as the page shows them, and the picture that is downloaded."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pixelrefer_fast.checks.printable import one_line
from pixelrefer_fast.media import Video
from pixelrefer_fast.page.answering import Told
from pixelrefer_fast.page.asked import PageAsk
from pixelrefer_fast.page.board import Board, BoardMark
from pixelrefer_fast.pictures import answers

LARGEST = 1600
"""Pixels of the long side of what the browser shows."""
_FINE = 1000
"""Long side, in pixels, from which on outlines are drawn a little coarser."""


def board_view(board: Board) -> dict[str, Any]:
    """What the browser draws over the picture: JSON."""
    height, width = board.size
    objects = []
    for number, marks in enumerate(board.objects):
        mark = marks.get(board.frame)
        entry = {"number": number, "colour": _css(number), "frames": len(marks), "here": mark is not None}
        if mark is not None:
            entry |= {"path": _outline(mark, max(height, width)), "rough": mark.rough, "top": _top(mark),
                      "clicks": [list(click) for click in mark.clicks]}  # fmt: skip
        objects.append(entry)
    view = {"width": width, "height": height, "objects": objects, "chosen": board.chosen, "frames": 1}
    if isinstance(board.media, Video) and board.frame is not None:
        view |= {"frames": len(board.media), "frame": board.frame, "seconds": board.media.times[board.frame]}
    return view


def _top(mark: BoardMark) -> list[int]:
    """Column and row of the first marked pixel from above, where the object's number goes."""
    boxed = mark.boxed
    return [boxed.left + int(boxed.pixels[0].argmax()), boxed.top]


def _css(number: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*answers.colour(number))


def _outline(mark: BoardMark, longest: int) -> str:
    """Path data of SVG, in pixels of the image."""
    boxed = mark.boxed
    # twice as large, so that outlines follow the edges of pixels rather than their middles
    doubled = np.pad(boxed.pixels.astype(np.uint8).repeat(2, 0).repeat(2, 1), 1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in contours:
        if longest > _FINE:
            contour = cv2.approxPolyDP(contour, longest / _FINE, closed=True)
        points = (contour[:, 0] - 0.5) / 2 + (boxed.left, boxed.top)
        parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points) + "Z")
    return "".join(parts)


def save_picture(board: Board, file: Path) -> Path:
    """Write what is looked at, reduced to LARGEST."""
    picture = Image.fromarray(board.picture())
    picture.thumbnail((LARGEST, LARGEST))
    if file.suffix == ".png":
        picture.save(file)
    else:
        picture.save(file, quality=90)
    return file


def save_answers(board: Board, told: Sequence[Told], ask: PageAsk | None, file: Path) -> Path:
    """Write the picture with outlines, numbers, and what the models have said.

    Raises:
        ValueError: nothing is marked.
    """
    if not board.objects:
        raise ValueError("picture: expected a marked object, got none")
    captions: list[str] | str = []
    if ask is not None and ask.text is None:
        captions = [""] * len(board.objects)
        for place, number in enumerate(ask.objects):
            captions[number] = _said(told, place)
    elif ask is not None:
        captions = f"{numbered(ask)} {_said(told, 0)}"
    return answers.save(answers.answers(board.media, board.regions("lite"), captions), file)


def _said(told: Sequence[Told], place: int) -> str:
    if len(told) == 1:
        return told[0].texts[place]
    return " · ".join(f"{one.model}: {one.texts[place]}" for one in told)


def numbered(ask: PageAsk) -> str:
    """The question with the numbers of its objects."""
    text = ask.text or ""
    for number in ask.objects:
        text = text.replace("<region>", f"#{number}", 1)
    return one_line(text)


def answers_view(told: Sequence[Told], ask: PageAsk | None) -> str:
    """HTML: a card for each model."""
    if ask is None:
        return '<p class="pr-hint">Mark something, then ask about it or let it be described.</p>'
    asked = "" if ask.text is None else f'<p class="pr-asked">{html.escape(numbered(ask))}</p>'
    return asked + '<div class="pr-cards">' + "".join(_card(one, ask) for one in told) + "</div>"


def _card(told: Told, ask: PageAsk) -> str:
    lines = []
    for place, text in enumerate(told.texts):
        badge = ""
        if ask.text is None:
            number = ask.objects[place]
            badge = f'<span class="pr-badge" style="background:{_css(number)}">{number}</span>'
        lines.append(f'<p class="pr-text">{badge}<span>{html.escape(text)}</span></p>')
    error = "" if told.error is None else f'<p class="pr-error" role="alert">{html.escape(told.error)}</p>'
    state = "done" if told.done else "growing"
    return (
        f'<section class="pr-card" data-model="{html.escape(told.model)}" data-state="{state}">'
        f"<h3>{html.escape(told.model)}</h3>{''.join(lines)}{error}{_figures(told)}</section>"
    )


def _figures(told: Told) -> str:
    first = "" if told.first is None else f"first {told.first:.2f} s"
    rows = (
        ("time", f"{told.seconds:.2f} s", first),
        ("tokens", f"{told.prompt_tokens} + {told.tokens}", "read, written"),
        ("memory", _bytes(told.weights), f"+ {_bytes(told.cache)} cache"),
    )
    lines = "".join(f"<dt>{name}</dt><dd><b>{value}</b> {more}</dd>" for name, value, more in rows)
    return f'<dl class="pr-figures">{lines}</dl>'


def _bytes(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} B"
