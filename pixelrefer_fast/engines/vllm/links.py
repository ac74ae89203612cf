"""What URLs of chat messages hold -> `Marked`: regions in a URL's fragment, or in an image's alpha channel.

vLLM asks the connector of this name where the models of this package are served (`use_for_this_process`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pybase64
from urllib3.util import Url
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector, MediaIO

from pixelrefer_fast.checks.values import shown
from pixelrefer_fast.engines.vllm.fragments import marked_image, marked_video
from pixelrefer_fast.engines.vllm.marked import Marked

NAME = "pixelrefer"
DEFAULTS = {
    "VLLM_MEDIA_CONNECTOR": NAME,
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",  # a host that is allowed must not send this one on to another
}


def use_for_this_process() -> None:
    """Have vLLM open media through this connector and follow no redirect, unless the caller chose otherwise.

    A process of vLLM serves one model; this is called where that is one of this package's, so others are left alone.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


class _Content(MediaIO[bytes]):
    """The bytes as they are."""

    def load_bytes(self, data: bytes) -> bytes:
        return data

    def load_base64(self, media_type: str, data: str) -> bytes:
        return pybase64.b64decode(data, validate=True)

    def load_file(self, filepath: Path) -> bytes:
        return filepath.read_bytes()


def _split(url: str) -> tuple[str, str]:
    """An URL without its fragment, and that."""
    address, _, fragment = url.partition("#")
    return address, fragment


@MEDIA_CONNECTOR_REGISTRY.register(NAME)
class RegionConnector(MediaConnector):
    """Opens data: URLs, files below --allowed-local-media-path, and addresses of --allowed-media-domains alone."""

    def fetch_image(self, image_url: str, **_: object) -> Marked:
        url, fragment = _split(image_url)
        return marked_image(self.load_from_url(url, _Content()), fragment)

    async def fetch_image_async(self, image_url: str, **_: object) -> Marked:
        url, fragment = _split(image_url)
        return marked_image(await self.load_from_url_async(url, _Content()), fragment)

    def fetch_video(self, video_url: str, **_: object) -> Marked:
        url, fragment = _split(video_url)
        return marked_video(self.load_from_url(url, _Content()), fragment)

    async def fetch_video_async(self, video_url: str, **_: object) -> Marked:
        url, fragment = _split(video_url)
        return marked_video(await self.load_from_url_async(url, _Content()), fragment)

    def fetch_audio(self, audio_url: str) -> NoReturn:
        raise ValueError("audio_url: expected images and videos, which these models see, got audio")

    async def fetch_audio_async(self, audio_url: str) -> NoReturn:
        self.fetch_audio(audio_url)

    def _assert_url_in_allowed_media_domains(self, url_spec: Url) -> None:
        if not self.allowed_media_domains:
            raise ValueError(
                f"url: expected data: or a host of --allowed-media-domains (none is named), got {shown(url_spec.host)}"
            )
        super()._assert_url_in_allowed_media_domains(url_spec)
