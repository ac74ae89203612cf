"""The vision encoder with one of its 27 layers, from packed patches to features, against transformers' own.

It is no operation, but is measured like one: its definition is the encoder by the operations' definitions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.func import functional_call

from pixelrefer_fast.bench.run.cases import Arguments, Case, Rival, normal
from pixelrefer_fast.bench.run.workloads import VISION
from pixelrefer_fast.checkpoint.config import VisionConfig
from pixelrefer_fast.encoding.encoder import Grid, VisionEncoder
from pixelrefer_fast.ops._registry import triton_available

PATCH = 3 * 14**2
RELEASED = VisionConfig.from_dict({**VISION, "num_hidden_layers": 1}, "benchmarks")
SMALL = VisionConfig(hidden_size=48, num_layers=1, num_heads=4, intermediate_size=96)
CONTEXT: list[Grid] = [(16, 16, 1), (24, 24, 1)]  # local and global view


def cases() -> Iterator[Case]:
    yield _case("views of 24 and 15 patches", SMALL, [(4, 6, 1), (3, 5, 1)], smoke=True)
    yield _case("1 object of an image", RELEASED, [(10, 15, 1), *CONTEXT])
    yield _case("8 objects of an image", RELEASED, [(10, 12 + i, 1) for i in range(8)] + CONTEXT)


class Encoder:
    """As much of an operation as the benchmarks ask for."""

    name = "encoder"
    mutates = ()
    tolerance: dict[torch.dtype, float] = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # noqa: RUF012

    def __init__(self, config: VisionConfig, grids: list[Grid]) -> None:
        with torch.device("meta"):
            self.module = VisionEncoder(config)
        self.grids = grids
        self.names = [name for name, _ in self.module.named_parameters()]

    def __call__(self, patches: torch.Tensor, *weights: torch.Tensor, backend: str = "auto") -> torch.Tensor:
        parameters = dict(zip(self.names, weights, strict=True))
        return functional_call(self.module, parameters, (patches, self.grids, None, backend))

    @property
    def definition(self) -> Callable[..., torch.Tensor]:
        return functools.partial(self, backend="torch")

    def providers(self) -> list[tuple[str, bool, str]]:
        reason = triton_available()
        return [("torch", True, ""), ("auto", True, ""), ("triton", reason is None, reason or "")]


def _case(name: str, config: VisionConfig, grids: list[Grid], smoke: bool = False) -> Case:
    encoder = Encoder(config, grids)
    width, wide = config.hidden_size, config.intermediate_size
    sizes = [rows * columns for rows, columns, _ in grids]
    patches = sum(sizes)
    weights = sum(p.numel() for p in encoder.module.parameters())
    return Case(
        "encoder",
        f"1 layer, {name}",
        functools.partial(_arguments, encoder),
        flops=patches * (2 * PATCH * width + 8 * width**2 + 4 * width * wide) + 4 * width * sum(n**2 for n in sizes),
        # weights and patches in, features out
        moved=lambda dtype: (weights + patches * (PATCH + width)) * dtype.itemsize,
        smoke=smoke,
        rivals={"transformers": functools.partial(_transformers, encoder)},
        owner=encoder,
    )


def _arguments(encoder: Encoder, device: torch.device, dtype: torch.dtype) -> Arguments:
    draw = functools.partial(normal, device=device, dtype=dtype)
    patches = sum(rows * columns for rows, columns, _ in encoder.grids)
    weights = []
    for seed, (name, like) in enumerate(encoder.module.named_parameters(), start=1):
        drawn = draw(tuple(like.shape), seed)
        weights.append(drawn * like.shape[1] ** -0.5 if like.ndim > 1 else drawn * 0.1 + ("norm" in name))
    return draw((patches, PATCH), 0), *weights


def _transformers(encoder: Encoder, arguments: Arguments) -> Rival:
    """VideoLLaMA 3's vision model, which has the same layers, with the same weights."""
    from transformers import VideoLlama3VisionConfig, VideoLlama3VisionModel

    patches, *weights = arguments
    own = encoder.module.config
    config = VideoLlama3VisionConfig(
        hidden_size=own.hidden_size,
        intermediate_size=own.intermediate_size,
        num_hidden_layers=own.num_layers,
        num_attention_heads=own.num_heads,
        patch_size=own.patch_size,
        layer_norm_eps=own.layer_norm_eps,
    )
    with patches.device:
        model = VideoLlama3VisionModel(config).to(patches.dtype).eval()
        filled = VisionEncoder(own).to(patches.dtype)
        grids = torch.tensor([(1, rows, columns) for rows, columns, _ in encoder.grids])
        merges = torch.ones(len(grids), dtype=torch.int64)
    with torch.no_grad():
        for parameter, weight in zip(filled.parameters(), weights, strict=True):
            parameter.copy_(weight)
    slots = {name.removeprefix(VisionEncoder.PREFIX): slot for name, slot in filled.checkpoint_slots().items()}
    model.load_state_dict(slots)

    def run() -> Any:
        return model(patches, grids, merges).last_hidden_state

    return Rival(run, lambda features: [features])
