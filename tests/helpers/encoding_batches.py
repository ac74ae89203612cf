"""Looks at, or fails, the batches that a queue is about to encode."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from pixelrefer_fast.batching import queue as queue_module


def look_at_batches(patch: pytest.MonkeyPatch, look: Callable[[list[Any]], None]) -> None:
    """Have every batch pass `look` before its first part."""
    encode = queue_module.encode_in_parts

    def looking(network: Any, batch: Any, scenes: Any, most: Any) -> Generator[None, None, Any]:
        look(list(batch))
        return (yield from encode(network, batch, scenes, most))

    patch.setattr(queue_module, "encode_in_parts", looking)
