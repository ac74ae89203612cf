"""Products that share their input are one product: the same numbers, and weights that are held once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from decoding import alone, new_decoder, prompt
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.decoding.projections import Projection

WIDTH, OUTPUTS = 6, (8, 4, 4)
OPTIONS = Generation(max_new_tokens=8)


def _linears(bias: bool = True) -> list[nn.Linear]:
    return [nn.Linear(WIDTH, n, bias=bias).requires_grad_(False) for n in OUTPUTS]


def _apart(modules: list[nn.Linear], x: torch.Tensor) -> torch.Tensor:
    return torch.cat([module(x) for module in modules], -1)


@pytest.mark.parametrize("bias", [False, True])
def test_weights_are_held_once_and_a_change_is_seen(bias: bool) -> None:
    modules, x = _linears(bias), torch.randn(5, WIDTH)
    wanted = _apart(modules, x)
    merged = Projection(modules)
    torch.testing.assert_close(merged(x), wanted)
    assert merged.weight is not None
    for held in ("weight", "bias") if bias else ("weight",):
        assert len({getattr(m, held).untyped_storage().data_ptr() for m in modules}) == 1
    assert modules[1].weight.data_ptr() == merged.weight[OUTPUTS[0] :].data_ptr()
    assert merged.fits(modules)
    modules[1].weight.mul_(2)
    assert merged.fits(modules)
    torch.testing.assert_close(merged(x), _apart(modules, x))


@pytest.mark.parametrize("bias", [False, True])
def test_what_lies_in_order_stays_where_it_is(bias: bool) -> None:
    """Two models on the same weights do not move them to and fro."""
    modules, x = _linears(bias), torch.randn(5, WIDTH)
    first = Projection(modules)
    again = Projection(modules)
    assert first.weight is not None
    assert again.weight is not None
    assert again.weight.data_ptr() == first.weight.data_ptr()
    assert first.fits(modules)
    assert torch.equal(again(x), first(x))
    # the same memory in another order, or with a gap, is no such place
    for others in ([modules[1], modules[0], modules[2]], [modules[0], modules[2]]):
        wanted = _apart(others, x)
        torch.testing.assert_close(Projection(others)(x), wanted)
        torch.testing.assert_close(_apart(others, x), wanted)


def test_what_was_moved_or_replaced_does_not_fit_any_more() -> None:
    modules = _linears()
    merged = Projection(modules)
    modules[2].weight.data = modules[2].weight.data.clone()
    assert not merged.fits(modules)
    merged = Projection(modules)
    assert merged.fits(modules)
    assert not merged.fits([*modules[:2], nn.Linear(WIDTH, OUTPUTS[2])])


class Adapter(nn.Module):
    """As peft wraps a layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + 1


class Quantised(nn.Parameter):
    """As torchao replaces a weight: a parameter of another class, whose rows cannot be laid behind others'."""


def test_what_is_no_plain_layer_or_learns_is_computed_by_itself() -> None:
    """With an adapter, with gradients, with a bias or not, quantised: nothing is moved, and nothing is held twice."""
    plain, x = _linears(), torch.randn(5, WIDTH)
    adapted: list[Any] = [plain[0], Adapter(plain[1]), plain[2]]
    learning = _linears()
    learning[0].requires_grad_(True)
    mixed = [*_linears()[:2], *_linears(False)[2:]]
    low = [*_linears()[:2], _linears()[2].double()]
    quantised = _linears()
    quantised[1].weight = Quantised(quantised[1].weight, requires_grad=False)
    for modules in (adapted, learning, mixed, quantised):
        before = [p.data_ptr() for m in modules for p in m.parameters()]
        found = Projection(modules)
        assert found.weight is None
        assert [p.data_ptr() for m in modules for p in m.parameters()] == before
        assert torch.equal(found(x), _apart(modules, x))
        assert found.fits(modules)
    assert Projection(low).weight is None


class _Products(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.__name__ in ("linear.default", "addmm.default", "addmm_.default", "mm.default")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_four_products_a_layer(request: pytest.FixtureRequest, kind: str) -> None:
    """QKV, the attention's output, gate with up, down; and the output layer. Nothing is held twice."""
    model = copy.deepcopy(request.getfixturevalue(kind))
    llm = model.network.llm
    held = sum(p.nbytes for p in llm.parameters())
    decoder = new_decoder(model)
    sequence = decoder.submit(prompt(9), OPTIONS)
    decoder.advance()
    with _Products() as products:
        decoder.advance()
    layers = len(llm.model.layers)
    assert products.count == 4 * layers + 1
    assert sequence.result().tokens == alone(request.getfixturevalue(kind), prompt(9), OPTIONS)
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in llm.parameters()}
    assert sum(storages.values()) == held


def test_an_adapter_that_comes_later_is_used(lite: Any) -> None:
    model = copy.deepcopy(lite)
    before = alone(model, prompt(9), OPTIONS)
    decoder = new_decoder(model)
    assert decoder.submit(prompt(9), OPTIONS).result().tokens == before
    for layer in model.network.llm.model.layers:
        layer.self_attn.v_proj = Adapter(layer.self_attn.v_proj)
    decoder.clear()
    after = decoder.submit(prompt(9), OPTIONS).result().tokens
    assert after != before
    assert after == alone(model, prompt(9), OPTIONS)


def test_a_copy_merges_weights_of_its_own(lite: Any) -> None:
    model = copy.deepcopy(lite)
    decoder = new_decoder(model)
    decoder.submit(prompt(9), OPTIONS).result()
    clone = copy.deepcopy(decoder.language_model)
    assert not clone._layers
    ours, theirs = (m.llm.model.layers[0].self_attn.q_proj.weight for m in (decoder.language_model, clone))
    assert ours.data_ptr() != theirs.data_ptr()
