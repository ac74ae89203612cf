"""Fast inference for PixelRefer and PixelRefer-Lite: ask about objects that are marked in images and videos.

Names are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pixelrefer_fast._auto_classes import install as _let_transformers_know
from pixelrefer_fast._version import __version__

if TYPE_CHECKING:
    from pixelrefer_fast import ops, verify
    from pixelrefer_fast.batching import Answer, Ask, BatchError
    from pixelrefer_fast.encoding.objects import Objects
    from pixelrefer_fast.loading import export_llm, load
    from pixelrefer_fast.media import Video, load_image, open_media
    from pixelrefer_fast.model import PixelRefer, PixelReferLite
    from pixelrefer_fast.regions import Region
    from pixelrefer_fast.segmenting import Segment, load_segmenter, segment

_WHERE = {
    "Answer": "batching",
    "Ask": "batching",
    "BatchError": "batching",
    "Objects": "encoding.objects",
    "PixelRefer": "model",
    "PixelReferLite": "model",
    "Region": "regions",
    "Segment": "segmenting",
    "Video": "media",
    "export_llm": "loading",
    "load": "loading",
    "load_image": "media",
    "load_segmenter": "segmenting",
    "open_media": "media",
    "segment": "segmenting",
}
_MODULES = ("ops", "verify")

__all__ = [
    "Answer",
    "Ask",
    "BatchError",
    "Objects",
    "PixelRefer",
    "PixelReferLite",
    "Region",
    "Segment",
    "Video",
    "__version__",
    "export_llm",
    "load",
    "load_image",
    "load_segmenter",
    "open_media",
    "ops",
    "segment",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"pixelrefer_fast.{name}")
    if name in _WHERE:
        return getattr(import_module(f"pixelrefer_fast.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'pixelrefer_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


_let_transformers_know()
