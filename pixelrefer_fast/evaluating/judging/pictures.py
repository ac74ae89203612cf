"""The image that a judge looks at, with the region in its alpha channel: DAM's convention, and this server's."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from pixelrefer_fast.evaluating.items import Json
from pixelrefer_fast.evaluating.judging.endpoint import Message

PICTURE = "picture"


def picture_part(media: str, region: Json) -> Json:
    """A part of a message that stands for an image until it is sent, so that records of replies stay small."""
    return {"type": PICTURE, "path": media, "region": region}


def with_pictures(messages: list[Message]) -> list[Message]:
    """Messages as they are sent."""
    return [
        message | {"content": [_sent(part) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def _sent(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != PICTURE:
        return part
    url = "data:image/png;base64," + base64.b64encode(_png(Path(part["path"]), part["region"])).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def _png(path: Path, region: Json) -> bytes:
    import numpy as np
    from PIL import Image

    from pixelrefer_fast.media.images import load_image
    from pixelrefer_fast.regions import Region

    pixels = load_image(path)
    mask = Region.from_json(region).mask(*pixels.shape[:2])
    file = io.BytesIO()
    Image.fromarray(np.dstack([pixels, mask * 255]), "RGBA").save(file, "PNG")
    return file.getvalue()
