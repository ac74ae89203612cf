"""Prefixes that prompts share: where they end, what tells them apart, and which of them are kept.

Of a prompt's prefixes three may be met again: the text before the first token of an image or an object, everything up
to the end of the vision tokens (another question about the same image), and everything up to the end of the object
tokens (another question about the same objects). What is in a prefix is told by its token ids and by the content of
the tokens that stand at its placeholders.
"""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections import Counter, OrderedDict, abc
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from pixelrefer_fast.decoding.cache import BlockPool
from pixelrefer_fast.decoding.prompt import Prompt
from pixelrefer_fast.encoding.objects import Objects


class Boundary(NamedTuple):
    """A prefix of a prompt: so many tokens, and what tells it from all others."""

    length: int
    key: bytes


@dataclass(frozen=True)
class PromptEmbeds:
    """What is decoded: embeddings (L, C), and where prefixes that may be shared end, the shortest first."""

    embeds: torch.Tensor
    boundaries: tuple[Boundary, ...] = ()

    def __len__(self) -> int:
        return len(self.embeds)


def prefix_boundaries(prompt: Prompt, objects: Objects) -> tuple[Boundary, ...]:
    """Where a prompt about objects shares its prefix with others; lengths are those of its embeddings."""
    ids, scene = prompt.input_ids.numpy(), objects.scene
    keep = np.ones(len(ids), np.bool_)
    if scene is not None:
        keep[prompt.image_slots.numpy()] = scene.kept.cpu().numpy()
    held = [  # places from the first to behind the last, and what stands there
        (int(slots[0]), int(slots[-1]) + 1, content(tokens))
        for slots, tokens in (
            (prompt.image_slots, None if scene is None else scene.tokens),
            (prompt.region_slots, objects.tokens),
        )
        if tokens is not None and len(slots)
    ]
    boundaries = []
    for end in sorted({*(stop for _, stop, _ in held), min((start for start, _, _ in held), default=0)}):
        digest = hashlib.sha256(ids[:end].data)
        for start, _, key in held:
            if start < end:
                digest.update(key)
        if scene is not None:
            digest.update(keep[:end].data)
        length = int(np.count_nonzero(keep[:end]))
        if length:
            boundaries.append(Boundary(length, digest.digest()))
    return tuple(boundaries)


READABLE = frozenset({"cpu"})  # devices whose memory the host reads without a wait
_known: dict[int, tuple[weakref.ref[torch.Tensor], int, bytes]] = {}
_serial = itertools.count()


def content(tensor: torch.Tensor) -> bytes:
    """What tells a tensor's content from others': its bytes on the CPU; on a device, without a wait, what was declared.

    Of what nobody has told the making (`declare`) that is its identity. What was written to is another content; a
    tensor made in inference mode does not tell whether it was, and is another content each time.
    """
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    if tensor.device.type in READABLE:
        # read each time: what is written through NumPy, say, shows nowhere else
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.digest()
    version = None if tensor.is_inference() else tensor._version
    found = _known.get(id(tensor))
    if version is not None and found is not None and found[0]() is tensor and found[1] == version:
        return found[2]
    digest.update(f"{tensor.device} {next(_serial)}".encode())
    return _remembered(tensor, digest.digest())


def declare(tensor: torch.Tensor, made_of: bytes) -> None:
    """Have a tensor's content told by what it was made of, until it is written to.

    Args:
        tensor: on any device.
        made_of: the same bytes for what is the same but for rounding, and for nothing else of that shape and dtype.
    """
    told = f"{tuple(tensor.shape)} {tensor.dtype} {tensor.device} made of "
    _remembered(tensor, hashlib.sha256(told.encode() + made_of).digest())


def _remembered(tensor: torch.Tensor, key: bytes) -> bytes:
    """The key, which is the tensor's as long as nobody writes to it."""
    if not tensor.is_inference():
        place = id(tensor)
        _known[place] = (weakref.ref(tensor, lambda _: _known.pop(place, None)), tensor._version, key)
    return key


@dataclass(frozen=True)
class _Kept:
    length: int
    blocks: tuple[int, ...]


class PrefixCache:
    """Prefixes whose keys and values are kept after their prompts are done, the least recently used given up first.

    Args:
        pool: where they lie; a prefix holds its blocks, the last one shared with whoever filled it up.
        limit_bytes: of the blocks that prefixes hold.
    """

    def __init__(self, pool: BlockPool, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._pool = pool
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._holders: Counter[int] = Counter()
        self.evictions = 0

    @property
    def held_bytes(self) -> int:
        return len(self._holders) * self._pool.block_bytes

    def blocks_held_alone(self) -> int:
        """How many blocks nobody else holds: those that giving up all prefixes would free."""
        return sum(self._pool.holders(block) == count for block, count in self._holders.items())

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: bytes) -> bool:
        return key in self._kept

    def longest(self, boundaries: abc.Sequence[Boundary]) -> tuple[int, tuple[int, ...]]:
        """Length and blocks of the longest prefix that is kept, (0, ()) for none; who takes them holds them."""
        for boundary in reversed(boundaries):
            kept = self._kept.get(boundary.key)
            if kept is not None:
                self._kept.move_to_end(boundary.key)
                return kept.length, kept.blocks
        return 0, ()

    def keep(self, boundary: Boundary, blocks: abc.Sequence[int]) -> None:
        """Keep a prefix that lies in a sequence's blocks, if there is room for it."""
        own = tuple(blocks[: self._pool.needed(boundary.length)])
        if boundary.key in self._kept or len(own) * self._pool.block_bytes > self.limit_bytes:
            return
        self._pool.hold(own)
        self._holders.update(own)
        self._kept[boundary.key] = _Kept(boundary.length, own)
        while self.held_bytes > self.limit_bytes:
            self.give_up()

    def give_up(self) -> bool:
        """Forget the least recently used; False when there is none."""
        if not self._kept:
            return False
        _, kept = self._kept.popitem(last=False)
        self._pool.release(kept.blocks)
        self._holders -= Counter(kept.blocks)
        self.evictions += 1
        return True

    def clear(self) -> None:
        """Forget all."""
        while self.give_up():
            pass
