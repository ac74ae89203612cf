"""What a newcomer meets first: what the default model is, wrong names of options, how things print."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

import pixelrefer_fast as pf
from pixelrefer_fast import loading
from pixelrefer_fast.encoding.objects import Objects, SceneTokens
from pixelrefer_fast.planning.request import ObjectTokens

ASSETS = Path(pf.__file__).parent / "assets"


@pytest.fixture(scope="module")
def model() -> pf.PixelReferLite:
    return pf.load(ASSETS / "lite", device="cpu")


def test_the_default_model_is_said_to_be_what_it_is_once() -> None:
    loading._say_default.cache_clear()
    with pytest.warns(UserWarning, match=r"no model was named; .*PixelRefer-Lite-mini, .*plain shapes") as said:
        pf.load(device="cpu")
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pf.load(device="cpu")
        loading._say_default.cache_clear()
        pf.load("embedded:lite", device="cpu")


@pytest.mark.parametrize(
    ("option", "meant"),
    [("max_new_token", "max_new_tokens"), ("temprature", "temperature"), ("kmean_seed", "kmeans_seed")],
)
def test_an_option_of_nearly_the_right_name(model: pf.PixelReferLite, option: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"got \['{option}'\]; did you mean {meant}\?"):
        model.ask(ASSETS / "cat.jpg", "What is <region>?", [[1, 2, 30, 40]], **{option: 5})
    with pytest.raises(ValueError, match=r"got \['zzz'\]$"):
        model.describe(ASSETS / "cat.jpg", [[1, 2, 30, 40]], zzz=5)


def test_things_print_as_a_line(model: pf.PixelReferLite) -> None:
    assert repr(model).startswith("<PixelReferLite: ")
    assert " weights in float32 on cpu>" in repr(model)
    scene = SceneTokens(torch.zeros(3, 4), torch.ones(3, dtype=torch.bool), (3,))
    objects = Objects("full", torch.zeros(5, 4), (ObjectTokens((2,)), ObjectTokens((3,))), None, scene, {})
    assert repr(objects) == "<Objects (full): 2 in 5 tokens, with 3 vision tokens, float32>"
    assert objects._repr_html_().count("<tr>") == 3
    for thing in (model, objects):
        assert "\n" not in repr(thing)
        assert len(repr(thing)) < 120
