"""The Triton provider of infuse against float64 attention, in both forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from infusion_case import FLOATS, Case, attended, infusion_case
from kernel_place import KERNEL_DTYPES
from plain_memory import plain_memory

from pixelrefer_fast.device.counters import counting
from pixelrefer_fast.ops import infuse
from pixelrefer_fast.ops.infuse import folded_work, plan_groups, projected_work

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # NumPy's on NaN, in the interpreter
]

FORMS = pytest.mark.parametrize("projected", [False, True], ids=["folded", "projected"])
DTYPES = pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
# (first row, rows) of each object's context, tokens, width, heads
SHAPES = {
    "one row": ([(2, 1)], 1, 8, 8),
    "one head": ([(0, 9), (1, 2)], 3, 72, 1),
    "16 heads of 4, 64 tokens": ([(0, 7), (7, 1)], 64, 64, 16),
    "heads of 24, groups apart": ([(30, 5), (0, 20), (30, 5), (20, 1), (0, 20)], 4, 72, 3),
    "odd everything": ([(1, 17), (3, 17)], 7, 35, 5),
    "lines and keys of several blocks": ([(0, 70), (70, 130), (0, 70), (0, 70)], 9, 24, 3),
    "heads of 144": ([(0, 66), (66, 3)], 5, 1152, 8),
    "heads of 256": ([(0, 5), (0, 5)], 2, 512, 2),
}


def _run(case: Case, projected: bool, device: torch.device) -> torch.Tensor:
    return infuse(*case.to(device).arguments(projected), backend="triton").cpu()


def _with_poison(case: Case) -> Case:
    """NaN in every feature row that is no object's."""
    outside = torch.ones(len(case.features), dtype=torch.bool)
    for first, length in case.context.tolist():
        outside[first : first + length] = False
    assert outside.any()
    return replace(case, features=case.features.masked_fill(outside[:, None], torch.nan))


@FORMS
@DTYPES
@pytest.mark.parametrize("shape", SHAPES)
def test_against_attention(
    shape: str, dtype: torch.dtype, projected: bool, kernel_device: torch.device, numeric_bar: Callable[..., None]
) -> None:
    case = infusion_case(*SHAPES[shape]).to(dtype)
    out = _run(_with_poison(case), projected, kernel_device)
    assert out.dtype == dtype
    numeric_bar(infuse, out, attended(case), attended(case, dtype))


@FORMS
def test_tokens_from_1_to_64(projected: bool, kernel_device: torch.device, numeric_bar: Callable[..., None]) -> None:
    for n in (1, 2, 15, 16, 17, 33, 64):
        case = infusion_case([(0, 3), (3, 10), (0, 3)], n, 16, 1, seed=n)
        out = _run(case, projected, kernel_device)
        numeric_bar(infuse, out, attended(case), attended(case, torch.float32))


@FORMS
def test_nothing(projected: bool, kernel_device: torch.device) -> None:
    for context, tokens, shape in (([], 4, (0, 4, 16)), ([(0, 3)], 0, (1, 0, 16))):
        assert _run(infusion_case(context, tokens, 16, 4), projected, kernel_device).shape == shape


@FORMS
def test_larger_bounds_change_nothing(projected: bool, kernel_device: torch.device) -> None:
    """max_members and max_rows are bounds of the host: programs beyond what the device knows end at once."""
    case = _with_poison(infusion_case([(0, 9), (9, 3), (0, 9)], 4, 16, 2)).to(kernel_device)
    arguments = list(case.arguments(projected))
    exact = infuse(*arguments, backend="triton")
    arguments[11], arguments[12], arguments[14] = 40, 150, 15
    torch.testing.assert_close(infuse(*arguments, backend="triton"), exact, rtol=0, atol=1e-6)


@FORMS
def test_large_scores_do_not_overflow(projected: bool, kernel_device: torch.device) -> None:
    case = infusion_case([(0, 70)], 4, 16, 2)
    case.in_weight[:32] *= 30
    out = _run(case, projected, kernel_device)
    torch.testing.assert_close(out.double(), attended(case), rtol=1e-3, atol=1e-3)


@FORMS
@pytest.mark.parametrize("poisoned", [0, 1])
def test_a_poisoned_context_reaches_its_own_objects_only(
    poisoned: int, projected: bool, kernel_device: torch.device
) -> None:
    context = [(0, 5), (5, 3), (0, 5), (5, 3)]
    case = infusion_case(context, 4, 16, 2)
    clean = _run(case, projected, kernel_device)
    first, length = context[poisoned]
    case.features[first : first + length] = torch.nan
    others = [1 - poisoned, 3 - poisoned]
    out = _run(case, projected, kernel_device)
    assert torch.isnan(out[[poisoned, poisoned + 2]]).all()
    assert torch.equal(out[others], clean[others])


@FORMS
def test_a_poisoned_token_reaches_no_other(projected: bool, kernel_device: torch.device) -> None:
    case = infusion_case([(0, 5), (0, 5)], 4, 16, 2)
    clean = _run(case, projected, kernel_device)
    case.tokens[1, 2] = torch.nan
    own = torch.zeros(2, 4, dtype=torch.bool)
    own[1, 2] = True
    out = _run(case, projected, kernel_device)
    assert torch.isnan(out[own]).all()
    assert torch.equal(out[~own], clean[~own])


@FORMS
def test_tensors_that_are_not_contiguous(projected: bool, kernel_device: torch.device) -> None:
    case = infusion_case([(0, 9), (9, 3)], 4, 16, 2)
    expected = _run(case, projected, kernel_device)
    for name in ("tokens", "features", "in_weight", "out_weight", "ln_weight"):
        given = getattr(case, name)
        apart = torch.stack([given, torch.full_like(given, torch.nan)], -1)[..., 0]
        assert not apart.is_contiguous()
        assert torch.equal(_run(replace(case, **{name: apart}), projected, kernel_device), expected), name


def test_four_launches_at_any_number_of_objects(kernel_device: torch.device) -> None:
    """In either form, and nothing waits."""
    seen = set()
    for images in (1, 8):
        for objects in (1, 4, 16, 64):
            context = [(256 * (i % images), 256) for i in range(objects)]
            case = infusion_case(context, 2, 48, 8).to(kernel_device)
            for projected in (False, True):
                arguments = case.arguments(projected)
                with torch.inference_mode(), plain_memory(), counting(kernel_device.type, dry=True) as counts:
                    infuse(*arguments, backend="triton")
                assert counts.waits == {}
                assert sum(counts.launches.values()) == 4, counts.launches
                seen.add((projected, frozenset(counts.launches.items())))
    assert len(seen) == 2  # one set of launches a form


@FORMS
def test_declared_work_is_the_planner_s(projected: bool, kernel_device: torch.device) -> None:
    """FLOPs counted in a call of groups of one size: the planner's formulas."""
    context = [(0, 16), (16, 16), (0, 16), (16, 16)]
    case = infusion_case(context, 4, 48, 8).to(kernel_device)
    arguments = case.arguments(projected)
    with torch.inference_mode(), plain_memory(), counting(kernel_device.type, dry=True) as counts:
        infuse(*arguments, backend="triton")
    groups = plan_groups(case.context)
    sizes = [(members * 4, rows) for members, rows in groups.sizes]
    work = (projected_work if projected else folded_work)(sizes, groups.span, 48, 8)
    assert counts.flops == sum(w.flops for w in work)


def test_declines_what_it_cannot_compute(kernel_device: torch.device) -> None:
    case = infusion_case([(0, 9)], 4, 16, 2).to(kernel_device)
    with pytest.raises(ValueError, match=r"tokens are torch\.float64; the kernels take float32, float16 and bfloat16"):
        infuse(*case.to(torch.float64).arguments(True), backend="triton")
    with pytest.raises(ValueError, match="its tensors are on meta, kernels run on cuda"):
        infuse(*case.to(torch.device("meta")).arguments(True), backend="triton")
    sizes = {name: [s // 16 * 8200 if s % 16 == 0 else s for s in getattr(case, name).shape] for name in FLOATS}
    zero = torch.zeros((), device=kernel_device)
    wide = replace(case, **{name: zero.expand(size) for name, size in sizes.items()})
    with pytest.raises(ValueError, match="tokens are 8200 wide; the kernels take up to 8192"):
        infuse(*wide.arguments(True), backend="triton")
