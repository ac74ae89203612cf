"""Attention heads of the vision encoder that are shown what to count, in its pretraining (`perception.py`).

How many objects of a whole image are like the one that a patch shows is learnt very late from the number alone: it
depends on what every object looks like and on which patches belong to one object. Here one head for colours and one for
shapes are drawn to spread evenly over the objects that are alike, whatever their sizes, and to leave as much as one
object gets to the rest of the image: of k objects alike they get k / (k + 1), which the layer's MLP can read as k.

That is even only as far as the keys know how many patches their object has. Heads of a deeper encoder's last layer are
shown one place of each object instead, its centre, and leave as much as one object gets to the background: what either
kind gets wrong the other need not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from pixelrefer_fast import ops
from pixelrefer_fast.checkpoint.config import VisionConfig
from pixelrefer_fast.encoding.encoder import EncoderLayer, PassLayout, VisionEncoder
from pixelrefer_fast.world import Scene

LOOKS = ("color", "shape")
Heads = tuple[tuple[int, int], ...]
# layers and heads, of a shallower encoder those that it has: a shape takes longer to be seen
HEADS: dict[str, Heads] = {"color": ((2, 4), (4, 4)), "shape": ((3, 0), (4, 0))}
CENTRES: dict[str, Heads] = {"color": ((5, 4),), "shape": ((5, 0),)}
BACKGROUND, PADDING = -1, -2
LEAST = 1e-6  # part of an attention, below which there is no gradient


class WholeView(NamedTuple):
    """One view: `patches` (p,), `owner` (p,), `alike` (len(LOOKS), n, n) and `centre` (p,) of `WholeViews`."""

    patches: np.ndarray
    owner: np.ndarray
    alike: np.ndarray
    centre: np.ndarray


@dataclass(frozen=True)
class WholeViews:
    """What the patches of some views show, by object.

    Attributes:
        patches: (V, L) int64 numbers of their patches; any where there is padding.
        owner: (V, L) int64 number of the object within its scene, BACKGROUND or PADDING.
        alike: (V, len(LOOKS), N, N) bool, which objects look alike, each like itself; all False in the row of an
            object that is not to be counted for.
        centre: (V, L) float32, how much of its object's centre lies in the patch: one for each object in all.
    """

    patches: torch.Tensor
    owner: torch.Tensor
    alike: torch.Tensor
    centre: torch.Tensor

    @classmethod
    def of(cls, views: Sequence[WholeView]) -> WholeViews:
        """Of some views, padded to the longest."""
        longest = max((len(view.patches) for view in views), default=0)
        most = max((view.alike.shape[1] for view in views), default=0)
        patches = np.zeros((len(views), longest), np.int64)
        owner = np.full((len(views), longest), PADDING, np.int64)
        table = np.zeros((len(views), len(LOOKS), most, most), bool)
        centre = np.zeros((len(views), longest), np.float32)
        for v, view in enumerate(views):
            patches[v, : len(view.patches)], owner[v, : len(view.owner)] = view.patches, view.owner
            table[v, :, : view.alike.shape[1], : view.alike.shape[2]] = view.alike
            centre[v, : len(view.centre)] = view.centre
        return cls(*map(torch.from_numpy, (patches, owner, table, centre)))


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
        self.even, self.centres = (heads_of(encoder.config, every) for every in (HEADS, CENTRES))
        watched = (head for kind in (self.even, self.centres) for own in kind.values() for head in own)
        self._layers = {layer: encoder.layers[layer] for layer, _ in watched}
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
        """(heads,) divergence of each head's attention from what it should be, mean over the objects."""
        found = []
        for k, look in enumerate(LOOKS):
            for head in self.even[look]:
                found.append(_divergence(self._of_head(*head, views), views.owner, views.alike[:, k]))
            for head in self.centres[look]:
                found.append(_off_centre(self._of_head(*head, views), views, k))
        return torch.stack(found)

    def _of_head(self, layer: int, head: int, views: WholeViews) -> torch.Tensor:
        """(V, L, L) float32 scores, minus infinity of what is padding."""
        block = self._layers[layer]
        assert isinstance(block, EncoderLayer)
        scores = _scores(block, head, *self._seen[layer], views.patches)
        return scores.masked_fill((views.owner == PADDING)[:, None], -torch.inf)


def check_size(config: VisionConfig) -> None:
    """Raises ValueError for an encoder with too few layers or heads."""
    layers, heads = (max(number) + 1 for number in zip(*(own[0] for own in HEADS.values()), strict=True))
    if config.num_layers < layers or config.num_heads < heads:
        raise ValueError(
            f"vision encoder: expected at least {layers} layers of {heads} heads, of which some learn what to count, "
            f"got {config.num_layers} of {config.num_heads}"
        )


def heads_of(config: VisionConfig, heads: Mapping[str, Heads]) -> dict[str, Heads]:
    """Those of some heads that an encoder has."""
    return {look: tuple(own for own in heads[look] if own[0] < config.num_layers) for look in LOOKS}


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
    """Mean over the objects, each alike, of the divergence of their patches' attention from what it should be: of each
    object alike, wherever within it, as much as of all the rest."""
    attention = scores.softmax(2)
    part = attention @ _shown(owner, alike.shape[1])  # (V, L, N) of each object
    wanted = _wanted(owner, alike)
    count = wanted.sum(2)
    rest = 1 - (part * wanted).sum(2)
    missed = -((part.clamp(min=LEAST).log() * wanted).sum(2) + rest.clamp(min=LEAST).log()) / (count + 1)
    return _mean_of_objects(missed - (count + 1).log(), count, owner, alike.shape[1])


def _off_centre(scores: torch.Tensor, views: WholeViews, look: int) -> torch.Tensor:
    """Likewise, of attention to the centre of each object alike, and as much as to one of them to the background."""
    owner, alike = views.owner, views.alike[:, look]
    attention = scores.log_softmax(2)
    wanted = _wanted(owner, alike)
    count = wanted.sum(2)
    shown = _shown(owner, alike.shape[1])
    # (V, L, L) of the attention, as parts of what one object gets
    centres = (wanted.float() @ shown.transpose(1, 2)) * views.centre[:, None]
    told = (torch.special.entr(centres) + centres * attention.clamp(min=math.log(LEAST))).sum(2)
    rest = (attention.exp() * (owner == BACKGROUND)[:, None]).sum(2)
    missed = -(told + rest.clamp(min=LEAST).log()) / (count + 1)
    return _mean_of_objects(missed - (count + 1).log(), count, owner, alike.shape[1])


def _shown(owner: torch.Tensor, n: int) -> torch.Tensor:
    """(V, L, n) float32: whether a patch shows an object."""
    return F.one_hot(owner.clamp(min=BACKGROUND) + 1, n + 1)[..., 1:].float()


def _wanted(owner: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
    """(V, L, N) bool: the objects that are like a patch's, none for a patch that does not count."""
    rows = owner.clamp(min=0)[..., None].expand(-1, -1, alike.shape[1])
    return torch.gather(alike, 1, rows) & (owner >= 0)[..., None]


def _mean_of_objects(missed: torch.Tensor, count: torch.Tensor, owner: torch.Tensor, n: int) -> torch.Tensor:
    """Mean over the objects, each alike, of what their patches (V, L) have."""
    patches = _shown(owner, n).sum(1)  # (V, N) of each object
    weight = (count > 0).float() / torch.gather(patches, 1, owner.clamp(min=0)).clamp(min=1)
    return (missed * weight).sum() / weight.sum().clamp(min=1)
