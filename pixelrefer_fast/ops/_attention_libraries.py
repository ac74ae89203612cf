"""Libraries that compute attention within packed sequences or over blocks of keys, and what each of them takes.

Nothing is imported before the first call that asks. A library that is missing, cannot be imported, or has another
interface than the one used here says so, and the operation goes on to the next.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Library:
    """A function of a library, under its own names: what `varlen_attention` calls, or `paged_attention` (`PAGED`).

    Attributes:
        backend: the provider's name.
        module: where the function is imported from.
        function: its name.
        parameters: its names for the arguments.
        causal: its names for a causal mask aligned bottom-right, with the value that asks for it; the first that the
            installed version has is used.
        grouped: its name for what has to be True where k and v have fewer heads; "" where nothing has to be said.
        majors: compute capabilities (the first number) that it has kernels for.
        largest_head: the largest head size; all take multiples of 8 only.
        documented: where all this is written down.
        into: its function that writes into a given tensor, which comes first, and keeps nothing for a gradient; used
            where the installed version has it. "" where the other one launches nothing beside its kernel.
    """

    backend: str
    module: str
    function: str
    parameters: tuple[str, ...]
    causal: tuple[tuple[str, Any], ...]
    grouped: str
    majors: tuple[int, ...]
    largest_head: int
    documented: str
    into: str = ""


FLASH_PARAMETERS = ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")

# in the order in which "auto" asks: the newer, the faster where it runs
LIBRARIES = (
    Library(
        backend="flash_attn_4",
        module="flash_attn.cute",
        function="flash_attn_varlen_func",
        parameters=FLASH_PARAMETERS,
        causal=(("causal", True),),
        grouped="",
        majors=(9, 10),
        largest_head=128,
        documented="github.com/Dao-AILab/flash-attention flash_attn/cute/interface.py",
    ),
    Library(
        backend="flash_attn_3",
        module="flash_attn_interface",
        function="flash_attn_varlen_func",
        parameters=FLASH_PARAMETERS,
        causal=(("causal", True),),
        grouped="",
        majors=(9,),
        largest_head=256,
        documented="github.com/Dao-AILab/flash-attention hopper/flash_attn_interface.py",
    ),
    Library(
        backend="torch_varlen",
        module="torch.nn.attention.varlen",
        function="varlen_attn",
        parameters=("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"),
        causal=(("window_size", (-1, 0)), ("is_causal", True)),
        grouped="enable_gqa",
        majors=(8, 9, 10, 11, 12),
        largest_head=256,
        documented="docs.pytorch.org/docs/stable/nn.attention.varlen.html",
        into="varlen_attn_out",
    ),
    Library(
        backend="flash_attn",
        module="flash_attn",
        function="flash_attn_varlen_func",
        parameters=FLASH_PARAMETERS,
        causal=(("causal", True),),
        grouped="",
        majors=(8, 9, 10, 11, 12),
        largest_head=256,
        documented="github.com/Dao-AILab/flash-attention flash_attn/flash_attn_interface.py",
    ),
)

# of `paged_attention`: a query of each sequence, keys and values in blocks
PAGED = Library(
    backend="flash_attn_3",
    module="flash_attn_interface",
    function="flash_attn_with_kvcache",
    parameters=("q", "k_cache", "v_cache", "cache_seqlens", "page_table"),
    causal=(),
    grouped="",
    majors=(9,),
    largest_head=256,
    documented="github.com/Dao-AILab/flash-attention hopper/flash_attn_interface.py",
)


def available(library: Library) -> str | None:
    """Why a library cannot be used here, or None."""
    found = _load(library)
    return found if isinstance(found, str) else None


def accepts(
    library: Library,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    max_q: int,
    max_k: int,
    causal: bool,
) -> str | None:
    """Why a library declines a call of `varlen_attention`, or None."""
    return (
        _unfit(library, q)
        or heads_in_one_piece(q, k, v)
        or offsets_beside(q, cu_seqlens_q)
        or _no_empty_batch(q, k, cu_seqlens_q, max_q, max_k)
        or _missing(library, q, k, causal)
    )


def run(
    library: Library,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
    causal: bool = False,
) -> torch.Tensor:
    """Call a library; some give the log-sum-exp as well, which comes second."""
    function = _load(library)
    assert callable(function)
    arguments = (q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k)
    options: dict[str, Any] = {}
    if causal:
        options |= [(name, value) for name, value in library.causal if name in _parameters(library)][:1]
    if library.grouped and q.shape[1] != k.shape[1]:
        options[library.grouped] = True
    named = dict(zip(library.parameters, arguments, strict=True))
    into = _into(library)
    if into is not None:
        # torch's other function also fills the state of a random generator: a launch for nothing in each layer
        return into(q.new_empty(q.shape), **named, **options)
    returned = function(**named, **options)
    return returned[0] if isinstance(returned, tuple) else returned


def paged_accepts(qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> str | None:
    """Why flash-attention 3 declines a call of `paged_attention`, or None."""
    if not (len(qkv) and keys.numel()):
        return "it takes no batch without sequences or blocks"
    if keys.stride(-1) != 1 or values.stride(-1) != 1:
        return "the last dimension of keys and values is not contiguous"
    return _unfit(PAGED, qkv)


def paged_run(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """(B, H, d) of one query (B, H, d) of each sequence, turned, over all keys that are in the cache."""
    function = _load(PAGED)
    assert callable(function)
    returned = function(**dict(zip(PAGED.parameters, (q[:, None], keys, values, lengths, table), strict=True)))
    return (returned[0] if isinstance(returned, tuple) else returned)[:, 0]


def xformers_available() -> str | None:
    """Why xformers cannot be used here, or None."""
    found = _import("xformers.ops")
    return found if isinstance(found, str) else None


def xformers_accepts(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
    causal: bool,
) -> str | None:
    """Why xformers declines a call of `varlen_attention`, or None."""
    if capability(q) is None:
        return f"its tensors are on {q.device.type}, it runs on cuda"
    if q.dtype not in (*HALVES, torch.float32):
        return f"it computes float32, float16 and bfloat16, not {q.dtype}"
    if q.shape[2] % 8:
        return f"it takes head sizes that are multiples of 8, not {q.shape[2]}"
    if cu_seqlens_q.device.type != "cpu":
        return f"its mask is made from lengths in host memory, cu_seqlens are on {cu_seqlens_q.device}: it would wait"
    if causal and bool((cu_seqlens_q.diff() > cu_seqlens_k.diff()).any()):
        return "its causal mask takes no sequence of more queries than keys"
    return heads_in_one_piece(q, k, v) or _no_empty_batch(q, k, cu_seqlens_q, max_q, max_k)


def xformers_run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
    causal: bool = False,
) -> torch.Tensor:
    """xformers.ops.memory_efficient_attention under a block-diagonal mask, whose sequences must fill the rows."""
    ops: Any = _import("xformers.ops")
    lengths = [x.diff().tolist() for x in (cu_seqlens_q, cu_seqlens_k)]
    masks = ops.fmha.attn_bias
    kind = masks.BlockDiagonalCausalFromBottomRightMask if causal else masks.BlockDiagonalMask
    mask = kind.from_seqlens(*lengths, device=q.device)
    queries, keys = (sum(x) for x in lengths)
    packed = q[None, :queries], k[None, :keys], v[None, :keys]
    if q.shape[1] != k.shape[1]:
        # (1, M, groups, heads of a group, d), one head of k and v seen by all of its group
        groups = k.shape[1], q.shape[1] // k.shape[1]
        packed = packed[0].unflatten(2, groups), *(x[:, :, :, None].expand(-1, -1, *groups, -1) for x in packed[1:])
    found = ops.memory_efficient_attention(*packed, attn_bias=mask)[0].reshape(queries, *q.shape[1:])
    if queries == len(q):
        return found
    out = q.new_zeros(q.shape)
    out[:queries] = found
    return out


def heads_in_one_piece(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str | None:
    """What a kernel has against heads whose elements do not lie side by side, or None."""
    strides = [x.stride(2) for x in (q, k, v)]
    return None if strides == [1, 1, 1] else f"the last dimension of q, k and v is not contiguous (strides {strides})"


def offsets_beside(q: torch.Tensor, cu_seqlens: torch.Tensor) -> str | None:
    """What a kernel has against offsets that lie elsewhere than its tensors, or None."""
    if cu_seqlens.device == q.device:
        return None
    return f"it reads cu_seqlens on {q.device}, they are on {cu_seqlens.device}"


def capability(tensor: torch.Tensor) -> int | None:
    """First number of the compute capability of a tensor's device; None on another device than CUDA."""
    return torch.cuda.get_device_capability(tensor.device)[0] if tensor.is_cuda else None


def _unfit(library: Library, q: torch.Tensor) -> str | None:
    """What a library has against the device, dtype or head size of q (rows, heads, d), or None."""
    major = capability(q)
    if major is None:
        return f"its tensors are on {q.device.type}, it runs on cuda"
    if major not in library.majors:
        return f"it has kernels for compute capabilities {library.majors}, this device has {major}.x"
    if q.dtype not in HALVES:
        return f"it computes float16 and bfloat16, not {q.dtype}"
    if q.shape[2] % 8 or q.shape[2] > library.largest_head:
        return f"it takes head sizes that are multiples of 8 up to {library.largest_head}, not {q.shape[2]}"
    return None


def _no_empty_batch(q: torch.Tensor, k: torch.Tensor, cu_seqlens: torch.Tensor, max_q: int, max_k: int) -> str | None:
    empty = len(cu_seqlens) < 2 or not (len(q) and len(k) and max_q and max_k)
    return "it takes no batch without sequences, queries or keys" if empty else None


def _missing(library: Library, q: torch.Tensor, k: torch.Tensor, causal: bool) -> str | None:
    """What the installed version cannot be asked for, or None."""
    known = _parameters(library)
    name = f"{library.module}.{library.function}"
    if causal and not any(option in known for option, _ in library.causal):
        return f"{name} has no parameter {library.causal[0][0]} in the version installed"
    if q.shape[1] != k.shape[1] and library.grouped and library.grouped not in known:
        return f"{name} has no parameter {library.grouped} in the version installed"
    return None


@functools.cache
def _parameters(library: Library) -> frozenset[str]:
    """Names of the parameters of the library's function, none where there is no such function."""
    function = _load(library)
    return frozenset() if isinstance(function, str) else frozenset(inspect.signature(function).parameters)


@functools.cache
def _load(library: Library) -> Callable[..., Any] | str:
    """The library's function, or why there is none."""
    module = _import(library.module)
    if isinstance(module, str):
        return module
    function = getattr(module, library.function, None)
    if function is None:
        return f"{library.module} has no {library.function}"
    missing = [name for name in library.parameters if name not in inspect.signature(function).parameters]
    if missing:
        return f"{library.module}.{library.function} has no parameter {missing[0]} in the version installed"
    return function


@functools.cache
def _into(library: Library) -> Callable[..., torch.Tensor] | None:
    """The library's function that writes into a given tensor; None where it has none that takes the same arguments."""
    function = getattr(_import(library.module), library.into, None) if library.into else None
    if function is None:
        return None
    known = inspect.signature(function).parameters
    same = next(iter(known)) == "out" and _parameters(library) <= known.keys()
    return function if same else None


@functools.cache
def _import(name: str) -> Any:
    """A module, or why it cannot be used: not installed, broken, or no device for it."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # a library built for another torch fails in ways of its own
        return f"{name} cannot be imported ({type(error).__name__}: {error})"
    return module if torch.cuda.is_available() else "there is no CUDA device"
