"""Lines of `describe --batch`: one JSON object each -> requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from pixelrefer_fast.batching import Ask
from pixelrefer_fast.checks.safe_files import parse_json
from pixelrefer_fast.checks.values import is_integer, labelled, shown
from pixelrefer_fast.cli.regions import region_reader
from pixelrefer_fast.decoding.prompt import check_question
from pixelrefer_fast.planning.request import REGION_TAG
from pixelrefer_fast.regions import Region, as_regions

MAX_LINE = 1 << 26  # bytes; a mask of 89 megapixels as run lengths is far smaller
MEDIA = ("image", "video")
REGIONS = ("box", "xywh", "mask", "rle", "polygon", "scribble", "point", "regions")
FILES = (*MEDIA, "mask", "rle", "regions")  # whose texts are paths
OPTIONS = (
    *("max_new_tokens", "min_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "stop", "stop_token_ids"),
    *("fps", "max_frames", "frames"),
)
KEYS = ("id", *MEDIA, *REGIONS, "frame", "question", *OPTIONS)


@dataclass(frozen=True)
class RequestLine:
    """One line of the input that holds a request.

    Attributes:
        number: counted from 1.
        id: the caller's name for it, any JSON value; None without one.
        asks: a request for each text that is wanted.
        files: the paths that it names.
    """

    number: int
    id: Any
    asks: tuple[Ask, ...]
    files: tuple[str, ...]


class BadLine(ValueError):
    """A line that holds no request; `id` is known where that much of it could be read."""

    def __init__(self, number: int, id: Any, reason: str) -> None:
        super().__init__(reason)
        self.number = number
        self.id = id


def read_lines(file: BinaryIO, after: int = 0) -> Iterator[tuple[int, bytes | None]]:
    """Number and content of each line that is not blank; None for one that is longer than MAX_LINE.

    Args:
        file: at its beginning.
        after: leave out the lines up to this number.
    """
    number = 0
    while data := file.readline(MAX_LINE):
        number += 1
        long = len(data) == MAX_LINE and not data.endswith(b"\n")
        while long and (more := file.readline(MAX_LINE)) and not more.endswith(b"\n"):
            pass
        if number > after and (long or data.strip()):
            yield number, None if long else data


def parse_line(number: int, data: bytes | None, question: str | None = None) -> RequestLine:
    """The requests of a line.

    Args:
        number: the line's.
        data: its bytes; None where it was too long to be read.
        question: asked where the line has none.

    Raises:
        BadLine: what is wrong with it.
    """
    own_id = None
    try:
        if data is None:
            raise ValueError(f"expected at most {MAX_LINE} bytes in a line, got more")
        fields = parse_json(data, "line")
        own_id = fields.get("id")
        return RequestLine(number, own_id, _asks(fields, question), _files(fields))
    except (ValueError, OverflowError, RecursionError) as error:
        raise BadLine(number, own_id, str(error)) from None


def line_facts(data: bytes | None) -> tuple[Any, tuple[str, ...]]:
    """The id of a line and the paths that it names, as far as it can be read; `data` as `parse_line` takes it."""
    try:
        fields = parse_json(data or b"", "line")
    except (ValueError, OverflowError, RecursionError):
        return None, ()
    return fields.get("id"), _files(fields)


def _files(fields: dict[str, Any]) -> tuple[str, ...]:
    return tuple(value for key in FILES if isinstance(value := fields.get(key), str))


def _asks(fields: dict[str, Any], question: str | None) -> tuple[Ask, ...]:
    unknown = sorted(set(fields) - set(KEYS))
    if unknown:
        raise ValueError(f"expected some of {', '.join(KEYS)}, got {shown(unknown)}")
    media = [key for key in MEDIA if key in fields]
    if len(media) != 1:
        raise ValueError(f'expected either "image" or "video", got {" and ".join(media) or "neither"}')
    path = fields[media[0]]
    if not isinstance(path, str) or not path:
        raise ValueError(f"{media[0]}: expected a path, got {shown(path)}")
    regions = _regions(fields)
    if not regions:
        raise ValueError(f"expected at least one region ({', '.join(REGIONS)}), got none")
    question = fields.get("question", question)
    tags = 1
    if question is not None:
        check_question(question)
        tags = question.count(REGION_TAG)
        if tags not in (1, len(regions)):
            raise ValueError(
                f"question: expected one {REGION_TAG} tag, which stands for each region in turn, or one for each of "
                f"the {len(regions)} regions, got {tags}"
            )
    options = {key: fields[key] for key in OPTIONS if fields.get(key) is not None}
    together = len(regions) > 1 and tags == len(regions)
    asks = []
    for number, marked in enumerate([regions] if together else [[region] for region in regions]):
        ask = Ask(path, question, marked)
        ask.options = options
        ask.first_region = 0 if together else number
        asks.append(ask)
    return tuple(asks)


def _regions(fields: dict[str, Any]) -> list[Region]:
    """The regions of a line in the order of its keys, bound to its frame."""
    regions: list[Region] = []
    for key, value in fields.items():
        if key in REGIONS:
            with labelled(key):
                regions += _marked(key, value)
    frame = fields.get("frame")
    if frame is None:
        return regions
    if not is_integer(frame) or frame < 0:
        raise ValueError(f"frame: expected the number of a frame, got {shown(frame)}")
    if "video" not in fields:
        raise ValueError(f"frame: expected a video, got an image and frame {frame}")
    return [region if region.frames is not None else Region.from_frames({frame: region}) for region in regions]


def _marked(key: str, value: Any) -> list[Region]:
    if key == "regions":
        if not isinstance(value, list):
            raise ValueError(f"expected a list of regions, got {shown(value)}")
        return as_regions([Region.of(one) for one in value])
    if isinstance(value, str):  # as on the command line
        return list(region_reader(key)(value))
    if key not in _FORMS:
        raise ValueError(f"expected the path of a file, got {shown(value)}")
    return [_FORMS[key](value)]


_FORMS: dict[str, Callable[[Any], Region]] = {
    "box": lambda value: Region.from_box(xyxy=value),
    "xywh": lambda value: Region.from_box(xywh=value),
    "polygon": Region.from_polygon,
    "rle": Region.of,
    "point": Region.from_points,
    "scribble": lambda value: Region.of({"type": "scribble", **_mapping(value)}),
}


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != {"points", "width"}:
        raise ValueError(f'expected {{"points": [[x, y], ...], "width": w}}, got {shown(value)}')
    return value
