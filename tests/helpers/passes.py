"""One request's plan through a model's network."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pixelrefer_fast.encoding.object_tokenizer import kmeans_starts
from pixelrefer_fast.encoding.objects import SceneTokens
from pixelrefer_fast.model import PixelRefer, PixelReferLite
from pixelrefer_fast.planning.request import FrameSource
from pixelrefer_fast.planning.views import ViewPlan


def encode_plan(
    model: PixelRefer | PixelReferLite, plan: ViewPlan, source: FrameSource
) -> tuple[torch.Tensor, SceneTokens | None]:
    """Object tokens (T, C) and, in Full, the scene's vision tokens, from the default k-means starts."""

    def starts(counts: Sequence[int]) -> torch.Tensor:
        return kmeans_starts(counts, model.config.mask_num)

    tokens, (scene,) = model.network.encode(plan, source, starts, [tuple(plan.scene)])
    return tokens, scene
