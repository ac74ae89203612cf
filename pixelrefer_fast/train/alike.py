"""Attention heads of the vision encoder that are shown what to count, in its pretraining (`perception.py`).

How many objects of a whole image are like the one that a patch shows is learnt very late from the number alone: it
depends on what every object looks like and on which patches belong to one object. Here one head for colours and one for
shapes are drawn to spread evenly over the objects that are alike, whatever their sizes, and to leave as much as one
object gets to the rest of the image: of k objects alike they get k / (k + 1), which the layer's MLP can read as k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pixelrefer_fast import ops
from pixelrefer_fast.config import VisionConfig
from pixelrefer_fast.encoder import EncoderLayer, PassLayout, VisionEncoder
from pixelrefer_fast.world import Scene

LOOKS = ("color", "shape")
HEADS = {"color": (2, 4), "shape": (3, 0)}  # layer and head: a shape takes longer to be seen
BACKGROUND, PADDING = -1, -2
LEAST = 1e-6  # part of an attention, below which there is no gradient


@dataclass(frozen=True)
class WholeViews:
    """What the patches of some views show, by object.

    Attributes:
        patches: (V, L) int64 numbers of their patches; any where there is padding.
        owner: (V, L) int64 number of the object within its scene, BACKGROUND or PADDING.
        alike: (V, len(LOOKS), N, N) bool, which objects look alike, each like itself; all False in the row of an
            object that is not to be counted for.
    """

    patches: torch.Tensor
    owner: torch.Tensor
    alike: torch.Tensor

    @classmethod
    def of(cls, views: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> WholeViews:
        """From (patches (p,), owner (p,), alike (len(LOOKS), n, n)) of each view."""
        longest = max((len(patches) for patches, _, _ in views), default=0)
        most = max((alike.shape[1] for _, _, alike in views), default=0)
        patches = np.zeros((len(views), longest), np.int64)
        owner = np.full((len(views), longest), PADDING, np.int64)
        table = np.zeros((len(views), len(LOOKS), most, most), bool)
        for v, (numbers, shown, alike) in enumerate(views):
            patches[v, : len(numbers)], owner[v, : len(shown)] = numbers, shown
            table[v, :, : alike.shape[1], : alike.shape[2]] = alike
        return cls(torch.from_numpy(patches), torch.from_numpy(owner), torch.from_numpy(table))


def alike(scene: Scene, counted: Sequence[bool]) -> np.ndarray:
    """(len(LOOKS), n, n) bool of a scene's objects.

    Args:
        scene: of `make_scene`.
        counted: of each of LOOKS, whether it is plain of every object.
    """
    looks = [np.array([getattr(thing, look) for thing in scene.things]) for look in LOOKS]
    return np.stack([(own[:, None] == own) & plain for own, plain in zip(looks, counted, strict=True)])


class Watch:
    """What goes into the layers that have such heads, while an encoder runs."""

    def __init__(self, encoder: VisionEncoder) -> None:
        check_size(encoder.config)
        self._layers = {layer: encoder.layers[layer] for layer, _ in HEADS.values()}
        self._seen: dict[int, tuple[torch.Tensor, PassLayout, Any]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        def keep(number: int) -> Any:
            def hook(_: Any, inputs: tuple[Any, ...]) -> None:
                _, normed, layout, rope, *_ = inputs
                self._seen[number] = normed, layout, rope

            return hook

        hooks = [layer.register_forward_pre_hook(keep(number)) for number, layer in self._layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def losses(self, views: WholeViews) -> torch.Tensor:
        """(len(LOOKS),) divergence of each head's attention from what it should be, mean over the objects."""
        found = []
        for k, look in enumerate(LOOKS):
            layer, head = HEADS[look]
            block = self._layers[layer]
            assert isinstance(block, EncoderLayer)
            scores = _scores(block, head, *self._seen[layer], views.patches)
            found.append(_divergence(scores, views.owner, views.alike[:, k]))
        return torch.stack(found)


def check_size(config: VisionConfig) -> None:
    """Raises ValueError for an encoder with too few layers or heads."""
    layers, heads = (max(number) + 1 for number in zip(*HEADS.values(), strict=True))
    if config.num_layers < layers or config.num_heads < heads:
        raise ValueError(
            f"vision encoder: expected at least {layers} layers of {heads} heads, of which some learn what to count, "
            f"got {config.num_layers} of {config.num_heads}"
        )


def _scores(
    block: EncoderLayer, head: int, normed: torch.Tensor, layout: PassLayout, rope: Any, patches: torch.Tensor
) -> torch.Tensor:
    """(V, L, L) float32 of one head."""
    size = normed.shape[1] // block.heads
    rows = torch.arange(3)[:, None] * block.heads * size + head * size + torch.arange(size)
    with torch.autocast(normed.device.type, enabled=False):
        own = (normed.float() @ block.qkv.weight[rows.reshape(-1)].float().T).view(len(normed), 3, 1, size)
        ops.rope2d(own, block.qkv.bias[rows].view(3, 1, size), layout.row, layout.column, *rope)
        q, k = own[patches, 0, 0], own[patches, 1, 0]
        return q @ k.transpose(1, 2) / size**0.5


def _divergence(scores: torch.Tensor, owner: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
    """Mean over the objects, each alike, of the divergence of their patches' attention from what it should be."""
    n = alike.shape[1]
    attention = scores.masked_fill((owner == PADDING)[:, None], -torch.inf).softmax(2)
    part = attention @ F.one_hot(owner.clamp(min=BACKGROUND) + 1, n + 1).float()[..., 1:]  # (V, L, N) of each object
    wanted = torch.gather(alike, 1, owner.clamp(min=0)[..., None].expand(-1, -1, n)) & (owner >= 0)[..., None]
    count = wanted.sum(2)
    rest = 1 - (part * wanted).sum(2)
    missed = -((part.clamp(min=LEAST).log() * wanted).sum(2) + rest.clamp(min=LEAST).log()) / (count + 1)
    missed = missed - (count + 1).log()
    told = (count > 0).float()
    patches = F.one_hot(owner.clamp(min=BACKGROUND) + 1, n + 1)[..., 1:].float().sum(1)  # (V, N) of each object
    weight = told / torch.gather(patches, 1, owner.clamp(min=0)).clamp(min=1)
    return (missed * weight).sum() / weight.sum().clamp(min=1)
