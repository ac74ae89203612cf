"""Operations called with bad tables, shapes and memory, in a process that may die of it.

    python fuzzed_ops.py SEED FIRST COUNT

Prints the number of each call before it is made, and at the end the counts of what became of them.
"""

from __future__ import annotations

import collections
import json
import resource
import sys

import numpy as np
import torch

from pixelrefer_fast import ops
from pixelrefer_fast.ops import registry
from pixelrefer_fast.ops._extension import available

RAW = (
    "gather_tokens_out",
    "mask_grids_out",
    "pack_masks_out",
    "pack_objects_out",
    "pack_views_out",
    "place_patches_out",
    "scatter_tokens_",
)
BAD = (-1, -2, 0, 1, 5, 2**15, 2**31 - 1, 2**31, 2**40, 2**62, -(2**31), -(2**63))


def odd_tensor(tensor: torch.Tensor, others: list[torch.Tensor], rng: np.random.Generator) -> torch.Tensor:
    """A tensor with other values, of another shape, dtype or memory."""
    kind = int(rng.integers(0, 8))
    if kind <= 2 and not tensor.is_floating_point() and tensor.numel():
        changed = tensor.clone()
        for _ in range(int(rng.integers(1, 4))):
            value = BAD[rng.integers(len(BAD))]
            if changed.dtype == torch.bool:
                value = value > 0
            elif changed.dtype != torch.int64:
                value = max(min(value, torch.iinfo(changed.dtype).max), torch.iinfo(changed.dtype).min)
            changed.view(-1)[int(rng.integers(changed.numel()))] = value
        return changed
    if kind == 3 and tensor.ndim and len(tensor):
        return tensor[: int(rng.integers(len(tensor)))]
    if kind == 4 and tensor.ndim:
        return tensor[:1].expand(tensor.shape) if len(tensor) else tensor
    if kind == 5:
        return tensor.to([torch.int32, torch.int64, torch.float64, torch.float16, torch.bool][rng.integers(5)])
    if kind == 6 and tensor.numel() > 2:  # each row begins in the one before
        return tensor.reshape(-1).as_strided(tensor.shape, [1] * tensor.ndim)
    if kind == 7 and others:  # another argument's memory
        other = others[rng.integers(len(others))].reshape(-1)
        need = tensor.numel()
        if other.numel() >= need and tensor.ndim:
            return other[:need].view(tensor.shape)
    return tensor.reshape(-1)[:1].repeat(max(1, tensor.numel())).view(-1) if tensor.numel() else tensor


def odd_call(rng: np.random.Generator) -> str:
    """Call an operation by its name, or the registered operator as it is."""
    names = sorted(registry())
    name = names[rng.integers(len(names))]
    op = registry()[name]
    samples = list(op.samples(torch.Generator().manual_seed(int(rng.integers(99))), torch.float32))
    arguments = list(samples[rng.integers(len(samples))])
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    for _ in range(int(rng.integers(1, 3))):
        place = int(rng.integers(len(arguments)))
        value = arguments[place]
        if isinstance(value, torch.Tensor):
            arguments[place] = odd_tensor(value, tensors, rng)
        elif isinstance(value, int):
            arguments[place] = BAD[rng.integers(len(BAD))] if rng.random() < 0.5 else int(rng.integers(0, 9))
    if rng.random() < 0.3 and available() is None:
        entry = getattr(torch.ops.pixelrefer_fast, RAW[rng.integers(len(RAW))]).default
        given = [a for a in arguments if isinstance(a, torch.Tensor)]
        count = len(entry._schema.arguments)
        entry(*(given[i] if i < len(given) else given[int(rng.integers(len(given)))] for i in range(count)))
        return "computed raw"
    backend = ["torch", "cuda", "auto"][rng.integers(3)]
    op(*arguments, backend=backend)
    return "computed"


if __name__ == "__main__":
    seed, first, count = map(int, sys.argv[1:4])
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))  # a size that does not fit is an error, no kill
    outcomes: collections.Counter[str] = collections.Counter()
    for number in range(first, first + count):
        print(number, flush=True)
        try:
            outcomes[odd_call(np.random.default_rng([seed, number]))] += 1
        except (ValueError, RuntimeError, IndexError, TypeError, NotImplementedError, ops.BackendError) as error:
            outcomes[f"refused ({type(error).__name__})"] += 1
    print(json.dumps(outcomes))
