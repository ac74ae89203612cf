"""Samples in the released training format: PixelRefer-2.2M's `masks` and VideoRefer-700K's `annotation`.

A sample is a JSON object with "image" or "video", "conversations" and the marked objects; see docs/training.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelrefer_fast.checks.values import check_size, is_integer, labelled, shown
from pixelrefer_fast.decoding.prompt import IMAGE_TOKEN, VIDEO_TAG, check_question
from pixelrefer_fast.planning.request import REGION_TAG, REGION_TOKEN
from pixelrefer_fast.regions import Region

SPEAKERS = ("human", "gpt")
MAX_FRAME_DIGITS = 9
_SCENE_TAGS = re.compile(rf"(?:{IMAGE_TOKEN}|{VIDEO_TAG})\n?")


@dataclass(frozen=True)
class Record:
    """One sample, checked as far as possible without its pixels.

    Attributes:
        media: path of its image, video or folder of frames.
        video: whether the media is a video.
        turns: (question, answer) pairs; the questions' `<region>` tags name the objects in order.
        objects: the marked objects.
        size: (height, width) given in the sample, if any.
        dropped: number of marked frames left out because the model takes one mask per object.
    """

    media: Path
    video: bool
    turns: tuple[tuple[str, str], ...]
    objects: tuple[Region, ...]
    size: tuple[int, int] | None
    dropped: int = 0


def parse_record(value: Any, media_root: Path, kind: str) -> Record:
    """Check one sample and make a Record of it.

    Args:
        value: the JSON value from the file.
        media_root: the folder that the sample's path is relative to.
        kind: kind of the model to train. "lite" sees marked objects only, so `<image>` and `<video>` tags are removed;
            "full" takes one mask per object, that of the first marked frame.

    Raises:
        ValueError: the sample is malformed; the message has the key, what was expected and what was given.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object, got {shown(value)}")
    video, media = _media(value, media_root)
    turns = _turns(value.get("conversations"), video, kind)
    size = _size(value)
    objects, size = _objects(value, video, size)
    tags = sum(question.count(REGION_TAG) for question, _ in turns)
    if tags != len(objects):
        raise ValueError(
            f"conversations: expected a {REGION_TAG} tag for each of the {len(objects)} marked object(s), got {tags}"
        )
    if kind == "lite" and not objects:
        raise ValueError("masks: expected at least one object, as PixelRefer-Lite sees marked objects only, got none")
    dropped = 0
    if kind == "full" and video:
        dropped = sum(len(region.marks) - 1 for region in objects)
        objects = [Region(region.marks[:1]) for region in objects]
    return Record(media, video, turns, tuple(objects), size, dropped)


def _media(value: Mapping[Any, Any], media_root: Path) -> tuple[bool, Path]:
    """Whether the media is a video, and its path, which must exist below `media_root`."""
    given = [key for key in ("image", "video") if value.get(key) is not None]
    if len(given) != 1:
        raise ValueError(f"expected either image or video, got {' and '.join(given) or 'neither'}")
    key = given[0]
    name = value[key]
    if isinstance(name, list) and len(name) == 1:  # some samples of the released files list their one image
        name = name[0]
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{key}: expected a path, got {shown(value[key])}")
    path = Path(os.path.normpath(media_root / name))
    if not path.is_relative_to(os.path.normpath(media_root)):
        raise ValueError(f"{key}: expected a path below {media_root}, got {shown(name)}")
    try:
        found = path.exists() if key == "video" else path.is_file()
    except OSError:  # a name that is too long
        found = False
    if not found:
        raise ValueError(
            f"{key}: expected an existing {'video' if key == 'video' else 'file'}, found no {shown(str(path))}"
        )
    return key == "video", path


def _turns(value: Any, video: bool, kind: str) -> tuple[tuple[str, str], ...]:
    """Pairs of question and answer, without the tags that the model does not take."""
    if not isinstance(value, list) or not value or len(value) % 2:
        raise ValueError(f"conversations: expected turns of human and gpt in pairs, got {_counted(value)}")
    texts: list[str] = []
    for number, turn in enumerate(value):
        speaker = SPEAKERS[number % 2]
        with labelled(f"conversations {number}"):
            if not isinstance(turn, Mapping) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
                raise ValueError(f'expected {{"from": "{speaker}", "value": text}}, got {shown(turn)}')
            text = turn["value"]
            texts.append(_question(text, number == 0, video, kind) if speaker == "human" else _answer(text))
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _question(text: str, first: bool, video: bool, kind: str) -> str:
    tags = text.count(IMAGE_TOKEN) + text.count(VIDEO_TAG)
    own, other = (VIDEO_TAG, IMAGE_TOKEN) if video else (IMAGE_TOKEN, VIDEO_TAG)
    if tags and (not first or tags > 1 or other in text):
        raise ValueError(f"expected at most one {own}, in the first turn, got {shown(text)}")
    if REGION_TOKEN in text:
        raise ValueError(f"expected no {REGION_TOKEN}, which is reserved for object tokens, got {shown(text)}")
    if kind == "lite":
        text = _SCENE_TAGS.sub("", text)
    check_question(text)
    return text


def _answer(text: str) -> str:
    for tag in (REGION_TAG, REGION_TOKEN, IMAGE_TOKEN, VIDEO_TAG):
        if tag in text:
            raise ValueError(f"expected an answer without {tag}, got {shown(text)}")
    if not text.strip() or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError(f"expected an answer in whole characters, got {shown(text)}")
    return text


def _size(value: Mapping[Any, Any]) -> tuple[int, int] | None:
    """(height, width) as given in the sample, checked."""
    sides = [value.get(key) for key in ("height", "width")]
    if sides == [None, None]:
        return None
    if not all(is_integer(side) for side in sides):
        raise ValueError(
            f"height, width: expected two whole numbers of pixels, got {shown(sides[0])}, {shown(sides[1])}"
        )
    height, width = (int(side) for side in sides)  # type: ignore[arg-type]  # checked above
    check_size(height, width, "height, width")
    return height, width


def _objects(
    value: Mapping[Any, Any], video: bool, size: tuple[int, int] | None
) -> tuple[list[Region], tuple[int, int] | None]:
    """The marked objects, and the size given by the sample or its run lengths."""
    given = [key for key in ("masks", "annotation") if value.get(key) is not None]
    if len(given) > 1:
        raise ValueError("expected either masks or annotation, got both")
    if not given:
        return [], size
    key = given[0]
    entries = value[key]
    if not isinstance(entries, list):
        raise ValueError(f"{key}: expected a list with an entry for each object, got {shown(entries)}")
    marks: list[list[tuple[int | None, Any]]] = []
    for number, entry in enumerate(entries):
        with labelled(f"{key} {number}"):
            marks.append(_frames(entry) if video else _image(entry))
    size = _common_size(key, marks, size)
    regions = []
    for number, frames in enumerate(marks):
        shapes = []
        for frame, mask in frames:
            with labelled(f"{key} {number}" if frame is None else f"{key} {number}, frame {frame}"):
                shapes.append((frame, _region(mask, size).marks[0][1]))
        regions.append(Region(tuple(shapes)))
    return regions, size


def _image(entry: Any) -> list[tuple[int | None, Any]]:
    """The one mask of an object of an image."""
    mask = _mask(entry)
    if mask is None:
        raise ValueError(f"expected run lengths or polygons, got {shown(entry)}")
    return [(None, mask)]


def _frames(entry: Any) -> list[tuple[int | None, Any]]:
    """The masks of an object of a video by frame; frames without one are left out."""
    if not isinstance(entry, Mapping) or not entry:
        raise ValueError(f"expected an object of frame numbers and masks, got {shown(entry)}")
    found: dict[int, Any] = {}
    for key, mask in entry.items():
        text = str(key)
        if not (text.isascii() and text.isdigit() and len(text) <= MAX_FRAME_DIGITS):
            raise ValueError(f"expected frame numbers from 0 on, got {shown(key)}")
        if int(text) in found:
            raise ValueError(f"expected each frame once, got {int(text)} twice")
        found[int(text)] = _mask(mask)
    marked = [(frame, mask) for frame, mask in sorted(found.items()) if mask is not None]
    if not marked:
        raise ValueError("expected a mask in at least one frame, got none")
    return marked  # type: ignore[return-value]  # lists are invariant


def _mask(value: Any) -> Any:
    """Run lengths or polygons, taken out of VideoRefer's {"segmentation": ...}; None where there are none."""
    if isinstance(value, Mapping) and "counts" not in value:
        if value and "segmentation" not in value:
            raise ValueError(f"expected run lengths, polygons or a segmentation of them, got {shown(value)}")
        value = value.get("segmentation")
    if value is None or value == []:
        return None
    if not isinstance(value, (Mapping, list)) or (isinstance(value, Mapping) and "counts" not in value):
        raise ValueError(f"expected run lengths or polygons, got {shown(value)}")
    return value


def _common_size(
    key: str, marks: list[list[tuple[int | None, Any]]], size: tuple[int, int] | None
) -> tuple[int, int] | None:
    """The size shared by all run lengths and the sample; ValueError if two differ."""
    for number, frames in enumerate(marks):
        for _, mask in frames:
            if not isinstance(mask, Mapping):
                continue
            given = mask.get("size")
            if not isinstance(given, list) or len(given) != 2 or not all(map(is_integer, given)):
                raise ValueError(f"{key} {number}: size: expected [height, width], got {shown(given)}")
            own = (int(given[0]), int(given[1]))
            if size is not None and own != size:
                raise ValueError(
                    f"{key} {number}: expected a mask of {size[0]}x{size[1]} (height x width), got {own[0]}x{own[1]}"
                )
            size = own
    return size


def _region(mask: Any, size: tuple[int, int] | None) -> Region:
    if isinstance(mask, Mapping):
        return Region.from_rle(mask)
    if size is None:
        raise ValueError("expected height and width in the sample, which polygons need, got neither")
    return Region.from_polygon(mask, size)


def _counted(value: Any) -> str:
    return f"{len(value)} turns" if isinstance(value, list) else shown(value)
