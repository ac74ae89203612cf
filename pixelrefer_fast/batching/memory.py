"""What fits at once: budgets of a batch, and errors that say that it did not."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from pixelrefer_fast.device.memory import free_memory
from pixelrefer_fast.network import Network

REQUESTS = {"cpu": 32, "cuda": 64}  # of one batch, unless the caller says otherwise
MAX_REQUESTS = 4096
SHARE = 0.25  # of the memory that is free, for the patches of a batch and as much again for its context
LEAST_PATCHES = 1 << 12
MOST_PATCHES = 1 << 17
LEAST_TOKENS = 1 << 12
MOST_TOKENS = 1 << 22
DEFECTS = 20  # unexplained failures in a row: then the machine is to blame
_WORDS = (
    "out of memory",
    "not enough memory",  # PyTorch's allocator of a CPU
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True)
class Budget:
    """What the requests that run at one time may take together; a larger one runs alone.

    Attributes:
        requests: how many.
        patches: of all views that are encoded together.
        tokens: of all contexts, answers included.
    """

    requests: int
    patches: int
    tokens: int

    @classmethod
    def of(cls, network: Network) -> Budget:
        """For a network where it lies, from the memory that is free there now."""
        device, itemsize = network.device, network.dtype.itemsize
        share = SHARE * free_memory(device)
        vision, llm = network.config.vision, network.config.llm
        # the patches in float32, twice where they are gathered; features, and the residual stream while they are made
        per_patch = 2 * 4 * 3 * vision.patch_size**2 + 4 * vision.hidden_size * itemsize
        heads = llm["num_attention_heads"]
        width = llm["hidden_size"] // heads * llm.get("num_key_value_heads", heads)
        per_token = (2 * llm["num_hidden_layers"] * width + 4 * llm["hidden_size"]) * itemsize
        return cls(
            REQUESTS.get(device.type, REQUESTS["cpu"]),
            _between(LEAST_PATCHES, int(share / per_patch), MOST_PATCHES),
            _between(LEAST_TOKENS, int(share / per_token), MOST_TOKENS),
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a smaller batch may fit."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def unexplained(error: BaseException) -> bool:
    """Whether neither the request nor a lack of memory accounts for an error."""
    return not isinstance(error, (ValueError, FloatingPointError)) and not out_of_memory(error)


def give_back(device: torch.device) -> None:
    """Let go of what a failed batch has left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))
