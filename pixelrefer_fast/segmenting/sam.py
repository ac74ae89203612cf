"""SAM, SAM 2, EdgeTAM and SAM 3 as transformers has them: masks in pictures."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import torch

from pixelrefer_fast.media import Media, Video
from pixelrefer_fast.regions import Region
from pixelrefer_fast.regions.tensor_mask import MaskShape
from pixelrefer_fast.segmenting.pixels import Input, prompt_tensors
from pixelrefer_fast.segmenting.segmenter import (
    Segment,
    check_inside,
    frame_of,
    objects_of_frames,
    picture_of,
    read_prompts,
    read_text,
    unit,
)
from pixelrefer_fast.segmenting.tracking import Tracker
from pixelrefer_fast.segmenting.words import WordFinder

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

KEPT_PICTURES = 4
"""Frames of one opened video whose embeddings are kept."""
Embedding: TypeAlias = "torch.Tensor | list[torch.Tensor]"
"""Of a picture: SAM has one (1, C, h, w), the others several of different sizes."""
Made = TypeVar("Made")


class Sam:
    """A model of the family.

    Args:
        name: what it was loaded from.
        model: transformers' SamModel, Sam2Model, EdgeTamModel or Sam3TrackerModel.
        like: how it wants its pictures.
        load_words: loads what finds objects by text; None: the model knows no text.
        load_tracker: loads what follows objects; None: the model knows pictures only.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        like: Input,
        load_words: Callable[[], WordFinder] | None = None,
        load_tracker: Callable[[], Tracker] | None = None,
    ) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.like = like
        self._load_words = load_words
        self._load_tracker = load_tracker
        self._words: WordFinder | None = None
        self._tracker: Tracker | None = None

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

    def tracker(self) -> Tracker:
        """What follows objects through a video, loaded when it is first wanted.

        Raises:
            ValueError: the model knows pictures only.
        """
        if self._load_tracker is None:
            raise ValueError(
                f"track: expected a segmenter that follows objects (of type sam2_video, edgetam_video or sam3_video), "
                f"got {self.name}"
            )
        if self._tracker is None:
            self._tracker = self._load_tracker()
        return self._tracker

    def open(self, media: Media) -> OpenedForSam:
        return OpenedForSam(self, media)


class OpenedForSam:
    """Embeds a picture once, whatever is asked about it; of a video the last few frames."""

    def __init__(self, sam: Sam, media: Media) -> None:
        self._sam = sam
        self._media = media
        self._for_points: OrderedDict[int | None, Embedding] = OrderedDict()
        self._for_words: OrderedDict[int | None, Sam3VisionEncoderOutput] = OrderedDict()

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
            if points is not None or labels is not None or boxes is not None:
                raise ValueError("text: expected it by itself, got points or boxes too")
            return self._named(read_text(text), frame)
        sam, prompts = self._sam, read_prompts(points, labels, boxes)
        picture = picture_of(self._media, frame)
        height, width = picture.shape[:2]
        for prompt in prompts:
            check_inside(prompt, height, width)
        embedding = _kept(self._for_points, frame, lambda: self._embed(picture))
        # A single click may mean a part or the whole: of three masks the one that the model thinks best
        several = len(prompts) == 1 and prompts[0].is_click
        inputs = prompt_tensors(prompts, sam.like, height, width, sam.model.device)
        found = sam.model(image_embeddings=embedding, multimask_output=several, **inputs)
        scores, best = found.iou_scores[0].float().max(dim=-1)
        logits = found.pred_masks[0, torch.arange(len(prompts), device=best.device), best]
        masks = sam.like.masks(logits, height, width)
        return [_segment(mask, score, frame) for mask, score in zip(masks, scores.tolist(), strict=True)]

    @torch.inference_mode()
    def track(self, points: Any = None, labels: Any = None, boxes: Any = None, frame: int = 0) -> list[Segment]:
        video = self._media
        if not isinstance(video, Video):
            raise ValueError("track: expected a video, got an image")
        tracker, prompts = self._sam.tracker(), read_prompts(points, labels, boxes)
        frame = frame_of(video, frame)
        for prompt in prompts:
            check_inside(prompt, video.height, video.width)
        return [Segment(region) for region in objects_of_frames(tracker.follow(video, prompts, frame))]

    def _named(self, text: str, frame: int | None) -> list[Segment]:
        words = self._sam.words()
        picture = picture_of(self._media, frame)
        embedded = _kept(self._for_words, frame, lambda: words.embed(picture))
        found = words.find(embedded, text, *picture.shape[:2])
        return [_segment(mask, score, frame) for mask, score in found]

    def _embed(self, picture: np.ndarray) -> Embedding:
        model = self._sam.model
        return model.get_image_embeddings(self._sam.like.pixels(picture, model.device, model.dtype))


def _segment(mask: MaskShape, score: float, frame: int | None) -> Segment:
    return Segment(Region(((frame, mask),)), unit(score))


def _kept(kept: OrderedDict[int | None, Made], frame: int | None, make: Callable[[], Made]) -> Made:
    if frame not in kept:
        kept[frame] = make()
        if len(kept) > KEPT_PICTURES:
            kept.popitem(last=False)
    return kept[frame]
