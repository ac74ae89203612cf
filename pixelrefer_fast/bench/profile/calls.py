"""Calls of operations as a model makes them, kept in a file: what `run_kernel` launches again elsewhere.

A file is a safetensors file. It holds integers as they were, since they say what a ragged call looks like; of floats
and pixels the shape, strides, dtype and spread, from which they are drawn again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pixelrefer_fast.bench.run.cases import Arguments, normal
from pixelrefer_fast.checks.new_files import new_file
from pixelrefer_fast.ops import registry
from pixelrefer_fast.ops._registry import Op, listen

FORMAT = "pixelrefer_fast calls 1"
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
PIXELS = "uint8"
SAMPLED = 2**20  # values, of which the spread is taken


@dataclass
class Call:
    """One call of an operation.

    Attributes:
        name: where it was made, with a number: "encoder/rope2d/0".
        op: of the operation.
        arguments: of each argument {"drawn": dtype, "shape", "strides", "mean", "scale"}, {"kept": dtype, "shape"} or
            {"value": a number, a truth value or None}.
        times: how often a call of these shapes was made.
        tensors: the kept ones, by place.
    """

    name: str
    op: str
    arguments: list[dict[str, Any]]
    times: int = 1
    tensors: dict[int, torch.Tensor] = field(default_factory=dict)

    def make(self, device: torch.device) -> Arguments:
        """Arguments of the same shapes, dtypes and integers on a device; floats drawn, the same values each time."""
        return tuple(self._make(i, device) for i in range(len(self.arguments)))

    def _make(self, place: int, device: torch.device) -> Any:
        given = self.arguments[place]
        if "value" in given:
            return given["value"]
        if "kept" in given:
            return self.tensors[place].to(device)
        shape = tuple(given["shape"])
        if given["drawn"] == PIXELS:
            generator = torch.Generator().manual_seed(place)
            return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
        dtype = DTYPES[given["drawn"]]
        made = torch.empty_strided(shape, given["strides"], dtype=dtype, device=device)
        return made.copy_(given["mean"] + given["scale"] * normal(shape, place, device, torch.float32))


@contextmanager
def capturing(where: Callable[[], str]) -> Iterator[list[Call]]:
    """The calls made within the block, one for each that differs in operation, place or shapes.

    Args:
        where: asked at each call for the place it is made at.
    """
    found: dict[tuple[Any, ...], Call] = {}
    calls: list[Call] = []

    def take(op: Op, args: tuple[Any, ...]) -> None:
        arguments = [_described(value) for value in args]
        key = (where(), op.name, json.dumps(arguments))
        if key in found:
            found[key].times += 1
            return
        number = sum(call.op == op.name and call.name.startswith(f"{key[0]}/") for call in calls)
        call = Call(f"{key[0]}/{op.name}/{number}", op.name, arguments)
        call.tensors = {i: args[i].detach().cpu().clone() for i, a in enumerate(arguments) if "kept" in a}
        for argument, value in zip(arguments, args, strict=True):
            if argument.get("drawn") in DTYPES:
                argument["mean"], argument["scale"] = _spread(value)
        found[key] = call
        calls.append(call)

    with listen(take):
        yield calls


def _described(value: Any) -> dict[str, Any]:
    if not isinstance(value, torch.Tensor):
        return {"value": value}
    dtype, shape = str(value.dtype).removeprefix("torch."), list(value.shape)
    if dtype not in (*DTYPES, PIXELS):
        return {"kept": dtype, "shape": shape}
    return {"drawn": dtype, "shape": shape, "strides": list(value.stride())}


def _spread(values: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation of what lies at the beginning of a tensor's memory."""
    there = values.untyped_storage().nbytes() // values.element_size() - values.storage_offset()
    some = values.detach().as_strided((min(there, SAMPLED),), (1,)).float()
    some = some[some.isfinite()]
    return (some.mean().item(), some.std(correction=0).item()) if some.numel() else (0.0, 1.0)


def save(calls: Sequence[Call], path: Path) -> None:
    """Write calls to a file, which is replaced.

    Raises:
        ValueError: it cannot be written.
    """
    from safetensors.torch import save as packed

    listed = [{"name": c.name, "op": c.op, "arguments": c.arguments, "times": c.times} for c in calls]
    tensors = {f"{n}.{i}": t.contiguous() for n, call in enumerate(calls) for i, t in call.tensors.items()}
    content = packed(tensors, {"format": FORMAT, "calls": json.dumps(listed)})
    try:
        with new_file(path) as beside:
            beside.write_bytes(content)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror or error}") from error


def load(path: Path) -> list[Call]:
    """The calls of a file.

    Raises:
        ValueError: it cannot be read, or `save` has not written it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            if facts.get("format") != FORMAT:
                raise ValueError(f"{path}: expected a file of calls ({FORMAT}), got {facts.get('format')!r}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a method of the file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: expected a file of calls, but it cannot be read: {error}") from error
    calls = []
    for n, listed in enumerate(json.loads(facts["calls"])):
        if listed["op"] not in registry():
            raise ValueError(f"{path}: expected operations out of {', '.join(registry())}, got {listed['op']!r}")
        own = {int(key.split(".")[1]): value for key, value in tensors.items() if key.split(".")[0] == str(n)}
        calls.append(Call(listed["name"], listed["op"], listed["arguments"], listed["times"], own))
    return calls
