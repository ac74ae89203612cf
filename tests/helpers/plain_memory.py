"""Memory as torch gives it, for tests that count launches: the poison of conftest.py is a launch of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def plain_memory() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            patch.setattr(owner, name, getattr(owner, name).__wrapped__)
        yield
