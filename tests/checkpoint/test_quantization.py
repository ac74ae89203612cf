"""Quantised weights by torchao: what is asked of it, and what is said where it cannot. A stand-in takes its place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from decoding import new_decoder, prompt

import pixelrefer_fast as pf
from pixelrefer_fast.checkpoint.quantization import KINDS, check_kind, quantise, weight_bytes
from pixelrefer_fast.decoding import Generation


class _Config:
    def __init__(self, **options: Any) -> None:
        self.options = options


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any], list[str]]]:
    """torchao.quantization of version 0.18, as far as it is used; rounds to 255 steps a row, and keeps its calls."""
    calls: list[tuple[str, dict[str, Any], list[str]]] = []
    package, module = ModuleType("torchao"), ModuleType("torchao.quantization")
    package.__path__ = []
    package.__spec__ = ModuleSpec("torchao", None)  # transformers asks whether there is one

    def quantize_(model: torch.nn.Module, config: Any, filter_fn: Callable[[torch.nn.Module, str], bool]) -> None:
        names = [name for name, child in model.named_modules() if filter_fn(child, name)]
        calls.append((type(config).__name__, config.options, names))
        for name in names:
            weight = model.get_submodule(name).weight
            scale = weight.abs().amax(1, keepdim=True) / 127
            weight.data = (weight / scale).round() * scale

    module.quantize_ = quantize_  # type: ignore[attr-defined]
    for name in ("Int8WeightOnlyConfig", "Float8WeightOnlyConfig", "Int4WeightOnlyConfig"):
        setattr(module, name, type(name, (_Config,), {}))
    monkeypatch.setitem(sys.modules, "torchao", package)
    monkeypatch.setitem(sys.modules, "torchao.quantization", module)
    return calls


@pytest.mark.parametrize(
    ("kind", "config", "options"),
    [
        ("int8", "Int8WeightOnlyConfig", {}),
        ("fp8", "Float8WeightOnlyConfig", {}),
        ("int4", "Int4WeightOnlyConfig", {"group_size": 128, "int4_packing_format": "tile_packed_to_4d"}),
    ],
)
def test_the_linear_layers_of_the_blocks_and_nothing_else(
    assets: Path, torchao: list, kind: str, config: str, options: dict[str, Any]
) -> None:
    plain = pf.load(assets / "lite", device="cpu", dtype="float32")
    model = pf.load(assets / "lite", device="cpu", dtype="float32", quantization=kind)
    ((name, given, layers),) = torchao
    assert (name, given) == (config, options)
    assert len(layers) == 7 * len(model.network.llm.model.layers)
    changed = {
        key
        for (key, a), (_, b) in zip(model.network.named_parameters(), plain.network.named_parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {f"llm.model.layers.{layer}.weight" for layer in layers}
    steps = [next(iter(new_decoder(m).steps(prompt(9), Generation(max_new_tokens=1)))).logits for m in (model, plain)]
    assert not torch.equal(*steps)
    torch.testing.assert_close(*steps, rtol=0.1, atol=0.1)


def test_never_without_being_asked_for(assets: Path, torchao: list) -> None:
    pf.load(assets / "lite", device="cpu")
    assert not torchao


@pytest.mark.parametrize("kind", KINDS)
def test_without_torchao(assets: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.delitem(sys.modules, "torchao.quantization", raising=False)
    with pytest.raises(
        ValueError, match=rf"^quantization: expected torchao for '{kind}', but torchao is not installed"
    ):
        pf.load(assets / "lite", device="cpu", quantization=kind)


def test_another_torchao(torchao: list) -> None:
    del sys.modules["torchao.quantization"].Int4WeightOnlyConfig  # type: ignore[attr-defined]
    check_kind("int8")
    with pytest.raises(ValueError, match=r"^quantization: expected a torchao with Int4WeightOnlyConfig for 'int4'"):
        check_kind("int4")


def test_what_the_device_cannot_do(lite: Any, torchao: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("Only bfloat16 is supported\nand more")

    monkeypatch.setattr(sys.modules["torchao.quantization"], "quantize_", refuse)
    with pytest.raises(
        ValueError,
        match=r"^quantization: expected one that cpu can do in torch.float32, got 'int4': Only bfloat16 is supported$",
    ):
        quantise(lite.network.llm, "int4")


@pytest.mark.parametrize("kind", ["int2", 8, True, ""])
def test_no_such_kind(assets: Path, kind: Any) -> None:
    with pytest.raises(ValueError, match=r"^quantization: expected None or one of \('int8', 'fp8', 'int4'\), got "):
        pf.load(assets / "lite", device="cpu", quantization=kind)


def test_weight_bytes(lite: Any) -> None:
    layers = lite.network.llm.model.layers
    expected = sum(p.nbytes for name, p in layers.named_parameters() if name.endswith("proj.weight"))
    assert weight_bytes(lite.network.llm) == expected
