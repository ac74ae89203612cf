"""Plans of views for tests: small models, masks with marked boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from pixelrefer_fast.checkpoint.config import ModelConfig, VisionConfig
from pixelrefer_fast.planning.views import Mark, ViewPlan, plan_views
from pixelrefer_fast.regions.boxed_mask import BoxedMask

LINEAR, AREA = 0, 1
BLACK = -1


def model_config(kind: Any, mask_num: int = 32, mm_max_length: int = 16384, **views: int) -> ModelConfig:
    sizes = VisionConfig(64, 2, 4, 128)
    return ModelConfig(kind, sizes, {"hidden_size": 48}, mask_num, mm_max_length, 2, {}, **views)


LITE, FULL = model_config("lite"), model_config("full")


def boxes_mask(height: int, width: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Marked in every (top, left, bottom, right)."""
    mask = np.zeros((height, width), dtype=np.uint8)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def marks_of(*masks: np.ndarray, images: list[int] | None = None) -> list[Mark]:
    images = images or [0] * len(masks)
    pairs = enumerate(zip(images, masks, strict=True))
    return [Mark(image, BoxedMask.of(mask), f"region {i}") for i, (image, mask) in pairs]


def plan_of(config: ModelConfig, *masks: np.ndarray, **more: Any) -> ViewPlan:
    """Marks in one image of their size."""
    return plan_views(config, [masks[0].shape], marks_of(*masks), len(masks), **more)
