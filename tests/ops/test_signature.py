"""An operation's signature stands in its definition alone: the schema follows from it, and who differs is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from pixelrefer_fast.ops import Op, registry
from pixelrefer_fast.ops._registry import BACKENDS, LIBRARIES
from pixelrefer_fast.ops._signature import on_named, schema_of

# what csrc/ is built for, and what a saved graph calls: a change here is one of the interface
SCHEMAS = {
    "add_norm": "Tensor x, Tensor delta, Tensor? weight, Tensor? bias, float eps, "
    '*, str backend="auto") -> (Tensor, Tensor)',
    "best_token": "Tensor logits, Tensor counts, Tensor? said, Tensor repetition, Tensor presence, Tensor frequency, "
    "Tensor? biased, Tensor? bias, Tensor? ends, Tensor least, Tensor(a!) arrivals, "
    '*, str backend="auto") -> (Tensor, Tensor)',
    "gather_tokens_out": "Tensor embeds, Tensor slots, Tensor(a!) tokens) -> ()",
    "infuse": "Tensor tokens, Tensor features, Tensor order, Tensor groups, Tensor ln_weight, Tensor ln_bias, "
    "Tensor in_weight, Tensor query_bias, Tensor out_weight, Tensor out_bias, int heads, SymInt max_members, "
    'SymInt max_rows, SymInt first_row, SymInt span, bool projected, *, str backend="auto") -> Tensor',
    "linear_gelu": 'Tensor x, Tensor weight, Tensor bias, *, str backend="auto") -> Tensor',
    "mask_grids": 'Tensor bits, Tensor table, SymInt cells, *, str backend="auto") -> Tensor',
    "mask_grids_out": "Tensor bits, Tensor table, Tensor(a!) cells) -> ()",
    "norm_linear": 'Tensor x, Tensor norm, float eps, Tensor weight, Tensor? bias, *, str backend="auto") -> Tensor',
    "object_pool": "Tensor features, Tensor index, Tensor weights, Tensor positions, Tensor offsets, Tensor starts, "
    "Tensor pos_weight, Tensor pos_bias, int iterations, int max_patches, "
    '*, str backend="auto") -> Tensor',
    "object_tokens": "Tensor features, Tensor index, Tensor weights, Tensor positions, Tensor offsets, Tensor starts, "
    "Tensor pos_weight, Tensor pos_bias, Tensor[] steps, SymInt[] step_sizes, Tensor[] projection, SymInt iterations, "
    'SymInt max_patches, SymInt heads, SymInt? tokens, *, str backend="auto") -> Tensor',
    "pack_masks": 'Tensor masks, Tensor cuts, *, str backend="auto") -> (Tensor, Tensor)',
    "pack_masks_out": "Tensor masks, Tensor cuts, Tensor(a!) bits, Tensor(b!) extents) -> ()",
    "pack_objects": "Tensor mask_grids, Tensor grid_shapes, SymInt capacity, "
    '*, str backend="auto") -> (Tensor, Tensor, Tensor, Tensor, Tensor)',
    "pack_objects_out": "Tensor mask_grids, Tensor grid_shapes, Tensor(a!) cell, Tensor(b!) row, Tensor(c!) column, "
    "Tensor(d!) counts, Tensor(e!) offsets, Tensor(f!) scratch) -> ()",
    "pack_views": 'Tensor grids, SymInt patches, *, str backend="auto") -> (Tensor, Tensor, Tensor, Tensor, Tensor)',
    "pack_views_out": "Tensor grids, Tensor(a!) row, Tensor(b!) column, Tensor(c!) sequence, Tensor(d!) cu_seqlens, "
    "Tensor(e!) longest, Tensor(f!) scratch) -> ()",
    "paged_attention": "Tensor qkv, Tensor turns, Tensor rows, Tensor(a!) keys, Tensor(b!) values, Tensor table, "
    'Tensor lengths, Tensor(c!) arrivals, *, str backend="auto") -> Tensor',
    "place_patches": "Tensor row, Tensor column, Tensor offsets, Tensor table, int corners, SymInt nowhere, "
    '*, str backend="auto") -> (Tensor, Tensor, Tensor)',
    "place_patches_out": "Tensor row, Tensor column, Tensor offsets, Tensor table, int nowhere, Tensor(a!) patch, "
    "Tensor(b!) weights, Tensor(c!) positions) -> ()",
    "rope2d": "Tensor(a!) qkv, Tensor bias, Tensor rows, Tensor columns, Tensor cos, Tensor sin, "
    '*, str backend="auto") -> ()',
    "scatter_tokens": 'Tensor(a!) embeds, Tensor tokens, Tensor slots, *, str backend="auto") -> ()',
    "scatter_tokens_": "Tensor(a!) embeds, Tensor tokens, Tensor slots) -> ()",
    "swiglu": 'Tensor x, Tensor norm, float eps, Tensor weight, *, str backend="auto") -> Tensor',
    "varlen_attention": "Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, int max_q, int max_k, "
    'bool causal=False, *, str backend="auto") -> Tensor',
    "view_patches": "Tensor pixels, Tensor images, Tensor plan, Tensor cu_seqlens, SymInt patches, "
    '*, str backend="auto") -> Tensor',
}


def test_every_operator_has_its_schema() -> None:
    space = "pixelrefer_fast::"
    names = [n.removeprefix(space) for n in torch._C._dispatch_get_all_op_names() if n.startswith(space)]
    found = {name: str(getattr(torch.ops.pixelrefer_fast, name).default._schema) for name in names}
    assert found == {name: f"{space}{name}({arguments}" for name, arguments in SCHEMAS.items()}


PROVIDERS = [(name, p.backend) for name, op in sorted(registry().items()) for p in op._providers]


@pytest.mark.parametrize(("name", "backend"), PROVIDERS)
def test_every_provider_is_found_and_has_the_signature(name: str, backend: str) -> None:
    (provider,) = (p for p in registry()[name]._providers if p.backend == backend)
    assert callable(provider.find())


def test_there_are_providers_of_every_kind() -> None:
    assert {backend for _, backend in PROVIDERS} == {*BACKENDS[1:], *LIBRARIES}


def test_importing_the_operations_imports_no_provider() -> None:
    code = (
        "import sys, pixelrefer_fast.ops\n"
        "kernels = {m for m in sys.modules if m.startswith('pixelrefer_fast.kernels.')}\n"
        "others = {'triton', 'flash_attn', 'xformers', 'pixelrefer_fast._C'} & sys.modules.keys()\n"
        "print(*kernels - {'pixelrefer_fast.kernels._launch'}, *others)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.strip() == ""


class Halves(NamedTuple):
    low: torch.Tensor
    high: torch.Tensor


def _op(definition: Callable[..., Any]) -> Op[..., Any]:
    return Op(definition, "this test", {}, lambda generator, dtype: iter(()))


def split(x: torch.Tensor, at: int, scale: float = 1.0) -> Halves:
    """(N,) to two."""
    return Halves(x[:at] * scale, x[at:] * scale)


def one_less(x: torch.Tensor, at: int) -> Halves:
    raise AssertionError("called")


def one_more(x: torch.Tensor, at: int, scale: float = 1.0, more: int = 0) -> Halves:
    raise AssertionError("called")


def another_order(at: int, x: torch.Tensor, scale: float = 1.0) -> Halves:
    raise AssertionError("called")


def another_name(x: torch.Tensor, place: int, scale: float = 1.0) -> Halves:
    raise AssertionError("called")


def another_type(x: torch.Tensor, at: float, scale: float = 1.0) -> Halves:
    raise AssertionError("called")


def no_type(x: torch.Tensor, at, scale: float = 1.0) -> Halves:
    raise AssertionError("called")


def another_default(x: torch.Tensor, at: int, scale: float = 2.0) -> Halves:
    raise AssertionError("called")


def by_name_only(x: torch.Tensor, at: int, *, scale: float = 1.0) -> Halves:
    raise AssertionError("called")


def anything(*args: Any) -> Halves:
    raise AssertionError("called")


def another_result(x: torch.Tensor, at: int, scale: float = 1.0) -> torch.Tensor:
    raise AssertionError("called")


WRONG = [
    (one_less, "expected scale: float = 1.0, got none"),
    (one_more, "expected no further argument, got more: int = 0"),
    (another_order, r"expected x: torch.Tensor, got at: int"),
    (another_name, "expected at: int, got place: int"),
    (another_type, "expected at: int, got at: float"),
    (no_type, "expected at: int, got at"),
    (another_default, "expected scale: float = 1.0, got scale: float = 2.0"),
    (by_name_only, "expected scale: float = 1.0, got scale: float = 1.0, keyword-only"),
    (anything, r"expected x: torch.Tensor, got \*args: "),
    (another_result, "expected a result of .*Halves, got torch.Tensor"),
]
WRONG_PROVIDER = pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[run.__name__ for run, _ in WRONG])


@WRONG_PROVIDER
def test_a_provider_that_differs_is_refused_where_it_is_attached(wrong: Callable[..., Any], message: str) -> None:
    op = _op(split)
    with pytest.raises(ValueError, match=f"^op split: cuda: {message}") as raised:
        op.provider("cuda")(wrong)
    assert len(str(raised.value)) <= 200
    assert op._providers == []


@WRONG_PROVIDER
def test_a_kernel_that_differs_is_refused_where_it_is_found(
    wrong: Callable[..., Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = _op(split)
    op.kernel()
    _kernel_file(monkeypatch, wrong)
    with pytest.raises(ValueError, match=f"^op split: triton: {message}"):
        op._providers[0].find()


def test_a_kernel_is_found_by_the_operations_name_at_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(x: torch.Tensor, at: int, scale: float = 1.0) -> Halves:
        return Halves(2 * x[:at], 2 * x[at:])

    op = _op(split)
    op.kernel()
    (provider,) = op._providers
    monkeypatch.setattr(provider, "available", lambda: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # a CPU will do
    with pytest.raises(ModuleNotFoundError, match=r"pixelrefer_fast\.kernels\.split"):
        op(torch.ones(3), 1, backend="triton")
    _kernel_file(monkeypatch, doubled)
    assert op(torch.ones(3), 1, backend="triton").high.tolist() == [2, 2]


def _kernel_file(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> None:
    module = ModuleType("pixelrefer_fast.kernels.split")
    module.split = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_a_helper_is_given_what_it_names() -> None:
    signature = _op(split).signature
    args = (torch.ones(2), 3, 4.0)

    def untyped(scale, x):
        return scale, x

    helpers: dict[Callable[..., Any], tuple[Any, ...]] = {
        lambda: (): (),
        lambda at: (at,): (3,),
        lambda x, at, scale: (x, at, scale): args,
        lambda x, scale: (x, scale): (args[0], 4.0),
        untyped: (4.0, args[0]),
    }
    for helper, given in helpers.items():
        assert on_named("helper", signature, helper)(args) == given


def test_a_helper_that_names_what_is_not_there_is_refused() -> None:
    op = _op(split)

    def of_another_type(at: float) -> None: ...

    for attach in (op.check, op.fake, lambda helper: op.provider("cuda", accepts=helper)(split), op.kernel):
        with pytest.raises(ValueError, match=r"^op split: \w+: expected arguments out of x, at, scale, got size$"):
            attach(lambda size: None)
        with pytest.raises(ValueError, match=r"^op split: \w+: expected at: int, got at: float$"):
            attach(of_another_type)
    assert op._providers == []


def test_what_is_checked_is_asked_of_every_call_first() -> None:
    op = _op(split)

    @op.check
    def positive(at: int) -> None:
        if at < 0:
            raise ValueError(f"split: expected a positive place, got {at}")

    @op.provider("cuda", devices=("cpu",), accepts=lambda at: pytest.fail("asked") if at < 0 else None)
    def run(x: torch.Tensor, at: int, scale: float = 1.0) -> Halves:
        return Halves(x, x)

    for backend in ("auto", "torch", "triton", "cuda"):
        with pytest.raises(ValueError, match=r"^split: expected a positive place, got -1$"):
            op(torch.ones(3), -1, backend=backend)
    assert len(op(torch.ones(3), 1).low) == 3


def test_empty_results_follow_from_the_definition() -> None:
    def nothing(x: torch.Tensor) -> None:
        raise AssertionError("called")

    assert _op(nothing).empty_results(torch.ones(3)) is None
    op = _op(split)
    with torch.device("meta"):
        assert [t.shape[0] for t in op.empty_results(torch.empty(5), at=2)] == [2, 3]

    @op.fake
    def longer(at: int) -> Halves:
        return Halves(torch.empty(at + 1), torch.empty(0))

    assert len(op.empty_results(torch.empty(5), 2).low) == 3


def test_a_schema_follows_from_the_signature() -> None:
    signature = _op(split).signature
    assert schema_of(signature, (), ()) == "(Tensor x, SymInt at, float scale=1.0) -> (Tensor, Tensor)"
    assert schema_of(signature, ("x",), ("at",)) == "(Tensor(a!) x, int at, float scale=1.0) -> (Tensor, Tensor)"
    for name in ("x", "scale", "size"):
        with pytest.raises(ValueError, match=f"^static: expected integers out of .*, got '{name}'$"):
            schema_of(signature, (), (name,))
    with pytest.raises(ValueError, match="must have a type annotation"):
        schema_of(_op(no_type).signature, (), ())
