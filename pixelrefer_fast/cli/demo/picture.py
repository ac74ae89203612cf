"""The pictures of the demo: a marked scene or the marked frames of a video, the questions, and what each model says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from pixelrefer_fast.pictures import answers
from pixelrefer_fast.pictures.captions import INK, MUTED, PAPER, Colour, badge_size, default_font, draw_badge
from pixelrefer_fast.world.scene import Scene

WIDTH = 1200
MARGIN = 28
TEXT = 18  # pixels of the questions
SMALL = 15
TITLE = 30
RIGHT: Colour = (22, 134, 64)
WRONG: Colour = (200, 44, 44)
RULE: Colour = (226, 229, 233)

_SCENE_WIDTH, _SCENE_HEIGHT = 560, 600
_HALO: Colour = (16, 16, 18)
_SPACE = 0.28  # of the size of a text, between two words


@dataclass(frozen=True)
class DemoQuestion:
    """A question of the demo: `objects` stand for its tags in order; answers by the name of the model."""

    text: str
    objects: tuple[int, ...]
    truth: str
    answers: dict[str, tuple[str, bool]]


def marked_frame(scene: Scene, frame: int, width: float, height: float, size: int) -> Image.Image:
    """One frame as large as it fits, each object that it shows outlined, its number at `size` pixels beside it."""
    tall, wide = scene.size
    scale = min(width / wide, height / tall)
    shape = (round(wide * scale), round(tall * scale))
    pixels = cv2.resize(scene.frames[frame], shape, interpolation=cv2.INTER_CUBIC)
    seen = [i for i in range(len(scene.things)) if scene.masks[i, frame].any()]
    masks = {i: _around(scene.masks[i, frame], shape, scale) for i in seen}
    line = max(2, round(size / 7))
    outlines = {i: cv2.findContours(m, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0] for i, m in masks.items()}
    for i in seen:
        cv2.drawContours(pixels, outlines[i], -1, _HALO, line + 2, cv2.LINE_AA)
    for i in seen:
        cv2.drawContours(pixels, outlines[i], -1, answers.colour(i), line, cv2.LINE_AA)
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    for i, (left, top) in _badge_places(masks, shape, size).items():
        w, h = badge_size(i, size)
        pen.rounded_rectangle((left - 1, top - 1, left + w, top + h), h * 0.32 + 1, fill=_HALO)
        draw_badge(pen, left, top, i, answers.colour(i), size)
    return picture


def _around(mask: np.ndarray, shape: tuple[int, int], scale: float) -> np.ndarray:
    """A mask (H, W) enlarged smoothly to `shape` (width, height) and by a rim, 0 or 1: its outline hides nothing."""
    soft = cv2.resize(mask.astype(np.float32), shape, interpolation=cv2.INTER_LINEAR)
    large = (cv2.GaussianBlur(soft, (0, 0), scale / 3) > 0.5).astype(np.uint8)
    return cv2.dilate(large, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))


def _badge_places(masks: dict[int, np.ndarray], shape: tuple[int, int], size: int) -> dict[int, tuple[int, int]]:
    """Where each object's badge goes: beside it, where it hides least of all objects and of the badges before it."""
    wide, tall = shape
    taken = np.zeros((tall, wide), np.int32)
    for mask in masks.values():
        taken += mask
    places = {}
    for i, mask in masks.items():
        w, h = badge_size(i, size)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x0, x1, y0, y1 = int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1
        xs, ys = (x0 - w, x0, (x0 + x1 - w) // 2, x1 - w, x1), (y0 - h, y0, (y0 + y1 - h) // 2, y1 - h, y1)
        best: tuple[float, int, int] | None = None
        for x in xs:
            for y in ys:
                left, top = min(max(x, 2), wide - w - 2), min(max(y, 2), tall - h - 2)
                hidden = int(taken[top : top + h, left : left + w].sum())
                near = mask[max(top - 3, 0) : top + h + 3, max(left - 3, 0) : left + w + 3].any()
                cost = hidden + (0 if near else 0.3 * w * h)
                if best is None or cost < best[0]:
                    best = cost, left, top
        assert best is not None
        places[i] = best[1:]
        taken[best[2] : best[2] + h, best[1] : best[1] + w] += 4
    return places


def scene_picture(
    scene: Scene, title: str, subtitle: str, lines: Sequence[DemoQuestion], facts: Sequence[str]
) -> Image.Image:
    """The scene on the left, questions and answers beside it, and a line of facts for each model below."""
    picture = marked_frame(scene, 0, _SCENE_WIDTH, _SCENE_HEIGHT, 20)
    left = MARGIN + picture.width + MARGIN
    text = _questions(lines, WIDTH - MARGIN - left)
    head = _head(title, subtitle)
    sheet = Image.new("RGB", (WIDTH, head.height + max(picture.height, text.height) + MARGIN), PAPER)
    sheet.paste(head, (0, 0))
    sheet.paste(picture, (MARGIN, head.height))
    sheet.paste(text, (left, head.height))
    return _stacked(sheet, _foot(facts))


def video_picture(
    scene: Scene, title: str, subtitle: str, lines: Sequence[DemoQuestion], facts: Sequence[str]
) -> Image.Image:
    """The frames in a row, questions and answers below in two columns, and a line of facts for each model."""
    assert scene.times is not None
    across = len(scene.frames) if len(scene.frames) <= 4 else 3
    gap, under = 14, round(SMALL * 2)
    cell = (WIDTH - 2 * MARGIN - gap * (across - 1)) / across
    tiles = [marked_frame(scene, f, cell, 420, 15) for f in range(len(scene.frames))]
    wide, tall = tiles[0].size
    strip = Image.new("RGB", (WIDTH, -(-len(tiles) // across) * (tall + under)), PAPER)
    pen = ImageDraw.Draw(strip)
    for f, (tile, seconds) in enumerate(zip(tiles, scene.times, strict=True)):
        x = (WIDTH - across * wide - (across - 1) * gap) // 2 + f % across * (wide + gap)
        y = f // across * (tall + under)
        strip.paste(tile, (x, y))
        pen.text((x + wide / 2, y + tall + under / 2), f"{seconds:g} s", MUTED, default_font(SMALL), "mm")
    column = (WIDTH - 3 * MARGIN) // 2
    half = (len(lines) + 1) // 2
    columns = [_questions(part, column) for part in (lines[:half], lines[half:]) if part]
    text = Image.new("RGB", (WIDTH, max((c.height for c in columns), default=0) + MARGIN), PAPER)
    for i, part in enumerate(columns):
        text.paste(part, (MARGIN + i * (column + MARGIN), round(MARGIN * 0.6)))
    return _stacked(_head(title, subtitle), strip, text, _foot(facts))


def _head(title: str, subtitle: str) -> Image.Image:
    head = Image.new("RGB", (WIDTH, round(TITLE * 2.9)), PAPER)
    pen = ImageDraw.Draw(head)
    pen.text((MARGIN, TITLE), title, INK, default_font(TITLE), "lm")
    pen.text((MARGIN, TITLE * 2.05), subtitle, MUTED, default_font(SMALL), "lm")
    return head


def _foot(facts: Sequence[str]) -> Image.Image:
    step = round(SMALL * 1.6)
    foot = Image.new("RGB", (WIDTH, step * len(facts) + round(MARGIN * 1.3)), PAPER)
    pen = ImageDraw.Draw(foot)
    pen.line((MARGIN, 1, WIDTH - MARGIN, 1), RULE, 2)
    for i, fact in enumerate(facts):
        pen.text((MARGIN, MARGIN * 0.5 + (i + 0.5) * step), fact, MUTED, default_font(SMALL), "lm")
    return foot


def _questions(lines: Sequence[DemoQuestion], width: int) -> Image.Image:
    """All questions, one below the other: the question, then each model's name with its answer and its mark."""
    sheet = Image.new("RGB", (width, 4000), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = 0.0
    for number, line in enumerate(lines):
        if number:
            pen.line((0, top, width, top), RULE, 1)
            top += TEXT * 0.55
        top = _flow(pen, line.text, line.objects, top, width)
        top = _answers(pen, line, top, width) + TEXT * 0.5
    return sheet.crop((0, 0, width, max(1, round(top))))


def _flow(pen: ImageDraw.ImageDraw, text: str, objects: Sequence[int], top: float, width: int) -> float:
    """A question in words and badges, broken into lines; returns where the next thing may begin."""
    font, line_height = default_font(TEXT), TEXT * 1.5
    tags = iter(objects)
    x, middle = 0.0, top + line_height / 2
    for word in text.split():
        pieces: list[Any] = [
            next(tags) if piece == "<region>" else piece for piece in re.split("(<region>)", word) if piece
        ]
        widths = [badge_size(p, SMALL)[0] if isinstance(p, int) else font.getlength(p) for p in pieces]
        if x and x + sum(widths) > width:
            x, middle = 0.0, middle + line_height
        for piece, wide in zip(pieces, widths, strict=True):
            if isinstance(piece, int):
                high = badge_size(piece, SMALL)[1]
                draw_badge(pen, round(x), round(middle - high / 2), piece, answers.colour(piece), SMALL)
            else:
                pen.text((x, middle), piece, INK, font, "lm")
            x += wide
        x += TEXT * _SPACE
    return middle + line_height / 2


def _answers(pen: ImageDraw.ImageDraw, line: DemoQuestion, top: float, width: int) -> float:
    """The answers side by side where they fit, else one below the other; the truth where one is wrong."""
    font, small, line_height = default_font(TEXT), default_font(SMALL), TEXT * 1.45
    blocks = []
    for name, (answer, right) in line.answers.items():
        shown = " ".join(answer.split()) or "(nothing)"
        most = width - small.getlength(name) - TEXT * 2.2
        while len(shown) > 1 and font.getlength(shown) > most:
            shown = shown[:-2].rstrip() + "…"
        blocks.append((name, shown, right, small.getlength(name) + TEXT * 1.6 + font.getlength(shown)))
    column = width / max(1, len(blocks))
    beside = all(block[3] <= column - TEXT for block in blocks)
    for i, (name, shown, right, _) in enumerate(blocks):
        x = i * column if beside else 0.0
        middle = top + (0.5 + (0 if beside else i)) * line_height
        pen.text((x, middle), name, MUTED, small, "lm")
        x += small.getlength(name) + TEXT * 0.5
        _mark(pen, x, middle, right)
        pen.text((x + TEXT * 1.1, middle), shown, RIGHT if right else WRONG, font, "lm")
    top += line_height * (1 if beside else len(blocks))
    if not all(right for _, right in line.answers.values()):
        pen.text((0, top + line_height / 2), f"truth: {line.truth}", MUTED, small, "lm")
        top += line_height
    return top


def _mark(pen: ImageDraw.ImageDraw, x: float, middle: float, right: bool) -> None:
    """A tick or a cross, drawn: not every font has them."""
    s = TEXT * 0.36
    if right:
        pen.line([(x, middle), (x + s * 0.7, middle + s * 0.8), (x + s * 2, middle - s)], RIGHT, 3, "curve")
    else:
        pen.line([(x, middle - s), (x + 2 * s, middle + s)], WRONG, 3)
        pen.line([(x, middle + s), (x + 2 * s, middle - s)], WRONG, 3)


def _stacked(*parts: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in parts)), PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet
