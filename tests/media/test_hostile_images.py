"""Damaged, absurd and malicious images: a ValueError that says what is wrong, in bounded memory and time."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from limits import bounded, quick
from PIL import Image, features

from pixelrefer_fast.media import Video, load_image, open_media


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def picture_bytes(form: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (2**31 - 1, 1), (10_000, 9_000), (20_000, 20_000)])
def test_images_that_claim_absurd_sizes(tmp_path, width, height):
    data = png_claiming(width, height)
    (tmp_path / "bomb.png").write_bytes(data)
    with bounded(40, 5):
        for source in (data, tmp_path / "bomb.png"):
            with pytest.raises(ValueError, match="expected at most 89478485 pixels"):
                open_media(source)


def test_gif_that_claims_an_absurd_size():
    data = bytearray(picture_bytes("GIF"))
    data[6:10] = b"\xff\xff\xff\xff"
    with bounded(20, 5), pytest.raises(ValueError, match="expected at most 89478485 pixels"):
        open_media(bytes(data))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on damaged TIFF
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000"])
def test_truncated_images(form):
    whole = picture_bytes(form)
    for length in (0, 1, 10, 30, len(whole) // 2, len(whole) - len(whole) // 10):
        with pytest.raises(ValueError, match=r"expected a complete image|expected an image file"):
            load_image(whole[:length])
        with pytest.raises(ValueError, match="expected"):
            open_media(whole[:length])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on damaged TIFF
@quick
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", *(["AVIF"] if features.check("avif") else [])]),
    st.integers(0, 2**32 - 1),
)
def test_damaged_images_are_read_or_refused(form, seed):
    data = bytearray(picture_bytes(form))
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, min(len(data), 600), rng.integers(1, 8)):
        data[place] = rng.integers(0, 256)
    try:
        media = open_media(bytes(data))
        image = next(media.read([0])) if isinstance(media, Video) else media
    except ValueError:
        return
    assert image.ndim == 3


def test_formats_that_run_programs_or_refer_elsewhere_are_not_read(tmp_path):
    for name, content in (
        ("drawing.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"),
        ("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"expected an image file .* nor is it a video"):
            open_media(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4, 3), np.nan), r"expected float64 values in 0..1, got nan..nan"),
        (np.full((4, 4, 3), 255.0), r"expected float64 values in 0..1, got 255.0..255.0"),
        (torch.full((3, 4, 4), -0.1), r"expected float32 values in 0..1"),
        (np.full((4, 4), 256), r"expected int64 values in 0..255, got 256..256"),
        (np.full((4, 4), -1, np.int8), r"expected int8 values in 0..255"),
        (np.zeros((4, 4), complex), "expected bool, integer or float values, got complex128"),
        (np.array([["a", "b"]]), "expected bool, integer or float values, got <U1"),
        (np.zeros((4, 4), object), "expected bool, integer or float values, got object"),
        (np.zeros((5, 6, 7)), r"expected an array of shape \(H, W\).*, got \(5, 6, 7\)"),
        (np.zeros(7), r"expected an array of shape \(H, W\).*, got \(7,\)"),
        (np.zeros((0, 4, 3)), "expected at least one pixel, got a size of 0x4"),
        (np.broadcast_to(np.uint8(0), (40_000, 40_000, 3)), "expected at most 89478485 pixels, got a size of 40000x"),
        (torch.zeros(1).expand(3, 40_000, 40_000), "expected at most 89478485 pixels, got a size of 40000x"),
        (torch.zeros(4, 4, device="meta"), "expected a dense tensor"),
    ],
)
def test_arrays_that_are_no_pictures(array, message):
    with bounded(5, 5), pytest.raises(ValueError, match=message):
        load_image(array)
