"""Layers with peft's adapters share one product of their own weights: the numbers and tokens of peft's layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from counted_steps import counted_step
from decoding import alone, new_decoder, prompt
from torch import nn

from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.decoding.projections import Projection

peft = pytest.importorskip("peft", reason="needs peft, of the extra [train]")

OPTIONS = Generation(max_new_tokens=8)
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# launches of a layer: two norms, four products and attention, SiLU and its product; of each of the four products also
# one of all first halves, and of each of the seven modules the second half
LAUNCHES = 2 + 4 + 1 + 2 + 4 + 7


class Layers(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(6, n, dtype=dtype) for n in (8, 4, 4))


def _adapted(llm: nn.Module, seed: int = 0, learns: bool = False, **options: Any) -> Any:
    """peft's model; adapters that do something."""
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": list(NAMES)} | options)
    model = peft.tuners.lora.LoraModel(llm, {"one": config}, "one", low_cpu_mem_usage=False)
    _fill(model, seed, learns)
    return model


def _fill(model: Any, seed: int = 0, learns: bool = False) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3
            parameter.requires_grad_(learns)


def _modules(layers: Layers) -> list[nn.Module]:
    return [layers.q_proj, layers.k_proj, layers.v_proj]


def _apart(layers: Layers, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([module(x) for module in _modules(layers)], -1)


@torch.no_grad()
def _same(layers: Layers, merged: bool = True) -> Projection:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)).to(next(layers.parameters()).dtype)
    wanted = _apart(layers, x)
    found = Projection(_modules(layers))
    assert (found.weight is not None) == merged
    torch.testing.assert_close(found(x), wanted)
    torch.testing.assert_close(_apart(layers, x), wanted, rtol=0, atol=0)
    assert found.fits(_modules(layers))
    return found


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("targets", [NAMES, ("q_proj", "v_proj"), ("k_proj",)])
def test_own_weights_are_one_product(targets: tuple[str, ...], learns: bool) -> None:
    layers = Layers().requires_grad_(False)
    _adapted(layers, learns=learns, target_modules=list(targets))
    layers.requires_grad_(False)
    model = [m for m in layers.modules() if hasattr(m, "lora_A")]
    downs = [m.lora_A["one"].weight.requires_grad_(learns) for m in model]
    before = [d.data_ptr() for d in downs]
    found = _same(layers)
    assert not found.plain
    own = [m.get_parameter("base_layer.weight" if hasattr(m, "lora_A") else "weight") for m in _modules(layers)]
    assert len({p.untyped_storage().data_ptr() for p in own}) == 1
    # an optimizer knows what learns where it is; the rest is held once
    if learns:
        assert [d.data_ptr() for d in downs] == before
    else:
        assert len({d.untyped_storage().data_ptr() for d in downs}) == 1


def test_other_dtypes_ranks_and_adapters() -> None:
    """Adapters in float32 beside weights in bfloat16, as peft makes them; each its rank; two at once."""
    layers = Layers(torch.bfloat16).requires_grad_(False)
    model = _adapted(layers, rank_pattern={"q_proj": 5}, alpha_pattern={"v_proj": 11})
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    _same(layers)
    layers = Layers().requires_grad_(False)
    model = _adapted(layers)
    for module in _modules(layers):
        module.update_layer("two", r=2, lora_alpha=9, config=peft.LoraConfig(r=2, lora_alpha=9))  # type: ignore[operator]
        module.set_adapter(["one", "two"])  # type: ignore[operator]
    _fill(model)
    _same(layers)


def test_changes_are_seen() -> None:
    layers = Layers().requires_grad_(False)
    _adapted(layers)
    modules: list[Any] = _modules(layers)
    x = torch.randn(5, 6)
    found = Projection(modules)
    modules[0].lora_B["one"].weight.mul_(2)
    modules[1].lora_A["one"].weight.add_(1)
    assert found.fits(modules)
    torch.testing.assert_close(found(x), _apart(layers, x))
    for change in (
        lambda: modules[2].scale_layer(2.0),
        lambda: modules[2].enable_adapters(False),
        lambda: modules[2].enable_adapters(True),
        lambda: modules[0].merge(),
        lambda: modules[0].unmerge(),
    ):
        before = Projection(modules)
        change()
        assert not before.fits(modules)
        _same(layers)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}])
def test_other_adapters_are_computed_by_themselves(options: dict[str, Any]) -> None:
    """DoRA, a bias of the adapter, and dropout while it drops."""
    layers = Layers().requires_grad_(False)
    _adapted(layers, **options)
    if "lora_dropout" in options:
        layers.train()
        assert Projection(_modules(layers)).weight is None
        layers.eval()
        _same(layers)
    else:
        _same(layers, merged=False)


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_tokens_are_those_of_layers_by_themselves(
    request: pytest.FixtureRequest, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(request.getfixturevalue(kind))
    plain = alone(model, prompt(9), OPTIONS)
    _adapted(model.network.llm, r=4, lora_alpha=8)
    decoder = new_decoder(model)
    given = [prompt(n, seed=n) for n in (9, 5, 14)]
    found = [s.result().tokens for s in [decoder.submit(p, OPTIONS) for p in given]]
    products = [p for own in decoder.language_model._layers for p in (own.qkv, own.out, own.gate_up, own.down)]
    assert all(p.weight is not None and not p.plain for p in products)
    monkeypatch.setattr("pixelrefer_fast.decoding.projections.apart", lambda module: (module, ()))
    decoder = new_decoder(model)
    assert [s.result().tokens for s in [decoder.submit(p, OPTIONS) for p in given]] == found
    assert all(own.qkv.weight is None for own in decoder.language_model._layers)
    assert found[0] != plain


@pytest.mark.kernel
def test_launches_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each module is computed by itself peft's layers make twice as many and more."""
    assert _launches_of_a_layer() == LAUNCHES
    monkeypatch.setattr("pixelrefer_fast.decoding.projections.apart", lambda module: (module, ()))
    assert _launches_of_a_layer() > 2 * LAUNCHES


def _launches_of_a_layer() -> int:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    launches = []
    for layers in (2, 3):
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = Qwen2Config(**sizes, num_hidden_layers=layers, vocab_size=300, tie_word_embeddings=True)
        llm = Qwen2ForCausalLM(config).to(torch.bfloat16).requires_grad_(False)
        _adapted(llm)
        launches.append(counted_step(llm, 4, Generation(top_k=0, repetition_penalty=1.0)).launches.total())
    return launches[1] - launches[0]
