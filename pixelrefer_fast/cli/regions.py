"""Regions on the command line, in the order in which they were given."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from pixelrefer_fast.cli.options import Marks, SeenFrames

if TYPE_CHECKING:
    import numpy as np

    from pixelrefer_fast.batching.asks import Answer
    from pixelrefer_fast.media.video import Video
    from pixelrefer_fast.regions import Region

MAX_JSON_BYTES = 256 * 2**20
_ORDER = "pixelrefer_fast.options_in_order"


class InOrder(TyperCommand):
    """A command that remembers in which order its options were given, across different options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # The parser reports an entry per occurrence; click itself then groups the values by option.
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_ORDER] = [parameter.name for parameter in order]
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class GivenRegion:
    """A region and the words on the command line that it comes from."""

    given: str
    region: Region


def marked_media(
    ctx: typer.Context, source: str, marks: Marks, seen: SeenFrames
) -> tuple[np.ndarray | Video, list[GivenRegion]]:
    """The image array or the video, and the regions of the command line, each tried on it.

    Raises:
        ValueError: the file, the option or its value is at fault, or nothing is marked.
    """
    from pixelrefer_fast.media import open_media
    from pixelrefer_fast.media.video import Video

    media = open_media(source)
    regions = given_regions(ctx, media, marks)
    if not regions:
        raise ValueError("expected at least one region (--box, --mask, --polygon, ...), got none")
    if not isinstance(media, Video):
        seen.refuse(f"the image {source}")
    return media, regions


def given_regions(ctx: typer.Context, media: np.ndarray | Video, marks: Marks) -> list[GivenRegion]:
    """The regions of the command line in order, bound to --frame where they name no frames, each tried on the media.

    Raises ValueError that names the option and its value. The command's class is `InOrder`.
    """
    from pixelrefer_fast.media.video import Video

    frame = marks.frame
    left = {name: list(getattr(marks, name) or ()) for name in _READERS}
    marked: list[GivenRegion] = []
    for name in ctx.meta[_ORDER]:
        if name not in left:
            continue
        option, read = _READERS[name]
        value = left[name].pop(0)
        label = f"{option} {value}"
        try:
            regions = read(value)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{label}: {error}") from error
        numbered = len(regions) > 1 or name == "region_files"
        marked += [GivenRegion(f"{label} [{i}]" if numbered else label, region) for i, region in enumerate(regions)]
    if frame is not None and not isinstance(media, Video):
        raise ValueError(f"--frame {frame}: expected a video, got an image")
    if isinstance(media, Video):
        marked = [_in_video(one, media, frame) for one in marked]
    elif bound := next((one for one in marked if one.region.frames is not None), None):
        raise ValueError(f"{bound.given}: expected a region of an image, got one bound to frames of a video")
    marked = _segmented(marked, media, marks.segmenter)
    for one in marked:
        for number in one.region.frames or (None,):
            one.region.boxed(*_size(media), number, name=one.given)
    return marked


def _size(media: np.ndarray | Video) -> tuple[int, int]:
    from pixelrefer_fast.media.video import Video

    return (media.height, media.width) if isinstance(media, Video) else media.shape[:2]


def _segmented(marked: list[GivenRegion], media: np.ndarray | Video, name: str) -> list[GivenRegion]:
    """With masks where there were points; each is told on stderr before it is used."""
    if not any(one.region.has_points for one in marked):
        return marked
    import numpy as np

    from pixelrefer_fast.segmenting import load_segmenter, marked_by

    segmenter = load_segmenter(name)
    made = marked_by(segmenter, media, [one.region for one in marked], [one.given for one in marked])
    for one, region in zip(marked, made, strict=True):
        if one.region.has_points:
            for number in region.frames or (None,):
                rows, columns = np.nonzero(region.mask(*_size(media), number, name=one.given))
                print(
                    f"{one.given}: {segmenter.name} marks {len(rows)} pixels from {columns.min()},{rows.min()} to "
                    f"{columns.max()},{rows.max()}" + ("" if number is None else f" in frame {number}"),
                    file=sys.stderr,
                )
    return [GivenRegion(one.given, region) for one, region in zip(marked, made, strict=True)]


def listed(regions: list[GivenRegion], answers: Sequence[Answer] | None = None) -> list[dict[str, Any]]:
    """Regions as --json shows them, each with its text and how that ended."""
    found: list[dict[str, Any]] = []
    for i, one in enumerate(regions):
        frames = one.region.frames
        found.append({"region": i, "given": one.given, "frames": None if frames is None else list(frames)})
        if answers is not None:
            found[-1] |= {"text": answers[i].text, "finish_reason": answers[i].finish_reason}
    return found


def region_reader(form: str) -> Callable[[str], Sequence[Region]]:
    """What reads the value of an option that marks regions, by the option's name: "box", "mask", ..."""
    return next(read for option, read in _READERS.values() if option == f"--{form}")


def _in_video(one: GivenRegion, video: Video, frame: int | None) -> GivenRegion:
    from pixelrefer_fast.regions import Region

    if one.region.frames is None:
        if frame is None:
            raise ValueError(f"{one.given}: in a video, give --frame N with the number of the frame that it marks")
        one = GivenRegion(one.given, Region.from_frames({frame: one.region}))
    for number in one.region.frames or ():
        if number >= len(video):
            last = len(video) - 1
            raise ValueError(f"{one.given}: expected a frame from 0 to {last} of this video, got {number}")
    return one


def _numbers(text: str, count: int, form: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise ValueError(f"expected {form} in pixels, numbers with commas between")
    return numbers


def _points(text: str, form: str) -> list[list[float]]:
    return [_numbers(pair, 2, form) for pair in text.split()]


def _box(text: str) -> list[Region]:
    from pixelrefer_fast.regions import Region

    return [Region.from_box(xyxy=_numbers(text, 4, "X0,Y0,X1,Y1"))]


def _sized_box(text: str) -> list[Region]:
    from pixelrefer_fast.regions import Region

    return [Region.from_box(xywh=_numbers(text, 4, "X,Y,W,H"))]


def _polygon(text: str) -> list[Region]:
    from pixelrefer_fast.regions import Region

    corners = _points(text, '"X,Y X,Y X,Y"')
    if len(corners) < 3:
        raise ValueError(f'expected "X,Y X,Y X,Y" with at least 3 corners, got {len(corners)}')
    return [Region.from_polygon([[number for corner in corners for number in corner]])]


def _scribble(text: str) -> list[Region]:
    from pixelrefer_fast.regions import Region

    points, colon, width = text.rpartition(":")
    if not colon:
        raise ValueError('expected "X,Y X,Y:WIDTH", got no ":WIDTH"')
    return [Region.from_scribble(_points(points, '"X,Y X,Y:WIDTH"'), _numbers(width, 1, "WIDTH")[0])]


def _clicks(text: str) -> list[Region]:
    from pixelrefer_fast.regions import Region

    form = '"X,Y X,Y:0"'
    pairs = [pair.partition(":") for pair in text.split()]
    for *_, label in pairs:
        if label not in ("", "0", "1"):
            raise ValueError(f"expected {form} with :0 for a point beside the object, got :{label}")
    points = [_numbers(pair, 2, form) for pair, *_ in pairs]
    return [Region.from_points(points, [label != "0" for *_, label in pairs])]


def _mask(path: str) -> list[Region]:
    import numpy as np
    from PIL import ImageOps

    from pixelrefer_fast.media.images import open_pil
    from pixelrefer_fast.regions import Region

    with open_pil(path, "mask") as image:
        if image.format in ("JPEG", "MPO"):
            raise ValueError("expected a PNG or another format without losses, got a JPEG, which blurs a mask's edges")
        try:
            image = ImageOps.exif_transpose(image)
            if image.mode == "P":
                image = image.convert("RGBA" if "transparency" in image.info else "RGB")
            pixels = np.asarray(image)
        except MemoryError:  # says nothing about the file
            raise
        except Exception as error:  # Pillow's decoders raise many kinds on damaged data
            raise ValueError(f"expected a complete image file, its pixels cannot be decoded: {error}") from None
    if pixels.ndim == 3:
        alpha = pixels[..., -1] if pixels.shape[2] in (2, 4) else None
        colours = pixels if alpha is None else pixels[..., :-1]
        marked = colours.any(axis=2) if alpha is None or alpha.all() else alpha != 0
    else:
        marked = pixels != 0
    return [Region.from_mask(marked)]


def _rle(path: str) -> list[Region]:
    from pixelrefer_fast.regions import Region

    content = _json(path)
    if isinstance(content, list):
        raise ValueError("expected one RLE, got a list, which goes to --regions")
    annotation = isinstance(content, dict) and "segmentation" in content
    return [Region.of(content) if annotation else Region.from_rle(content)]


def _region_file(path: str) -> list[Region]:
    from pixelrefer_fast.regions import as_regions

    regions = as_regions(_json(path))
    if not regions:
        raise ValueError("expected at least one region, got an empty list")
    return regions


def _json(path: str) -> Any:
    from pixelrefer_fast.media.images import regular_file

    file: Path = regular_file(path)
    size = file.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"expected at most {MAX_JSON_BYTES} bytes of JSON, got {size}")
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError("expected JSON, got brackets nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"expected JSON, but {error}") from None


_READERS: dict[str, tuple[str, Callable[[str], Sequence[Any]]]] = {
    "boxes": ("--box", _box),
    "sized_boxes": ("--xywh", _sized_box),
    "masks": ("--mask", _mask),
    "rles": ("--rle", _rle),
    "polygons": ("--polygon", _polygon),
    "scribbles": ("--scribble", _scribble),
    "points": ("--point", _clicks),
    "region_files": ("--regions", _region_file),
}
