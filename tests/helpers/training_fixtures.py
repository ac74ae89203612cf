"""Fixtures that the tests of `pixelrefer_fast.train` and those of `training/` share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from more threads, and lose much on a machine that does other things as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Of the embedded models' kind, from a few scenes."""
    from recipe.sizes import make_tokenizer, world_texts

    return make_tokenizer(world_texts(60))
