"""SAM, SAM 2, EdgeTAM and SAM 3 as transformers has them: masks in pictures.

Pictures are resized here: transformers' own processors of these models want torchvision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from pixelrefer_fast.media import Media
from pixelrefer_fast.segmenting.segmenter import (
    Prompt,
    Segment,
    check_inside,
    picture_of,
    read_prompts,
    read_text,
    region_of,
    unit,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEPT_PICTURES = 4
"""Frames of one opened video whose embeddings are kept."""
LEAST_SCORE = 0.5
"""Of what SAM 3 finds by words, what it is at least as sure of."""
TEXT_TOKENS = 32
"""Length to which SAM 3's text encoder was trained."""


@dataclass(frozen=True)
class Input:
    """How a model wants its pictures.

    Attributes:
        side: of the square that it sees, in pixels.
        mean, std: of the values 0..1, by channel.
        keeps_shape: whether the picture's longest side becomes the square's, zeros below or right of it (SAM), rather
            than both sides (all others).
    """

    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    keeps_shape: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the picture within the square."""
        if not self.keeps_shape:
            return self.side, self.side
        scale = self.side / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def pixels(self, picture: np.ndarray, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """(H, W, 3) uint8 to (1, 3, side, side)."""
        values = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float() / 255
        height, width = self.size(*picture.shape[:2])
        values = interpolate(values, (height, width), mode="bilinear", align_corners=False, antialias=True)
        mean, std = (torch.tensor(own, device=device)[:, None, None] for own in (self.mean, self.std))
        values = (values - mean) / std
        return pad(values, (0, self.side - width, 0, self.side - height)).to(dtype)

    def masks(self, logits: torch.Tensor, height: int, width: int) -> np.ndarray:
        """Logits (N, h, w) of the square to masks (N, height, width) bool of the picture."""
        logits = logits[None].float()
        if self.keeps_shape:
            logits = interpolate(logits, (self.side, self.side), mode="bilinear", align_corners=False)
            rows, columns = self.size(height, width)
            logits = logits[..., :rows, :columns]
        return (interpolate(logits, (height, width), mode="bilinear", align_corners=False)[0] > 0).cpu().numpy()


class WordFinder:
    """SAM 3's detector: every object that a short text names.

    Args:
        model: a `transformers.Sam3Model`.
        tokenizer: its text encoder's.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model
        self._tokenizer = tokenizer

    def embed(self, pixels: torch.Tensor) -> Any:
        """What `find` reads of a picture (1, 3, side, side)."""
        return self._model.get_vision_features(pixels)

    def find(self, embedded: Any, text: str, like: Input, height: int, width: int) -> list[tuple[np.ndarray, float]]:
        """Masks (height, width) and scores, the surest first."""
        words = self._tokenizer(
            text, return_tensors="pt", padding="max_length", max_length=TEXT_TOKENS, truncation=True
        ).to(self._model.device)
        found = self._model(
            vision_embeds=embedded, input_ids=words["input_ids"], attention_mask=words["attention_mask"]
        )
        scores = found.pred_logits.sigmoid()
        if found.presence_logits is not None:
            scores = scores * found.presence_logits.sigmoid()
        order = [at for at in scores[0].argsort(descending=True).tolist() if scores[0, at] > LEAST_SCORE]
        masks = like.masks(found.pred_masks[0, order], height, width) if order else []
        return [(mask, float(scores[0, at])) for at, mask in zip(order, masks, strict=True) if mask.any()]


class Sam:
    """A model of the family.

    Args:
        name: what it was loaded from.
        model: transformers' SamModel, Sam2Model, EdgeTamModel or Sam3TrackerModel.
        like: how it wants its pictures.
        words: loads what finds objects by text; None: the model knows no text.
    """

    def __init__(
        self, name: str, model: PreTrainedModel, like: Input, words: Callable[[], WordFinder] | None = None
    ) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.like = like
        self._load_words = words
        self._words: WordFinder | None = None

    def words(self) -> WordFinder:
        """What finds objects by text, loaded when it is first wanted.

        Raises:
            ValueError: the model knows no text.
        """
        if self._load_words is None:
            raise ValueError(f"text: expected points or boxes for {self.name}, which knows no words; load a SAM 3")
        if self._words is None:
            self._words = self._load_words()
        return self._words

    def open(self, media: Media) -> OpenedForSam:
        return OpenedForSam(self, media)


class OpenedForSam:
    """Embeds a picture once, whatever is asked about it; of a video the last few frames."""

    def __init__(self, sam: Sam, media: Media) -> None:
        self._sam = sam
        self._media = media
        self._embedded: OrderedDict[tuple[int | None, str], Any] = OrderedDict()

    @torch.inference_mode()
    def masks(
        self,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        text: str | None = None,
        frame: int | None = None,
    ) -> list[Segment]:
        if text is not None:
            if not (points is labels is boxes is None):
                raise ValueError("text: expected it by itself, got points or boxes too")
            return self._named(read_text(text), frame)
        prompts = read_prompts(points, labels, boxes)
        picture = picture_of(self._media, frame)
        height, width = picture.shape[:2]
        for prompt in prompts:
            check_inside(prompt, height, width)
        embedded = self._embed(picture, frame, "points", self._sam.model.get_image_embeddings)
        inputs = prompt_tensors(prompts, self._sam.like, height, width, self._sam.model.device)
        alone = len(prompts) == 1 and prompts[0].box is None and len(prompts[0].clicks.points) == 1  # type: ignore[union-attr]
        # a single click may mean a part or the whole: of three masks the one that the model thinks best
        found = self._sam.model(image_embeddings=embedded, multimask_output=alone, **inputs)
        scores, best = found.iou_scores[0].max(dim=-1)
        logits = found.pred_masks[0, torch.arange(len(prompts)), best]
        masks = self._sam.like.masks(logits, height, width)
        return [
            Segment(region_of(mask, frame), unit(score)) for mask, score in zip(masks, scores.tolist(), strict=True)
        ]

    def track(self, points: Any = None, labels: Any = None, boxes: Any = None, frame: int = 0) -> list[Segment]:
        raise ValueError(f"track: expected a segmenter that follows objects, got {self._sam.name}")

    def _named(self, text: str, frame: int | None) -> list[Segment]:
        words = self._sam.words()
        picture = picture_of(self._media, frame)
        embedded = self._embed(picture, frame, "text", words.embed)
        found = words.find(embedded, text, self._sam.like, *picture.shape[:2])
        return [Segment(region_of(mask, frame), unit(score)) for mask, score in found]

    def _embed(self, picture: np.ndarray, frame: int | None, by: str, embed: Callable[[torch.Tensor], Any]) -> Any:
        key = frame, by
        if key not in self._embedded:
            model = self._sam.model
            self._embedded[key] = embed(self._sam.like.pixels(picture, model.device, model.dtype))
            while len(self._embedded) > KEPT_PICTURES:
                self._embedded.popitem(last=False)
        return self._embedded[key]


def prompt_tensors(
    prompts: Sequence[Prompt], like: Input, height: int, width: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """The prompts of N objects as the models take them, in pixels of their square.

    Returns:
        input_points (1, N, K, 2) and input_labels (1, N, K), where there are clicks, and input_boxes (1, N, 4), where
        there are boxes.
    """
    rows, columns = like.size(height, width)
    scale = torch.tensor([columns / width, rows / height])
    inputs: dict[str, torch.Tensor] = {}
    boxes = [prompt.box for prompt in prompts if prompt.box is not None]
    if boxes:
        corners = torch.tensor([[[box.x0, box.y0, box.x1, box.y1] for box in boxes]])
        inputs["input_boxes"] = (corners * scale.repeat(2)).to(device)
    clicks = [prompt.clicks for prompt in prompts if prompt.clicks is not None]
    if clicks:
        inputs["input_points"] = (torch.tensor([[own.points for own in clicks]]) * scale).to(device)
        inputs["input_labels"] = torch.tensor([[own.labels for own in clicks]], dtype=torch.int32, device=device)
    return inputs
