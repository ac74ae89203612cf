"""SAM 3's detector: every object that a short text names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pixelrefer_fast.regions.tensor_mask import MaskShape
from pixelrefer_fast.segmenting.pixels import Input

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

LEAST_SCORE = 0.5
"""What is found is at least as sure."""
TEXT_TOKENS = 32
"""Length to which the text encoder was trained."""


class WordFinder:
    """Finds objects by text.

    Args:
        model: a `transformers.Sam3Model`.
        tokenizer: its text encoder's.
        like: how it wants its pictures.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, like: Input) -> None:
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._like = like

    def embed(self, picture: np.ndarray) -> Sam3VisionEncoderOutput:
        """What `find` reads of a picture (H, W, 3) uint8."""
        return self._model.get_vision_features(self._like.pixels(picture, self._model.device, self._model.dtype))

    def find(
        self, embedded: Sam3VisionEncoderOutput, text: str, height: int, width: int
    ) -> list[tuple[MaskShape, float]]:
        """Masks (height, width) and scores 0..1 of what the text names, the surest first."""
        words = self._tokenizer(
            text, return_tensors="pt", padding="max_length", max_length=TEXT_TOKENS, truncation=True
        ).to(self._model.device)
        found = self._model(
            vision_embeds=embedded, input_ids=words["input_ids"], attention_mask=words["attention_mask"]
        )
        scores = found.pred_logits[0].sigmoid()
        if found.presence_logits is not None:
            scores = scores * found.presence_logits[0].sigmoid()
        order = torch.argsort(scores, descending=True)
        order = order[scores[order] > LEAST_SCORE]
        masks = self._like.masks(found.pred_masks[0, order], height, width)
        return [(mask, score) for mask, score in zip(masks, scores[order].tolist(), strict=True) if not mask.is_empty]
