"""Damaged bytes of images and videos: pixels, or a ValueError; never other pixels where a check sum could tell."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fuzzing import Fuzzer, damaged
from media_files import encode
from PIL import Image

from pixelrefer_fast.media import open_media
from pixelrefer_fast.media.video import Video

FORMATS = ("PNG", "GIF", "WEBP", "JPEG", "BMP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000")
VIDEOS = {"mp4": "libx264", "mkv": "libx264", "avi": "mpeg4", "webm": "libvpx", "flv": "flv", "ts": "libx264"}


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    smooth = np.linspace(0, 255, 24 * 31 * 3).reshape(24, 31, 3)
    frames = [
        Image.fromarray((smooth + rng.integers(0, 30, smooth.shape)).clip(0, 255).astype(np.uint8)) for _ in range(3)
    ]
    for form in FORMATS:
        data = io.BytesIO()
        frames[0].save(data, form)
        found.append(data.getvalue())
    for form in ("PNG", "GIF", "WEBP"):
        data = io.BytesIO()
        frames[0].save(data, form, save_all=True, append_images=frames[1:], duration=40)
        found.append(data.getvalue())
    return found


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("videos")
    return [encode(folder / f"a.{end}", 12, codec=codec, b_frames=0).read_bytes() for end, codec in VIDEOS.items()]


def _opened(data: bytes) -> str:
    media = open_media(data)
    if not isinstance(media, Video):
        assert media.ndim == 3
        assert media.shape[2] == 3
        assert media.dtype == np.uint8
        return "image"
    assert len(media.times) == len(media) > 0
    for frame in media.read(sorted({0, len(media) // 2, len(media) - 1})):
        assert frame.shape == (media.height, media.width, 3)
    return "video"


def test_damaged_pictures(fuzzer: Fuzzer, pictures: list[bytes]) -> None:
    fuzzer.run("bytes of images", lambda rng: _opened(damaged(pictures[rng.integers(len(pictures))], rng)), 700)


def test_damaged_videos(fuzzer: Fuzzer, videos: list[bytes]) -> None:
    fuzzer.run("bytes of videos", lambda rng: _opened(damaged(videos[rng.integers(len(videos))], rng)), 120)


def test_no_png_is_read_with_other_pixels(fuzzer: Fuzzer, pictures: list[bytes]) -> None:
    """Whatever is damaged: what is read has the pixels it was written with."""
    whole = {0: pictures[FORMATS.index("PNG")], 1: pictures[len(FORMATS)]}
    expected = {0: open_media(whole[0])}
    animation = open_media(whole[1])
    assert isinstance(animation, Video)
    frames = list(animation.read(range(3)))

    def case(rng: np.random.Generator) -> str:
        which = int(rng.integers(2))
        media = open_media(damaged(whole[which], rng))
        if isinstance(media, Video):
            assert all(np.array_equal(a, b) for a, b in zip(media.read(range(3)), frames, strict=True))
            return "same frames"
        assert np.array_equal(media, expected[0] if which == 0 else frames[0])
        return "same pixels"

    fuzzer.run("bytes of PNG", case, 700)
