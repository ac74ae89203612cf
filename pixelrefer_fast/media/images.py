"""Images: any source of one picture -> (H, W, 3) uint8 RGB."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pixelrefer_fast.checks.values import MAX_PIXELS, check_size, numpy_of, reason_of, shortened
from pixelrefer_fast.media.completeness import Incomplete, check_image_file

if TYPE_CHECKING:
    from PIL import Image

# Raster formats decoded by libraries only. Pillow would also run Ghostscript for EPS and reads headers of MPEG videos.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")
ANIMATED_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")


class NotAnImage(ValueError):
    """The bytes are not in a supported image format."""


def load_image(source: Any) -> np.ndarray:
    """Load an image as a C-contiguous (H, W, 3) uint8 RGB array.

    - EXIF orientation is applied, also to a `PIL.Image.Image` that carries it.
    - Alpha is dropped, not composited, as the reference's `cv2.imread` and `convert("RGB")` do.
    - 16-bit values keep their high byte. bool is black and white. Floats must be in 0..1 and are rounded to n/255.
      Other integers must be in 0..255.
    - The first picture of an animation or a multi-page file is taken; `open_media` reads animations as videos.

    Args:
        source: a path, the bytes of an image file, a `PIL.Image.Image`, or a NumPy array or torch tensor of shape (H,
            W), (H, W, C) or (C, H, W) with C = 1, 3 or 4. A shape that fits both orders is read as (H, W, C) for NumPy
            and as (C, H, W) for torch.

    Raises:
        ValueError: the source is of another kind, the file is missing, truncated or of an unknown format, a value is
            out of range or NaN, or there are more than `MAX_PIXELS` pixels (checked before any pixel is decoded).
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        return rgb_of_pil(source, "image")
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return rgb_of_array(source, "image")
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        label = describe_source(source)
        with open_pil(source, label) as image:
            return rgb_of_pil(image, label)
    raise ValueError(
        f"image: expected a path, the bytes of an image file, a PIL image, or an array, got {type(source).__name__}"
    )


def describe_source(source: Any) -> str:
    """The name of a path or of bytes in messages."""
    return f"{len(source)} bytes" if isinstance(source, (bytes, bytearray, memoryview)) else shown_path(source)


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path in messages: in quotes, and cut in the middle where it is long."""
    return shortened(repr(os.fspath(path)))


def regular_file(path: str | os.PathLike[str]) -> Path:
    """`path` if it is a regular file or a link to one. Devices and FIFOs never end, so they are never opened."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise ValueError(f"{shown_path(path)}: expected an existing file, found none") from None
    except (OSError, ValueError) as error:  # too many links, name too long, no permission, a NUL in the name
        raise ValueError(f"{shown_path(path)}: expected a readable file, got: {reason_of(error)}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a special file"
        raise ValueError(f"{shown_path(path)}: expected a regular file, got {kind}")
    return Path(path)


def open_pil(source: str | os.PathLike[str] | bytes | bytearray | memoryview, label: str) -> Image.Image:
    """Open an image file without decoding its pixels. `NotAnImage` if its format is unknown."""
    from PIL import Image, UnidentifiedImageError

    opened: Any = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else regular_file(source)
    Image.init()
    try:
        # Pillow before 11.3 has no AVIF, and raises KeyError for what it does not have
        image = Image.open(opened, formats=[name for name in IMAGE_FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        raise NotAnImage(f"{label}: expected an image file ({', '.join(IMAGE_FORMATS)}), got something else") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # warnings may be errors
        raise ValueError(f"{label}: expected at most {MAX_PIXELS} pixels, its header claims more") from None
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # Pillow's readers raise many kinds on damaged headers
        raise NotAnImage(f"{label}: expected an image file, its header cannot be read: {reason_of(error)}") from None
    try:
        check_size(image.height, image.width, label)
        check_image_file(bytes(source) if isinstance(source, (bytearray, memoryview)) else source, str(image.format))
    except Incomplete as error:
        image.close()
        raise ValueError(f"{label}: expected a complete image file, {error}") from None
    except BaseException:
        image.close()
        raise
    return image


def rgb_of_pil(image: Image.Image, label: str) -> np.ndarray:
    """The current frame of an opened image, upright, as (H, W, 3) uint8 RGB."""
    from PIL import ImageOps

    check_size(image.height, image.width, label)
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("F", "I") or upright.mode.startswith("I;16"):
            pixels = np.asarray(upright)
        else:
            return np.array(upright.convert("RGB"), order="C")
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged data
        raise ValueError(
            f"{label}: expected a complete image file, its pixels cannot be decoded: {reason_of(error)}"
        ) from None
    if upright.mode == "I":  # Pillow's name for 16-bit PGM and for 32-bit TIFF alike
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"{label}: expected values of 8 or 16 bits, got {pixels.min()}..{pixels.max()}")
        pixels = pixels.astype(np.uint16)
    return rgb_of_array(pixels, label)


def rgb_of_array(array: np.ndarray | torch.Tensor, label: str) -> np.ndarray:
    """Convert an array of one picture (see `load_image`) to a new (H, W, 3) uint8 RGB array."""
    channels_first = isinstance(array, torch.Tensor)
    shape = tuple(array.shape)
    if len(shape) == 3:
        first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
        channels_first = first and (channels_first or not last)
    if len(shape) not in (2, 3) or (len(shape) == 3 and not first and not last):
        raise ValueError(
            f"{label}: expected an array of shape (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4, got {shape}"
        )
    height, width = shape[1:] if len(shape) == 3 and channels_first else shape[:2]
    check_size(height, width, label)
    pixels = numpy_of(array)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    elif channels_first:
        pixels = pixels.transpose(1, 2, 0)
    pixels = to_uint8(pixels[:, :, :3], label)
    return np.array(np.broadcast_to(pixels, (height, width, 3)), order="C")


def to_uint8(pixels: np.ndarray, label: str) -> np.ndarray:
    kind = pixels.dtype.kind
    if pixels.dtype == np.uint8:
        return pixels
    if kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint16:
        return (pixels >> 8).astype(np.uint8)
    if kind not in "iuf":
        raise ValueError(f"{label}: expected bool, integer or float values, got {pixels.dtype}")
    low, high = pixels.min(), pixels.max()
    limit = 1 if kind == "f" else 255
    if not (low >= 0 and high <= limit):  # also false for NaN
        raise ValueError(f"{label}: expected {pixels.dtype} values in 0..{limit}, got {low}..{high}")
    if kind != "f":
        return pixels.astype(np.uint8)
    if pixels.dtype == np.float16:  # whose 11 bits cannot tell 255 n from its neighbours
        pixels = pixels.astype(np.float32)
    return np.rint(pixels * 255).astype(np.uint8)
