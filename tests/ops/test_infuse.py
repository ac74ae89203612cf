"""infuse against torch.nn.MultiheadAttention, keys and values projected or folded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.ops import infuse

# pixelrefer_fast.ops.infuse is the operation; the file's other names are in the module of the same name
MODULE = sys.modules["pixelrefer_fast.ops.infuse"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FORMS = ("projected", "folded")


@dataclass
class Case:
    """The arguments of one call, in order."""

    tokens: torch.Tensor
    features: torch.Tensor
    context: torch.Tensor
    in_weight: torch.Tensor
    in_bias: torch.Tensor
    out_weight: torch.Tensor
    out_bias: torch.Tensor
    ln_weight: torch.Tensor
    ln_bias: torch.Tensor
    heads: int

    def run(self) -> torch.Tensor:
        return infuse(*vars(self).values())

    def to(self, dtype: torch.dtype) -> Case:
        floats = {k: v.to(dtype) for k, v in vars(self).items() if k not in ("context", "heads")}
        return replace(self, **floats)


def _case(context: list[tuple[int, int]], tokens: int, width: int, heads: int, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    return Case(
        random(len(context), tokens, width),
        random(max((first + length for first, length in context), default=0) + 3, width),
        torch.tensor(context, dtype=torch.int64).reshape(-1, 2),
        random(3 * width, width, scale=2 * width**-0.5),
        random(3 * width, scale=0.5),
        random(width, width, scale=width**-0.5),
        random(width, scale=0.5),
        random(width, scale=0.2) + 1,
        random(width, scale=0.2),
        heads,
    )


def _oracle(case: Case, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """T + MultiheadAttention(LayerNorm(T), F, F), one object after the other."""
    case = case.to(dtype)
    width = case.tokens.shape[2]
    attention = torch.nn.MultiheadAttention(width, case.heads, batch_first=True, dtype=dtype)
    norm = torch.nn.LayerNorm(width, dtype=dtype)
    weights = {
        "in_proj_weight": case.in_weight,
        "in_proj_bias": case.in_bias,
        "out_proj.weight": case.out_weight,
        "out_proj.bias": case.out_bias,
    }
    names = {"weight": case.ln_weight, "bias": case.ln_bias}
    out = []
    for own, (first, length) in zip(case.tokens, case.context.tolist(), strict=True):
        context = case.features[first : first + length]
        query = torch.func.functional_call(norm, names, (own,))
        attended, _ = torch.func.functional_call(attention, weights, (query, context, context))
        out.append(own + attended)
    return torch.stack(out) if out else case.tokens


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Only one of the two forms is ever the cheaper."""
    other = FORMS[1 - FORMS.index(request.param)]
    monkeypatch.setattr(MODULE, f"{request.param}_flops", lambda *sizes: 0)
    monkeypatch.setattr(MODULE, f"{other}_flops", lambda *sizes: 1)
    return request.param


@pytest.fixture
def folded_groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Queries of each group that ran in the folded form."""
    ran = []
    real = MODULE._folded

    def spy(queries: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        ran.append(queries.shape[1])
        return real(queries, *rest)

    monkeypatch.setattr(MODULE, "_folded", spy)
    return ran


CONTEXTS = (
    [(0, 9)],
    [(2, 1)],
    [(0, 9), (9, 30), (0, 9)],
    [(0, 9), (4, 9), (0, 8)],  # overlapping views are groups of their own
    [(3, 5)] * 6,
)


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
@pytest.mark.parametrize(("tokens", "width", "heads"), [(4, 32, 2), (1, 8, 8), (7, 30, 5), (3, 5, 1)])
def test_against_multihead_attention(
    form: str, folded_groups: list[int], context: list, tokens: int, width: int, heads: int
) -> None:
    case = _case(context, tokens, width, heads)
    out = case.run()
    assert out.shape == case.tokens.shape
    torch.testing.assert_close(out.double(), _oracle(case), rtol=1e-5, atol=5e-6)
    sizes = [tokens * context.count(view) for view in dict.fromkeys(context)]
    assert folded_groups == (sizes if form == "folded" else [])


@given(
    context=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), max_size=6),
    tokens=st.integers(1, 9),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 6),
)
def test_ragged_contexts(context: list[tuple[int, int]], tokens: int, heads: int, head_dim: int) -> None:
    case = _case(context, tokens, heads * head_dim, heads, seed=len(context))
    torch.testing.assert_close(case.run().double(), _oracle(case), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("form")
def test_precision(dtype: torch.dtype, numeric_bar: Callable[..., None]) -> None:
    case = _case([(0, 40), (40, 16), (0, 40)], 8, 64, 8).to(dtype)
    out = case.run()
    assert out.dtype == dtype
    numeric_bar(infuse, out, _oracle(case), _oracle(case, dtype))


@pytest.mark.usefixtures("form")
def test_many_objects() -> None:
    case = _case([(5 * (i % 60), 5) for i in range(300)], 2, 8, 2)
    torch.testing.assert_close(case.run().double(), _oracle(case), rtol=1e-5, atol=5e-6)


@pytest.mark.usefixtures("form")
def test_nothing() -> None:
    assert _case([], 4, 16, 4).run().shape == (0, 4, 16)
    assert _case([(0, 3)], 0, 16, 4).run().shape == (1, 0, 16)


@pytest.mark.usefixtures("form")
def test_large_scores_do_not_overflow() -> None:
    case = _case([(0, 9)], 4, 16, 2)
    case.in_weight[:32] *= 30
    out = case.run()
    torch.testing.assert_close(out.double(), _oracle(case), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("form")
def test_rows_outside_every_context_do_not_leak() -> None:
    case = _case([(2, 5), (10, 3), (2, 5)], 4, 16, 2)
    clean = case.run()
    outside = torch.ones(len(case.features), dtype=torch.bool)
    outside[2:7] = outside[10:13] = False
    case.features[outside] = torch.nan
    assert torch.equal(case.run(), clean)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("poisoned", [0, 1])
def test_a_poisoned_context_reaches_its_own_objects_only(poisoned: int) -> None:
    context = [(0, 5), (5, 3), (0, 5), (5, 3)]
    case = _case(context, 4, 16, 2)
    clean = case.run()
    first, length = context[poisoned]
    case.features[first : first + length] = torch.nan
    out = case.run()
    assert torch.isnan(out[[poisoned, poisoned + 2]]).all()
    others = [1 - poisoned, 3 - poisoned]
    assert torch.equal(out[others], clean[others])


@pytest.mark.usefixtures("form")
def test_poisoned_tokens_reach_no_other_token() -> None:
    case = _case([(0, 5), (0, 5)], 4, 16, 2)
    clean = case.run()
    case.tokens[1, 2] = torch.nan
    out = case.run()
    own = torch.zeros(2, 4, dtype=torch.bool)
    own[1, 2] = True
    assert torch.isnan(out[own]).all()
    assert torch.equal(out[~own], clean[~own])


@pytest.mark.usefixtures("form")
def test_gradients() -> None:
    """To the tokens, the features and every weight."""
    case = _case([(0, 9), (9, 4), (0, 9)], 3, 12, 3)
    names = [n for n in vars(case) if n not in ("context", "heads")]
    exact = replace(case, **{n: getattr(case, n).double().requires_grad_() for n in names})
    case = replace(case, **{n: getattr(case, n).requires_grad_() for n in names})
    towards = torch.randn(3, 3, 12)
    got = torch.autograd.grad((case.run() * towards).sum(), [getattr(case, n) for n in names])
    expected = torch.autograd.grad((_oracle(exact) * towards).sum(), [getattr(exact, n) for n in names])
    for name, a, b in zip(names, got, expected, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4, msg=f"gradient of {name}")


# Which form is taken


def _counted(queries: int, length: int, width: int, heads: int, form: str) -> int:
    """Multiply-adds times two, product by product."""

    def product(rows: int, inner: int, columns: int) -> int:
        return 2 * rows * inner * columns

    head_dim = width // heads
    if form == "projected":
        keys_and_values = 2 * product(length, width, width)
        attention = product(queries, head_dim, length) + product(queries, length, head_dim)
        return keys_and_values + heads * attention
    each = (
        product(queries, head_dim, width)  # the key weights into the queries
        + product(queries, width, length)
        + product(queries, length, width)
        + product(queries, width, head_dim)  # the value weights after the sum
    )
    return heads * each


@given(
    queries=st.integers(0, 5000),
    length=st.integers(1, 600),
    heads=st.integers(1, 16),
    head_dim=st.integers(1, 144),
)
def test_flop_counts(queries: int, length: int, heads: int, head_dim: int) -> None:
    width = heads * head_dim
    for form in FORMS:
        flops = getattr(MODULE, f"{form}_flops")(queries, length, width, heads)
        assert flops == _counted(queries, length, width, heads, form)


def test_the_cheaper_form_is_taken(folded_groups: list[int]) -> None:
    """Few queries of a long view fold; many objects that share theirs do not; one call may hold both."""
    few, many = [(0, 256)], [(256, 256)] * 40
    case = _case(few + many, 4, 64, 8)
    torch.testing.assert_close(case.run().double(), _oracle(case), rtol=1e-5, atol=5e-6)
    assert folded_groups == [4]
    assert _counted(4, 256, 64, 8, "folded") < _counted(4, 256, 64, 8, "projected")
    assert _counted(160, 256, 64, 8, "folded") > _counted(160, 256, 64, 8, "projected")


def test_the_key_bias_does_not_matter_and_the_value_bias_adds_once() -> None:
    case = _case([(0, 7)], 4, 16, 2)
    out = case.run()
    key_bias = case.in_bias.clone()
    key_bias[16:32] += 100
    torch.testing.assert_close(replace(case, in_bias=key_bias).run(), out, rtol=0, atol=1e-4)
    value_bias = case.in_bias.clone()
    value_bias[32:] += 1
    moved = replace(case, in_bias=value_bias).run() - out
    torch.testing.assert_close(moved, case.out_weight.sum(1).expand_as(moved), rtol=0, atol=1e-5)


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(9, 8)}, r"expected features of shape \(any, 16\), got \(9, 8\)"),
        ({"context": torch.tensor([[0, 9]])}, r"expected context of shape \(2, 2\), got \(1, 2\)"),
        ({"in_weight": torch.zeros(16, 48)}, r"expected in_weight of shape \(48, 16\), got \(16, 48\)"),
        ({"in_bias": torch.zeros(16)}, r"expected in_bias of shape \(48\), got \(16,\)"),
        ({"out_weight": torch.zeros(16, 8)}, r"expected out_weight of shape \(16, 16\), got \(16, 8\)"),
        ({"out_bias": torch.zeros(8)}, r"expected out_bias of shape \(16\), got \(8,\)"),
        ({"ln_weight": torch.zeros(8)}, r"expected ln_weight of shape \(16\), got \(8,\)"),
        ({"ln_bias": torch.zeros(8)}, r"expected ln_bias of shape \(16\), got \(8,\)"),
        ({"heads": 3}, "expected a width that 3 heads divide, got 16"),
        (
            {"context": torch.tensor([[0, 9], [1, 12]])},
            "object 1: expected a context within 12 rows, got 12 rows from 1",
        ),
        ({"context": torch.tensor([[0, 0], [0, 9]])}, "object 0: expected a context within 12 rows, got 0 rows from 0"),
        (
            {"context": torch.tensor([[0, 9], [-1, 2]])},
            "object 1: expected a context within 12 rows, got 2 rows from -1",
        ),
    ],
)
def test_errors(change: dict, message: str) -> None:
    case = replace(_case([(0, 9), (0, 9)], 4, 16, 2), **change)
    with pytest.raises(ValueError, match=f"^infuse: {message}$"):
        case.run()


def test_tokens_of_a_wrong_shape() -> None:
    case = _case([(0, 9)], 4, 16, 2)
    with pytest.raises(ValueError, match=r"^infuse: expected tokens of shape \(any, any, any\), got \(4, 16\)$"):
        replace(case, tokens=F.normalize(case.tokens[0])).run()
