"""What the pages say of the embedded models was measured on the weights that ship."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

import pixelrefer_fast as pf

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
FILES = ("bench.json", "quantized.json", "serving.json", "throughput.json")


@lru_cache
def shipped(name: str) -> str:
    return pf.load(name, device="cpu", dtype="float32").fingerprint


def shown(file: str) -> Iterator[dict[str, Any]]:
    """The documents that a page shows: the last of each model, with and without the reference."""
    found = json.loads((RESULTS / file).read_text())
    documents = found if isinstance(found, list) else [found]
    ordered = sorted(documents, key=lambda document: document["date"])
    yield from {(document["model"], document.get("reference") is not None): document for document in ordered}.values()


@pytest.mark.parametrize("file", FILES)
def test_results_that_pages_show_are_of_the_weights_that_ship(file: str) -> None:
    for document in shown(file):
        command = document["command"]
        assert document.get("weights"), f"{file}: measured before results named their weights: {command}"
        embedded = {name: found for name, found in document["weights"].items() if name.startswith("embedded:")}
        assert embedded == {name: shipped(name) for name in embedded}, f"{file}: of other weights; again: {command}"
