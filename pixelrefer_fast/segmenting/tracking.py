"""SAM 2, EdgeTAM and SAM 3 as transformers has them: objects followed through a video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from pixelrefer_fast.media import Video
from pixelrefer_fast.regions.tensor_mask import MaskShape
from pixelrefer_fast.segmenting.pixels import Input, prompt_tensors
from pixelrefer_fast.segmenting.segmenter import SegmentPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

READ_TOGETHER = 16
"""Frames that are read at a time: a decoder goes forwards only, and objects are followed backwards too."""
TOP_LEFT, BOTTOM_RIGHT = 2, 3
"""Labels of points that are a box's corners."""


class TrackingSession(Protocol):
    """What a tracker remembers of a video; transformers has a class of its own for each model, all alike."""

    processed_frames: Mapping[int, torch.Tensor]
    obj_with_new_inputs: list[int]

    def obj_id_to_idx(self, obj_id: int) -> int: ...

    def add_point_inputs(self, obj_idx: int, frame_idx: int, inputs: dict[str, torch.Tensor]) -> None: ...


class SessionClass(Protocol):
    def __call__(
        self,
        *,
        video_height: int,
        video_width: int,
        inference_device: torch.device,
        inference_state_device: torch.device,
        dtype: torch.dtype,
    ) -> TrackingSession: ...


class Frames(Mapping[int, torch.Tensor]):
    """A video's frames as a model wants them, (3, side, side) each, read when they are asked for."""

    def __init__(self, video: Video, like: Input, device: torch.device, dtype: torch.dtype) -> None:
        self._video = video
        self._like = like
        self._device = device
        self._dtype = dtype
        self._read: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._video)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __getitem__(self, frame: int) -> torch.Tensor:
        if frame not in self._read:
            first = frame - frame % READ_TOGETHER
            numbers = range(first, min(first + READ_TOGETHER, len(self)))
            self._read = dict(zip(numbers, self._video.read(list(numbers)), strict=True))
        return self._like.pixels(self._read[frame], self._device, self._dtype)[0]


class Tracker:
    """Follows objects.

    Args:
        model: transformers' Sam2VideoModel, EdgeTamVideoModel or Sam3TrackerVideoModel.
        session: the class of its sessions.
        like: how it wants its pictures.
    """

    def __init__(self, model: PreTrainedModel, session: SessionClass, like: Input) -> None:
        self._model = model.eval().requires_grad_(False)
        self._session = session
        self._like = like

    def follow(
        self, video: Video, prompts: Sequence[SegmentPrompt], frame: int
    ) -> Iterator[tuple[int, int, MaskShape]]:
        """The prompts' objects from `frame` to the end, then from there to the start.

        Returns:
            Triples of the prompt's number, the frame and the mask (H, W), empty where the object is not seen.
        """
        height, width = video.height, video.width
        session = self._opened(video, prompts, frame)
        for backwards in (False, True):
            for found in self._model.propagate_in_video_iterator(session, frame, reverse=backwards):
                if not backwards or found.frame_idx != frame:
                    masks = self._like.masks(found.pred_masks[:, 0], height, width)
                    for number, mask in zip(found.object_ids, masks, strict=True):
                        yield number, found.frame_idx, mask

    def _opened(self, video: Video, prompts: Sequence[SegmentPrompt], frame: int) -> TrackingSession:
        device, dtype = self._model.device, self._model.dtype
        session = self._session(
            video_height=video.height,
            video_width=video.width,
            inference_device=device,
            inference_state_device=device,
            dtype=dtype,
        )
        session.processed_frames = Frames(video, self._like, device, dtype)
        for number, prompt in enumerate(prompts):
            points, labels = _points(prompt, self._like, video.height, video.width, device)
            inputs = {"point_coords": points, "point_labels": labels}
            session.add_point_inputs(session.obj_id_to_idx(number), frame, inputs)
        session.obj_with_new_inputs = list(range(len(prompts)))
        return session


def _points(
    prompt: SegmentPrompt, like: Input, height: int, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """A prompt as points (1, 1, K, 2) and labels (1, 1, K): trackers take a box as two of them, before all others."""
    inputs = prompt_tensors([prompt], like, height, width, device)
    points, labels = [], []
    if prompt.box is not None:
        points.append(inputs["input_boxes"].reshape(1, 1, 2, 2))
        labels.append(torch.tensor([[[TOP_LEFT, BOTTOM_RIGHT]]], dtype=torch.int32, device=device))
    if prompt.clicks is not None:
        points.append(inputs["input_points"])
        labels.append(inputs["input_labels"])
    return torch.cat(points, dim=2), torch.cat(labels, dim=2)
