"""From masks on a device to object tokens through a captured pass: how often the host waits for what lies there.

There is no device: tensors of the host stand for one's (`as_on_a_device`), and what replays stands for a graph.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from as_on_a_device import Crossings, masks_stay
from recorded_graphs import Recorder

from pixelrefer_fast.batching import preparing
from pixelrefer_fast.batching.encoding import Prepared, encode_prepared
from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.device.counters import counting
from pixelrefer_fast.encoding import captured_passes, infusion
from pixelrefer_fast.encoding.captured_passes import CapturedPasses
from pixelrefer_fast.encoding.kept_features import KeptFeatures
from pixelrefer_fast.ops._extension import available
from pixelrefer_fast.planning.options import EncodeOptions

SIDE = 160


@pytest.fixture(params=["lite", "full"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With captured passes; keys are folded whatever that costs, as a larger pass may choose otherwise."""
    monkeypatch.setattr(infusion, "is_projected", lambda *sizes: False)
    own = request.getfixturevalue(request.param)
    network = own.network
    captured = CapturedPasses(network.encoder, network.object_tokenizer, network.config, "auto", 2**30, Recorder())
    captured.warm_up()
    network.captured = captured
    yield own
    network.captured = None


def _image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def _masks(number: int) -> torch.Tensor:
    masks = torch.zeros(number, SIDE, SIDE, dtype=torch.bool)
    for i in range(number):
        masks[i, 8 + 9 * i : 60 + 11 * i, 20 : 90 + 8 * i] = True
        masks[i, 30, 40 : 50 + i] = False
    return masks


def _prepared(model: Any, masks: Any, image: np.ndarray, encode: EncodeOptions) -> Prepared:
    network = model.network
    request = model._request(image, masks, encode)
    plan = network.plan(request)
    with mock.patch.object(preparing, "READABLE", frozenset()):  # as on a device, tokens are told by what they are of
        made = preparing.made_of(network, request, plan)
    assert made is not None
    return Prepared("", Generation(), request=request, plan=plan, encode=encode, made_of=made)


def _encoded(model: Any, masks: Any, encode: EncodeOptions | None = None) -> torch.Tensor:
    (objects,) = encode_prepared(model.network, [_prepared(model, masks, _image(), encode or EncodeOptions())])
    return objects.tokens


def _crossed(model: Any, masks: torch.Tensor, encode: EncodeOptions | None = None) -> tuple[torch.Tensor, list[str]]:
    """Object tokens, and what the host asked of a device for them."""
    with masks_stay(), Crossings(masks) as crossings:
        return _encoded(model, masks, encode), crossings.reads


def _alone(model: Any, masks: Any) -> torch.Tensor:
    """As it is computed where nothing is captured and the masks lie in host memory."""
    captured, model.network.captured = model.network.captured, None
    try:
        return _encoded(model, masks.numpy())
    finally:
        model.network.captured = captured


@pytest.mark.parametrize("number", [1, 3])
def test_one_small_copy_for_all_masks(model: Any, number: int) -> None:
    """Areas and boxes come to the host; in Full, whose prompt has a token for each, the numbers of patches too."""
    masks = _masks(number)
    replays = model.network.captured.store.counts()["replays"]
    tokens, reads = _crossed(model, masks)
    assert reads == ["tolist"] * (1 if model.kind == "lite" else 2)
    assert model.network.captured.store.counts()["replays"] == replays + 1
    assert torch.equal(tokens, _alone(model, masks))


def test_whatever_lies_in_the_buffers(model: Any) -> None:
    """NaN of earlier requests reaches nothing: rows behind those that are selected are read by nobody."""
    masks = _masks(3)
    buffers = model.network.captured._buffers
    buffers.patches.fill_(torch.nan)
    buffers.features.fill_(torch.nan)
    with masks_stay():
        assert torch.equal(_encoded(model, masks), _alone(model, masks))


@pytest.mark.parametrize(
    ("encode", "why"),
    [(EncodeOptions(kmeans_seed=3), "starts are drawn"), (EncodeOptions(), "no pass has room for what may be")],
    ids=["drawn", "large"],
)
def test_one_more_where_the_host_must_know(
    model: Any, encode: EncodeOptions, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = _masks(2)
    if why.startswith("no pass"):
        monkeypatch.setattr(model.network.captured, "fitting", lambda *request: None)
    tokens, reads = _crossed(model, masks, encode)
    # `cpu` brings what is selected, as bytes of which the host reads the counts
    assert [name for name in reads if name == "cpu"] == ["cpu"], why
    assert set(reads) == {"tolist", "cpu"}
    if encode.kmeans_seed is None:
        assert torch.equal(tokens, _alone(model, masks))


def test_features_that_are_kept(model: Any) -> None:
    """Asked again, nothing is encoded anew, though the host does not know which patches are read."""
    model.network.kept_features = KeptFeatures(2**26)
    try:
        masks = _masks(2)
        with masks_stay():
            first = _encoded(model, masks)
            kept = model.network.kept_features.nbytes
            used: list[int] = []
            run = model.network.captured.run
            with mock.patch.object(
                model.network.captured, "run", lambda sizes, inputs: (used.append(sizes.patches), run(sizes, inputs))[1]
            ):
                again = _encoded(model, masks.clone())
        assert used == [0]
        assert model.network.kept_features.nbytes == kept
        assert torch.equal(again, first)
    finally:
        model.network.kept_features = None


def test_masks_of_equal_content_are_of_one_digest(model: Any) -> None:
    masks = _masks(2)
    changed = masks.clone()
    changed[1, 150, 150] ^= True
    with masks_stay():
        made = [
            _prepared(model, own, _image(), EncodeOptions()).made_of for own in (masks, masks.clone().long(), changed)
        ]
    first, again, other = (own.objects(None) for own in made if own is not None)
    assert first == again != other


def test_views_are_packed_within_the_pass(model: Any) -> None:
    """By the extension where there is one: a row a view goes to the device, and no table of patches."""
    if available() is not None:
        pytest.skip("the extension is not built")
    captured = model.network.captured
    sizes = captured._sizes[-2]
    weight = model.network.encoder.post_norm.weight
    captured._buffers.fill(sizes, captured_passes.example(sizes, model.kind, model.config.mask_num, weight))
    with counting() as counts, torch.no_grad():
        captured.compute(sizes)
    assert counts.launches["pixelrefer_fast.pack_views_out"] == 1
    shapes = captured_passes._shapes(sizes, model.config.mask_num)
    assert shapes["grids"].shape == (sizes.views, 3)
    assert not {"row", "column", "cu_seqlens"} & set(shapes)
