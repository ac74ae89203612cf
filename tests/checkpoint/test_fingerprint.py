"""A model's fingerprint: of every weight and size, whatever the dtype, and of what was written since."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pixelrefer_fast as pf
from pixelrefer_fast.checkpoint.digests import tensor_digest

ASSETS = Path(pf.__file__).parent / "assets"
CAT = ASSETS / "cat.jpg"


@pytest.fixture(params=["lite", "full"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS / request.param, tmp_path / request.param))


def _fingerprint(folder: Path, dtype: str = "float32") -> str:
    return pf.load(folder, device="cpu", dtype=dtype).fingerprint


def _rewrite(folder: Path, weights: dict[str, torch.Tensor]) -> str:
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return _fingerprint(folder)


def test_any_weight_changes_it(folder: Path) -> None:
    """Every ninth tensor negated in turn, or changed in one value; none gives a fingerprint that was there."""
    weights = load_file(folder / "model.safetensors")
    found = [_fingerprint(folder)]
    for number, name in enumerate(sorted(weights)[::9]):
        changed = weights[name].clone()
        if number % 2:
            changed.neg_()
        else:
            changed.view(-1)[-1] += 0.5
        found.append(_rewrite(folder, weights | {name: changed}))
    assert len(set(found)) == len(found) > 5
    assert _rewrite(folder, weights) == found[0]
    a, b = (f"model.layers.{layer}.self_attn.q_proj.bias" for layer in (0, 1))
    assert _rewrite(folder, weights | {a: weights[b], b: weights[a]}) not in found


def test_a_size_that_no_weight_shows_changes_it(folder: Path) -> None:
    before = _fingerprint(folder)
    config = json.loads((folder / "config.json").read_text())
    config["mm_max_length"] = config.get("mm_max_length", 9477) // 2
    (folder / "config.json").write_text(json.dumps(config))
    assert _fingerprint(folder) != before


def test_the_dtype_and_a_copy_that_holds_the_values_do_not_change_it(folder: Path) -> None:
    weights = {n: t.bfloat16() for n, t in load_file(folder / "model.safetensors").items()}
    before = _rewrite(folder, weights)
    for dtype in ("bfloat16", "float16"):
        assert _fingerprint(folder, dtype) == before
    assert _rewrite(folder, {name: tensor.float() for name, tensor in weights.items()}) == before
    model = pf.load(folder, device="cpu", dtype="float32")
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to(torch.float64)):
        assert copied.fingerprint == before


def test_writing_into_a_weight_changes_it_and_refuses_older_objects(folder: Path) -> None:
    model = pf.load(folder, device="cpu")
    before = model.fingerprint
    objects = model.encode(CAT, [[60, 50, 360, 275]])
    weight = model.network.llm.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        weight.neg_()
    assert model.fingerprint != before
    with pytest.raises(ValueError, match="expected object tokens of this model"):
        model.ask(objects, "What is <region>?")
    with torch.no_grad():
        weight.neg_()
    assert model.fingerprint == before
    assert isinstance(model.ask(objects, "What is <region>?", max_new_tokens=2), str)


def test_digests_tell_shapes_dtypes_and_zeros_apart() -> None:
    values = torch.arange(6.0)
    shapes = [values, values.view(2, 3), values.view(3, 2), values.view(1, 6), values.neg(), -values.neg() + 1e-7]
    assert len({tensor_digest(v) for v in shapes}) == len(shapes)
    assert tensor_digest(values) == tensor_digest(values.half()) == tensor_digest(values.bfloat16())
    assert tensor_digest(values.view(2, 3).T.contiguous()) == tensor_digest(values.view(2, 3).T)
    large = torch.zeros((1 << 18) + 3)
    assert tensor_digest(large) == tensor_digest(large.bfloat16())
    large[-1] = 1e-3  # beyond the first chunk, and of more digits than a bfloat16 has
    assert tensor_digest(large) != tensor_digest(large.bfloat16())
    assert tensor_digest(torch.zeros(0)) != tensor_digest(torch.zeros(0, 2))


@pytest.mark.parametrize("value", [0.5, 1 / 3])
def test_float64_has_a_digest_of_its_own_where_no_shorter_number_holds_the_values(value: float) -> None:
    wide = torch.full((3,), value, dtype=torch.float64)
    assert (tensor_digest(wide) == tensor_digest(wide.float())) == (value == 0.5)
    assert tensor_digest(wide) != tensor_digest(wide.reshape(1, 3))
