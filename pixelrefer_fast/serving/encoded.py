"""Encoded objects that callers ask about again."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from pixelrefer_fast.encoding.objects import Objects
from pixelrefer_fast.serving.errors import ApiError


@dataclass(frozen=True)
class _KeptObjects:
    model: str
    objects: Objects
    until: float
    bytes: int


class EncodedObjects:
    """By ids that nobody can guess. The least recently used are let go when room is short.

    Args:
        most_bytes: of their tokens.
        seconds: that each is kept for.
        clock: monotonic seconds.
    """

    def __init__(self, most_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most_bytes
        self._seconds = seconds
        self._clock = clock
        self._kept: OrderedDict[str, _KeptObjects] = OrderedDict()

    @property
    def bytes(self) -> int:
        return sum(kept.bytes for kept in self._kept.values())

    def keep(self, model: str, objects: Objects) -> str:
        """The id under which they are found again.

        Raises:
            ApiError: 413, they are larger than all that may be kept.
        """
        tokens = [objects.tokens, *([] if objects.scene is None else [objects.scene.tokens])]
        size = sum(own.numel() * own.element_size() for own in tokens)
        if size > self._most:
            raise ApiError(413, f"regions: expected at most {self._most} bytes of object tokens, got {size}", "regions")
        self._expire()
        while self.bytes + size > self._most:
            self._kept.popitem(last=False)
        name = "obj-" + secrets.token_hex(16)
        self._kept[name] = _KeptObjects(model, objects, self._clock() + self._seconds, size)
        return name

    def get(self, name: str, model: str) -> Objects:
        """What `keep` was given.

        Raises:
            ApiError: 404, it is not there (any more); 400, another model has encoded it.
        """
        self._expire()
        kept = self._kept.get(name)
        if kept is None:
            raise ApiError(404, "objects: expected an id of /v1/encode that has not expired", "objects")
        if kept.model != model:
            raise ApiError(400, f"objects: expected ones of {model}, got ones of {kept.model}", "objects")
        self._kept.move_to_end(name)
        return kept.objects

    def _expire(self) -> None:
        now = self._clock()
        for name in [name for name, kept in self._kept.items() if kept.until <= now]:
            del self._kept[name]
