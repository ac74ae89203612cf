"""What one request, and all that are open, may cost."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pixelrefer_fast.checks.values import is_number, shown


@dataclass(frozen=True)
class Limits:
    """Each is above 0.

    Args:
        body_bytes: of a request's body, before base64 is undone.
        body_seconds: that a body may take to arrive.
        pixels: of an image, and of a frame of a video.
        frames: of a video.
        regions: of a request.
        tokens: that an answer may have; more are refused, and fewer are the default.
        seconds: that a request may take once its body is there.
        open_requests: at one time, waiting ones included; each region of /v1/regions counts.
        encoded_bytes: of object tokens that /v1/encode keeps.
        encoded_seconds: that it keeps them for.
    """

    body_bytes: int = 64 * 2**20
    body_seconds: float = 60.0
    pixels: int = 40_000_000
    frames: int = 4096
    regions: int = 256
    tokens: int = 1024
    seconds: float = 600.0
    open_requests: int = 1024
    encoded_bytes: int = 2**30
    encoded_seconds: float = 3600.0

    def __post_init__(self) -> None:
        for own in fields(self):
            value = getattr(self, own.name)
            if not is_number(value) or not value > 0:
                raise ValueError(f"{own.name}: expected a number above 0, got {shown(value)}")
