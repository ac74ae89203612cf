"""URLs of a request -> images and videos within the limits."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from pixelrefer_fast.checks.values import shown
from pixelrefer_fast.media import Media, Video, open_media
from pixelrefer_fast.regions import Region
from pixelrefer_fast.serving.fetching import Fetcher
from pixelrefer_fast.serving.limits import Limits

_MARKED = re.compile(r"xywh=(?:(pixel|percent):)?([0-9.]+),([0-9.]+),([0-9.]+),([0-9.]+)")


@dataclass(frozen=True)
class Fetched:
    """What a URL holds.

    Attributes:
        media: the image or the video.
        marked: what the URL itself marks: its fragment, or an image's alpha channel.
    """

    media: Media
    marked: tuple[Region, ...]


class MediaReader:
    """Reads data: URLs; where there are roots, file: URLs of files below one; where there are hosts, what these have.

    Args:
        limits: on pixels, frames and bytes.
        roots: folders.
        hosts: as `fetching.Fetcher` takes them.
    """

    def __init__(self, limits: Limits, roots: tuple[Path, ...] = (), hosts: Sequence[str] = ()) -> None:
        self._limits = limits
        self._fetcher = Fetcher(hosts, limits.body_bytes, limits.body_seconds)
        self._roots = tuple(root.resolve(strict=True) for root in roots)

    def image(self, url: str, param: str) -> Fetched:
        """An image (H, W, 3) uint8.

        Raises:
            ValueError: naming `param`, what was expected and what came.
        """
        content, fragment = self._content(url, param)
        alpha = self.check_image(content, param)
        media = open_media(content)
        if isinstance(media, Video):
            raise ValueError(f"{param}: expected an image, got a video or an animation; send it as a video_url")
        height, width = media.shape[:2]
        marked = _fragment(fragment, height, width, param)
        if not marked and alpha is not None:
            marked = (Region.from_mask(alpha),)
        return Fetched(media, marked)

    def video(self, url: str, param: str) -> Fetched:
        """A video; ValueError as `image`."""
        content, fragment = self._content(url, param)
        media = open_media(content)
        if not isinstance(media, Video):
            raise ValueError(f"{param}: expected a video, got an image; send it as an image_url")
        if fragment:
            raise ValueError(f"{param}: expected no fragment in a video's URL, got {shown(fragment)}")
        self._check_video(media, param)
        return Fetched(media, ())

    def read(self, content: bytes, param: str) -> Media:
        """The image or the video of a file; ValueError as `image`."""
        self.check_image(content, param)
        try:
            media = open_media(content)
        except ValueError as error:
            raise ValueError(f"{param}: {error}") from None
        if isinstance(media, Video):
            self._check_video(media, param)
        return media

    def _content(self, url: str, param: str) -> tuple[bytes, str]:
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            head, comma, rest = url.partition(",")
            if not comma or not head.lower().endswith(";base64"):
                raise ValueError(f"{param}: expected data:TYPE;base64,..., got {shown(url)}")
            data, _, fragment = rest.partition("#")
            return decoded(data, param), fragment
        if scheme == "file":
            parts = urlsplit(url)
            return self._file(unquote(parts.path), param), parts.fragment
        return self._fetcher.fetch(url, param), urlsplit(url).fragment

    def _file(self, name: str, param: str) -> bytes:
        refused = ValueError(f"{param}: expected a data: URL, or a file: URL of a file that this server shares")
        try:
            path = Path(name).resolve(strict=True)
            inside = any(path.is_relative_to(root) for root in self._roots)
            if not inside or not path.is_file() or path.stat().st_size > self._limits.body_bytes:
                raise refused
            return path.read_bytes()
        except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a circle
            raise refused from None

    def check_image(self, content: bytes, param: str) -> np.ndarray | None:
        """Pixels are counted before any is decoded; where it is transparent in parts, the mask (H, W) bool of the
        rest.

        Raises:
            ValueError: it has too many.
        """
        from PIL import ImageOps

        from pixelrefer_fast.media.images import NotAnImage, open_pil

        try:
            with open_pil(content, param) as image:
                self._check_pixels(image.height, image.width, param)
                if image.mode not in ("RGBA", "LA", "PA"):
                    return None
                alpha = np.asarray(ImageOps.exif_transpose(image).getchannel("A")) > 0
        except NotAnImage:  # what opens it next says what it is
            return None
        except ValueError:
            raise
        except Exception:  # Pillow raises many kinds on damaged data, which is told when all of it is read
            return None
        return alpha if alpha.any() and not alpha.all() else None

    def _check_video(self, video: Video, param: str) -> None:
        self._check_pixels(video.height, video.width, param)
        if len(video) > self._limits.frames:
            raise ValueError(f"{param}: expected at most {self._limits.frames} frames, got {len(video)}")

    def _check_pixels(self, height: int, width: int, param: str) -> None:
        if height * width > self._limits.pixels:
            raise ValueError(f"{param}: expected at most {self._limits.pixels} pixels, got {height}x{width}")


def decoded(data: str, param: str) -> bytes:
    """Of base64."""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{param}: expected base64, got {shown(data)}") from None


def _fragment(fragment: str, height: int, width: int, param: str) -> tuple[Region, ...]:
    """The box of a media fragment (https://www.w3.org/TR/media-frags/#naming-space): xywh=[pixel:|percent:]x,y,w,h."""
    if not fragment:
        return ()
    found = _MARKED.fullmatch(fragment)
    if found is None:
        raise ValueError(f"{param}: expected a fragment xywh=x,y,w,h or none, got {shown(fragment)}")
    try:
        x, y, w, h = (float(number) for number in found.groups()[1:])
    except ValueError:
        raise ValueError(f"{param}: expected four numbers in the fragment, got {shown(fragment)}") from None
    if found[1] == "percent":
        x, y, w, h = x * width / 100, y * height / 100, w * width / 100, h * height / 100
    return (Region.from_box(xywh=(x, y, w, h)),)
