"""Files that end too early, and files that were changed on the way: told, whatever the container."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from media_files import encode
from PIL import Image, features

from pixelrefer_fast.media import open_media
from pixelrefer_fast.media.completeness import Incomplete, count_gif_frames, declares_length
from pixelrefer_fast.media.images import load_image

PIXELS = np.random.default_rng(3).integers(0, 256, (24, 32, 3), dtype=np.uint8)
VIDEOS = {
    "avi": ("libx264", True),
    "mkv": ("libx264", True),
    "webm": ("libvpx-vp9", True),
    "flv": ("flv", True),
    "mp4": ("libx264", True),
    "mov": ("libx264", True),
    "wmv": ("wmv2", True),
    "ivf": ("libvpx-vp9", True),
    "ts": ("libx264", False),
    "mpg": ("libx264", False),
    "h264": ("libx264", False),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        form: encode(folder / f"clip.{form}", 24, codec=codec, b_frames=0).read_bytes()
        for form, (codec, _) in VIDEOS.items()
    }


@pytest.mark.parametrize("form", VIDEOS)
def test_a_video_cut_anywhere_is_told(form: str, videos: dict[str, bytes]) -> None:
    """By an error where the container declares its length, else by a warning with the number of frames."""
    data, declares = videos[form], VIDEOS[form][1]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert len(open_media(data)) == 24
    assert bool(said) == (not declares)
    for end in np.random.default_rng(1).integers(len(data) // 4, len(data) - 200, 8):
        if declares:
            with pytest.raises(ValueError, match="expected"):
                open_media(data[:end])
            continue
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                open_media(data[:end])
            except ValueError:
                continue  # nothing of it can be read
        assert re.search(r"does not say how long it is; it has \d+ frames", str(said[0].message))


def _animation(form: str, count: int = 5) -> bytes:
    frames = [Image.fromarray(np.roll(PIXELS, 3 * i, 1)) for i in range(count)]
    data = io.BytesIO()
    frames[0].save(data, form, save_all=True, append_images=frames[1:], duration=50)
    return data.getvalue()


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("count", [1, 5])
def test_a_picture_cut_anywhere_is_told(form: str, count: int) -> None:
    if not features.check(form.lower()) and form in ("WEBP", "AVIF"):
        pytest.skip(f"this Pillow is built without {form}")
    data = _animation(form, count)
    open_media(data)
    for end in [*range(13, len(data), max(1, len(data) // 40)), len(data) - 1]:
        with pytest.raises(ValueError, match="expected"):
            open_media(data[:end])
        with pytest.raises(ValueError, match="expected"):
            load_image(data[:end])


def test_no_bit_of_a_png_changes_unseen() -> None:
    data = io.BytesIO()
    Image.fromarray(PIXELS).save(data, "PNG")
    whole, rng = data.getvalue(), np.random.default_rng(2)
    for at in rng.integers(8, len(whole), 300):
        changed = bytearray(whole)
        changed[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(ValueError, match="expected"):
            load_image(bytes(changed))


def test_bytes_behind_the_end_are_nobodys() -> None:
    for form in ("PNG", "GIF", "WEBP"):
        data = _animation(form)
        assert len(open_media(data + b"\n" * 9)) == 5


def test_frames_of_a_gif_are_counted_without_decoding() -> None:
    for count in (1, 2, 7):
        data = _animation("GIF", count)
        assert count_gif_frames(data) == count
        with pytest.raises(Incomplete, match=f"after {count} whole frames, without a trailer"):
            count_gif_frames(data[:-1])


def _bomb(side: int, frames: int) -> bytes:
    """A GIF of single pixels on a large screen."""
    frame = b"!\xf9\x04\x08\x00\x00\x00\x00" + b"," + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02D\x01\x00"
    return b"GIF89a" + struct.pack("<2H3B", side, side, 0x80, 0, 0) + bytes(6) + frame * frames + b";"


@pytest.mark.parametrize(("side", "frames"), [(9400, 4), (9400, 150), (2000, 200), (300, 5000)])
def test_animations_that_take_long_to_decode_are_refused_before(side: int, frames: int) -> None:
    data, start = _bomb(side, frames), time.process_time()
    with pytest.raises(ValueError, match=rf"pixels in all frames of a file of \d+ bytes, got {frames} frames"):
        open_media(data)
    assert time.process_time() - start < 20  # one alone takes longer when it is decoded
    assert len(open_media(_bomb(30, 40))) == 40


def test_large_animations_of_real_content_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelrefer_fast.media import video

    monkeypatch.setattr(video, "MAX_ANIMATION_PIXELS", 100)
    assert len(open_media(_animation("GIF"))) == 5
    with pytest.raises(ValueError, match="expected at most"):
        open_media(_bomb(100, 40))


@pytest.mark.parametrize("by", [np.asarray, "torch"])
def test_half_precision_is_as_exact_as_single(by: Callable[[object], object] | str) -> None:
    import torch

    values = (np.arange(256) / 255).astype(np.float16).reshape(16, 16)
    image = load_image(torch.from_numpy(values) if by == "torch" else values)
    assert np.array_equal(image[:, :, 0].ravel(), np.rint(values.astype(np.float64) * 255).ravel())
    dense = np.arange(0, 15361, dtype=np.uint16).view(np.float16)[None]  # every half from 0 to 1
    assert np.array_equal(load_image(dense)[0, :, 0], np.rint(dense[0].astype(np.float64) * 255).astype(np.uint8))


def test_what_streams_write_for_an_unknown_length() -> None:
    """Neither refused nor taken for complete."""
    riff = b"RIFF" + struct.pack("<I", 0) + b"AVI " + bytes(100)
    segment = b"\x1aE\xdf\xa3\x84" + bytes(4) + b"\x18S\x80g" + b"\x01" + b"\xff" * 7 + bytes(20)
    flv = b"FLV\x01\x01" + bytes(20)
    for data in (riff, segment, flv, b"plain", b"", b"\x00\x00\x01\xba" + bytes(99)):
        assert not declares_length(data)
    assert declares_length(b"\x00\x00\x01\xba" + bytes(99) + b"\x00\x00\x01\xb9")
    longer = riff.replace(bytes(4), struct.pack("<I", 500), 1), segment.replace(b"\xff" * 7, b"\0\0\0\0\0\x10\0")
    for data in longer:
        with pytest.raises(Incomplete, match=r"it ends after \d+ of \d+ bytes"):
            declares_length(data)


def test_a_file_is_checked_like_its_bytes(tmp_path: Path) -> None:
    data = bytearray(_animation("PNG", 1))
    place = data.index(b"IDAT") + 10
    data[place] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.png': expected a complete image file, the check sum of a chunk b'IDAT'"):
        open_media(tmp_path / "a.png")
    length = struct.unpack(">I", data[place - 14 : place - 10])[0]
    chunk = bytes(data[place - 10 : place - 6 + length])
    data[place - 6 + length : place - 2 + length] = struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "b.png").write_bytes(data)  # as somebody wrote it: only zlib can object
    with contextlib.suppress(ValueError):
        load_image(tmp_path / "b.png")
