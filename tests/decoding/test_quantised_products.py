"""Quantised weights with a row for each output are one product too: the same tokens, and nothing is held twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from decoding import new_decoder, prompt
from torch import nn

from pixelrefer_fast.checkpoint.quantization import quantise
from pixelrefer_fast.decoding import Generation, projections
from pixelrefer_fast.decoding.projections import Projection

WIDTH, OUTPUTS = 6, (8, 4, 4)
OPTIONS = Generation(max_new_tokens=8)
KINDS = ["stand-in", "int8", "fp8"]


class Rounded(torch.Tensor):
    """As torchao's tensors: a weight in eight bits with a scale of each row, made of two tensors; counts products."""

    products = 0

    @staticmethod
    def __new__(cls, data: torch.Tensor, scale: torch.Tensor) -> Rounded:
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=scale.dtype, device=data.device)  # type: ignore[attr-defined]

    def __init__(self, data: torch.Tensor, scale: torch.Tensor) -> None:
        self.steps, self.scale = data, scale

    @classmethod
    def of(cls, weight: torch.Tensor) -> Rounded:
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, object]]:
        return ["steps", "scale"], {"block": [1, self.shape[1]]}

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, torch.Tensor], context: Any, size: Any, stride: Any) -> Rounded:
        return cls(inner["steps"], inner["scale"])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            x, weight, *bias = args
            Rounded.products += 1
            product = (x @ weight.steps.to(x.dtype).t()) * weight.scale.t()
            return product if not bias or bias[0] is None else product + bias[0]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Rounded(args[0].steps, args[0].scale)
        raise NotImplementedError(func)


def _quantised(layers: nn.Module, kind: str) -> None:
    """The linear layers within, in place; by torchao where that is installed."""
    if kind == "stand-in":
        for module in layers.modules():
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(Rounded.of(module.weight.data), requires_grad=False)
        return
    pytest.importorskip("torchao", reason="torchao is not installed")
    holder = nn.Module()
    holder.model = nn.Module()
    holder.model.layers, holder.model.norm = layers, nn.Linear(1, 1)  # type: ignore[assignment]
    quantise(holder, kind)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def linears(kind: str) -> Callable[[], nn.ModuleList]:
    def made() -> nn.ModuleList:
        found = nn.ModuleList(nn.Linear(WIDTH, n) for n in OUTPUTS).requires_grad_(False)
        _quantised(found, kind)
        return found

    return made


def _parts(weight: torch.Tensor) -> list[torch.Tensor]:
    return [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]  # type: ignore[attr-defined]


def test_rows_are_held_once(linears: Callable[[], nn.ModuleList]) -> None:
    modules, x = linears(), torch.randn(5, WIDTH)
    wanted = torch.cat([m(x) for m in modules], -1)
    held = [p.clone() for m in modules for p in _parts(m.weight)]
    weights = [m.weight for m in modules]
    merged = Projection(modules)
    assert merged.weight is not None
    assert not merged.plain
    assert merged.weight.shape == (sum(OUTPUTS), WIDTH)
    torch.testing.assert_close(merged(x), wanted)
    torch.testing.assert_close(torch.cat([m(x) for m in modules], -1), wanted)
    assert all(m.weight is w for m, w in zip(modules, weights, strict=True))
    for before, after in zip(held, (p for w in weights for p in _parts(w)), strict=True):
        assert torch.equal(before.view(torch.uint8), after.view(torch.uint8))
    for own in zip(_parts(merged.weight), *map(_parts, weights), strict=True):
        assert len({part.untyped_storage().data_ptr() for part in own}) == 1
        assert own[0].untyped_storage().nbytes() == sum(part.nbytes for part in own[1:])
    assert merged.fits(modules)
    again = Projection(modules)
    assert again.weight is not None
    assert merged.fits(modules), "a second model on the same weights has moved them"
    # what is seen of a change, and what makes it another product
    _parts(modules[1].weight)[1].mul_(2)
    torch.testing.assert_close(merged(x), torch.cat([m(x) for m in modules], -1))
    part = _parts(modules[2].weight)[0]
    part.data = part.data.clone()
    assert not merged.fits(modules)


@pytest.mark.parametrize("family", ["lite", "full"])
def test_tokens_are_those_of_each_module_by_itself(
    request: pytest.FixtureRequest, family: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four products a layer: queries, keys and values; the attention's output; gate with up; down."""
    found = {}
    for joins in (False, True):
        model = copy.deepcopy(request.getfixturevalue(family))
        layers = model.network.llm.model.layers
        _quantised(layers, kind)
        if not joins:
            monkeypatch.setattr(projections, "joined_weights", lambda weights: None)
        decoder = new_decoder(model)
        sequences = [decoder.submit(prompt(n, seed=n), OPTIONS) for n in (9, 5, 14)]
        decoder.advance()
        before = Rounded.products
        decoder.advance()
        if kind == "stand-in":
            assert Rounded.products - before == (4 if joins else 7) * len(layers)
        found[joins] = [s.result().tokens for s in sequences]
        assert [p.weight is not None for p in _products(decoder)] == [joins] * (2 * len(layers))
        monkeypatch.undo()
    assert found[True] == found[False]
    assert sum(map(len, found[True])) > 3


def _products(decoder: Any) -> list[Projection]:
    return [p for layer in decoder.language_model._layers for p in (layer.qkv, layer.gate_up)]


def test_what_has_no_row_for_each_output_is_computed_by_itself() -> None:
    """One scale of a whole weight, rows of other sizes or kinds: nothing is moved."""

    def modules() -> list[nn.Linear]:
        found = [nn.Linear(WIDTH, n).requires_grad_(False) for n in OUTPUTS]
        for module in found:
            module.weight = nn.Parameter(Rounded.of(module.weight.data), requires_grad=False)
        return found

    def with_scale(module: nn.Linear, scale: torch.Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Rounded)
        module.weight = nn.Parameter(Rounded(weight.steps, scale), requires_grad=False)

    whole, low, mixed = modules(), modules(), modules()
    with_scale(whole[1], torch.ones(1, 1))
    with_scale(low[1], torch.ones(OUTPUTS[1], 1, dtype=torch.float64))
    mixed[1].weight = nn.Parameter(torch.randn(OUTPUTS[1], WIDTH), requires_grad=False)
    for own in (whole, low, mixed):
        places = [p.data_ptr() for m in own if isinstance(m.weight, Rounded) for p in _parts(m.weight)]
        found = Projection(own)
        assert found.weight is None
        assert places == [p.data_ptr() for m in own if isinstance(m.weight, Rounded) for p in _parts(m.weight)]
    x = torch.randn(5, WIDTH)
    assert torch.equal(Projection(mixed)(x), torch.cat([m(x) for m in mixed], -1))
