"""The libraries behind varlen_attention: none is installed where tests run, so stand-ins with their documented
signatures take their places, compute the right answer and keep what they were called with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from pixelrefer_fast.ops import BackendError, varlen_attention
from pixelrefer_fast.ops import _attention_libraries as libraries

BACKENDS = [x.backend for x in libraries.LIBRARIES]
MAJORS = {"flash_attn_4": 9, "flash_attn_3": 9, "torch_varlen": 8, "flash_attn": 8}


class Seen:
    """Arguments of the calls of a stand-in, by its own names."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []


def _answer(
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_q: int, max_k: int, causal: bool = False
) -> torch.Tensor:
    return varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, causal, backend="torch")


def _flash_attn_4(seen: Seen) -> Callable[..., Any]:
    # flash_attn/cute/interface.py: qv stands before the offsets, the result is (out, lse)
    def flash_attn_varlen_func(
        q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
        min_seqlen_k=None, seqused_q=None, seqused_k=None, softmax_scale=None, causal=False, return_lse=False,
    ):  # fmt: skip
        seen.calls.append(dict(locals()))
        assert qv is None
        return _answer(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal), None

    return flash_attn_varlen_func


def _flash_attn_3(seen: Seen) -> Callable[..., Any]:
    # hopper/flash_attn_interface.py: the result is out
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None, window_size=(-1, -1), return_attn_probs=False,
    ):  # fmt: skip
        seen.calls.append(dict(locals()))
        return _answer(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)

    return flash_attn_varlen_func


def _torch_varlen(seen: Seen) -> Callable[..., Any]:
    # torch/nn/attention/varlen.py
    def varlen_attn(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
        enable_gqa=False,
    ):  # fmt: skip
        seen.calls.append(dict(locals()))
        assert enable_gqa == (query.shape[1] != key.shape[1])
        return _answer(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size == (-1, 0))

    return varlen_attn


def _flash_attn(seen: Seen) -> Callable[..., Any]:
    # flash_attn/flash_attn_interface.py
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, return_attn_probs=False,
    ):  # fmt: skip
        seen.calls.append(dict(locals()))
        return _answer(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)

    return flash_attn_varlen_func


STAND_INS = {
    "flash_attn_4": _flash_attn_4,
    "flash_attn_3": _flash_attn_3,
    "torch_varlen": _torch_varlen,
    "flash_attn": _flash_attn,
}


def _library(backend: str) -> libraries.Library:
    return next(x for x in libraries.LIBRARIES if x.backend == backend)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What was found installed is kept: each test looks anew, and leaves nothing behind."""

    def forget() -> None:
        libraries._load.cache_clear()
        libraries._import.cache_clear()
        libraries._parameters.cache_clear()
        libraries._into.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Tensors of the CPU pass for those of a GPU of this compute capability."""

    def pretend(major: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(libraries, "capability", lambda tensor: major)

    return pretend


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Seen]:
    """Put a stand-in where a library would be imported from."""

    def put(backend: str) -> Seen:
        seen, library = Seen(), _library(backend)
        names = library.module.split(".")
        for i in range(1, len(names)):
            if ".".join(names[:i]) not in sys.modules:
                package = ModuleType(".".join(names[:i]))
                package.__path__ = []
                monkeypatch.setitem(sys.modules, package.__name__, package)
        module = ModuleType(library.module)
        setattr(module, library.function, STAND_INS[backend](seen))
        monkeypatch.setitem(sys.modules, library.module, module)
        return seen

    return put


def _arguments(dtype: torch.dtype = torch.float16, head_dim: int = 72) -> tuple:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 2, head_dim, generator=generator).to(dtype) for n in (7, 9, 9))
    offsets = (torch.tensor(x, dtype=torch.int32) for x in ([0, 3, 7], [0, 5, 9]))
    return q, k, v, *offsets, 4, 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_called_as_documented(backend: str, install: Callable[[str], Seen], on_device: Callable[[int], None]) -> None:
    seen = install(backend)
    on_device(MAJORS[backend])
    arguments = _arguments()
    out = varlen_attention(*arguments, backend=backend)
    assert torch.equal(out, varlen_attention(*arguments, backend="torch"))
    (call,) = seen.calls
    names = _library(backend).parameters
    assert all(call[name] is argument for name, argument in zip(names, arguments, strict=True))
    # everything else is left as the library has it: no mask, no window, the usual scale
    assert not any(call[name] for name in call if name not in (*names, "window_size", "seen"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_causal_and_grouped_called_as_documented(
    backend: str, install: Callable[[str], Seen], on_device: Callable[[int], None]
) -> None:
    seen = install(backend)
    on_device(MAJORS[backend])
    q, k, v, *rest = _arguments()
    arguments = q, k[:, :1], v[:, :1], *rest, True
    out = varlen_attention(*arguments, backend=backend)
    assert torch.equal(out, varlen_attention(*arguments, backend="torch"))
    assert not torch.equal(out, varlen_attention(*arguments[:7], backend="torch"))
    (call,) = seen.calls
    if backend == "torch_varlen":
        assert (call["window_size"], call["enable_gqa"]) == ((-1, 0), True)
    else:
        assert call["causal"] is True


def test_torch_versions_that_cannot_be_asked(install: Callable[[str], Seen], on_device: Callable[[int], None]) -> None:
    install("torch_varlen")
    on_device(8)
    module: Any = sys.modules["torch.nn.attention.varlen"]
    q, k, v, *rest = _arguments()

    def install_again(function: Callable[..., Any]) -> None:
        module.varlen_attn = function
        libraries._load.cache_clear()
        libraries._parameters.cache_clear()

    def older(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
        return _answer(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal)

    install_again(older)
    expected = varlen_attention(q, k, v, *rest, True, backend="torch")
    assert torch.equal(varlen_attention(q, k, v, *rest, True, backend="torch_varlen"), expected)
    with pytest.raises(BackendError, match="has no parameter enable_gqa in the version installed"):
        varlen_attention(q, k[:, :1], v[:, :1], *rest, backend="torch_varlen")
    install_again(lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k: query)
    with pytest.raises(BackendError, match="has no parameter window_size in the version installed"):
        varlen_attention(q, k, v, *rest, True, backend="torch_varlen")


def test_torch_writes_into_a_given_tensor_where_it_can(
    install: Callable[[str], Seen], on_device: Callable[[int], None]
) -> None:
    """The other function fills the state of a random generator in each layer."""
    seen = install("torch_varlen")
    on_device(8)
    module: Any = sys.modules["torch.nn.attention.varlen"]
    calls: list[tuple] = []

    def varlen_attn_out(
        out, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None,
        window_size=(-1, -1), enable_gqa=False,
    ):  # fmt: skip
        calls.append((window_size, enable_gqa))
        return out.copy_(_answer(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size == (-1, 0)))

    module.varlen_attn_out = varlen_attn_out
    q, k, v, *rest = _arguments()
    for arguments in ((q, k, v, *rest), (q, k[:, :1], v[:, :1], *rest, True)):
        expected = varlen_attention(*arguments, backend="torch")
        assert torch.equal(varlen_attention(*arguments, backend="torch_varlen"), expected)
    assert calls == [((-1, -1), False), ((-1, 0), True)]
    assert not seen.calls
    # one of another interface is left alone
    module.varlen_attn_out = lambda out, query: out
    libraries._into.cache_clear()
    varlen_attention(*_arguments(), backend="torch_varlen")
    assert len(seen.calls) == 1


def test_the_signature_of_this_torch() -> None:
    """torch's function is installed, if not its device: the names are those it has."""
    import inspect

    from torch.nn.attention import varlen

    names = list(inspect.signature(varlen.varlen_attn).parameters)
    assert tuple(names[:7]) == _library("torch_varlen").parameters
    if hasattr(varlen, "varlen_attn_out"):
        assert list(inspect.signature(varlen.varlen_attn_out).parameters) == ["out", *names]


@pytest.mark.parametrize("backend", BACKENDS)
def test_declines(backend: str, install: Callable[[str], Seen], on_device: Callable[[int], None]) -> None:
    seen = install(backend)
    on_device(MAJORS[backend])
    library = _library(backend)
    q, k, v, offsets_q, offsets_k, max_q, max_k = _arguments()
    meta = torch.zeros(3, dtype=torch.int32, device="meta")
    largest = library.largest_head
    cases: list[tuple[tuple, str]] = [
        (_arguments(torch.float32), r"it computes float16 and bfloat16, not torch\.float32"),
        (_arguments(head_dim=70), f"it takes head sizes that are multiples of 8 up to {largest}, not 70"),
        (_arguments(head_dim=264), f"it takes head sizes that are multiples of 8 up to {largest}, not 264"),
        ((q, k, v, meta, meta, max_q, max_k), "it reads cu_seqlens on cpu, they are on meta"),
        ((q, k, v, offsets_q[:1], offsets_k[:1], 0, 0), "it takes no batch without sequences, queries or keys"),
        ((q, k[:0], v[:0], offsets_q, offsets_k * 0, max_q, 0), "it takes no batch without sequences, queries or keys"),
        ((q, k, v.repeat(1, 1, 2)[..., ::2], *_arguments()[3:]), r"not contiguous \(strides \[1, 1, 2\]\)"),
    ]
    for arguments, reason in cases:
        with pytest.raises(BackendError, match=f"'{backend}' was asked for but declines: .*({reason})"):
            varlen_attention(*arguments, backend=backend)
    on_device(7)
    with pytest.raises(BackendError, match=r"it has kernels for compute capabilities \(.*\), this device has 7"):
        varlen_attention(*_arguments(), backend=backend)
    assert not seen.calls


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_is_an_error_and_no_reason(
    backend: str, install: Callable[[str], Seen], on_device: Callable[[int], None]
) -> None:
    install(backend)
    on_device(MAJORS[backend])
    q, k, *rest = _arguments()
    with pytest.raises(ValueError, match=r"^varlen_attention: expected v of shape"):
        varlen_attention(q, k[:, :1], *rest, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_on_a_cpu(backend: str, install: Callable[[str], Seen], monkeypatch: pytest.MonkeyPatch) -> None:
    install(backend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(BackendError, match="its tensors are on cpu, it runs on cuda"):
        varlen_attention(*_arguments(), backend=backend)
    libraries._import.cache_clear()
    libraries._load.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert libraries.available(_library(backend)) == "there is no CUDA device"


@pytest.mark.parametrize(
    ("backend", "module"),
    [("flash_attn_4", "flash_attn"), ("flash_attn_3", "flash_attn_interface"), ("flash_attn", "flash_attn")],
)
def test_not_installed(backend: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError, match=f"'{backend}' was asked for but declines: .*{module}"):
        varlen_attention(*_arguments(), backend=backend)
    monkeypatch.delitem(sys.modules, module)
    libraries._import.cache_clear()
    libraries._load.cache_clear()
    monkeypatch.setattr(sys, "path", [])
    assert libraries.available(_library(backend)) == f"{module} is not installed"


def test_one_that_fails_to_import(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flash_attn_interface.py").write_text("raise OSError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    reason = libraries.available(_library("flash_attn_3"))
    assert reason == "flash_attn_interface cannot be imported (OSError: undefined symbol)"


def test_another_version(install: Callable[[str], Seen], on_device: Callable[[int], None]) -> None:
    install("flash_attn_4")
    on_device(9)
    module: Any = sys.modules["flash_attn.cute"]
    module.flash_attn_varlen_func = lambda q, k, v, cu_seqlens_q, cu_seqlens_k: None
    assert libraries.available(_library("flash_attn_4")) == (
        "flash_attn.cute.flash_attn_varlen_func has no parameter max_seqlen_q in the version installed"
    )
    libraries._load.cache_clear()
    del module.flash_attn_varlen_func
    assert libraries.available(_library("flash_attn_4")) == "flash_attn.cute has no flash_attn_varlen_func"


def test_order_of_the_providers() -> None:
    """The newer first, the own kernel after the libraries, the definition when all decline."""
    assert [p.backend for p in varlen_attention._providers] == [
        "flash_attn_4",
        "flash_attn_3",
        "torch_varlen",
        "flash_attn",
        "xformers",
        "triton",
    ]
    assert all(p.devices == ("cuda",) for p in varlen_attention._providers)


def test_auto_takes_the_first_that_accepts_and_counts_the_others(
    install: Callable[[str], Seen], on_device: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {name: install(name) for name in ("flash_attn_3", "torch_varlen")}
    for module in ("flash_attn", "xformers"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(varlen_attention, "_passed_over", type(varlen_attention._passed_over)())
    for provider in varlen_attention._providers:
        monkeypatch.setattr(provider, "devices", ("cpu",))
    arguments = _arguments()
    on_device(9)
    varlen_attention(*arguments)
    assert [len(x.calls) for x in seen.values()] == [1, 0]
    on_device(8)
    varlen_attention(*arguments)
    varlen_attention(*arguments)
    assert [len(x.calls) for x in seen.values()] == [1, 2]
    counts = varlen_attention.fallbacks()
    assert counts["flash_attn_3: it has kernels for compute capabilities (9,), this device has 8.x"] == 2
    assert sum(n for name, n in counts.items() if name.startswith("flash_attn_4: ")) == 3
    assert not any(name.startswith("torch_varlen") for name in counts)


def _xformers(seen: Seen) -> ModuleType:
    class BlockDiagonalMask:
        """xformers/ops/fmha/attn_bias.py"""

        causal = False

        def __init__(self, q_seqlen: list[int], kv_seqlen: list[int], device: Any) -> None:
            assert all(type(n) is int for n in (*q_seqlen, *kv_seqlen))
            self.lengths = q_seqlen, kv_seqlen
            self.device = device

        @classmethod
        def from_seqlens(cls, q_seqlen: Any, kv_seqlen: Any = None, *, device: Any = None) -> Any:
            return cls(q_seqlen, kv_seqlen, device)

    class BlockDiagonalCausalFromBottomRightMask(BlockDiagonalMask):
        causal = True

        def __init__(self, q_seqlen: list[int], kv_seqlen: list[int], device: Any) -> None:
            super().__init__(q_seqlen, kv_seqlen, device)
            assert all(a <= b for a, b in zip(q_seqlen, kv_seqlen, strict=True))

    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None):
        seen.calls.append({"query": query, "mask": attn_bias})
        queries, keys = attn_bias.lengths
        # as xformers has it: one batch of B, M, H, K or B, M, G, H, K, which the sequences fill
        assert query.shape[:2] == (1, sum(queries))
        assert key.shape[:2] == value.shape[:2] == (1, sum(keys))
        assert query.shape[2:] == key.shape[2:] == value.shape[2:]
        offsets = (torch.tensor([0, *x]).cumsum(0, dtype=torch.int32) for x in (queries, keys))
        heads = [x[0].reshape(x.shape[1], -1, x.shape[-1]) for x in (query, key, value)]
        return _answer(*heads, *offsets, max(queries), max(keys), attn_bias.causal).reshape(query.shape)

    module: Any = ModuleType("xformers.ops")
    module.memory_efficient_attention = memory_efficient_attention
    masks = SimpleNamespace(
        BlockDiagonalMask=BlockDiagonalMask,
        BlockDiagonalCausalFromBottomRightMask=BlockDiagonalCausalFromBottomRightMask,
    )
    module.fmha = SimpleNamespace(attn_bias=masks)
    return module


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch, on_device: Callable[[int], None]) -> Seen:
    seen = Seen()
    package = ModuleType("xformers")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", _xformers(seen))
    on_device(8)
    return seen


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_xformers(padding: int, dtype: torch.dtype, xformers: Seen) -> None:
    """Its mask covers the rows of the sequences: padding stays outside, and comes back as zeros."""
    q, k, v, *rest = _arguments(dtype)
    padded = [torch.cat([x, x.new_full((padding, 2, 72), torch.nan)]) for x in (q, k, v)]
    out = varlen_attention(*padded, *rest, backend="xformers")
    assert torch.equal(out, varlen_attention(*padded, *rest, backend="torch"))
    (call,) = xformers.calls
    assert call["mask"].lengths == ([3, 4], [5, 4])
    assert call["mask"].device == q.device


def test_xformers_causal_and_grouped(xformers: Seen) -> None:
    q, k, v, *rest = _arguments()
    q = torch.cat([q, q.flip(0)], 1)
    out = varlen_attention(q, k, v, *rest, True, backend="xformers")
    assert torch.equal(out, varlen_attention(q, k, v, *rest, True, backend="torch"))
    (call,) = xformers.calls
    assert call["mask"].causal
    assert call["query"].shape == (1, 7, 2, 2, 72)
    with pytest.raises(BackendError, match="its causal mask takes no sequence of more queries than keys"):
        varlen_attention(k, q[:, :2], q[:, :2], rest[1], rest[0], 5, 4, True, backend="xformers")


def test_xformers_declines(xformers: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, offsets_q, offsets_k, *longest = _arguments()
    meta = torch.zeros(3, dtype=torch.int32, device="meta")
    cases: list[tuple[tuple, str]] = [
        ((q, k, v, meta, meta, *longest), "lengths in host memory, cu_seqlens are on meta: it would wait"),
        (_arguments(torch.float64), r"it computes float32, float16 and bfloat16, not torch\.float64"),
        (_arguments(head_dim=70), "it takes head sizes that are multiples of 8, not 70"),
        ((q, k, v, offsets_q[:1], offsets_k[:1], 0, 0), "it takes no batch without sequences, queries or keys"),
    ]
    for arguments, reason in cases:
        with pytest.raises(BackendError, match=f"'xformers' was asked for but declines: .*{reason}"):
            varlen_attention(*arguments, backend="xformers")
    monkeypatch.setattr(libraries, "capability", lambda tensor: None)
    with pytest.raises(BackendError, match="its tensors are on cpu, it runs on cuda"):
        varlen_attention(*_arguments(), backend="xformers")
    assert not xformers.calls


def test_a_gradient_is_left_to_the_definition(install: Callable[[str], Seen], on_device: Callable[[int], None]) -> None:
    seen = install("flash_attn")
    on_device(8)
    q, *rest = _arguments()
    with pytest.raises(BackendError, match="needs a gradient"):
        varlen_attention(q.requires_grad_(), *rest, backend="flash_attn")
    assert not seen.calls
