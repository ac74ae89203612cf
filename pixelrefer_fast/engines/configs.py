"""The models' configurations as transformers and vLLM know them; at module level, since workers unpickle them."""

from __future__ import annotations

from transformers import Qwen2Config

from pixelrefer_fast.checkpoint.config import KINDS


class PixelReferLiteConfig(Qwen2Config):
    """Of a PixelRefer-Lite checkpoint: the fields of its language model, and the rest as they stand."""

    model_type = "pixelreferlite_qwen2"


class PixelReferConfig(Qwen2Config):
    """Of a PixelRefer checkpoint; likewise."""

    model_type = "pixelrefer_qwen2"


CONFIGS: dict[str, type[Qwen2Config]] = {own.model_type: own for own in (PixelReferLiteConfig, PixelReferConfig)}
assert CONFIGS.keys() == KINDS.keys()
