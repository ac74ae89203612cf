"""infuse against torch.nn.MultiheadAttention, keys and values projected or folded, and the planner of the two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from infusion_case import FLOATS, Case, attended, infusion_case

from pixelrefer_fast.ops import infuse
from pixelrefer_fast.ops.infuse import (
    LaunchCost,
    folded_work,
    is_projected,
    plan_groups,
    projected_work,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FORMS = pytest.mark.parametrize("projected", [False, True], ids=["folded", "projected"])
CONTEXTS = (
    [(0, 9)],
    [(2, 1)],
    [(0, 9), (9, 30), (0, 9)],
    [(0, 9), (4, 9), (0, 8)],  # overlapping views are groups of their own
    [(3, 5)] * 6,
)


def _run(case: Case, projected: bool) -> torch.Tensor:
    return infuse(*case.arguments(projected), backend="torch")


def _check(case: Case, projected: bool, rtol: float = 1e-5, atol: float = 5e-6) -> None:
    torch.testing.assert_close(_run(case, projected).double(), attended(case), rtol=rtol, atol=atol)


@FORMS
@pytest.mark.parametrize("context", CONTEXTS, ids=str)
@pytest.mark.parametrize(("tokens", "width", "heads"), [(4, 32, 2), (1, 8, 8), (7, 30, 5), (3, 5, 1)])
def test_against_multihead_attention(context: list, tokens: int, width: int, heads: int, projected: bool) -> None:
    _check(infusion_case(context, tokens, width, heads), projected)


@given(
    context=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), max_size=6),
    tokens=st.integers(1, 9),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 6),
    projected=st.booleans(),
)
def test_ragged_contexts(
    context: list[tuple[int, int]], tokens: int, heads: int, head_dim: int, projected: bool
) -> None:
    case = infusion_case(context, tokens, heads * head_dim, heads, seed=len(context))
    # a LayerNorm of one or two values divides by what may be nothing
    _check(case, projected, rtol=1e-5, atol=1e-5)


@FORMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_precision(dtype: torch.dtype, projected: bool, numeric_bar: Callable[..., None]) -> None:
    case = infusion_case([(0, 40), (40, 16), (0, 40)], 8, 64, 8).to(dtype)
    out = _run(case, projected)
    assert out.dtype == dtype
    numeric_bar(infuse, out, attended(case), attended(case, dtype))


@FORMS
def test_many_objects(projected: bool) -> None:
    _check(infusion_case([(5 * (i % 60), 5) for i in range(300)], 2, 8, 2), projected, atol=1e-5)


@FORMS
def test_nothing(projected: bool) -> None:
    for context, tokens, shape in (([], 4, (0, 4, 16)), ([(0, 3)], 0, (1, 0, 16))):
        assert _run(infusion_case(context, tokens, 16, 4), projected).shape == shape


@FORMS
def test_large_scores_do_not_overflow(projected: bool) -> None:
    case = infusion_case([(0, 9)], 4, 16, 2)
    case.in_weight[:32] *= 30
    _check(case, projected, rtol=1e-3, atol=1e-3)


@FORMS
def test_rows_outside_every_context_do_not_leak(projected: bool) -> None:
    case = infusion_case([(2, 5), (10, 3), (2, 5)], 4, 16, 2)
    clean = _run(case, projected)
    outside = torch.ones(len(case.features), dtype=torch.bool)
    outside[2:7] = outside[10:13] = False
    case.features[outside] = torch.nan
    assert torch.equal(_run(case, projected), clean)


@FORMS
@pytest.mark.parametrize("poisoned", [0, 1])
def test_a_poisoned_context_reaches_its_own_objects_only(poisoned: int, projected: bool) -> None:
    context = [(0, 5), (5, 3), (0, 5), (5, 3)]
    case = infusion_case(context, 4, 16, 2)
    clean = _run(case, projected)
    first, length = context[poisoned]
    case.features[first : first + length] = torch.nan
    others = [1 - poisoned, 3 - poisoned]
    out = _run(case, projected)
    assert torch.isnan(out[[poisoned, poisoned + 2]]).all()
    assert torch.equal(out[others], clean[others])


@FORMS
def test_poisoned_tokens_reach_no_other_token(projected: bool) -> None:
    case = infusion_case([(0, 5), (0, 5)], 4, 16, 2)
    clean = _run(case, projected)
    case.tokens[1, 2] = torch.nan
    own = torch.zeros(2, 4, dtype=torch.bool)
    own[1, 2] = True
    out = _run(case, projected)
    assert torch.isnan(out[own]).all()
    assert torch.equal(out[~own], clean[~own])


@FORMS
def test_gradients(projected: bool) -> None:
    """To the tokens, the features and every weight."""
    case = infusion_case([(0, 9), (9, 4), (0, 9)], 3, 12, 3)
    exact = replace(case, **{n: getattr(case, n).double().requires_grad_() for n in FLOATS})
    case = replace(case, **{n: getattr(case, n).requires_grad_() for n in FLOATS})
    towards = torch.randn(3, 3, 12)
    got, expected = (
        torch.autograd.grad((out * towards).sum(), [getattr(c, n) for n in FLOATS])
        for c, out in ((case, _run(case, projected)), (exact, attended(exact)))
    )
    for name, a, b in zip(FLOATS, got, expected, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4, msg=f"gradient of {name}")


@FORMS
def test_a_key_bias_cancels_and_a_value_bias_passes_through(projected: bool) -> None:
    """Any attention's biases: those of key and value are none of the operation's, the caller adds W_o b_v."""
    case = infusion_case([(0, 7), (3, 4)], 4, 16, 2)
    bias = torch.randn(32) * 3
    merged = replace(case, out_bias=case.out_bias + case.out_weight @ bias[16:])
    exact = attended(case, key_and_value_bias=bias)
    torch.testing.assert_close(_run(merged, projected).double(), exact, rtol=1e-5, atol=1e-5)


# Groups and which form is taken


def test_groups() -> None:
    """By first appearance, their objects in their own order."""
    groups = plan_groups(torch.tensor([(4, 9), (1, 4), (4, 9), (1, 5), (1, 4), (4, 9)]))
    assert groups.order.tolist() == [0, 2, 5, 1, 4, 3]
    assert groups.groups.tolist() == [[0, 3, 4, 9], [3, 2, 1, 4], [5, 1, 1, 5]]
    assert (groups.max_members, groups.max_rows) == (3, 9)
    assert (groups.first_row, groups.span) == (1, 12)
    assert groups.sizes == ((3, 9), (2, 4), (1, 5))
    assert groups.order.dtype == groups.groups.dtype == torch.int32


def test_no_groups() -> None:
    groups = plan_groups(torch.zeros(0, 2, dtype=torch.int64))
    assert groups.order.shape == (0,)
    assert groups.groups.shape == (0, 4)
    assert groups[2:] == (0, 0, 0, 0, ())
    assert not is_projected(groups, 32, 1152, 8)


def _products(groups: list[tuple[int, int]], span: int, width: int, heads: int, projected: bool) -> int:
    """FLOPs of a form, product by product (a multiply-add is two)."""

    def product(rows: int, inner: int, columns: int) -> int:
        return 2 * rows * inner * columns

    head_dim = width // heads
    flops = 2 * product(span, width, width) if projected else 0
    for queries, length in groups:
        flops += 2 * product(queries, width, width)  # query and output product
        if projected:
            flops += heads * (product(queries, head_dim, length) + product(queries, length, head_dim))
        else:
            flops += heads * (
                product(queries, head_dim, width)  # the key weights into the queries
                + product(queries, width, length)
                + product(queries, length, width)
                + product(queries, width, head_dim)  # the value weights after the sum
            )
    return flops


@given(
    groups=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 600)), max_size=5),
    span=st.integers(0, 9000),
    heads=st.integers(1, 16),
    head_dim=st.integers(1, 144),
)
def test_flop_counts(groups: list[tuple[int, int]], span: int, heads: int, head_dim: int) -> None:
    width = heads * head_dim
    for work, projected in ((projected_work, True), (folded_work, False)):
        expected = _products(groups, span, width, heads, projected)
        assert sum(w.flops for w in work(groups, span, width, heads)) == expected


def test_a_launch_costs_time_whatever_it_does() -> None:
    assert LaunchCost(0, 0).seconds == 2.5e-6
    assert LaunchCost(79 * 10**9, 0).seconds == pytest.approx(102.5e-6)
    assert LaunchCost(1, 43 * 10**7).seconds == pytest.approx(102.5e-6)


@pytest.mark.parametrize(
    ("context", "projected"),
    [
        ([(0, 576)], False),
        ([(0, 256)], False),
        ([(0, 576)] * 16, True),
        ([(0, 256)] * 16, True),
        ([(0, 1)] * 64, True),
        ([(256 * i, 256) for i in range(16)], False),  # nothing shared
        # one form for all: the groups' costs are summed
        ([(0, 256), *[(256, 256)] * 16], True),
        ([(0, 256), *[(256 * i, 256) for i in range(16)]], False),
        # what lies between groups is projected as well: views far apart fold
        ([(0, 256), *[(90_000, 256)] * 8], False),
    ],
)
def test_the_cheaper_form_is_taken(context: list[tuple[int, int]], projected: bool) -> None:
    """At the released models' width: few queries of a long view fold, many objects that share theirs do not."""
    assert is_projected(plan_groups(torch.tensor(context)), 32, 1152, 8) is projected


def test_share_of_the_reference() -> None:
    """Infusion and feat_linear of an object, against what the reference computes for it: 5.14 GFLOP."""
    n, width, heads, hidden = 32, 1152, 8, 1536
    attention = sum(4 * n * width**2 + 4 * rows * width**2 + 4 * n * rows * width for rows in (256, 576))
    linear = 2 * n * hidden * (width + hidden)
    assert (attention + linear) / 1e9 == pytest.approx(5.14, abs=0.01)

    def share(objects: int) -> float:
        flops = objects * linear
        for rows in (256, 576):
            plan = plan_groups(torch.tensor([(0, rows)] * objects))
            work = projected_work if is_projected(plan, n, width, heads) else folded_work
            flops += sum(w.flops for w in work([(objects * n, rows)], rows, width, heads))
        return flops / objects / (attention + linear)

    assert share(1) <= 0.4
    assert share(16) <= 0.2


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # a mean of no rows, which nobody reads
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.kernel)])
def test_groups_without_rows_are_padding(projected: bool, backend: str, kernel_device: torch.device) -> None:
    """So are their members: tokens of the others are theirs to the bit, whatever these and rows of nobody hold."""
    case = infusion_case([(0, 9), (12, 5), (0, 9)], 4, 32, 2).to(kernel_device)
    names = list(infuse.signature.parameters)

    def called(case: Case, order: list[int], groups: list[tuple[int, int, int, int]], members: int) -> torch.Tensor:
        arguments = dict(zip(names, case.arguments(projected), strict=True))
        arguments |= {"max_members": members, "max_rows": 12, "first_row": 0, "span": len(case.features)}
        for name, table in (("order", order), ("groups", groups)):
            arguments[name] = torch.tensor(table, dtype=torch.int32, device=kernel_device)
        return infuse(*arguments.values(), backend=backend)

    expected = called(case, [0, 2, 1], [(0, 2, 0, 9), (2, 1, 12, 5)], 3)
    nothing = torch.full_like(case.tokens[:2], torch.nan)
    rows = torch.full((3, 32), torch.nan, dtype=case.features.dtype, device=kernel_device)
    padded = replace(case, tokens=torch.cat([case.tokens, nothing]), features=torch.cat([case.features, rows]))
    groups = [(0, 2, 0, 9), (2, 1, 12, 5), (3, 2, 0, 0), (5, 0, 0, 0)]
    assert torch.equal(called(padded, [0, 2, 1, 3, 4], groups, 5)[:3], expected)


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(12, 8)}, r"expected features of shape \(any, 16\), got \(12, 8\)"),
        ({"in_weight": torch.zeros(16, 48)}, r"expected in_weight of shape \(48, 16\), got \(16, 48\)"),
        ({"query_bias": torch.zeros(48)}, r"expected query_bias of shape \(16\), got \(48,\)"),
        ({"out_weight": torch.zeros(16, 8)}, r"expected out_weight of shape \(16, 16\), got \(16, 8\)"),
        ({"out_bias": torch.zeros(8)}, r"expected out_bias of shape \(16\), got \(8,\)"),
        ({"ln_weight": torch.zeros(8)}, r"expected ln_weight of shape \(16\), got \(8,\)"),
        ({"ln_bias": torch.zeros(8)}, r"expected ln_bias of shape \(16\), got \(8,\)"),
        ({"heads": 3}, "expected a width that 3 heads divide, got 16"),
        ({"heads": 0}, "expected a width that 0 heads divide, got 16"),
        ({"features": torch.zeros(12, 16).half()}, "expected features of torch.float32, got torch.float16"),
        ({"out_bias": torch.zeros(16).double()}, "expected out_bias of torch.float32, got torch.float64"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.kernel)])
def test_errors(change: dict, message: str, backend: str, kernel_device: torch.device) -> None:
    case = replace(infusion_case([(0, 9), (0, 9)], 4, 16, 2), **change).to(kernel_device)
    with pytest.raises(ValueError, match=f"^infuse: {message}$"):
        infuse(*case.arguments(False), backend=backend)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([(0, 2, 4, 9)], "group 0: expected 0 to 9 rows within 9 from 0, got 9 rows from 4"),
        ([(0, 2, -1, 9)], "group 0: expected 0 to 9 rows within 9 from 0, got 9 rows from -1"),
        ([(0, 2, 0, -1)], "group 0: expected 0 to 9 rows within 9 from 0, got -1 rows from 0"),
        ([(0, 2, 0, 10)], "group 0: expected 0 to 9 rows within 9 from 0, got 10 rows from 0"),
        ([(0, 3, 0, 9)], "group 0: expected 0 to 2 members from place 0, got 3 from 0"),
        ([(0, -1, 0, 9)], "group 0: expected 0 to 2 members from place 0, got -1 from 0"),
        ([(1, 1, 0, 9)], "group 0: expected 0 to 2 members from place 0, got 1 from 1"),
        ([(0, 1, 0, 9), (0, 1, 0, 9)], "group 1: expected 0 to 2 members from place 1, got 1 from 0"),
        ([(0, 1, 0, 9)], "expected groups and an order of all 2 objects, got 1 in groups"),
    ],
)
def test_wrong_groups(groups: list, message: str) -> None:
    arguments = list(infusion_case([(0, 9), (0, 9)], 4, 16, 2).arguments(False))
    arguments[3] = torch.tensor(groups, dtype=torch.int32)
    with pytest.raises(ValueError, match=f"^infuse: {message}$"):
        infuse(*arguments, backend="torch")


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (torch.tensor([0, 0], dtype=torch.int32), "expected groups and an order of all 2 objects, got 2 in groups"),
        (torch.tensor([0, 1]), "expected order of torch.int32, got torch.int64"),
        (torch.tensor([0], dtype=torch.int32), r"expected order of shape \(2\), got \(1,\)"),
    ],
)
def test_a_wrong_order(order: torch.Tensor, message: str) -> None:
    arguments = list(infusion_case([(0, 9), (0, 9)], 4, 16, 2).arguments(False))
    arguments[2] = order
    with pytest.raises(ValueError, match=f"^infuse: {message}$"):
        infuse(*arguments, backend="torch")


def test_tokens_of_a_wrong_shape() -> None:
    case = infusion_case([(0, 9)], 4, 16, 2)
    with pytest.raises(ValueError, match=r"^infuse: expected tokens of shape \(any, any, any\), got \(4, 16\)$"):
        _run(replace(case, tokens=F.normalize(case.tokens[0])), False)


def test_contexts_of_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"^infuse: expected context of shape \(any, 2\), got \(1, 3\)$"):
        plan_groups(torch.tensor([(0, 9, 1)]))
