"""Every operation names the argument that is no tensor, not on the device of the others, or no count of anything."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from pixelrefer_fast.ops import registry

OPS = sorted(registry())
BACKENDS = ["auto", "torch"]


def _arguments(name: str) -> tuple[list[str], tuple]:
    op = registry()[name]
    names = list(inspect.signature(op.definition).parameters)
    return names, next(iter(op.samples(torch.Generator().manual_seed(0), torch.float32)))


def _places(name: str, kind: type) -> list[tuple[int, str]]:
    names, sample = _arguments(name)
    return [(i, names[i]) for i, value in enumerate(sample) if type(value) is kind]


def _named(name: str) -> str:
    """The operation, or one that it is made of, as a pattern."""
    return f"({'|'.join([name, *(part.name for part in registry()[name].parts)])})"


def _called_with(name: str, place: int, value: Any, backend: str) -> None:
    _, sample = _arguments(name)
    registry()[name](*sample[:place], value, *sample[place + 1 :], backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPS)
def test_no_tensor(name: str, backend: str) -> None:
    for place, argument in _places(name, torch.Tensor):
        if argument in ("weight", "bias") and name == "add_norm":
            values: tuple[Any, ...] = ([1.0],)  # None is one of two that belong together
        elif argument in ("said", "biased", "bias", "ends"):
            values = ([1.0],)  # None: no request has any
        else:
            values = ([1.0], None)
        for value in values:
            message = f"^{_named(name)}: expected {argument}, a tensor, got {type(value).__name__}$"
            with pytest.raises(ValueError, match=message):
                _called_with(name, place, value, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name in OPS if len(_places(name, torch.Tensor)) > 1])
def test_on_another_device(name: str, backend: str) -> None:
    _, sample = _arguments(name)
    first, *others = _places(name, torch.Tensor)
    for place, argument in others:
        with pytest.raises(
            ValueError, match=rf"^{_named(name)}: expected .*\b{argument}\b.* on (cpu|one device), got .*meta"
        ):
            _called_with(name, place, sample[place].to("meta"), backend)
    with pytest.raises(ValueError, match=f"^{_named(name)}: expected .* on .*, got "):
        _called_with(name, first[0], sample[first[0]].to("meta"), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name in OPS if _places(name, int)])
@pytest.mark.parametrize("value", [-1, 2**31, 2**70, None, "3", 2.5, float("nan"), True])
def test_no_count(name: str, value: Any, backend: str) -> None:
    for place, argument in _places(name, int):
        message = f"^{_named(name)}: expected {argument}, an integer from 0 to 2147483647, got "
        with pytest.raises(ValueError, match=message):
            _called_with(name, place, value, backend)
