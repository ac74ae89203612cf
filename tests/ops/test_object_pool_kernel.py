"""The Triton kernels of object_pool against its definition and, label by label, against distances in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from kernel_place import KERNEL_DTYPES
from pool_cases import Case, case_of_tokens, random_case

from pixelrefer_fast.device.launches import Launch, listen
from pixelrefer_fast.kernels import _launch
from pixelrefer_fast.kernels import object_pool as kernel
from pixelrefer_fast.kernels.object_pool import TIE_FLOAT32
from pixelrefer_fast.ops import object_pool
from pixelrefer_fast.ops._registry import BackendError
from pixelrefer_fast.ops.object_pool import TIE, TILE

pytestmark = pytest.mark.kernel


@pytest.fixture(params=KERNEL_DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=["in one tile", "by tiles"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small objects clustered in registers, and as large ones are."""
    if request.param == "by tiles":
        monkeypatch.setattr(kernel, "TILE", 0)


IN_BOTH_FORMS = pytest.mark.usefixtures("form")


@pytest.fixture
def judge(kernel_device: torch.device, numeric_bar: Callable[..., None]) -> Callable[..., None]:
    """Compare both results of the kernels with those of the definition, which reads no padding."""

    def check(case: Case) -> None:
        case = case.to(device=kernel_device)
        result, plain = case.run("triton"), case.run("torch")
        assert result.dtype == plain.dtype
        assert result.device == plain.device
        numeric_bar(object_pool, result, case.to(dtype=torch.float64).run("torch"), plain)

    return check


# Against the definition


@IN_BOTH_FORMS
@pytest.mark.parametrize("corners", [1, 4])
def test_ragged_objects(dtype: torch.dtype, corners: int, judge: Callable[..., None]) -> None:
    """Empty ones, single patches, fewer than n, n, more; rows past the last of NaN and wild indices."""
    case = random_case([40, 3, 0, 1, 6, 25], 6, 24, 3, corners, separate=True, spare=4)
    judge(case.to(dtype=dtype))


@IN_BOTH_FORMS
@pytest.mark.parametrize("sample", range(4))
def test_samples(dtype: torch.dtype, sample: int, judge: Callable[..., None]) -> None:
    judge(Case(*list(object_pool.samples(torch.Generator().manual_seed(0), dtype))[sample]))


@pytest.mark.parametrize("width", [1, 64, 72])
def test_widths(dtype: torch.dtype, width: int, judge: Callable[..., None]) -> None:
    judge(random_case([19], 3, width, 2, separate=True).to(dtype=dtype))


@IN_BOTH_FORMS
def test_the_released_width(dtype: torch.dtype, judge: Callable[..., None]) -> None:
    judge(random_case([40, 20], 32, 1152, 3, separate=True).to(dtype=dtype))


@pytest.mark.parametrize(("count", "clusters"), [(5, 1), (40, 17), (70, 32), (70, 64), (64, 64), (65, 64)], ids=str)
def test_numbers_of_clusters(count: int, clusters: int, judge: Callable[..., None]) -> None:
    judge(random_case([count], clusters, 16, 2, separate=True))


@pytest.mark.parametrize("count", [33, 64, 65, 129, 257])
def test_numbers_of_patches_around_the_tiles(count: int, judge: Callable[..., None]) -> None:
    judge(random_case([count, 2], 4, 16, 1, separate=True).to(dtype=torch.float16))
    if count < 100:  # the tiles of float32 are smaller
        judge(random_case([count, 2], 4, 16, 1, separate=True))


@pytest.mark.parametrize("corners", [1, 4])
def test_the_configuration_of_devices_with_little_shared_memory(
    dtype: torch.dtype, corners: int, judge: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = json.loads((_launch.CONFIGS / "object_pool" / "sm_86.json").read_text())

    def configuration(name: str, size: int, device: torch.device) -> dict[str, int]:
        own = shipped.get(name.split(".")[1])
        asked.add(name)
        return {k: v for k, v in own[0].items() if k != "reason"} if own else _launch.configuration(name, size, device)

    asked: set[str] = set()
    monkeypatch.setattr(kernel, "configuration", configuration)
    judge(random_case([70, 3], 4, 72, 1, corners, separate=True).to(dtype=dtype))
    assert any(name.startswith("object_pool.gram") for name in asked)


@pytest.mark.slow
@pytest.mark.parametrize("corners", [1, 4])
def test_the_largest_object(corners: int, judge: Callable[..., None]) -> None:
    judge(random_case([1024, 1], 64, 40, 2, corners, separate=True, spare=3).to(dtype=torch.float16))
    judge(random_case([600, 1], 64, 40, 1, corners, separate=True, spare=3))


@IN_BOTH_FORMS
@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_numbers_of_iterations(iterations: int, judge: Callable[..., None]) -> None:
    judge(random_case([30], 5, 12, iterations, separate=True))


@IN_BOTH_FORMS
@pytest.mark.parametrize("counts", [[], [0], [0, 0, 2]], ids=str)
def test_little_or_nothing(counts: list[int], judge: Callable[..., None]) -> None:
    judge(random_case(counts, 4, 8, 3))


def test_a_larger_bound_changes_nothing(kernel_device: torch.device) -> None:
    case = random_case([20, 3, 0], 4, 8, 3).to(device=kernel_device)
    wider = replace(case, max_patches=100).run("triton")
    torch.testing.assert_close(wider, case.run("triton"), rtol=1e-6, atol=1e-6)


@IN_BOTH_FORMS
def test_few_patches_are_kept_as_they_are(dtype: torch.dtype, kernel_device: torch.device) -> None:
    """Bit for bit, and one that is not finite does not reach the others."""
    tokens = torch.randn(3, 8).to(dtype)
    tokens[1, 2] = torch.inf
    pooled = case_of_tokens(tokens, [9] * 5, 3).to(device=kernel_device).run("triton")
    assert torch.equal(pooled[0, :3].cpu(), tokens)
    assert pooled[0, 3:].eq(0).all()


def test_positions_are_rounded_as_in_the_definition(kernel_device: torch.device) -> None:
    """A third is 0.33325 in float16: 2048 times that is 682.5 and not 682.67."""
    case = case_of_tokens(torch.zeros(2, 4).half(), [0] * 3, 0)
    case.positions[:, 0] = 1 / 3
    case.pos_weight[:, 0] = 2048
    case.pos_bias[:] = -682.5
    for backend in ("torch", "triton"):
        assert case.to(device=kernel_device).run(backend).eq(0).all(), backend


@IN_BOTH_FORMS
def test_weights_of_positions_that_lie_anywhere(dtype: torch.dtype, kernel_device: torch.device) -> None:
    """Both of a column are loaded as one number, which must not begin between two of its size."""
    case = random_case([5, 19], 3, 24, 2, separate=True).to(device=kernel_device, dtype=dtype)
    apart = torch.empty(49, device=kernel_device, dtype=dtype)[1:].view(24, 2).copy_(case.pos_weight)
    assert apart.data_ptr() % (2 * apart.element_size())
    assert torch.equal(replace(case, pos_weight=apart).run("triton"), case.run("triton"))


def test_strided_features(kernel_device: torch.device) -> None:
    case = random_case([20, 3], 4, 8, 3).to(device=kernel_device)
    wide = torch.full((len(case.features), 20), torch.nan, device=kernel_device)
    wide[:, 5:13] = case.features
    for strided in (wide[:, 5:13], case.features.T.contiguous().T):
        assert not strided.is_contiguous()
        assert torch.equal(replace(case, features=strided).run("triton"), case.run("triton"))


# Labels


def _with_labels(tokens: torch.Tensor, mark: float) -> torch.Tensor:
    """Tokens with a column each of their own, which their cluster's mean shows: (N, D + N).

    A column adds the same to all distances between tokens, and next to nothing.
    """
    return torch.cat([tokens, mark * torch.eye(len(tokens), dtype=tokens.dtype)], 1)


def _check_labels(
    tokens: torch.Tensor, start: list[int], iterations: int, tie: float, mark: float, device: torch.device
) -> None:
    """Every step of k-means: each token is with its nearest centroid, or with one as near but for `tie`.

    Nearer than the roundings of what distances are made of is as near as well: by the kernels' rule in float32 where
    tokens are 16-bit, by the definition's where they are float32.
    """
    rounding = 2 * (TIE if tokens.dtype == torch.float32 else TIE_FLOAT32.value)
    tokens = _with_labels(tokens, mark)
    count, clusters = len(tokens), len(start)
    exact = tokens.double()
    member = torch.zeros(clusters, count, dtype=torch.bool)
    member[torch.arange(clusters), start] = True
    for step in range(1, iterations + 1):
        means = (member.double() / member.sum(1, keepdim=True)) @ exact
        distance = torch.cdist(exact, means, compute_mode="donot_use_mm_for_euclid_dist").square()  # [N, n]
        pooled = case_of_tokens(tokens, start, step).to(device=device).run("triton")
        seen = pooled[0, :, -count:].cpu() > 0  # [n, N]
        terms = exact.square().sum(1, keepdim=True) + means.square().sum(1).max()
        allowed = (distance <= distance.amin(1, keepdim=True) * (1 + tie) + rounding * terms).T  # [n, N]
        sure = allowed.sum(0) == 1
        # an empty cluster keeps its centroid; so may one whose only tokens are at a tie
        kept = (seen == member).all(1) & ~(allowed & sure).any(1)
        fresh = seen & ~kept[:, None]
        assert not (fresh & ~allowed).any(), f"step {step}: a token is with a centroid that is not its nearest"
        assert not (fresh.sum(0) > 1).any(), f"step {step}: a token is in two clusters"
        assert (seen & allowed).any(0).all(), f"step {step}: a token is not with its nearest centroid"
        member = seen


@IN_BOTH_FORMS
@pytest.mark.parametrize("seed", range(2))
def test_labels(dtype: torch.dtype, seed: int, kernel_device: torch.device) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(45, 16, generator=generator)
    tokens[30:40] = (tokens[:10] + tokens[10:20]) / 2  # half-way: near-equal distances
    start = torch.randperm(45, generator=generator)[:6].tolist()
    tie = 1e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    _check_labels(tokens.to(dtype), start, 4, tie, 2.0**-10, kernel_device)


@IN_BOTH_FORMS
@pytest.mark.parametrize("shift", [30.0, 1e3, 3e4])
def test_labels_of_tokens_far_from_the_origin(shift: float, dtype: torch.dtype, kernel_device: torch.device) -> None:
    """A distance is a small difference of large inner products."""
    if dtype != torch.float32 and shift > 30:
        pytest.skip("16 bit has no digits left for the tokens' differences")
    generator = torch.Generator().manual_seed(1)
    tokens = (torch.randn(40, 16, generator=generator) + shift).to(dtype)
    _check_labels(tokens, torch.randperm(40, generator=generator)[:6].tolist(), 3, 1e-5, 2.0**-10, kernel_device)


@IN_BOTH_FORMS
def test_labels_in_groups_far_apart(kernel_device: torch.device) -> None:
    """No origin is near all tokens, and gaps are millions of times smaller than what distances are made of."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(40, 16, generator=generator)
    tokens[20:] += 300
    start = [0, 1, 2, 20, 21, 22]
    _check_labels(tokens, start, 3, 1e-5, 2.0**-10, kernel_device)


@IN_BOTH_FORMS
@pytest.mark.parametrize(("start", "expected"), [([0, 1], [[0.5], [2.0]]), ([1, 0], [[1.5], [0.0]])])
def test_a_tie_goes_to_the_lowest_index(start: list[int], expected: list, kernel_device: torch.device) -> None:
    tokens = torch.tensor([[0.0], [2.0], [1.0]])
    pooled = case_of_tokens(tokens, start, 1).to(device=kernel_device).run("triton")
    assert pooled[0].tolist() == expected


@IN_BOTH_FORMS
@pytest.mark.parametrize("seed", range(4))
def test_half_way_tokens_of_the_released_width_go_to_the_lowest_index(
    seed: int, dtype: torch.dtype, kernel_device: torch.device
) -> None:
    """Exact ties, though no sum of such products is exact: as the definition decides them."""
    most = {torch.float32: 2**22, torch.float16: 2**10, torch.bfloat16: 2**7}[dtype]  # integers exact in the dtype
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, most, (4, 1152), generator=generator) * 2
    halves = torch.stack([(ends[a] + ends[b]) // 2 for a in range(4) for b in range(a + 1, 4)])
    tokens = torch.cat([ends, halves]).to(dtype)
    case = case_of_tokens(tokens, torch.randperm(4, generator=generator).tolist(), 1).to(device=kernel_device)
    # another label moves a mean by a good part of `most`
    torch.testing.assert_close(case.run("triton"), case.run("torch"), rtol=1e-3, atol=most * 1e-3)


@IN_BOTH_FORMS
def test_equal_tokens_leave_no_hole(kernel_device: torch.device) -> None:
    """The first cluster takes them all; the others are empty and keep their centroid."""
    tokens = torch.randn(1, 8).expand(5, 8)
    pooled = case_of_tokens(tokens, [3, 1, 2], 5).to(device=kernel_device).run("triton")
    torch.testing.assert_close(pooled[0].cpu(), tokens[:3], rtol=1e-6, atol=1e-6)


@IN_BOTH_FORMS
def test_an_empty_cluster_keeps_its_centroid(kernel_device: torch.device) -> None:
    """Also where its former members have left for other clusters, and until somebody is nearest to it again."""
    tokens = torch.tensor([[0.0], [0.0], [1.0], [10.0]])
    for iterations, expected in ((1, [1 / 3, 0.0, 10.0]), (2, [1.0, 0.0, 10.0])):
        pooled = case_of_tokens(tokens, [0, 1, 3], iterations).to(device=kernel_device).run("triton")
        assert pooled[0, :, 0].tolist() == pytest.approx(expected)


@IN_BOTH_FORMS
def test_an_empty_cluster_of_several_tokens_keeps_their_mean(kernel_device: torch.device) -> None:
    tokens = torch.tensor([[20.0], [8.0], [22.0], [12.0], [12.0], [17.0]])
    case = case_of_tokens(tokens, [4, 2, 3], 5).to(device=kernel_device)
    assert case.run("triton")[0, :, 0].tolist() == pytest.approx([12.0, 59 / 3, 8.0])
    assert case.run("torch")[0, :, 0].tolist() == pytest.approx([12.0, 59 / 3, 8.0])


# Bounds


@IN_BOTH_FORMS
@pytest.mark.parametrize("corners", [1, 4])
def test_rows_that_nobody_selects_do_not_leak(corners: int, kernel_device: torch.device) -> None:
    case = random_case([20, 3, 8], 4, 6, 3, corners).to(device=kernel_device)
    clean = case.run("triton")
    spare = torch.ones(len(case.features), dtype=torch.bool, device=kernel_device)
    spare[case.index.flatten()] = False
    assert spare.any()
    case.features[spare] = torch.nan
    assert torch.equal(case.run("triton"), clean)


@IN_BOTH_FORMS
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # of the interpreter's minimum
@pytest.mark.parametrize("poisoned", range(3))
def test_a_poisoned_object_does_not_reach_the_others(poisoned: int, kernel_device: torch.device) -> None:
    case = random_case([20, 3, 12], 4, 6, 3)
    case.index = torch.arange(35)[:, None]
    clean = case.to(device=kernel_device).run("triton")
    case.features[case.offsets[poisoned] : case.offsets[poisoned + 1]] = torch.nan
    pooled = case.to(device=kernel_device).run("triton")
    others = [i for i in range(3) if i != poisoned]
    assert torch.isnan(pooled[poisoned]).any()
    assert torch.equal(pooled[others], clean[others])


@IN_BOTH_FORMS
def test_offsets_past_the_rows_are_cut(kernel_device: torch.device) -> None:
    """What a device has found may be more than the rows that were reserved; the host learns it later."""
    case = random_case([9, 3, 30], 4, 6, 3).to(device=kernel_device)
    cut = {k: getattr(case, k)[:11] for k in ("index", "weights", "positions")}
    within = replace(case, offsets=case.offsets.clamp(max=11), **cut)
    torch.testing.assert_close(replace(case, **cut).run("triton"), within.run("torch"), rtol=1e-5, atol=1e-5)


@IN_BOTH_FORMS
def test_patches_past_max_patches_are_cut(kernel_device: torch.device) -> None:
    """A bound that is too small costs an object its last patches, and nobody else anything."""
    case = random_case([20, 3, 8], 4, 6, 3).to(device=kernel_device)
    case.starts[0] = torch.tensor([5, 0, 7, 2])
    cut = replace(case, max_patches=8).run("triton")
    alone = replace(case, offsets=case.offsets[:2].clamp(max=8), starts=case.starts[:1], max_patches=8)
    torch.testing.assert_close(cut[:1], alone.run("torch"), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cut[1:], case.run("torch")[1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_patches": 1025}, "it pools objects of up to 1024 patches, not 1025"),
        ({"starts": torch.zeros(1, 65, dtype=torch.int64)}, "it pools to 1 to 64 tokens, not 65"),
        ({"weights": torch.ones(9, 1).double()}, "it takes float32 weights and positions, not torch.float64 and"),
    ],
    ids=["patches", "tokens", "weights"],
)
def test_what_the_kernels_decline(change: dict, reason: str, kernel_device: torch.device) -> None:
    case = replace(random_case([9], 4, 6, 3), **change).to(device=kernel_device)
    with pytest.raises(BackendError, match=reason):
        case.run("triton")
    case.run()


@pytest.mark.parametrize("counts", [[9], [9, 0, 5] * 2], ids=len)
@pytest.mark.parametrize(
    ("most", "expected"), [(0, ["cluster_tile", "pool"]), (1, ["gram", "cluster", "pool"])], ids=["small", "large"]
)
@pytest.mark.parametrize("item", [4, 2], ids=["float32", "float16"])
def test_launches_whatever_the_number_of_objects(
    counts: list[int], most: int, expected: list[str], item: int, kernel_device: torch.device
) -> None:
    assert kernel.TILE == TILE
    launches: list[Launch] = []
    case = replace(random_case(counts, 4, 6, 1), max_patches=TILE + most).to(device=kernel_device)
    with listen(launches.append):
        case.to(dtype=torch.float32 if item == 4 else torch.float16).run("triton")
    assert [x.kernel.removesuffix("_float32") for x in launches] == [f"object_pool.{name}" for name in expected]
    assert all(x.flops > 0 and x.moved > 0 for x in launches)
