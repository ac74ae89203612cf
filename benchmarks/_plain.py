"""PixelRefer-Lite up to its object tokens as the paper's section 4.2 has it, with no thought of speed.

One object after the other, each with its own two context views, one cluster after the other, and PyTorch's
`MultiheadAttention` per object: what `region_stage.py` compares with when no checkout of the reference is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pixelrefer_fast.bench.run.workloads import REGION_PREFIX, VISION_PREFIX

PATCH, PAD, MAX_CELLS, ITERATIONS, HEADS = 14, 28, 50, 3, 8
Box = tuple[int, int, int, int]


class Plain:
    """The computation on given weights (names of a released checkpoint).

    Args:
        weights: `model.region_encoder.*` and, for `pixels_to_tokens`, `model.vision_encoder.vision_encoder.*`.
        vision_heads: attention heads of the vision encoder.
        mask_num: tokens an object (n).
        mm_max_length: the pixel budget of a processor call, in patches.
    """

    def __init__(
        self, weights: Mapping[str, torch.Tensor], vision_heads: int, mask_num: int, mm_max_length: int
    ) -> None:
        self.weights = weights
        self.vision_heads = vision_heads
        self.mask_num = mask_num
        self.mm_max_length = mm_max_length
        self.layers = sum(name.endswith("layer_norm1.weight") for name in weights)
        self.attention = {name: self._attention(f"fusion_attention_{name}.") for name in ("local", "global")}

    def _attention(self, name: str) -> nn.MultiheadAttention:
        state = {
            key.removeprefix(REGION_PREFIX + name): value
            for key, value in self.weights.items()
            if key.startswith(REGION_PREFIX + name)
        }
        module = nn.MultiheadAttention(state["out_proj.bias"].shape[0], HEADS, batch_first=True).eval()
        module.load_state_dict(state)
        return module.to(state["out_proj.bias"])

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    @torch.inference_mode()
    def region_stage(
        self,
        crops: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor],
        local: Sequence[torch.Tensor],
        context: Sequence[torch.Tensor],
        boxes: Sequence[tuple[Box, int, int]],
    ) -> torch.Tensor:
        """Features to object tokens, pooled and infused: the arguments of `bench.reference.RegionStage`."""
        tokens = []
        for i in range(len(crops)):
            own = self._pool(crops[i], masks[i], boxes[i])
            for view, features in (("local", local[i]), ("global", context[i])):
                query = self._norm(own, f"{REGION_PREFIX}ln_{view}", 1e-5)[None]
                flat = features.flatten(0, 1)[None]
                own = own + self.attention[view](query, flat, flat)[0][0]
            own = F.gelu(self._linear(own, f"{REGION_PREFIX}feat_linear.0"))
            tokens.append(self._linear(own, f"{REGION_PREFIX}feat_linear.2"))
        return torch.cat(tokens)

    def _pool(self, features: torch.Tensor, mask: torch.Tensor, place: tuple[Box, int, int]) -> torch.Tensor:
        """Position, selection, k-means from a random start: (n, D)."""
        (top, left, bottom, right), image_height, image_width = place
        rows, columns, width = features.shape
        x = (torch.arange(columns) / columns * (bottom - top) + top) / (image_width - 1)
        y = (torch.arange(rows) / rows * (right - left) + left) / (image_height - 1)
        position = torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], dim=2).to(features)
        features = features + self._linear(position, f"{REGION_PREFIX}pos_linear")
        if features.shape[:2] != mask.shape:
            planes = features.permute(2, 0, 1)[None]
            features = F.interpolate(planes, size=mask.shape, mode="bilinear")[0].permute(1, 2, 0)
        selected = features[mask > 0]
        if len(selected) <= self.mask_num:
            return torch.cat([selected, selected.new_zeros(self.mask_num - len(selected), width)])
        centroids = selected[torch.randperm(len(selected))[: self.mask_num]]
        for _ in range(ITERATIONS):
            distances = torch.stack([(selected - centroid).square().sum(1) for centroid in centroids], dim=1)
            nearest = distances.argmin(1)
            moved = [
                selected[nearest == c].mean(0) if (nearest == c).any() else centroids[c] for c in range(self.mask_num)
            ]
            centroids = torch.stack(moved)
        return centroids

    @torch.inference_mode()
    def pixels_to_tokens(self, image: np.ndarray, masks: torch.Tensor) -> torch.Tensor:
        """Pixels to object tokens: (H, W, 3) uint8 and (M, H, W) uint8 of 0 and 1 to (M * n, C)."""
        import cv2

        crops, grids, boxes, local, context = [], [], [], [], []
        first_crop: np.ndarray | None = None
        for mask in masks.numpy():
            box, crop, size = self._crop(mask)
            pixels = image[crop[0] : crop[2], crop[1] : crop[3]]
            first_crop = pixels if first_crop is None else first_crop
            shrinks = size[0] < pixels.shape[0] and size[1] < pixels.shape[1]
            scaled = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
            cut = mask[crop[0] : crop[2], crop[1] : crop[3]].astype(np.float32)
            cells = (size[1] // PATCH, size[0] // PATCH)
            grid = torch.from_numpy(cv2.resize(cut, cells, interpolation=cv2.INTER_LINEAR))
            grids.append(grid.to(self.weights[f"{REGION_PREFIX}pos_linear.bias"].device))
            boxes.append((box, *mask.shape))
            crops.append(self._encode(scaled, len(masks)))
            local.append(self._encode(cv2.resize(first_crop, (224, 224), interpolation=cv2.INTER_AREA), len(masks)))
            context.append(self._encode(cv2.resize(image, (336, 336), interpolation=cv2.INTER_AREA), len(masks)))
        return self.region_stage(crops, grids, local, context, boxes)

    def _crop(self, mask: np.ndarray) -> tuple[Box, Box, tuple[int, int]]:
        """Reported box, half-open crop, and the crop's size after scaling."""
        height, width = mask.shape
        rows, columns = np.nonzero(mask)
        top, left = max(0, int(rows.min()) - PAD), max(0, int(columns.min()) - PAD)
        bottom, right = min(height, int(rows.max()) + 1 + PAD), min(width, int(columns.max()) + 1 + PAD)
        area = len(rows)
        scale: float = math.ceil(math.sqrt(PATCH**2 * self.mask_num / area))
        if scale == 1 and area / PATCH**2 > MAX_CELLS:
            scale = 1 / math.sqrt(area / PATCH**2 / MAX_CELLS)
        size = (
            math.ceil((bottom - top) * scale / PATCH) * PATCH,
            math.ceil((right - left) * scale / PATCH) * PATCH,
        )
        box = (top, left, min(height - 1, bottom - 1), min(width - 1, right - 1))
        return box, (top, left, bottom, right), size

    def _encode(self, pixels: np.ndarray, num_images: int) -> torch.Tensor:
        """One view through the image processor and the vision encoder: (rows, columns, D)."""
        from PIL import Image

        height, width = self._processor_size(pixels.shape[0], pixels.shape[1], num_images)
        if (height, width) != pixels.shape[:2]:
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
        rows, columns = height // PATCH, width // PATCH
        like = self.weights[f"{VISION_PREFIX}embeddings.patch_embedding.bias"]
        planes = (torch.tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1).to(like)
        patches = planes.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).flatten(0, 1)
        return self._encoder(patches, rows, columns).view(rows, columns, -1)

    def _processor_size(self, height: int, width: int, num_images: int) -> tuple[int, int]:
        budget = self.mm_max_length * PATCH**2 // num_images
        rows, columns = round(height / PATCH), round(width / PATCH)
        if rows * columns * PATCH**2 > budget:
            shrink = math.sqrt(height * width / budget)
            rows, columns = math.floor(height / shrink / PATCH), math.floor(width / shrink / PATCH)
        elif rows * columns * PATCH**2 < 56**2:
            grow = math.sqrt(56**2 / (height * width))
            rows, columns = math.ceil(height * grow / PATCH), math.ceil(width * grow / PATCH)
        return rows * PATCH, columns * PATCH

    def _encoder(self, patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """All patches of one view, (P, 3, 14, 14), to features (P, D)."""
        embedding = f"{VISION_PREFIX}embeddings.patch_embedding"
        kernel, bias = self.weights[f"{embedding}.weight"], self.weights[f"{embedding}.bias"]
        x = F.conv2d(patches, kernel, bias, stride=PATCH).flatten(1)
        head_dim = x.shape[1] // self.vision_heads
        frequencies = 10000.0 ** -(torch.arange(0, head_dim // 2, 2) / (head_dim // 2))
        row = torch.arange(rows).repeat_interleave(columns)
        column = torch.arange(columns).repeat(rows)
        angles = torch.cat([row[:, None] * frequencies, column[:, None] * frequencies], dim=1).repeat(1, 2).to(x)
        for i in range(self.layers):
            layer = f"{VISION_PREFIX}encoder.layers.{i}"
            normed = self._norm(x, f"{layer}.layer_norm1", 1e-6)
            query, key, value = (
                self._linear(normed, f"{layer}.self_attn.{part}_proj").unflatten(1, (self.vision_heads, -1))
                for part in "qkv"
            )
            query, key = _turn(query, angles), _turn(key, angles)
            query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
            attended = F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1)
            x = x + self._linear(attended, f"{layer}.self_attn.out_proj")
            normed = self._norm(x, f"{layer}.layer_norm2", 1e-6)
            hidden = F.gelu(self._linear(normed, f"{layer}.mlp.fc1"), approximate="tanh")
            x = x + self._linear(hidden, f"{layer}.mlp.fc2")
        return self._norm(x, f"{VISION_PREFIX}post_layernorm", 1e-6)


def _turn(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """2-D rotary position on (P, heads, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x * angles.cos()[:, None] + turned * angles.sin()[:, None]
