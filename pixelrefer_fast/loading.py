"""Checkpoint, device and dtype -> a model ready to answer; and a checkpoint converted to one folder."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, overload

import torch

from pixelrefer_fast import ops
from pixelrefer_fast.batching.engines import EngineLoader, EngineModel
from pixelrefer_fast.checkpoint import Checkpoint, open_checkpoint
from pixelrefer_fast.checkpoint.embedded import EMBEDDED_LITE, LIMITS, TITLES
from pixelrefer_fast.checkpoint.folder import HEAD, opening_finite, shards, write_folder
from pixelrefer_fast.checkpoint.new_folder import new_folder, vacant
from pixelrefer_fast.checkpoint.quantization import check_kind, quantise
from pixelrefer_fast.checkpoint.tokenizer import tokenizer_files
from pixelrefer_fast.checks.values import is_integer, shortened, shown
from pixelrefer_fast.device.graphs import cuda_capturer
from pixelrefer_fast.encoding.kept_features import KeptFeatures
from pixelrefer_fast.model import PixelRefer, PixelReferLite
from pixelrefer_fast.ops.extension import load as extension

FEATURE_BYTES = 1 << 27  # of a 2B model: about fifteen images of 1080p
ENGINES = "pixelrefer_fast.engines"
"""The group of entry points of engines that others bring: each an `EngineLoader`."""


def auto_device(device: str | torch.device = "auto") -> torch.device:
    """The requested device; "auto" is the first CUDA device if there is one, else the CPU.

    Raises:
        ValueError: there is no such device on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"device: expected 'auto' or a device that is here, got {shown(device)} ({shortened(reason)})"
        ) from None
    if chosen.type == "meta":
        raise ValueError("device: expected 'auto' or a device that computes, got 'meta'")
    return chosen


def auto_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The requested dtype; "auto" is bfloat16 if the device supports it, else float32, never float16.

    On a CPU "auto" is float32: the reference's answers were recorded in it.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    names |= {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if dtype == "auto":
        bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if bf16 else torch.float32
    chosen = names.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in names.values():
        raise ValueError(f"dtype: expected 'auto' or one of {sorted(names)}, got {shown(dtype)}")
    return chosen


@overload
def load(
    path_or_hub_id: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    backend: str = "auto",
    graph_bytes: int | None = None,
    quantization: str | None = None,
    feature_bytes: int = FEATURE_BYTES,
    engine: None = None,
    engine_options: None = None,
    warmup: bool | None = None,
) -> PixelRefer | PixelReferLite: ...


@overload
def load(
    path_or_hub_id: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    engine: str,
    engine_options: Mapping[str, object] | None = None,
) -> EngineModel: ...


def load(
    path_or_hub_id: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    backend: str = "auto",
    graph_bytes: int | None = None,
    quantization: str | None = None,
    feature_bytes: int = FEATURE_BYTES,
    engine: str | None = None,
    engine_options: Mapping[str, object] | None = None,
    warmup: bool | None = None,
) -> PixelRefer | PixelReferLite | EngineModel:
    """Load a checkpoint in the released layout, or one of the two small trained models inside this package.

    Args:
        path_or_hub_id: a folder, or an id on the Hugging Face hub such as Alibaba-DAMO-Academy/PixelRefer-Lite-2B.
            "embedded:lite" and "embedded:full" are PixelRefer-Lite-mini and PixelRefer-mini, which know only a
            synthetic world of plain shapes. None is "embedded:lite", and a warning, once, that says so.
        device: "auto" (a CUDA device if there is one, else the CPU) or a device.
        dtype: "auto" (bfloat16 if the device supports it, else float32) or a dtype.
        backend: what computes the operations: "auto", or one of `ops.BACKENDS`, which then never falls back.
        graph_bytes: device memory for captured passes from patches to object tokens (CUDA graphs), and as much for
            those of prompts and decoding steps. None: 1 GiB on a CUDA device; 0 captures none.
        quantization: "int8", "fp8" or "int4": quantizes the weights of the LLM's linear layers by torchao. This changes
            answers; such a model can answer, but not be saved or trained.
        feature_bytes: memory for features of images that were asked about, and for copies of these images by which
            they are known again; asking again about an image then encodes only what was not asked before. The least
            recently used is dropped first. 0 keeps none.
        engine: "vllm": an engine of vLLM answers, which must be installed (docs/vllm.md); None: this package's own.
        engine_options: arguments of that engine (vLLM's `AsyncEngineArgs`), such as {"tensor_parallel_size": 2}. With
            an engine only `dtype` is taken of the others.
        warmup: make, compile and capture what requests use before the first of them (`model.warmup`), which takes
            seconds; None: on a CUDA device.

    Returns:
        PixelRefer or PixelReferLite, depending on the checkpoint; with `engine` a model of that engine, which answers
        by the same methods.

    Raises:
        ValueError: the checkpoint, device, dtype, backend, quantization or engine cannot be used; one line that says
            why.
    """
    if path_or_hub_id is None:
        _say_default()
        path_or_hub_id = EMBEDDED_LITE
    target = auto_device(device)
    precision = auto_dtype(dtype, target)
    if engine is not None:
        given = (device, backend, graph_bytes, quantization, feature_bytes, warmup)
        if given != ("auto", "auto", None, None, FEATURE_BYTES, None):
            raise ValueError("engine: expected dtype and engine_options alone with it, got options of the own engine")
        return _engine(engine)(str(path_or_hub_id), precision, engine_options)
    if engine_options is not None:
        raise ValueError("engine_options: expected an engine with them, got none")
    ops.check_backend(backend)
    _check_graph_bytes(graph_bytes, target)
    kept = _kept_features(feature_bytes)
    check_kind(quantization)
    checkpoint = open_checkpoint(path_or_hub_id)
    model = empty_model(checkpoint, backend)  # before sizes that only config.json claims take memory
    model.to(precision).to_empty(device=target)
    restore_buffers(model, target)
    digests = checkpoint.load_into(model.network.checkpoint_slots(), _optional(model))
    if quantization is not None:
        quantise(model.network.llm, quantization)
        model.network.quantization = quantization
    model.network.kept_features = kept
    model.network.loaded(digests)
    if target.type == "cuda" and backend in ("auto", "cuda"):
        extension.build_for_cuda()
    if warmup or (warmup is None and target.type == "cuda"):
        model.warmup(graph_bytes)
    return model


def engines() -> tuple[str, ...]:
    """Names that `load` takes as `engine`; whether the packages behind them are installed, loading tells."""
    return tuple(sorted({point.name for point in entry_points(group=ENGINES)}))


def _engine(name: str) -> EngineLoader:
    """Who loads models of this engine: engines are told apart by entry points, as this module knows none of them."""
    found = {point.name: point for point in entry_points(group=ENGINES)}
    if name not in found:
        raise ValueError(f"engine: expected one of {', '.join(sorted(found)) or 'none'} or None, got {shown(name)}")
    try:
        loader: EngineLoader = found[name].load()
    except ImportError as error:
        raise ValueError(f"engine: expected {name!r} to be installed, but {error}") from None
    return loader


@cache
def _say_default() -> None:
    warnings.warn(
        f"load: no model was named; this is {TITLES[EMBEDDED_LITE]}, which is embedded. {LIMITS}", stacklevel=3
    )


def empty_model(checkpoint: Checkpoint, backend: str = "auto") -> PixelRefer | PixelReferLite:
    """Build the model of a checkpoint on the meta device: its tokenizer and all sizes, but no values.

    Raises:
        ValueError: the tokenizer cannot be read, or the weights do not fit the model.
    """
    model_class = PixelReferLite if checkpoint.config.kind == "lite" else PixelRefer
    tokenizer = checkpoint.tokenizer()
    with torch.device("meta"):
        model = model_class(checkpoint.config, tokenizer, checkpoint.generation, backend)
    checkpoint.check(model.network.checkpoint_slots(), _optional(model))
    return model


def convert(src: str | Path, dst: str | Path) -> dict[str, Any]:
    """Copy a checkpoint of any released layout to one self-contained safetensors folder.

    Values keep their dtype and every bit; at most one weight file is in memory at a time.

    Args:
        src: a folder or a hub id.
        dst: a folder that does not exist or is empty.

    Returns:
        A report with source, destination, tensors (their number), bytes, dtype and shards.

    Raises:
        ValueError: `src` is not a checkpoint that loads, or `dst` is not empty; nothing has been written.
    """
    target = vacant(dst)
    checkpoint = open_checkpoint(src)
    empty_model(checkpoint)
    parts = [(opening_finite(file), part) for file in checkpoint.files for part in shards(file.tensors)]
    with new_folder(target) as new:
        for path in tokenizer_files(checkpoint.folder):
            shutil.copyfile(path, new / path.name)
        write_folder(new, checkpoint.config.to_dict(), checkpoint.generation, parts)
    tensors = checkpoint.tensors
    return {
        "source": str(checkpoint.folder),
        "destination": str(target),
        "tensors": len(tensors),
        "bytes": sum(info.nbytes for info in tensors.values()),
        "dtype": ", ".join(sorted({str(info.dtype).removeprefix("torch.") for info in tensors.values()})),
        "shards": len(parts),
    }


def export_llm(src: str | Path, dst: str | Path) -> dict[str, Any]:
    """Write the language model of a checkpoint by itself, as a Qwen2 folder that any server of language models takes.

    Such a server answers prompts of `model.prompt_embeds`; it sees no image. Values keep their dtype and every bit.

    Args:
        src: a folder or a hub id.
        dst: a folder that does not exist or is empty.

    Returns:
        A report with source, destination, tensors (their number), bytes and shards.

    Raises:
        ValueError: `src` is not a checkpoint that loads, or `dst` is not empty; nothing has been written.
    """
    from transformers import Qwen2Config

    target = vacant(dst)
    checkpoint = open_checkpoint(src)
    network = empty_model(checkpoint).network
    wanted = set(network.checkpoint_slots()) - set(network.vision_slots())
    parts = [
        (opening_finite(file), part)
        for file in checkpoint.files
        for part in shards({name: info for name, info in file.tensors.items() if name in wanted})
    ]
    raw = checkpoint.config.raw
    fields = Qwen2Config(**checkpoint.config.llm).to_dict() | {
        "architectures": ["Qwen2ForCausalLM"],
        "dtype": raw.get("dtype") or raw.get("torch_dtype"),
    }
    with new_folder(target) as new:
        for path in tokenizer_files(checkpoint.folder):
            shutil.copyfile(path, new / path.name)
        write_folder(new, fields, checkpoint.generation, parts)
    tensors = [info for _, part in parts for info in part.values()]
    return {
        "source": str(checkpoint.folder),
        "destination": str(target),
        "tensors": len(tensors),
        "bytes": sum(info.nbytes for info in tensors),
        "shards": len(parts),
    }


def _check_graph_bytes(limit: int | None, device: torch.device) -> None:
    if limit is not None and (not is_integer(limit) or limit < 0):
        raise ValueError(f"graph_bytes: expected a number of bytes, 0 or more, got {shown(limit)}")
    if limit and (reason := cuda_capturer().unusable(device)):
        raise ValueError(f"graph_bytes: expected 0 on {device}, got {limit}: {reason}")


def _kept_features(limit: int) -> KeptFeatures | None:
    if not is_integer(limit) or limit < 0:
        raise ValueError(f"feature_bytes: expected a number of bytes, 0 or more, got {limit!r}")
    return KeptFeatures(int(limit)) if limit else None


def _optional(model: PixelRefer | PixelReferLite) -> tuple[str, ...]:
    return (HEAD,) if model.config.tied else ()


def restore_buffers(model: PixelRefer | PixelReferLite, device: torch.device) -> None:
    """Set what no checkpoint holds: the LLM's rotary frequencies (always float32) and its tied output weight."""
    llm = model.network.llm
    rotary = llm.model.rotary_emb
    with device:
        llm.model.rotary_emb = type(rotary)(llm.config)
    if llm.config.tie_word_embeddings:
        llm.lm_head.weight = llm.model.embed_tokens.weight
