"""Pictures of answers: every region outlined and numbered on the image, captions in a panel beside or below it."""

from __future__ import annotations

import colorsys
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from pixelrefer_fast.checks.new_files import file_to_write, new_file
from pixelrefer_fast.checks.printable import one_line
from pixelrefer_fast.checks.safe_files import name_of
from pixelrefer_fast.checks.values import reason_of, shown
from pixelrefer_fast.media.video import Video
from pixelrefer_fast.pictures import captions as _captions
from pixelrefer_fast.pictures.badges import Shape, place
from pixelrefer_fast.pictures.captions import MUTED, PAPER, Caption, Colour
from pixelrefer_fast.planning.request import REGION_TAG
from pixelrefer_fast.regions import Region

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SMALLEST = 640  # pixels of the long side: smaller pictures are enlarged so that outlines and numbers have room
LARGEST = 4096  # larger pictures are reduced
SHEET_FRAMES = 16  # frames of a contact sheet

_SHEET_WIDTH = 1600
_FILL = 0.2  # opacity of a region's colour
_HALO: Colour = (16, 16, 18)
_COLOURS: tuple[Colour, ...] = (
    (255, 176, 0),
    (64, 186, 255),
    (255, 92, 138),
    (94, 224, 108),
    (184, 138, 255),
    (255, 235, 82),
    (255, 122, 60),
    (0, 214, 194),
)


def colour(number: int) -> Colour:
    """The colour of region `number` (from 0): eight chosen by hand, then hues a golden angle apart."""
    if number < len(_COLOURS):
        return _COLOURS[number]
    step = number - len(_COLOURS) + 1
    r, g, b = colorsys.hsv_to_rgb(step * 0.618034 % 1.0, 0.55 + 0.3 * (step % 2), 1.0)
    return round(r * 255), round(g * 255), round(b * 255)


def check_writable(path: str | os.PathLike[str], suffixes: Sequence[str] = SUFFIXES) -> Path:
    """Return the path if a file can be written there, else raise a `ValueError` that says why not.

    No file is left behind. Meant to be called before the work whose result is to be saved.
    """
    target = Path(path)
    name = name_of(str(target))
    if target.suffix.lower() not in suffixes:
        raise ValueError(f"{name}: expected a file name ending in {', '.join(suffixes)}, got {shown(target.suffix)}")
    file_to_write(target)
    if not target.parent.is_dir():
        raise ValueError(f"{name}: the folder {name_of(str(target.parent))} does not exist")
    try:
        # Permission bits do not tell (root, read-only file systems, quotas); an actual file does.
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise ValueError(f"{name}: cannot write into {name_of(str(target.parent))}: {reason_of(error)}") from error
    return target


def save(picture: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write the picture under a temporary name, then rename it: no incomplete file ever has the name `path`."""
    target = check_writable(path)
    options: dict[str, Any] = {} if target.suffix.lower() == ".png" else {"quality": 92}
    with new_file(target) as beside:
        picture.save(beside, **options)
    return target


@dataclass(frozen=True)
class Frame:
    """A marked frame of a video: pixels (H, W, 3) uint8 RGB, the label under it, and masks by region number."""

    pixels: np.ndarray
    label: str
    masks: Mapping[int, np.ndarray]


def answers(
    media: np.ndarray | Video, regions: Sequence[Region], texts: Sequence[str] | str, *, title: str | None = None
) -> Image.Image:
    """Draw the `picture` of an image or the `contact_sheet` of a video, with one text per region, or one about all.

    `media` is the result of `media.open_media`. At most `SHEET_FRAMES` marked frames of a video are decoded.
    """
    if not isinstance(media, Video):
        height, width = media.shape[:2]
        return picture(media, (region.mask(height, width) for region in regions), texts, title=title)
    marked = [region.frames or () for region in regions]
    chosen = sheet_frames(marked)
    scale = min(1.0, _SHEET_WIDTH / max(media.height, media.width))  # a sheet shows no more, and memory stays bounded
    height, width = max(1, round(media.height * scale)), max(1, round(media.width * scale))
    frames = []
    for number, pixels in zip(chosen, media.read(chosen), strict=True):
        masks = {
            i: _scaled(region.mask(media.height, media.width, frame=number), width, height, scale)
            for i, region in enumerate(regions)
            if number in marked[i]
        }
        if scale < 1:
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        frames.append(Frame(pixels, f"frame {number} · {media.times[number]:.2f} s", masks))
    every = len({frame for numbers in marked for frame in numbers})
    if len(chosen) < every:
        title = f"{title} · " if title else ""
        title = f"{title}{len(chosen)} of {every} marked frames"
    return contact_sheet(frames, texts, title=title)


def picture(
    image: np.ndarray, masks: Iterable[np.ndarray], captions: Sequence[str] | str, *, title: str | None = None
) -> Image.Image:
    """Draw the image (H, W, 3) uint8 RGB with each region outlined and numbered from 0, and `captions` in a panel.

    `masks` are (H, W), non-zero where marked, one per caption (or one caption for all); they are read one at a time.
    Small images are enlarged by a whole factor and very large ones reduced. The panel is below wide pictures and beside
    tall ones, never on the image.
    """
    height, width = image.shape[:2]
    longest = max(height, width)
    scale = float(-(-SMALLEST // longest)) if longest < SMALLEST else min(1.0, LARGEST / longest)
    beside = height > 1.3 * width
    size = max(16, round(longest * scale / 56))
    marked = _marked(image, enumerate(masks), scale, size)
    entries = _entries(captions)
    if not entries and not title:
        return marked
    if beside:
        panel_width = max(marked.width, size * 24)
        panel = _captions.panel(entries, panel_width, size, title=title, tallest=max(marked.height, size * 24))
        canvas = Image.new("RGB", (marked.width + panel_width, max(marked.height, panel.height)), PAPER)
        canvas.paste(marked, (0, 0))
        canvas.paste(panel, (marked.width, 0))
        return canvas
    panel = _captions.panel(
        entries, marked.width, size, title=title, tallest=max(round(marked.height * 1.5), size * 30)
    )
    return _stacked(marked, panel)


def contact_sheet(frames: Sequence[Frame], captions: Sequence[str] | str, *, title: str | None = None) -> Image.Image:
    """Draw the marked frames of a video in a grid, each with its label below, and the captions of all regions at the
    end.

    `frames` are as many as `sheet_frames` chooses; a region has the same number and colour in every frame.
    `captions[i]` belongs to region i; one text belongs to all.
    """
    if not frames:
        raise ValueError("contact_sheet: expected at least one frame, got none")
    height, width = frames[0].pixels.shape[:2]
    columns = min(len(frames), max(1, round((len(frames) * height / width * 1.4) ** 0.5)), 6)
    gap, size = 16, 26
    cell = (_SHEET_WIDTH - gap * (columns + 1)) // columns
    tallest = max(cell, 1200 if len(frames) == 1 else 800)
    strip = round(size * 1.8)
    rows = []
    for start in range(0, len(frames), columns):
        row = Image.new("RGB", (_SHEET_WIDTH, tallest + strip), PAPER)
        lowest = 0
        for i, frame in enumerate(frames[start : start + columns]):
            tall, wide = frame.pixels.shape[:2]
            tile = _marked(frame.pixels, frame.masks.items(), min(cell / wide, tallest / tall), round(size * 0.9))
            left = gap + i * (cell + gap)
            row.paste(tile, (left + (cell - tile.width) // 2, gap))
            label = Image.new("RGB", (cell, strip - gap // 2), PAPER)
            ImageDraw.Draw(label).text(
                (cell / 2, label.height / 2),
                one_line(frame.label),
                MUTED,
                _captions.default_font(round(size * 0.85)),
                "mm",
            )
            row.paste(label, (left, gap + tile.height))
            lowest = max(lowest, gap + tile.height + label.height)
        rows.append(row.crop((0, 0, _SHEET_WIDTH, min(lowest, row.height))))
    entries = _entries(captions)
    if entries or title:
        tallest_panel = max(sum(row.height for row in rows), size * 40)
        rows.append(_captions.panel(entries, _SHEET_WIDTH, size, title=title, tallest=tallest_panel))
    return _stacked(*rows)


def numbered(question: str) -> str:
    """The question with the numbers that its regions have in a picture in place of their tags."""
    parts = question.split(REGION_TAG)
    return parts[0] + "".join(f"<{i}>{part}" for i, part in enumerate(parts[1:]))


def sheet_frames(marked: Sequence[Sequence[int]], limit: int = SHEET_FRAMES) -> list[int]:
    """Choose frame numbers for a contact sheet: at most `limit` of the frames in which a region is marked, in order.

    First one frame for each region in turn, as long as there is room; then the rest, evenly spread.
    """
    chosen: list[int] = []
    for region in marked:
        if region and len(chosen) < limit and not set(region) & set(chosen):
            chosen.append(sorted(region)[len(region) // 2])
    rest = sorted({frame for region in marked for frame in region} - set(chosen))
    room = limit - len(chosen)
    if len(rest) > room:
        rest = [rest[i * len(rest) // room] for i in range(room)]
    return sorted(chosen + rest)


def _entries(captions: Sequence[str] | str) -> list[Caption]:
    if isinstance(captions, str):
        return [Caption(None, PAPER, captions)]
    return [Caption(i, colour(i), text) for i, text in enumerate(captions)]


def _stacked(*parts: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), PAPER)
    top = 0
    for part in parts:
        canvas.paste(part, ((canvas.width - part.width) // 2, top))
        top += part.height
    return canvas


def _marked(image: np.ndarray, masks: Iterable[tuple[int, np.ndarray]], scale: float, size: int) -> Image.Image:
    """The scaled image with fills, outlines and number badges set at `size` pixels; masks are (number, (H, W))."""
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    # Enlarged pixels stay square blocks when there are few of them; photographs are enlarged smoothly.
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST if scale >= 8 else cv2.INTER_CUBIC
    pixels = np.ascontiguousarray(image)
    pixels = cv2.resize(pixels, (width, height), interpolation=method) if scale != 1 else pixels.copy()
    shapes: list[Shape] = []
    covered = np.zeros((height, width), np.uint8)  # by how many regions, up to 2
    for number, mask in masks:
        if mask.shape != image.shape[:2]:
            raise ValueError(
                f"region {number}: expected a mask of {image.shape[0]}x{image.shape[1]} (the image's height x width), "
                f"got {'x'.join(map(str, mask.shape))}"
            )
        marked = _scaled(mask, width, height, scale)
        rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
        if not rows.size:
            continue
        top, left = int(rows[0]), int(columns[0])
        box = np.s_[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
        inside = marked[box].astype(bool)
        area = pixels[box]
        area[inside] = (area[inside] * (1 - _FILL) + np.array(colour(number)) * _FILL).astype(np.uint8)
        np.minimum(covered[box] + marked[box], 2, out=covered[box])
        # The padding lets a region that fills its box be outlined all around.
        contours, _ = cv2.findContours(
            np.pad(marked[box], 1), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left - 1, top - 1)
        )
        shapes.append(Shape(number, colour(number), box, contours))
    line = max(2, round(size / 8))
    # Crowded pictures get smaller numbers.
    size = max(11, round(size * min(1.0, (24 / max(1, len(shapes))) ** 0.25)))
    rim = max(1, line // 2)
    badges = place(shapes, covered, size, 2 * rim + 1)
    for badge in badges:
        if badge.pointer:
            wide, tall = _captions.badge_size(badge.shape.number, size)
            middle = (badge.left + wide // 2, badge.top + tall // 2)
            cv2.line(pixels, middle, badge.pointer, _HALO, line + 2, cv2.LINE_AA)
            cv2.line(pixels, middle, badge.pointer, badge.shape.colour, max(1, line - 1), cv2.LINE_AA)
    for shape in shapes:
        cv2.drawContours(pixels, shape.contours, -1, _HALO, line + 2 * max(1, line // 2), cv2.LINE_AA)
    for shape in shapes:
        cv2.drawContours(pixels, shape.contours, -1, shape.colour, line, cv2.LINE_AA)
    result = Image.fromarray(pixels)
    draw = ImageDraw.Draw(result)
    for badge in badges:
        left, top, number = badge.left, badge.top, badge.shape.number
        wide, tall = _captions.badge_size(number, size)
        edge = (left - rim, top - rim, left + wide - 1 + rim, top + tall - 1 + rim)
        draw.rounded_rectangle(edge, tall * 0.32 + rim, fill=_HALO)
        _captions.draw_badge(draw, left, top, number, badge.shape.colour, size)
    return result


def _scaled(mask: np.ndarray, width: int, height: int, scale: float) -> np.ndarray:
    """The mask as 0/1 uint8 at the size of the scaled image; even a single marked pixel stays visible."""
    marked = (np.ascontiguousarray(mask) != 0).astype(np.uint8)
    if scale > 1:
        return cv2.resize(marked, (width, height), interpolation=cv2.INTER_NEAREST)
    if scale < 1:
        shares = cv2.resize(marked.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        return (shares > 0).astype(np.uint8)
    return marked
