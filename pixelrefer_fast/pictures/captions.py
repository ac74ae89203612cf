"""Captions of a picture: fonts that have the glyphs of a text, wrapped lines, and the panel that holds them."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from pixelrefer_fast.checks.printable import JOINERS, safe_text

Colour = tuple[int, int, int]

PAPER: Colour = (255, 255, 255)
INK: Colour = (28, 30, 34)
MUTED: Colour = (110, 115, 122)

FONT_VARIABLE = "PIXELREFER_FAST_FONT"
"""Environment variable: a TrueType or OpenType file tried first for text that Pillow's own font cannot show."""

_SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "segoeui.ttf",
)
_UNKNOWN = "?"
_ESCAPE = r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}"
_LINES = (12, 6, 3, 2, 1)  # lines allowed to one caption, tried in turn until all captions fit


@functools.lru_cache(maxsize=32)
def default_font(size: int) -> FreeTypeFont:
    """Pillow's own font at `size` pixels, the only font that is always available."""
    return cast(FreeTypeFont, ImageFont.load_default(size))


def _glyph(font: FreeTypeFont, char: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(char)
    return mask.size, bytes(mask)


@functools.lru_cache(maxsize=4096)
def _has_glyph(font: FreeTypeFont, char: str) -> bool:
    if char.isspace() or char in JOINERS or unicodedata.combining(char):
        return True
    return _glyph(font, char) != _glyph(font, "\U0010ffff")


def _plain(char: str, font: FreeTypeFont) -> str:
    """The closest text that `font` can show: é as e, and ? where there is nothing close."""
    if _has_glyph(font, char):
        return "" if unicodedata.combining(char) or char in JOINERS else char
    near = {"×": "x", "–": "-", "—": "-", "−": "-", "→": "->"}.get(char)
    near = near or "".join(c for c in unicodedata.normalize("NFKD", char) if not unicodedata.combining(c))
    return near if near != char and all(_has_glyph(font, c) for c in near) else _UNKNOWN


@functools.lru_cache(maxsize=1)
def _system_fonts(extra: str | None) -> tuple[str, ...]:
    found = []
    for name in (extra, *_SYSTEM_FONTS):
        try:
            if name:
                found.append(str(ImageFont.truetype(name, 10).path))
        except (OSError, ImportError):
            continue
    return tuple(found)


def _fitted(text: str, size: int) -> tuple[str, FreeTypeFont]:
    """The text and a font that can show it: Pillow's font, else a system font, else plainer characters."""
    font = default_font(size)
    chars = set(text)
    if all(c < "\x7f" or _has_glyph(font, c) for c in chars) and not any(unicodedata.combining(c) for c in chars):
        return text, font
    for path in _system_fonts(os.environ.get(FONT_VARIABLE)):
        other = ImageFont.truetype(path, size)
        if all(_has_glyph(other, c) for c in chars):
            return text, other
    plain = "".join(_plain(c, font) for c in unicodedata.normalize("NFC", text))
    if plain.count(_UNKNOWN) > max(text.count(_UNKNOWN), len(text) // 3):
        plain = f"(no font found for this text; set {FONT_VARIABLE} to one)"
    return plain, font


def _wrap(text: str, font: FreeTypeFont, width: float, limit: int) -> list[str]:
    """Lines no wider than `width` pixels, at most `limit` of them; a cut text ends in an ellipsis."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        # Words longer than a line (Chinese, escapes) break anywhere except inside an escape.
        for word in re.findall(rf" *(?:{_ESCAPE}|[^ ]){{1,100}}", paragraph):
            if font.getlength(line + word) <= width:
                line += word
                continue
            if line:
                lines.append(line)
                line, word = "", word.lstrip(" ")
            if font.getlength(word) > width:
                for piece in re.findall(rf"{_ESCAPE}|.", word):
                    if line and font.getlength(line + piece) > width:
                        lines.append(line)
                        line = ""
                    line += piece
            else:
                line = word
            if len(lines) > limit:
                break
        lines.append(line)
        if len(lines) > limit:
            break
    if len(lines) > limit:
        last = lines[limit - 1].rstrip()
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: limit - 1], last + "…"]
    return lines


@dataclass(frozen=True)
class Caption:
    """A numbered caption, or one without a number; `colour` is that of the region's outline."""

    number: int | None
    colour: Colour
    text: str


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever reads better on `colour`."""
    return INK if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 120 else (255, 255, 255)


def badge_size(number: int, size: int) -> tuple[int, int]:
    """Width and height in pixels of the badge with `number` set at `size` pixels."""
    height = round(size * 1.45)
    return max(height, round(default_font(size).getlength(str(number)) + size * 0.9)), height


def draw_badge(draw: ImageDraw.ImageDraw, left: float, top: float, number: int, colour: Colour, size: int) -> None:
    """A rounded badge with `number`, its top left corner at (`left`, `top`)."""
    width, height = badge_size(number, size)
    draw.rounded_rectangle((left, top, left + width - 1, top + height - 1), height * 0.32, fill=colour)
    draw.text((left + width / 2, top + height / 2), str(number), ink_on(colour), default_font(size), "mm")


@dataclass(frozen=True)
class _Block:
    caption: Caption | None  # None: a note without a number
    lines: list[str]
    font: FreeTypeFont
    colour: Colour
    width: int
    height: int


def _block(caption: Caption | None, text: str, width: int, size: int, limit: int, colour: Colour = INK) -> _Block:
    text = safe_text(text).strip("\n ")
    if not text:
        text, colour = "(no text)", MUTED
    # Far more characters than the lines can hold; keeps a runaway answer from being measured whole.
    text, font = _fitted(text[: limit * max(width, 1)], size)
    lines = _wrap(text, font, width, limit)
    number = caption.number if caption else None
    height = max(round(len(lines) * size * 1.4), 0 if number is None else badge_size(number, size)[1])
    return _Block(caption, lines, font, colour, width, height)


def panel(captions: Sequence[Caption], width: int, size: int, *, title: str | None = None, tallest: int) -> Image.Image:
    """A sheet `width` pixels wide with all captions, in columns if there is room.

    Every caption is drawn into its own rectangle, so captions never overlap. To keep the sheet at about `tallest`
    pixels, captions are shortened (with an ellipsis) and, if that is not enough, left out (with a line that says how
    many).
    """
    margin, gap = round(size * 1.0), round(size * 0.7)
    columns = max(1, min(3, len(captions), (width - margin) // (size * 26)))
    column = (width - margin * (columns + 1)) // columns
    badges = [badge_size(c.number, size)[0] for c in captions if c.number is not None]
    indent = max(badges) + round(size * 0.6) if badges else 0
    head = [_block(None, title, width - 2 * margin, size, 3, MUTED)] if title else []
    tallest -= 2 * margin + sum(block.height + gap for block in head)
    most = max(1, tallest // (round(size * 1.45) + gap)) * columns
    shown = captions[:most]
    rows: list[list[_Block]] = []
    for limit in _LINES:
        blocks = [_block(caption, caption.text, column - indent, size, limit) for caption in shown]
        rows = [blocks[i : i + columns] for i in range(0, len(blocks), columns)]
        if sum(max(b.height for b in row) + gap for row in rows) <= tallest:
            break
    if len(shown) < len(captions):
        more = len(captions) - len(shown)
        rows.append([_block(None, f"… and {more} more regions without a caption here", column, size, 2, MUTED)])
    rows = [[block] for block in head] + rows
    height = 2 * margin + sum(max(b.height for b in row) for row in rows) + gap * (len(rows) - 1)
    sheet = Image.new("RGB", (width, max(height, 1)), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = margin
    for row in rows:
        for i, block in enumerate(row):
            left = margin + i * (column + margin)
            inset = indent if block.caption else 0
            if block.caption and block.caption.number is not None:
                draw_badge(draw, left, top, block.caption.number, block.caption.colour, size)
            # A paper of its own for the text: whatever a glyph does, it ends at the edge of its rectangle.
            text = Image.new("RGB", (block.width, block.height), PAPER)
            pen = ImageDraw.Draw(text)
            for n, line in enumerate(block.lines):
                pen.text((0, (n + 0.52) * size * 1.4), line, block.colour, block.font, "lm")
            sheet.paste(text, (left + inset, top))
        top += max(b.height for b in row) + gap
    return sheet
