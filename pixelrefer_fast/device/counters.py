"""Counts what a computation asks of its device: launches, waits of the host, floating-point operations and bytes.

None of it depends on the machine: on a CPU, with kernels in Triton's interpreter, the numbers are those of a GPU, as
long as the same code runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from pixelrefer_fast.device import launches

aten = torch.ops.aten

# allocations, and what makes a view without saying so in its schema
QUIET = {
    aten.empty,
    aten.empty_like,
    aten.empty_permuted,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten._unsafe_view,
    aten.set_,
    aten.resize_,
}
# one kernel on a device, where a CPU combines several operations
WHOLE = {aten.rms_norm}
# read at most as much of their source as they give
GATHERS = {aten.index, aten.index_select, aten.gather, aten.embedding, aten.take}
# write as much of their target as they are given, and read none of it
SCATTERS = {aten.index_copy_, aten.index_put_, aten.index_fill_, aten.scatter_}
OVERWRITES = {aten.copy_, aten.fill_, aten.zero_}
# take no more of their argument than its shape
SHAPED = {aten.new_zeros, aten.new_ones, aten.new_full, aten.zeros_like, aten.ones_like, aten.full_like}
# Python methods that bring a tensor's values to the host; on a CPU they never reach the dispatcher
READS = (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__)
# values of the host that become a tensor: on a device a copy that the host waits for
UPLOADS = (torch.tensor, torch.as_tensor, torch.from_numpy)


def _attention_flops(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> int:
    heads = q.shape[:2]  # a head of keys that several heads of queries read counts for each
    return sdpa_flop_count(q.shape, (*heads, *k.shape[2:]), (*heads, *v.shape[2:]))


def _bmm_flops(a: torch.Tensor, b: torch.Tensor, *args: Any, **kwargs: Any) -> int:
    """An outer product is pointwise: older transformers make the angles of rotary positions so, newer ones do not."""
    return 0 if a.shape[-1] == 1 else int(flop_registry[aten.bmm](a, b, *args, **kwargs))


# torch has formulas for the attention kernels of a GPU only, none for a product that is added to what is there, and in
# torch 2.11 none for fewer heads of keys than of queries
FORMULAS = {
    **flop_registry,
    aten.bmm: _bmm_flops,
    aten.addmm_: flop_registry[aten.addmm],
    aten._addmm_activation: flop_registry[aten.addmm],
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention: _attention_flops,
    aten._scaled_dot_product_efficient_attention: _attention_flops,
    aten._scaled_dot_product_cudnn_attention: _attention_flops,
}


@dataclass
class Counts:
    """What was counted.

    Attributes:
        launches: by name, an operation of torch ("aten.mm") or a Triton kernel ("object_pool.assign"). An operation
            counts as one, though some run several kernels (a sort, say).
        waits: by name, what makes the host wait for the device: reads of a value, results whose shape depends on
            values, copies between host and device.
        flops: a multiply-add is two. Of torch's operations those of matrix products, convolutions and attention; of
            a kernel what its launch declares.
        moved: bytes. Of torch's operations each input read once and each output written once, of gathers and
            scatters what is taken and put; of a kernel what its launch declares.
        flops_by, moved_by: the same by name, as `launches` has them.
    """

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    flops: int = 0
    moved: int = 0
    flops_by: Counter[str] = field(default_factory=Counter)
    moved_by: Counter[str] = field(default_factory=Counter)

    def launched(self, name: str, flops: int, moved: int) -> None:
        """One launch more."""
        self.launches[name] += 1
        self.flops += flops
        self.moved += moved
        self.flops_by[name] += flops
        self.moved_by[name] += moved


@contextmanager
def counting(device: str = "cpu", dry: bool = False) -> Iterator[Counts]:
    """Count what is done within the block on tensors of this device type.

    `dry` counts Triton kernels without running them: for sizes at which the interpreter takes minutes. What runs must
    not look at values, which kernels then leave unwritten.

    Not counted are views, allocations, what only asks for sizes and strides, and operations whose results have no
    element: they launch nothing. On "cpu" every tensor counts, host data too: keep planning outside the block. What
    waits without a tensor (`torch.cuda.synchronize`) is not seen here but by `torch.cuda.set_sync_debug_mode`.
    """
    counts = Counts()

    def launched(launch: launches.Launch) -> None:
        counts.launched(launch.kernel, launch.flops, launch.moved)

    skipped = launches.dry_run() if dry else nullcontext()
    with skipped, launches.listen(launched), _Reads(counts, device), _Operations(counts, device):
        yield counts


class _Operations(TorchDispatchMode):
    """Every operation that reaches torch's dispatcher."""

    def __init__(self, counts: Counts, device: str) -> None:
        super().__init__()
        self.counts = counts
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if launches.launching():  # Triton's interpreter works with torch's operations
            return func(*args, **kwargs)
        if func._overloadpacket in WHOLE:
            result = func(*args, **kwargs)
            self._count(func, args, kwargs, result)
            return result
        # what only combines other operations is counted as those (in inference mode such ones come here whole)
        with self:
            result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            result = func(*args, **kwargs)
            self._count(func, args, kwargs, result)
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        given, made = _tensors((args, kwargs)), _tensors(result)
        if all(t.device.type != self.device for t in (*given, *made)):
            return
        name = str(func._overloadpacket)
        if _waits(func, args, kwargs) or _copies(func, args, kwargs, given, made):
            self.counts.waits[name] += 1
        packet = func._overloadpacket
        if not func._schema.returns:  # the extension's: they write into arguments
            if any(t.numel() for t in given):
                self.counts.launched(name, 0, sum(map(_bytes, given)))
            return
        if func.is_view or packet in QUIET or not any(t.numel() for t in made):
            return
        flops = FORMULAS[packet](*args, **kwargs, out_val=result) if packet in FORMULAS else 0
        self.counts.launched(name, flops, _moved(packet, args, given, made))


class _Reads(TorchFunctionMode):
    """Reads and uploads of values that the dispatcher does not see where host and device are one."""

    def __init__(self, counts: Counts, device: str) -> None:
        super().__init__()
        self.counts = counts
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not launches.launching():
            values = (*args[1:], *kwargs.values())
            to_host = func is torch.Tensor.to and any(isinstance(a, str) and a == "cpu" for a in values)
            uploaded = func in UPLOADS and not isinstance(args[0], torch.Tensor)
            crossing = args[0] if func in READS or to_host else result if uploaded else None
            if crossing is not None and crossing.device.type == self.device:
                self.counts.waits[func.__name__] += 1
        return result


def _waits(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host must know a value to go on: torch marks such operations."""
    packet = func._overloadpacket
    if packet in (aten.index, aten.index_put, aten.index_put_):  # marked for the sake of masks only
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    if packet is aten.repeat_interleave:
        return kwargs.get("output_size") is None
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


def _copies(func: Any, args: Any, kwargs: Any, given: list[torch.Tensor], made: list[torch.Tensor]) -> bool:
    """Whether host and device must meet for a copy between them (a single number travels with the launch)."""
    unhurried = kwargs.get("non_blocking") or (func._overloadpacket is aten.copy_ and len(args) > 2 and args[2])
    return not unhurried and len({t.device.type for t in (*given, *made) if t.ndim}) > 1


def _moved(packet: Any, args: Any, given: list[torch.Tensor], made: list[torch.Tensor]) -> int:
    """Bytes that an operation reads and writes."""
    written = sum(map(_bytes, made))
    if packet in GATHERS:
        return written + sum(min(_bytes(t), written) for t in given[:1]) + sum(map(_bytes, given[1:]))
    if packet in SCATTERS:
        target, *others = given
        return _put(packet, args, target, others) * target.element_size() + sum(map(_bytes, others))
    return written + sum(map(_bytes, given[1:] if packet in OVERWRITES | SHAPED else given))


def _put(packet: Any, args: Any, target: torch.Tensor, others: list[torch.Tensor]) -> int:
    """Elements of its target that a scatter writes."""
    if packet is aten.index_fill_:
        return target.numel() // max(1, target.size(args[1])) * args[2].numel()
    if packet is aten.index_put_ and all(i is None or i.dtype == torch.int64 for i in args[1]):
        places = torch.broadcast_shapes(*(i.shape for i in args[1] if i is not None)).numel()
        kept = [n for n, i in zip_longest(target.shape, args[1]) if i is None]
        return places * math.prod(kept)
    return others[-1].numel()


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
