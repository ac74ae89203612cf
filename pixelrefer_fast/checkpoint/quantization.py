"""Quantized weights of the LLM's layers, by torchao; only on request.

Only the linear layers within the LLM's blocks change, seven in each. Embeddings, the output layer (often the same
tensor), norms, the vision encoder and the object tokenizer stay as they are. Activations stay in the model's dtype:
what gets cheaper is reading weights, which dominates decoding. Answers change.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from pixelrefer_fast.checks.values import shown

KINDS = ("int8", "fp8", "int4")
# of torchao.quantization, and what each is made with
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("Int8WeightOnlyConfig", {}),
    "fp8": ("Float8WeightOnlyConfig", {}),
    # the layout of PyTorch's own int4 kernel, which needs no further library
    "int4": ("Int4WeightOnlyConfig", {"group_size": 128, "int4_packing_format": "tile_packed_to_4d"}),
}


def check_kind(kind: Any) -> None:
    """Raise a ValueError unless `kind` is None or is available here."""
    if kind is None:
        return
    if kind not in KINDS:
        raise ValueError(f"quantization: expected None or one of {KINDS}, got {shown(kind)}")
    _torchao(kind)


def quantise(llm: Any, kind: str) -> None:
    """Quantize the weights of the LLM's linear layers in place.

    Args:
        llm: a Qwen2ForCausalLM of transformers, on the device where it will run.
        kind: "int8" (one scale per row), "fp8" (e4m3, one scale per row or layer, as torchao does), or "int4" (one
            scale per 128 weights; CUDA and bfloat16).

    Raises:
        ValueError: torchao is missing, or does not support this on the model's device or in its dtype.
    """
    check_kind(kind)
    ao = _torchao(kind)
    weight = llm.model.norm.weight
    name, options = _CONFIGS[kind]
    try:
        ao.quantize_(llm.model.layers, getattr(ao, name)(**options), filter_fn=lambda m, _: isinstance(m, nn.Linear))
    except Exception as error:  # each kind has reasons of its own, in types of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"quantization: expected one that {weight.device} can do in {weight.dtype}, got {kind!r}: {reason}"
        ) from None


def weight_bytes(llm: Any) -> int:
    """Bytes of the weights of the LLM's linear layers, as stored."""
    found = 0
    for module in llm.model.layers.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight
            # a quantised weight is several tensors, whose names torchao's classes list
            names = getattr(weight, "tensor_data_names", None)
            found += sum(getattr(weight, n).nbytes for n in names) if names else weight.nbytes
    return found


def _torchao(kind: str) -> Any:
    try:
        module = importlib.import_module("torchao.quantization")
    except Exception as error:  # one built for another torch fails in ways of its own
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "torchao"
        reason = "torchao is not installed (pip install torchao)" if missing else f"torchao: {error}"
        raise ValueError(f"quantization: expected torchao for {kind!r}, but {reason}") from None
    for name in ("quantize_", _CONFIGS[kind][0]):
        if not hasattr(module, name):
            raise ValueError(f"quantization: expected a torchao with {name} for {kind!r}, which this version has not")
    return module
