"""The Triton kernel of best_token against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_place import KERNEL_DTYPES
from plain_memory import plain_memory

from pixelrefer_fast.device.counters import counting
from pixelrefer_fast.ops import BackendError, best_token

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # NumPy's, in the interpreter
]

NAMES = (
    "logits",
    "counts",
    "said",
    "repetition",
    "presence",
    "frequency",
    "biased",
    "bias",
    "ends",
    "least",
    "arrivals",
)


def _case(
    rows: int,
    vocabulary: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    said: int = 0,
    biased: int = 0,
    ends: int = 0,
) -> dict[str, Any]:
    """Of the tokens that are named many are the same, or the most likely ones."""
    generator = torch.Generator().manual_seed(rows + vocabulary)
    logits = (4 * torch.randn(rows, vocabulary, generator=generator)).to(dtype)
    likely = logits.float().topk(min(12, vocabulary)).indices

    def named(count: int) -> torch.Tensor:
        chosen = torch.randint(likely.shape[1], (rows, count), generator=generator)
        drawn = torch.randint(vocabulary, (rows, count), generator=generator)
        return torch.where(torch.rand(rows, count, generator=generator) < 0.7, likely.gather(1, chosen), drawn)

    case = {
        "logits": logits,
        "counts": torch.randint(said // 2, said + 1, (rows,), generator=generator),
        "said": named(said) if said else None,
        "repetition": 1 + torch.rand(rows, generator=generator),
        "presence": torch.rand(rows, generator=generator),
        "frequency": torch.rand(rows, generator=generator),
        "biased": torch.stack([torch.randperm(vocabulary, generator=generator)[:biased] for _ in range(rows)])
        if biased
        else None,
        "bias": 5 * torch.randn(rows, biased, generator=generator) if biased else None,
        "ends": likely[:, :ends].clone() if ends else None,
        "least": torch.randint(said + 2, (rows,), generator=generator),
        "arrivals": torch.zeros(rows, dtype=torch.int32),
    }
    if ends > 1:
        case["ends"][:, 1] = -1
    return {name: None if x is None else x.to(device) for name, x in case.items()}


def _equal(case: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """As the definition says, with the logits as they were."""
    before = case["logits"].clone()
    found = best_token(**case, backend="triton")
    assert torch.equal(case["logits"].view(torch.uint8), before.view(torch.uint8))
    assert not case["arrivals"].any()
    wanted = best_token(**case, backend="torch")
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(found[0][wanted[1]], wanted[0][wanted[1]])
    assert ((found[0] >= 0) & (found[0] < case["logits"].shape[1])).all()
    return found


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(("said", "biased", "ends"), [(0, 0, 0), (40, 0, 0), (0, 5, 0), (7, 20, 3)])
def test_against_the_definition(
    dtype: torch.dtype, said: int, biased: int, ends: int, kernel_device: torch.device
) -> None:
    _equal(_case(4, 2500, kernel_device, dtype, said, biased, ends))


@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 1), (2, 1024), (3, 1025), (0, 9)])
def test_sizes(rows: int, vocabulary: int, kernel_device: torch.device) -> None:
    _equal(_case(rows, vocabulary, kernel_device, said=3))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 64])
def test_a_whole_vocabulary(rows: int, kernel_device: torch.device) -> None:
    _equal(_case(rows, 151936, kernel_device, torch.float16, 100, 3, 2))


def test_the_first_of_equal_ones(kernel_device: torch.device) -> None:
    case = _case(2, 5000, kernel_device, said=2)
    case["logits"][:, [4000, 1500, 1400, 3000]] = 50.0
    case["repetition"][:], case["presence"][:], case["frequency"][:] = 1.0, 0.0, 0.0
    assert _equal(case)[0].tolist() == [1400, 1400]
    case["said"][:, 0], case["counts"][:] = 1400, 1  # named, and as likely as before
    assert _equal(case)[0].tolist() == [1400, 1400]
    case["presence"][:] = 0.5
    assert _equal(case)[0].tolist() == [1500, 1500]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 1030, 2499])
def test_what_is_not_finite(value: float, place: int, kernel_device: torch.device) -> None:
    case = _case(3, 2500, kernel_device, said=4)
    case["logits"][1, place] = value
    assert _equal(case)[1].tolist() == [True, False, True]
    case["said"][:, 0], case["counts"][:] = place, 4  # among those that are named
    assert _equal(case)[1].tolist() == [True, False, True]


def test_columns_of_wider_tables(kernel_device: torch.device) -> None:
    """As the state of slots has them."""
    case = _case(3, 1030, kernel_device, said=5, ends=1)
    wanted = best_token(**case, backend="torch")
    for name in ("counts", "least", "repetition", "presence", "frequency"):
        case[name] = torch.stack([torch.full_like(case[name], 7), case[name]], 1)[:, 1]
    assert torch.equal(_equal(case)[0], wanted[0])


def test_all_tokens_are_named(kernel_device: torch.device) -> None:
    case = _case(2, 5, kernel_device, said=5)
    case["said"][:], case["counts"][:] = torch.arange(5), 5
    _equal(case)
    case["ends"] = case["said"].clone()
    case["least"][:] = 9
    found, finite = best_token(**case, backend="triton")
    assert finite.all()
    assert (found < 5).all()


def test_one_launch_that_reads_the_logits_once(kernel_device: torch.device) -> None:
    case = _case(4, 2500, kernel_device, torch.float16, 40, 5, 3)
    with torch.inference_mode(), plain_memory(), counting(kernel_device.type) as counts:
        best_token(**case, backend="triton")
    assert counts.launches == {"best_token.rows": 1}
    assert counts.waits == {}
    assert counts.moved == 2 * 4 * 2500 + 4 * (48 * 8 + 5 * 4 + 25) + 2 * 3 * 4 * 8


def test_declines(kernel_device: torch.device) -> None:
    case = _case(2, 9, kernel_device)
    with pytest.raises(
        BackendError, match=r"logits are torch\.float64; the kernel takes float32, float16 and bfloat16"
    ):
        best_token(**case | {"logits": case["logits"].double()}, backend="triton")
    with pytest.raises(BackendError, match="logits are not contiguous"):
        best_token(**case | {"logits": case["logits"].t().contiguous().t()}, backend="triton")
    many = torch.zeros(2, 1025, dtype=torch.int64, device=kernel_device)
    with pytest.raises(BackendError, match="1025 tokens of a row are named; the kernel takes up to 1024"):
        best_token(**case | {"said": many}, backend="triton")
