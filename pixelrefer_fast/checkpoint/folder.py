"""Checkpoints in the released layout: loaded tensor by tensor into given memory, and saved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from pixelrefer_fast.checkpoint.config import ModelConfig, check_generation, read_config, read_generation
from pixelrefer_fast.checkpoint.digests import check_finite, digesting
from pixelrefer_fast.checkpoint.hub import checkpoint_folder
from pixelrefer_fast.checkpoint.new_folder import new_folder, vacant
from pixelrefer_fast.checkpoint.safetensors_file import Read, TensorInfo, tensor_info, write_safetensors
from pixelrefer_fast.checkpoint.tokenizer import load_tokenizer
from pixelrefer_fast.checkpoint.weight_files import INDEX, SINGLE, WeightFile, open_weights
from pixelrefer_fast.checks.safe_files import listed, name_of

SHARD_BYTES = 5_000_000_000
HEAD = "lm_head.weight"
LOADED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What a model's weights may be in a file."""


def open_checkpoint(path_or_hub_id: str | Path, *, progress: bool | None = None) -> Checkpoint:
    """Open a checkpoint in the released layout: single or sharded, safetensors or `.bin`.

    Args:
        path_or_hub_id: a folder, or an id on the Hugging Face hub, which is downloaded.
        progress: whether to show download progress; None: only if stderr is a terminal.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or it is of an unsupported model. The message names the
            file; no code in it has been run.
    """
    return Checkpoint(checkpoint_folder(path_or_hub_id, progress=progress))


class Checkpoint:
    """A checkpoint whose configuration and headers have been read and checked, but not its values.

    Attributes:
        folder: its resolved path.
        config: the contents of config.json.
        generation: the contents of generation_config.json, {} if there is none.
        files: its weight files, in order.
    """

    folder: Path
    config: ModelConfig
    generation: dict[str, Any]

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        read_config(self.folder)  # before the weights: a folder of something else is best told from its config
        self.files = open_weights(self.folder)
        self.config = ModelConfig.from_folder(self.folder, self.keys)
        self.generation = read_generation(self.folder, self.config.llm["vocab_size"])

    @property
    def keys(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by its name."""
        return {name: info.shape for name, info in self.tensors.items()}

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """The dtype and shape of every tensor by its name."""
        return {name: info for file in self.files for name, info in file.tensors.items()}

    def check(
        self, slots: Mapping[str, torch.Tensor], optional: Collection[str] = (), ignored: Collection[str] = ()
    ) -> None:
        """Raise the errors of `load_into` before any memory is spent; the slots may be on the meta device."""
        tensors = self.tensors
        unused = set(ignored) | ({HEAD} if self.config.tied else set())
        missing = [name_of(name) for name in slots if name not in tensors and name not in optional]
        unexpected = [name_of(name) for name in tensors if name not in slots and name not in unused]
        shared = [name for name in slots if name in tensors]
        shapes = [
            f"{name_of(name)}: expected {tuple(slots[name].shape)}, got {tensors[name].shape}"
            for name in shared
            if tuple(slots[name].shape) != tensors[name].shape
        ]
        dtypes = [
            f"{name_of(name)}: expected floating-point values, got {tensors[name].dtype}"
            for name in shared
            if tensors[name].dtype not in LOADED
        ]
        groups = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes, "wrong dtype": dtypes}
        found = [f"{group} ({len(names)}): {listed(names)}" for group, names in groups.items() if names]
        if found:
            raise ValueError(f"{self.folder}: the weights do not fit the model: {'; '.join(found)}")

    def load_into(
        self, slots: Mapping[str, torch.Tensor], optional: Collection[str] = (), ignored: Collection[str] = ()
    ) -> dict[str, str]:
        """Copy every tensor into the given memory, casting to its dtype, on its device.

        The weight files are mapped one at a time, so at most one of them is in memory besides the destination.

        Args:
            slots: the destination of every tensor, by its name in the checkpoint; views are allowed.
            optional: names of slots that the checkpoint may lack; they are then left unchanged.
            ignored: names that the checkpoint may have without a slot, such as `lm_head.weight` with tied embeddings.

        Returns:
            The digest of each tensor's values as the file has them, by name.

        Raises:
            ValueError: tensors are missing, unexpected or of another shape (all in one message, before anything is
                copied), a value is not finite, or a file changed since it was opened.
        """
        self.check(slots, optional, ignored)
        digests: dict[str, str] = {}
        for file in self.files:
            with torch.no_grad(), file.open() as read, digesting(file.path, digests) as digest:
                for name in file.tensors:
                    if name in slots:
                        tensor = read(name)
                        digest(name, tensor)
                        slots[name].copy_(tensor)
        return digests

    def digests(self) -> dict[str, str]:
        """The digest of each tensor's values by name, as `load_into` returns them for the whole model.

        Raises:
            ValueError: a value is not finite, or a file changed since it was opened.
        """
        digests: dict[str, str] = {}
        for file in self.files:
            with file.open() as read, digesting(file.path, digests) as digest:
                for name in file.tensors:
                    if name != HEAD or not self.config.tied:
                        digest(name, read(name))
        return digests

    def tokenizer(self) -> Any:
        """The transformers tokenizer, with the special tokens `<image>`, `<REGION>`, `<|stream_start|>` and
        `<|stream_end|>` added if they are missing.

        Raises:
            ValueError: its files are missing or damaged, or it has ids without an embedding in the model.
        """
        return load_tokenizer(self.folder, self.config)


def save_checkpoint(
    folder: str | Path,
    slots: Mapping[str, torch.Tensor],
    config: ModelConfig,
    tokenizer: Any,
    generation: Mapping[str, Any],
) -> None:
    """Write one self-contained checkpoint folder that `open_checkpoint` reads back bit for bit.

    It has the released layout, with the vision encoder's sizes in config.json under "vision_config". The folder appears
    under its name only when it is complete; an existing empty folder is filled.

    Args:
        folder: does not exist or is empty.
        slots: every tensor by its name in the checkpoint, on any device.
        config: contents of config.json; its `torch_dtype` (or `dtype`) is set from the tensors.
        tokenizer: a transformers tokenizer.
        generation: contents of generation_config.json; {} writes none.

    Raises:
        ValueError: the folder is not empty, or a tensor cannot be saved; nothing has been written.
    """
    target = vacant(folder)
    tensors = {name: tensor_info(name, slots[name]) for name in sorted(slots)}
    if not tensors:
        raise ValueError("expected tensors to save, got none")
    check_generation(generation, config.llm["vocab_size"], "generation")
    fields = config.to_dict()
    for key in ("torch_dtype", "dtype"):
        if key in fields:
            fields[key] = _common_dtype(tensors)
    with new_folder(target) as new:
        tokenizer.save_pretrained(str(new))
        write_folder(
            new, fields, generation, [(lambda: nullcontext(slots.__getitem__), part) for part in shards(tensors)]
        )


def shards(tensors: Mapping[str, TensorInfo]) -> list[dict[str, TensorInfo]]:
    """The tensors in order, in parts of at most 5 GB; a larger tensor is a part by itself."""
    parts: list[dict[str, TensorInfo]] = []
    room = 0
    for name, info in tensors.items():
        if not parts or info.nbytes > room:
            parts.append({})
            room = SHARD_BYTES
        parts[-1][name] = info
        room -= info.nbytes
    return parts


# where a part's tensors are read from, and the part: what one safetensors file is to hold
Part = tuple[Callable[[], AbstractContextManager[Read]], Mapping[str, TensorInfo]]


def opening_finite(file: WeightFile) -> Callable[[], AbstractContextManager[Read]]:
    """Opens a file as its own `open` does; values that are not finite are an error, as in `load_into`."""

    @contextmanager
    def opened() -> Iterator[Read]:
        with file.open() as read:

            def checked(name: str) -> torch.Tensor:
                tensor = read(name)
                if tensor.dtype in LOADED:
                    check_finite(file.path, name, tensor)
                return tensor

            yield checked

    return opened


def write_folder(folder: Path, config: Mapping[str, Any], generation: Mapping[str, Any], parts: Sequence[Part]) -> None:
    _write_json(folder / "config.json", config)
    if generation:
        _write_json(folder / "generation_config.json", generation)
    weight_map: dict[str, str] = {}
    for index, (source, part) in enumerate(parts, 1):
        name = SINGLE if len(parts) == 1 else f"model-{index:05d}-of-{len(parts):05d}.safetensors"
        weight_map |= dict.fromkeys(part, name)
        with source() as read:
            write_safetensors(folder / name, {key: read(key) for key in part})
    if len(parts) > 1:
        total = sum(info.nbytes for _, part in parts for info in part.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def _common_dtype(tensors: Mapping[str, TensorInfo]) -> str:
    sizes: Counter[torch.dtype] = Counter()
    for info in tensors.values():
        sizes[info.dtype] += info.nbytes
    return str(max(sizes, key=lambda dtype: sizes[dtype])).removeprefix("torch.")
