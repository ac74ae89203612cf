"""Recorded requests of the reference, `case_*.safetensors`: read and checked, so that a replay can trust them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pixelrefer_fast.checkpoint.safetensors_file import SafetensorsFile
from pixelrefer_fast.ops._check import check_dtype, check_shape

ENCODER_CALLS = {"lite": 3, "full": 2}
CALL_KEYS = ("vision_patches_uint8", "vision_grid_thw", "vision_features")


@dataclass
class RecordedCase:
    """One recorded request.

    Attributes:
        name: the file's, without case_.
        tensors: inputs, intermediates and outputs by key.
        question, text: as asked and answered.
        times: seconds of each frame of a video, None for images.
        mark_frames: Lite video: per object, the frames in which it is marked.
    """

    name: str
    tensors: dict[str, torch.Tensor]
    question: str
    text: str
    times: list[float] | None
    mark_frames: list[list[int]] | None

    @classmethod
    def read(cls, path: Path, kind: str) -> RecordedCase:
        """Read a case of a model of this kind ("lite" or "full").

        Raises:
            ValueError: the file is damaged, lacks something that a stage is compared with, or contradicts itself.
                Names the file.
        """
        file = SafetensorsFile(path)
        with file.open() as read:
            tensors = {key: read(key) for key in file.tensors}
        try:
            fields = {key: file.metadata[key] for key in ("question", "text", "timestamps", "mask_ids_raw")}
            times, mark_frames = json.loads(fields["timestamps"]), json.loads(fields["mask_ids_raw"])
            case = cls(path.stem.removeprefix("case_"), tensors, fields["question"], fields["text"], times, mark_frames)
            _expect("metadata kind", file.metadata.get("kind", kind), kind)
            _expect("metadata modal", file.metadata.get("modal"), "image" if times is None else "video")
            case._check(kind)
        except KeyError as error:
            raise ValueError(f"{path}: not a recorded case: expected {error}, found none") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: not a recorded case: {error}") from None
        return case

    def series(self, key: str) -> list[torch.Tensor]:
        """key.0, key.1, ... as far as they go."""
        found: list[torch.Tensor] = []
        while f"{key}.{len(found)}" in self.tensors:
            found.append(self.tensors[f"{key}.{len(found)}"])
        return found

    def _check(self, kind: str) -> None:
        tensors = self.tensors
        images, count = self.series("image"), len(tensors["masks"])
        if not images:
            raise ValueError("expected image.0, found none")
        for i, image in enumerate(images):
            _expect_shape(f"image.{i}", image, torch.uint8, None, None, 3)
        frames = tensors["mask_ids"].tolist()
        if not all(isinstance(f, int) and 0 <= f < len(images) for f in frames):
            raise ValueError(f"mask_ids: expected images from 0 to {len(images) - 1}, got {frames}")
        for key, columns in (("mask_ids", ()), ("box_params", (6,)), ("mask_nums", ())):
            _expect_shape(key, tensors[key], torch.int64, count, *columns)
        _expect_shape("masks", tensors["masks"], torch.uint8, count, None, None)
        for i in range(count):
            _expect_shape(f"crop.{i}", tensors[f"crop.{i}"], torch.uint8, None, None, 3)
            _expect_shape(f"crop_mask.{i}", tensors[f"crop_mask.{i}"], torch.float32, None, None)
        _expect_shape("object_tokens", tensors["object_tokens"], torch.float32, None, None)
        # the reference never encodes the crops of a Full request without any object token
        calls = ENCODER_CALLS[kind] if len(tensors["object_tokens"]) else ENCODER_CALLS[kind] - 1
        for key in CALL_KEYS:
            _expect(f"number of {key}", len(self.series(key)), calls)
        gaps = tensors.get("kmeans_gap", torch.zeros(0))
        _expect("number of kmeans_gap", gaps.numel(), len(self.series("kmeans_perm")))
        for key, dtype, shape in (
            ("input_ids", torch.int64, (1, None)),
            ("inputs_embeds", torch.float32, (1, None, None)),
            ("output_ids", torch.int64, (1, None)),
            ("scores", torch.float32, (tensors["output_ids"].shape[-1], 1, None)),
        ):
            _expect_shape(key, tensors[key], dtype, *shape)
        if not len(tensors["scores"]):
            raise ValueError("expected at least one step of decoding, got none")
        self._check_times(len(images), frames)

    def _check_times(self, images: int, frames: list[int]) -> None:
        if self.times is not None and not (
            isinstance(self.times, list)
            and len(self.times) == images
            and all(isinstance(t, (int, float)) and math.isfinite(t) for t in self.times)
        ):
            raise ValueError(f"timestamps: expected {images} finite numbers or null, got {self.times}")
        marked = self.mark_frames
        if marked is not None and (self.times is None or [f for own in marked for f in own] != frames):
            raise ValueError(f"mask_ids_raw: expected the frames {frames} of a video, got {marked}")


def _expect(name: str, given: Any, expected: Any) -> None:
    if given != expected:
        raise ValueError(f"{name}: expected {expected!r}, got {given!r}")


def _expect_shape(name: str, tensor: torch.Tensor, dtype: torch.dtype, *shape: int | None) -> None:
    check_shape("recorded", name, tensor, *shape)
    check_dtype("recorded", name, tensor, dtype)
