"""Tokens that cannot be read without a wait are told apart by what they were made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pixelrefer_fast as pf
from pixelrefer_fast.batching import preparing as preparing_module
from pixelrefer_fast.batching.preparing import MediaCache, prepare
from pixelrefer_fast.decoding import prefixes as prefixes_module

BOX = [8, 8, 60, 50]
WHAT = "Please say in a word what this is: <region>?"


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a CPU is one that the host would have to wait for."""
    for module in (prefixes_module, preparing_module):
        monkeypatch.setattr(module, "READABLE", frozenset())


def _image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (80, 96, 3), dtype=np.uint8)


def test_equal_pixels_and_regions_share_a_prefix_from_call_to_call(model: Any, tmp_path: Path) -> None:
    """Other arrays, a file, another question; the answers are those of nobody sharing anything."""
    Image.fromarray(_image(1)).save(tmp_path / "a.png")
    asks = [
        pf.Ask(_image(1), WHAT, [BOX], max_new_tokens=5),
        pf.Ask(_image(1), WHAT + " And why?", [BOX], max_new_tokens=5),
        pf.Ask(tmp_path / "a.png", WHAT, [BOX], max_new_tokens=5),
    ]
    alone = []
    for ask in asks:
        model.decoder.clear()
        alone.append(model.ask_batch([ask])[0])
    model.decoder.clear()
    assert alone[0].cached_tokens == 0
    shared = [model.ask_batch([ask])[0] for ask in asks]
    assert [a.tokens for a in shared] == [a.tokens for a in alone]
    objects = len(model.encode(_image(1), [BOX]).tokens)
    assert shared[0].cached_tokens == 0
    assert all(a.cached_tokens > objects for a in shared[1:])


@pytest.mark.parametrize("other", ["pixels", "region", "larger mask", "start", "file"])
def test_what_differs_shares_no_more_than_text_and_image(model: Any, other: str, tmp_path: Path) -> None:
    mask = np.zeros((80, 96), np.uint8)
    mask[8:50, 8:60] = 1
    larger = mask.copy()
    larger[8:50, 8:74] = 1
    Image.fromarray(_image(1)).save(tmp_path / "a.png")
    given: dict[str, Any] = {"media": _image(1), "question": WHAT, "regions": [mask], "max_new_tokens": 2}
    change: dict[str, Any] = {
        "pixels": {"media": _image(1) ^ (np.arange(80 * 96 * 3) == 80 * 96 * 2).reshape(80, 96, 3)},
        "region": {"regions": [[20, 8, 72, 50]]},
        "larger mask": {"regions": [larger]},
        "start": {"kmeans_seed": 5},
        "file": {"media": tmp_path / "a.png"},
    }[other]
    first, changed = given, given | change
    if other == "file":  # whose pixels are others by now
        first = changed
    (before,) = model.ask_batch([first])
    if other == "file":
        Image.fromarray(_image(2)).save(tmp_path / "a.png")
    (same,) = model.ask_batch([{**first, "media": first["media"]}])
    (found,) = model.ask_batch([changed])
    assert before.cached_tokens == 0
    objects = len(model.encode(given["media"], given["regions"]).tokens)
    if other != "file":
        assert same.cached_tokens > found.cached_tokens
        assert found.cached_tokens <= found.prompt_tokens - objects
    else:
        assert same.cached_tokens <= same.prompt_tokens - objects


def test_written_tokens_are_another_content(model: Any) -> None:
    objects, again = (model.encode(_image(1), [BOX]) for _ in range(2))
    known = prefixes_module.content(objects.tokens)
    assert prefixes_module.content(again.tokens) == known
    objects.tokens.add_(1)
    assert prefixes_module.content(objects.tokens) != known
    assert prefixes_module.content(again.tokens) == known
    for weight in model.network.projector.parameters():
        weight.mul_(1.5)
    for weight in model.network.object_tokenizer.parameters():
        weight.mul_(1.5)
    assert prefixes_module.content(model.encode(_image(1), [BOX]).tokens) != known


def test_frames_in_memory_are_known_and_those_of_others_are_not(model: Any) -> None:
    frames = [_image(seed) for seed in range(3)]
    regions = [{0: BOX}]
    asked = [prepare(model.network, pf.Ask(list(frames), WHAT, regions), MediaCache(), MediaCache()) for _ in range(2)]
    assert all(one.made_of is not None for one in asked)
    keys = [prefixes_module.content(model.encode(list(frames), regions).tokens) for _ in range(2)]
    assert keys[0] != keys[1]  # a video's frames are read as they are needed
