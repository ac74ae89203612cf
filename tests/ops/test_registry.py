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


def _is_small(sample: tuple) -> bool:
    """No data at all, or one element (a row, an image, a patch) in some argument."""
    return any(t.numel() == 0 or len(t) == 1 for t in _tensors(sample))


def _is_large(sample: tuple) -> bool:
    return all(t.numel() and len(t) > 1 for t in _tensors(sample[:1]))


def test_the_seven_operations_are_registered() -> None:
    assert OPS == [
        "infuse",
        "object_pool",
        "pack_objects",
        "rope2d",
        "scatter_tokens",
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
    if name not in ("view_patches", "pack_objects"):  # these two read bytes and float32 masks
        assert floats == {dtype}
    for sample in samples:
        before = [t.clone() for t in _tensors(sample)]
        result = list(_tensors(op(*sample)))
        assert result
        for tensor in result:
            assert not tensor.is_floating_point() or torch.isfinite(tensor).all()
        after = list(_tensors(sample))
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), f"{name} writes to its arguments"


@pytest.mark.parametrize("name", OPS)
def test_samples_repeat_with_their_generator(name: str) -> None:
    first, second = (_samples(name, torch.float32) for _ in range(2))
    pairs = zip(_tensors(first), _tensors(second), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", OPS)
def test_every_operation_says_who_can_compute_it(name: str) -> None:
    rows = registry()[name].providers()
    assert [r[0] for r in rows] == ["torch", "triton", "cuda"]
    assert rows[0] == ("torch", True, "")
    for backend, available, reason in rows:
        assert available == (not reason), f"{backend} is not available and does not say why, or is and complains"


# The dispatcher, on an operation of its own.


@pytest.fixture
def op() -> Op:
    def double(x: torch.Tensor, extra: float = 0.0) -> torch.Tensor:
        """(N,) to (N,)."""
        return 2 * x + extra

    return Op(double, "this test", dict.fromkeys(DTYPES, 0.0), lambda generator, dtype: iter(()))


X = torch.ones(2)


def _attach(op: Op, backend: str, value: float, **checks: Any) -> list[str]:
    """A provider that returns `value` everywhere; the list it returns grows with each run."""
    ran: list[str] = []

    @op.provider(backend, **checks)
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
    declining = _attach(op, "triton", 5, accepts=lambda x, extra=0.0: "too short" if len(x) < 3 else None)
    accepting = _attach(op, "cuda", 7)
    assert op(X, extra=1.0).tolist() == [8, 8]
    assert (declining, accepting) == ([], ["cuda"])
    assert op(torch.ones(3)).tolist() == [5, 5, 5]
    assert (declining, accepting) == (["triton"], ["cuda"])


def test_torch_passes_over_every_provider_silently(op: Op) -> None:
    ran = _attach(op, "triton", 5)
    assert op(X, backend="torch").tolist() == [2, 2]
    assert ran == []
    assert op.fallbacks() == {}


def test_a_decline_is_logged_once_and_counted_every_time(op: Op, caplog: pytest.LogCaptureFixture) -> None:
    _attach(op, "triton", 5, available=lambda: "no such device")
    _attach(op, "cuda", 7, accepts=lambda x, extra=0.0: f"{len(x)} rows")
    with caplog.at_level(logging.WARNING, logger="pixelrefer_fast"):
        for length in (2, 2, 2, 4):
            assert op(torch.ones(length)).tolist() == [2] * length
    assert op.fallbacks() == {"triton: no such device": 4, "cuda: 2 rows": 3, "cuda: 4 rows": 1}
    assert [r.getMessage() for r in caplog.records] == [
        "op double: not using triton (no such device)",
        "op double: not using cuda (2 rows)",
        "op double: not using cuda (4 rows)",
    ]


def test_the_counts_cannot_be_changed_from_outside(op: Op) -> None:
    _attach(op, "triton", 5, available=lambda: "no")
    op(X)
    op.fallbacks().clear()
    assert op.fallbacks() == {"triton: no": 1}


@pytest.mark.parametrize(
    "checks", [{"available": lambda: "no such device"}, {"accepts": lambda *args, **kwargs: "no such device"}]
)
def test_a_backend_asked_for_by_name_never_falls_back(op: Op, checks: dict) -> None:
    refusing = _attach(op, "triton", 5, **checks)
    other = _attach(op, "cuda", 7)
    with pytest.raises(BackendError, match=r"^op double: backend 'triton' was asked for but declines: no such device$"):
        op(X, backend="triton")
    assert refusing == other == []
    assert op.fallbacks() == {}
    assert op(X, backend="cuda").tolist() == [7, 7]


def test_an_unavailable_provider_is_not_asked_whether_it_accepts(op: Op) -> None:
    def accepts(*args: Any, **kwargs: Any) -> str | None:
        raise AssertionError("asked")

    _attach(op, "triton", 5, available=lambda: "no such device", accepts=accepts)
    assert op(X).tolist() == [2, 2]


def test_an_error_inside_a_provider_is_not_swallowed(op: Op) -> None:
    @op.provider("cuda")
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
    with pytest.raises(ValueError, match=r"^op double: expected a backend out of \('triton', 'cuda'\), got "):
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
