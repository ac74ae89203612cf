"""Which weights of a model learn and at which rate, and the LLM's adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from pixelrefer_fast.network import Network
from pixelrefer_fast.train.config import PARTS, Lora, Stage
from pixelrefer_fast.train.optimizer import is_hidden_matrix

ADAPTER = "pixelrefer"


def part_modules(network: Network) -> dict[str, nn.Module]:
    """The model's parts by their names in configs."""
    modules = (network.llm, network.projector, network.object_tokenizer, network.encoder)
    return dict(zip(PARTS, modules, strict=True))


def set_learning(network: Network, rates: Mapping[str, float], lora: Lora | None = None) -> Any:
    """Make the parts with a learning rate learn and freeze the others; with `lora` the LLM learns only through
    adapters.

    Returns:
        The argument of `merge`: peft's model with the adapters, or None.
    """
    for part, module in part_modules(network).items():
        module.requires_grad_(part in rates)
    if lora is None:
        return None
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets), bias="none"
    )
    return LoraModel(network.llm, config, ADAPTER)  # in place; freezes all else of the LLM


def merge(adapters: Any) -> None:
    """Add the adapters to the weights they adapt, and remove them."""
    if adapters is not None:
        adapters.merge_and_unload()


def learning_weights(network: Network) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(part, name in the model, weight) of each weight that learns; tied weights once."""
    seen: set[int] = set()
    names = {id(parameter): name for name, parameter in reversed(list(network.named_parameters()))}
    for part, module in part_modules(network).items():
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield part, names[id(parameter)], parameter


def parameter_groups(network: Network, stage: Stage) -> list[dict[str, Any]]:
    """The optimiser's parameter groups: for each part its rate, matrices with weight decay, biases and norms without.

    Each group has `part`, and `muon` if the stage's optimiser is Muon and the group holds matrices for it.
    """
    groups: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for part, name, parameter in learning_weights(network):
        muon = stage.optimizer == "muon" and is_hidden_matrix(name, parameter)
        groups.setdefault((part, parameter.ndim > 1, muon), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": stage.learning_rate[part],
            "weight_decay": stage.weight_decay if matrices else 0.0,
            "part": part,
            "muon": muon,
        }
        for (part, matrices, muon), parameters in groups.items()
    ]


def learning_state(network: Network) -> dict[str, torch.Tensor]:
    """Values of the weights that learn, by their name in the model."""
    return {name: parameter.detach() for _, name, parameter in learning_weights(network)}


def load_learning_state(network: Network, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Restore the values that `learning_state` returned.

    Raises:
        ValueError: the names or shapes are not those of this model's learning weights; the message names `source`.
    """
    own = {name: parameter for _, name, parameter in learning_weights(network)}
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if wrong:
        raise ValueError(
            f"{source}: expected the {len(own)} weights that learn in this stage, got others (the first: {wrong[0]})"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
