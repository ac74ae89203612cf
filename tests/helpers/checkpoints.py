"""Checkpoints for tests: the bundled ones, their weights in other layouts, and what loading gives."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pixelrefer_fast.checkpoint import open_checkpoint

ASSETS = Path(str(files("pixelrefer_fast.assets")))
REFERENCE = {kind: load_file(ASSETS / kind / "model.safetensors") for kind in ("lite", "full")}
# of the reference's run on "Describe <region>." with one object (golden/lite/case_image_one)
PROMPT = f"<|im_start|>user\nDescribe [{'<REGION>' * 8}].<|im_end|>\n<|im_start|>assistant\n"
PROMPT_IDS = [258, 84, 82, 68, 81, 198, 35, 68, 82, 66, 81, 72, 65, 68, 220, 58, *[259] * 8]
PROMPT_IDS += [60, 13, 256, 198, 258, 64, 82, 82, 72, 82, 83, 64, 77, 83, 198]


def slots_for(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, -7.0, dtype=dtype) for name, shape in shapes.items()}


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    slots = {name: torch.empty(info.shape, dtype=info.dtype) for name, info in checkpoint.tensors.items()}
    checkpoint.load_into(slots)
    return slots


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and torch.equal(a[name].reshape(-1).view(torch.uint8), b[name].reshape(-1).view(torch.uint8))
        for name in a
    )


def shard(folder: Path, tensors: dict[str, torch.Tensor], count: int, suffix: str) -> None:
    """Replaces the weights in `folder` by `count` shards with an index, or by one file when `count` is 1."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    stem, write = ("model", save_file) if suffix == "safetensors" else ("pytorch_model", torch.save)
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for i in range(count):
        name = f"{stem}.{suffix}" if count == 1 else f"{stem}-{i + 1:05d}-of-{count:05d}.{suffix}"
        part = {key: tensors[key] for key in names[i::count]}
        write(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if count > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
