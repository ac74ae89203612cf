"""Between a picture and the square that a model of SAM's family sees: pixels and prompts in, masks out.

Pictures are resized here: transformers' own processors of these models want torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from pixelrefer_fast.regions.tensor_mask import MaskShape, mask_shapes
from pixelrefer_fast.segmenting.segmenter import SegmentPrompt

MASKS_TOGETHER = 16
"""Masks that are brought to the picture's size at a time; each takes four bytes a pixel."""


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
        """(H, W, 3) uint8 to (1, 3, side, side).

        Resized to whole values in host memory, as transformers' processors do, and the smaller square is uploaded.
        """
        values = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
        height, width = self.size(*picture.shape[:2])
        values = interpolate(values, (height, width), mode="bilinear", align_corners=False, antialias=True)
        values = values.to(device).float()
        mean, std = (torch.tensor(own, device=device)[:, None, None] for own in (self.mean, self.std))
        values = (values / 255 - mean) / std
        return pad(values, (0, self.side - width, 0, self.side - height)).to(dtype)

    def masks(self, logits: torch.Tensor, height: int, width: int) -> list[MaskShape]:
        """Logits (N, h, w) of the square to masks of the picture, which stay on the logits' device."""
        parts = logits.float().split(MASKS_TOGETHER) if len(logits) else ()
        return [shape for own in parts for shape in mask_shapes(self._masks(own, height, width))]

    def _masks(self, logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
        logits = logits[None]
        if self.keeps_shape:
            logits = interpolate(logits, (self.side, self.side), mode="bilinear", align_corners=False)
            rows, columns = self.size(height, width)
            logits = logits[..., :rows, :columns]
        return interpolate(logits, (height, width), mode="bilinear", align_corners=False)[0] > 0


def prompt_tensors(
    prompts: Sequence[SegmentPrompt], like: Input, height: int, width: int, device: torch.device
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
