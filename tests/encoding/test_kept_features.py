"""Features of images that were asked about: used again for equal pixels and weights only, within their bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pixelrefer_fast as pf
from pixelrefer_fast.device.stages import StageCall, listen
from pixelrefer_fast.encoding.kept_features import KeptFeatures

BOX, OTHER = [10, 12, 60, 70], [70, 5, 110, 60]


def _image(seed: int, height: int = 90, width: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(params=["lite", "full"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(assets: Path, kind: str) -> Any:
    """One that keeps features."""
    return pf.load(assets / kind, device="cpu", dtype="float32")


@pytest.fixture
def plain(kind: str, request: pytest.FixtureRequest) -> Any:
    """One with the same weights that keeps none."""
    return request.getfixturevalue(kind)


def _encoded(run: Callable[[], object]) -> int:
    """Patches that the encoder takes in a call."""
    patches = 0

    @contextmanager
    def count(call: StageCall) -> Iterator[None]:
        nonlocal patches
        if call.stage == "encoder":
            patches += len(call.run.args[1])  # type: ignore[attr-defined]
        yield

    with listen(count):
        run()
    return patches


def _close(given: torch.Tensor, wanted: torch.Tensor) -> None:
    """Within what another packing of the same views may change."""
    assert given.shape == wanted.shape
    assert (given - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_asking_again_encodes_nothing(model: Any, plain: Any) -> None:
    image = _image(0)
    first = model.encode(image, [BOX, OTHER]).tokens
    again = []
    assert _encoded(lambda: again.append(model.encode(image.copy(), [BOX, OTHER]).tokens)) == 0
    assert torch.equal(again[0], first)
    _close(first, plain.encode(image, [BOX, OTHER]).tokens)
    answers = []
    for patches in (_encoded(lambda: plain.encode(image, [OTHER])), 0):
        assert _encoded(lambda: answers.append(model.ask(image, "What is <region>?", [OTHER]))) <= patches
    assert answers == 2 * [plain.ask(image, "What is <region>?", [OTHER])]


def test_another_region_finds_what_the_image_has(model: Any, plain: Any) -> None:
    image = _image(1)
    everything = _encoded(lambda: model.encode(image, [BOX]))
    found = []
    crop = _encoded(lambda: found.append(model.encode(image, [OTHER]).tokens))
    assert 0 < crop < everything
    _close(found[0], plain.encode(image, [OTHER]).tokens)


def test_changed_pixels_are_another_image(model: Any, plain: Any) -> None:
    image = _image(2)
    everything = _encoded(lambda: model.encode(image, [BOX]))
    image[40, 30] ^= 1
    found = []
    assert _encoded(lambda: found.append(model.encode(image, [BOX]).tokens)) == everything
    _close(found[0], plain.encode(image, [BOX]).tokens)


def test_images_that_look_alike_are_told_apart(model: Any) -> None:
    """They differ where nothing is sampled."""
    one = _image(3)
    other = one.copy()
    other.reshape(-1)[1] ^= 255
    tokens = [model.encode(image, [BOX]).tokens for image in (one, other, one, other)]
    assert not torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])
    assert torch.equal(tokens[1], tokens[3])


def test_changed_weights_know_nothing(model: Any) -> None:
    image = _image(4)
    before = model.encode(image, [BOX]).tokens
    with torch.no_grad():
        model.network.encoder.patch_embedding.weight.mul_(1.5)
    assert _encoded(lambda: model.encode(image, [BOX])) > 0
    assert not torch.allclose(model.encode(image, [BOX]).tokens, before)


def test_a_batch_of_known_and_unknown_images(model: Any, plain: Any) -> None:
    images = [_image(i) for i in range(5, 9)]
    clip = np.stack([_image(i, 56, 56) for i in range(6)])
    model.encode(images[1], [BOX])
    model.encode(images[3], [OTHER])
    asks = [pf.Ask(image, "What is <region>?", [box], max_new_tokens=4) for image in images for box in (BOX, OTHER)]
    asks.append(pf.Ask(pf.open_media(clip), "What is <region>?", [{2: [3, 3, 40, 40]}], max_new_tokens=4))
    for _ in range(2):
        given = model.ask_batch(asks)
        assert [answer.error for answer in given] == [None] * len(asks)
        assert [answer.tokens for answer in given] == [answer.tokens for answer in plain.ask_batch(asks)]


def test_the_bound_holds_and_the_last_used_stay(model: Any) -> None:
    images = [_image(i) for i in range(3)]
    kept = model.network.kept_features = KeptFeatures(1 << 40)
    model.encode(images[0], [BOX])
    one = kept.nbytes
    assert one > images[0].nbytes
    kept = model.network.kept_features = KeptFeatures(2 * one)
    for image in (images[0], images[1], images[0], images[2]):
        model.encode(image, [BOX])
        assert kept.nbytes <= 2 * one
    assert _encoded(lambda: model.encode(images[0], [BOX])) == 0
    assert _encoded(lambda: model.encode(images[1], [BOX])) > 0
    small = model.network.kept_features = KeptFeatures(one - 1)
    model.encode(images[0], [BOX])
    assert small.nbytes == 0


def test_none_are_kept_where_none_are_wanted(plain: Any) -> None:
    assert plain.network.kept_features is None
    image = _image(9)
    assert _encoded(lambda: plain.encode(image, [BOX])) == _encoded(lambda: plain.encode(image, [BOX])) > 0
