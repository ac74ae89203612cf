"""Images in: exact pixels from every source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from media_files import PIXELS, RNG, check_image
from PIL import Image

from pixelrefer_fast.media import MAX_PIXELS, load_image, open_media


@pytest.mark.parametrize(
    "source",
    [
        PIXELS,
        PIXELS.transpose(2, 0, 1),
        PIXELS[:, ::-1][:, ::-1],
        PIXELS.astype(np.int64),
        PIXELS.astype(np.uint16) * 257,
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        np.dstack([PIXELS, RNG.integers(0, 256, (13, 21), dtype=np.uint8)]),
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1).double() / 255,
        (torch.from_numpy(PIXELS).float() / 255).requires_grad_(),
        Image.fromarray(PIXELS),
        Image.fromarray(np.dstack([PIXELS, np.zeros((13, 21), np.uint8)])),  # RGBA: alpha is dropped
    ],
)
def test_one_picture_in_every_form(source):
    for load in (load_image, open_media):
        image = load(source)
        check_image(image, PIXELS)
        image[:] = 0  # a copy: the next load is unharmed


def test_grey_bool_and_single_channels():
    grey = PIXELS[:, :, 0]
    for source in (grey, grey[:, :, None], grey[None], torch.from_numpy(grey), Image.fromarray(grey)):
        check_image(load_image(source), np.repeat(grey[:, :, None], 3, axis=2))
    check_image(load_image(grey > 9), np.repeat(((grey > 9) * 255).astype(np.uint8)[:, :, None], 3, axis=2))


def test_a_shape_that_fits_both_orders():
    both = RNG.integers(0, 256, (3, 8, 3), dtype=np.uint8)
    check_image(load_image(both), both)
    check_image(load_image(torch.from_numpy(both)), both.transpose(1, 2, 0))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm", "tga"])
def test_files_and_bytes(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(PIXELS).save(path, **({"lossless": True} if suffix == "webp" else {}))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), Image.open(path)):
        check_image(load_image(source), PIXELS)
        check_image(open_media(source), PIXELS)


def test_palette_cmyk_and_16_bits(tmp_path):
    palette = Image.fromarray(PIXELS).quantize(16)
    palette.save(tmp_path / "palette.png", transparency=3)
    check_image(load_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    cmyk.save(tmp_path / "cmyk.tiff")
    check_image(load_image(tmp_path / "cmyk.tiff"), np.asarray(cmyk.convert("RGB")))
    deep = (PIXELS[:, :, 0].astype(np.uint16) << 8) + 77
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    (tmp_path / "deep.pgm").write_bytes(b"P5 21 13 65535\n" + deep.astype(">u2").tobytes())
    expected = np.repeat(PIXELS[:, :, :1], 3, axis=2)
    for name in ("deep.png", "deep.tiff", "deep.pgm"):
        check_image(load_image(tmp_path / name), expected)
    Image.fromarray(expected[:, :, 0] / np.float32(255)).save(tmp_path / "float.tiff")
    check_image(load_image(tmp_path / "float.tiff"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    turned = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PIXELS, 1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(PIXELS).save(path, exif=exif)
    expected = turned[orientation]
    for source in (path, path.read_bytes(), Image.open(path)):
        check_image(load_image(source), expected)


def test_first_picture_of_several(tmp_path):
    pages = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    check_image(open_media(tmp_path / "pages.tiff"), PIXELS)
    pages[0].save(tmp_path / "moving.png", save_all=True, append_images=pages[1:], duration=50)
    check_image(load_image(tmp_path / "moving.png"), PIXELS)
    assert len(open_media(tmp_path / "moving.png")) == 2


def test_limits_are_pillows():
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS
