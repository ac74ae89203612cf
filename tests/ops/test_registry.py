"""Every operation is complete, and the dispatcher chooses, declines and counts as it says."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pixelrefer_fast.ops
from pixelrefer_fast.ops import BackendError, Op, check_backend, registry
from pixelrefer_fast.ops import _registry as registry_module
from pixelrefer_fast.ops._registry import LIBRARIES

OPS = sorted(registry())
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OP_FOLDER = Path(pixelrefer_fast.ops.__file__).parent
TEST_FOLDER = Path(__file__).parent


def _samples(name: str, dtype: torch.dtype) -> list[tuple]:
    return list(registry()[name].samples(torch.Generator().manual_seed(0), dtype))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, NaN included, which samples hold where nothing may be read."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _is_small(sample: tuple) -> bool:
    """No data at all, or one element (a row, an image, a patch) in some argument."""
    return any(t.numel() == 0 or len(t) == 1 for t in _tensors(sample))


def _is_large(sample: tuple) -> bool:
    return all(t.numel() and len(t) > 1 for t in _tensors(sample[:1]))


def test_the_operations_are_registered() -> None:
    assert OPS == [
        "add_norm",
        "best_token",
        "infuse",
        "linear_gelu",
        "mask_grids",
        "norm_linear",
        "object_pool",
        "object_tokens",
        "pack_masks",
        "pack_objects",
        "pack_views",
        "paged_attention",
        "place_patches",
        "rope2d",
        "scatter_tokens",
        "swiglu",
        "varlen_attention",
        "view_patches",
    ]


@pytest.mark.parametrize("name", OPS)
def test_operation_is_documented(name: str) -> None:
    op = registry()[name]
    assert op.name == name
    assert getattr(pixelrefer_fast.ops, name) is op
    assert name in pixelrefer_fast.ops.__all__
    doc = op.__doc__
    assert doc is not None
    assert doc == op.definition.__doc__
    arguments, _, returns = doc.partition("Returns:")
    assert "Args:" in arguments
    shape = r"\(\w[\w /+]*,[\w /+,]*\)"
    assert re.search(shape, arguments.split("Args:")[1]), f"{name}: no shapes among the arguments"
    assert returns.strip(), f"{name}: nothing about the result"
    assert op.source.strip()
    assert re.search(r"paper|reference|\.py", op.source), f"{name}: the source names no paper section or file"


@pytest.mark.parametrize("name", OPS)
def test_operation_has_a_tolerance_for_every_dtype(name: str) -> None:
    tolerance = registry()[name].tolerance
    assert set(tolerance) == set(DTYPES)
    assert all(0 <= tolerance[d] < 0.05 for d in DTYPES)
    assert tolerance[torch.float32] <= tolerance[torch.float16] <= tolerance[torch.bfloat16]


@pytest.mark.parametrize("name", OPS)
def test_operation_has_its_files(name: str) -> None:
    assert registry()[name].definition.__module__ == f"pixelrefer_fast.ops.{name}"
    assert (OP_FOLDER / f"{name}.py").is_file()
    test_file = TEST_FOLDER / f"test_{name}.py"
    assert test_file.is_file()
    assert re.search(r"^def test_", test_file.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_file_of_the_folder_is_an_operation() -> None:
    names = {p.stem for p in OP_FOLDER.glob("*.py") if not p.stem.startswith("_")}
    assert names == set(OPS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_every_sample_runs_in_every_dtype(name: str, dtype: torch.dtype) -> None:
    op = registry()[name]
    samples = _samples(name, dtype)
    assert any(_is_small(s) for s in samples), f"{name}: no empty or one-element sample"
    assert any(_is_large(s) for s in samples), f"{name}: no sample of any size"
    floats = {t.dtype for s in samples for t in _tensors(s[:1]) if t.is_floating_point()}
    # bytes, bits, float32 masks and integers
    if name not in ("view_patches", "mask_grids", "pack_objects", "pack_views", "place_patches"):
        assert floats == {dtype}
    arguments = [a.name for a in op.operator._schema.arguments]
    for sample in samples:
        before = [t.clone() if isinstance(t, torch.Tensor) else t for t in sample]
        result = [*_tensors(op(*sample)), *(sample[arguments.index(written)] for written in op.mutates)]
        assert result
        for tensor in result:
            assert not tensor.is_floating_point() or torch.isfinite(tensor).all()
        for argument, a, b in zip(arguments, before, sample, strict=False):
            if isinstance(a, torch.Tensor) and argument not in op.mutates:
                assert _same(a, b), f"{name} writes to {argument}"


@pytest.mark.parametrize("name", OPS)
def test_samples_repeat_with_their_generator(name: str) -> None:
    first, second = (_samples(name, torch.float32) for _ in range(2))
    pairs = zip(_tensors(first), _tensors(second), strict=True)
    assert all(_same(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", OPS)
def test_every_operation_says_who_can_compute_it(name: str) -> None:
    rows = registry()[name].providers()
    libraries = {
        "linear_gelu": ("cublaslt",),
        "paged_attention": ("flash_attn_3",),
        "varlen_attention": tuple(name for name in LIBRARIES if name != "cublaslt"),
    }.get(name, ())
    assert [r[0] for r in rows] == ["torch", "triton", "cuda", *libraries]
    assert rows[0] == ("torch", True, "")
    for backend, available, reason in rows:
        assert available == (not reason), f"{backend} is not available and does not say why, or is and complains"


# The dispatcher, on an operation of its own.


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> Op:
    monkeypatch.setattr(registry_module, "_WARNED", set())

    def double(x: torch.Tensor, extra: float = 0.0) -> torch.Tensor:
        """(N,) to (N,)."""
        return 2 * x + extra

    return Op(double, "this test", dict.fromkeys(DTYPES, 0.0), lambda generator, dtype: iter(()))


X = torch.ones(2)


def _attach(op: Op, backend: str, value: float, devices: tuple[str, ...] = ("cpu",), **checks: Any) -> list[str]:
    """A provider that returns `value` everywhere; the list it returns grows with each run."""
    ran: list[str] = []

    @op.provider(backend, devices=devices, **checks)
    def run(x: torch.Tensor, extra: float = 0.0) -> torch.Tensor:
        ran.append(backend)
        return torch.full_like(x, value + extra)

    return ran


def test_without_providers_every_backend_runs_the_definition(op: Op) -> None:
    for backend in ("auto", "torch", "triton", "cuda"):
        assert op(X, backend=backend).tolist() == [2, 2]
    assert op(X, extra=1.0).tolist() == [3, 3]
    assert op.fallbacks() == {}
    assert op.providers() == [
        ("torch", True, ""),
        ("triton", False, "not part of this version"),
        ("cuda", False, "not part of this version"),
    ]


def test_auto_takes_the_first_provider_that_accepts(op: Op) -> None:
    declining = _attach(op, "triton", 5, accepts=lambda x: "too short" if len(x) < 3 else None)
    accepting = _attach(op, "cuda", 7)
    assert op(X, extra=1.0).tolist() == [8, 8]
    assert (declining, accepting) == ([], ["cuda"])
    assert op(torch.ones(3)).tolist() == [5, 5, 5]
    assert (declining, accepting) == (["triton"], ["cuda"])


def test_auto_leaves_other_devices_providers_alone(op: Op) -> None:
    """A CPU is no fallback from a GPU: nothing is passed over. By name such a provider is asked like any other."""
    elsewhere = _attach(op, "triton", 5, devices=("cuda",))
    here = _attach(op, "cuda", 7, devices=("cuda", "cpu"))
    assert op(X).tolist() == [7, 7]
    assert (elsewhere, here) == ([], ["cuda"])
    assert op.fallbacks() == {}
    assert op(X, backend="triton").tolist() == [5, 5]


def test_arguments_by_name_are_arguments(op: Op) -> None:
    seen: list[tuple] = []
    _attach(op, "cuda", 7, accepts=lambda x, extra: seen.append((x, extra)))
    assert op(x=X, extra=1.0).tolist() == op(X, extra=1.0).tolist() == [8, 8]
    assert [args[1:] for args in seen] == [(1.0,), (1.0,)]
    op(x=torch.ones(2, requires_grad=True))
    assert list(op.fallbacks()) == ["cuda: an argument needs a gradient, which only the definition gives"]


def test_only_the_definition_gives_gradients(op: Op) -> None:
    ran = _attach(op, "cuda", 7)
    x = torch.ones(2, requires_grad=True)
    op(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2, 2]
    reason = "an argument needs a gradient, which only the definition gives"
    assert op.fallbacks() == {f"cuda: {reason}": 1}
    with pytest.raises(BackendError, match=f"'cuda' was asked for but declines: {reason}$"):
        op(x, backend="cuda")
    assert ran == []
    with torch.no_grad():
        assert op(x, backend="cuda").tolist() == [7, 7]


def test_a_library_is_a_backend_of_the_operations_that_have_it(op: Op) -> None:
    _attach(op, "xformers", 9)
    assert op(X, backend="xformers").tolist() == [9, 9]
    assert op.providers()[3:] == [("xformers", True, "")]
    known = r"\('auto', 'torch', 'triton', 'cuda', 'xformers'\)"
    with pytest.raises(BackendError, match=f"^backend: expected one of {known}, got 'flash_attn'$"):
        op(X, backend="flash_attn")


def test_torch_passes_over_every_provider_silently(op: Op) -> None:
    ran = _attach(op, "triton", 5)
    assert op(X, backend="torch").tolist() == [2, 2]
    assert ran == []
    assert op.fallbacks() == {}


def test_a_decline_is_logged_once_and_counted_every_time(op: Op, caplog: pytest.LogCaptureFixture) -> None:
    _attach(op, "triton", 5, available=lambda: "no such device")
    _attach(op, "cuda", 7, accepts=lambda x: f"{len(x)} rows")
    with caplog.at_level(logging.WARNING, logger="pixelrefer_fast"):
        for length in (2, 2, 2, 4):
            assert op(torch.ones(length)).tolist() == [2] * length
    assert op.fallbacks() == {"triton: no such device": 4, "cuda: 2 rows": 3, "cuda: 4 rows": 1}
    assert [r.getMessage() for r in caplog.records] == [
        "op double: not using triton (no such device)",
        "op double: not using cuda (2 rows)",
        "op double: not using cuda (4 rows)",
    ]


def test_a_library_that_declines_is_counted_and_no_warning(op: Op, caplog: pytest.LogCaptureFixture) -> None:
    _attach(op, "xformers", 7, available=lambda: "xformers is not installed")
    with caplog.at_level(logging.INFO, logger="pixelrefer_fast"):
        op(X)
    assert op.fallbacks() == {"xformers: xformers is not installed": 1}
    assert [r.levelname for r in caplog.records] == ["INFO"]


def test_a_reason_that_operations_share_is_one_warning(op: Op, caplog: pytest.LogCaptureFixture) -> None:
    other = Op(op.definition, op.source, op.tolerance, op.samples)
    for own in (op, other):
        _attach(own, "cuda", 7, available=lambda: "it was not built")
    with caplog.at_level(logging.INFO, logger="pixelrefer_fast"):
        op(X)
        other(X)
    assert op.fallbacks() == other.fallbacks() == {"cuda: it was not built": 1}
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]


def test_the_counts_cannot_be_changed_from_outside(op: Op) -> None:
    _attach(op, "triton", 5, available=lambda: "no")
    op(X)
    op.fallbacks().clear()
    assert op.fallbacks() == {"triton: no": 1}


@pytest.mark.parametrize("checks", [{"available": lambda: "no such device"}, {"accepts": lambda: "no such device"}])
def test_a_backend_asked_for_by_name_never_falls_back(op: Op, checks: dict) -> None:
    refusing = _attach(op, "triton", 5, **checks)
    other = _attach(op, "cuda", 7)
    with pytest.raises(BackendError, match=r"^op double: backend 'triton' was asked for but declines: no such device$"):
        op(X, backend="triton")
    assert refusing == other == []
    assert op.fallbacks() == {}
    assert op(X, backend="cuda").tolist() == [7, 7]


def test_an_unavailable_provider_is_not_asked_whether_it_accepts(op: Op) -> None:
    def accepts() -> str | None:
        raise AssertionError("asked")

    _attach(op, "triton", 5, available=lambda: "no such device", accepts=accepts)
    assert op(X).tolist() == [2, 2]


def test_an_error_inside_a_provider_is_not_swallowed(op: Op) -> None:
    @op.provider("cuda", devices=("cpu",))
    def run(x: torch.Tensor, extra: float = 0.0) -> torch.Tensor:
        raise RuntimeError("launch failed")

    with pytest.raises(RuntimeError, match="launch failed"):
        op(X)


def test_providers_say_why_they_are_not_available(op: Op) -> None:
    _attach(op, "triton", 5, available=lambda: "no such device")
    _attach(op, "cuda", 7)
    assert op.providers() == [("torch", True, ""), ("triton", False, "no such device"), ("cuda", True, "")]


@pytest.mark.parametrize("backend", ["torch", "auto", "metal"])
def test_a_provider_needs_a_backend_of_its_own(op: Op, backend: str) -> None:
    with pytest.raises(
        ValueError, match=r"^op double: expected a backend out of \('triton', 'cuda', 'flash_attn_4', .*\), got "
    ):
        op.provider(backend)


# check_backend, on a registry of the test's own.


@pytest.fixture
def only(op: Op, monkeypatch: pytest.MonkeyPatch) -> Op:
    monkeypatch.setattr(registry_module, "_OPS", {"double": op})
    return op


def test_check_backend(only: Op) -> None:
    check_backend("auto")
    check_backend("torch")
    message = r"^backend: expected one of \('auto', 'torch', 'triton', 'cuda'\), got 'metal'$"
    with pytest.raises(BackendError, match=message):
        check_backend("metal")
    with pytest.raises(BackendError, match=r"^backend 'cuda' was asked for but serves no operation here: not part of "):
        check_backend("cuda")
    _attach(only, "triton", 5, available=lambda: "no such device")
    _attach(only, "cuda", 5)
    check_backend("cuda")
    with pytest.raises(BackendError, match=r"serves no operation here: no such device$"):
        check_backend("triton")


def test_check_backend_needs_one_operation_and_lists_each_reason_once(op: Op, only: Op) -> None:
    other = Op(op.definition, op.source, op.tolerance, op.samples)
    _attach(op, "triton", 5, available=lambda: "b")
    _attach(other, "triton", 5, available=lambda: "a")
    registry_module._OPS.update(other=other, third=other)
    with pytest.raises(BackendError, match=r"here: a; b$"):
        check_backend("triton")
    registry_module._OPS["none"] = Op(op.definition, op.source, op.tolerance, op.samples)
    with pytest.raises(BackendError, match=r"here: a; b$"):  # not what is no part of this version
        check_backend("triton")
    serving = Op(op.definition, op.source, op.tolerance, op.samples)
    _attach(serving, "triton", 5)
    registry_module._OPS["fourth"] = serving
    check_backend("triton")


def test_a_backend_error_is_bad_input() -> None:
    assert issubclass(BackendError, ValueError)
    with pytest.raises(ValueError, match=r"^backend: expected one of"):
        check_backend("")


def test_the_registry_is_a_copy() -> None:
    registry().clear()
    assert sorted(registry()) == OPS


def _blocked(name: str) -> None:
    raise ImportError(f"{name} is blocked")


@pytest.mark.parametrize("find", [lambda name: None, _blocked], ids=["missing", "blocked"])
def test_without_triton(find: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    registry_module._triton_installed.cache_clear()
    monkeypatch.setattr(registry_module.importlib.util, "find_spec", find)
    try:
        assert registry_module.triton_available() == "triton is not installed"
    finally:
        registry_module._triton_installed.cache_clear()
