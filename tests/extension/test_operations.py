"""The compiled extension against the definitions, bit for bit: on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelrefer_fast.ops import Op, pack_objects, pack_views, registry, scatter_tokens
from pixelrefer_fast.ops.extension import load as extension
from pixelrefer_fast.ops.scatter_tokens import gather_tokens

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAMES = ("mask_grids", "pack_masks", "pack_objects", "pack_views", "place_patches", "scatter_tokens")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
WILD = (-2, 2**62, -(2**62))


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Where a C++ compiler is, the extension is there and these tests run."""
    reason = extension.reason("cpu")
    if reason is not None:
        assert not any(map(shutil.which, ("c++", "g++", "clang++"))), reason
        pytest.skip(f"no C++ compiler, and so no extension: {reason}")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def _same(given: Any, wanted: Any) -> None:
    for a, b in zip(given, wanted, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu(), b.cpu())


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """NaN equals NaN only as bytes."""
    return tensor.contiguous().cpu().view(torch.uint8)


# Random raggeds. Sizes are drawn by hypothesis, which makes them small when a test fails; values come from a seed.

SIDE = st.one_of(st.integers(0, 5), st.integers(0, 40))
SEED = st.integers(0, 2**32)


@settings(max_examples=900)
@given(
    shapes=st.lists(st.tuples(SIDE, SIDE), max_size=12), spare=st.integers(0, 9), room=st.integers(-40, 40), seed=SEED
)
def _objects(device: torch.device, shapes: list[tuple[int, int]], spare: int, room: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cells = sum(h * w for h, w in shapes)
    values = torch.tensor([0.0, -0.0, -1.0, float("nan"), 1.0, 1e-42, float("inf"), 0.5])
    mask = values[torch.randint(8, (cells + spare,), generator=generator)]
    mask[cells:] = 1.0  # not looked at
    grid_shapes = torch.tensor(shapes, dtype=torch.int64).reshape(-1, 2)
    capacity = max(0, int((mask[:cells] > 0).sum()) + room)
    wanted = pack_objects(mask, grid_shapes, capacity, backend="torch")
    _same(pack_objects(mask.to(device), grid_shapes.to(device), capacity, backend="cuda"), wanted)


def test_random_objects(device: torch.device) -> None:
    _objects(device)


@settings(max_examples=700)
@given(views=st.lists(st.tuples(SIDE, SIDE, st.integers(1, 2)), max_size=12), room=st.integers(-40, 40))
def _views(device: torch.device, views: list[tuple[int, int, int]], room: int) -> None:
    grids = torch.tensor([(h * m, w * m, m) for h, w, m in views], dtype=torch.int64).reshape(-1, 3)
    patches = max(0, int(grids[:, :2].prod(1).sum()) + room)
    wanted = pack_views(grids, patches, backend="torch")
    _same(pack_views(grids.to(device), patches, backend="cuda"), wanted)


def test_random_views(device: torch.device) -> None:
    _views(device)


@settings(max_examples=700)
@given(
    length=st.integers(0, 40),
    width=st.one_of(st.integers(0, 20), st.integers(0, 12).map(lambda n: 8 * n)),
    strided=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=SEED,
)
def _tokens(device: torch.device, length: int, width: int, strided: bool, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # rows that are parts of wider ones, full of NaN, and that begin anywhere
    step, skip = (width + 11, 3) if strided else (width, 0)
    wide = torch.full((length, step), torch.nan, dtype=dtype)
    wide[:, skip : skip + width] = torch.randn(length, width, generator=generator).to(dtype)
    count = int(torch.randint(length + 1, (1,), generator=generator))
    slots = torch.randperm(length, generator=generator)[:count]
    # on a device wild slots write nothing, as -1 does; the definition refuses them on the host
    outside = torch.tensor([-1] if device.type == "cpu" else [-1, *WILD])
    lost = torch.rand(count, generator=generator) < 0.3
    slots[lost] = outside[torch.randint(len(outside), (int(lost.sum()),), generator=generator)]
    tokens = torch.randn(count, width, generator=generator).to(dtype)
    tokens[lost] = torch.nan

    wanted = wide.clone()
    valid = torch.where(lost, -1, slots)
    scatter_tokens(wanted[:, skip : skip + width], tokens, valid, backend="torch")
    given_ = wide.to(device)
    scatter_tokens(given_[:, skip : skip + width], tokens.to(device), slots.to(device), backend="cuda")
    assert torch.equal(_bytes(given_), _bytes(wanted))
    gathered = gather_tokens(given_[:, skip : skip + width], slots.to(device), backend="cuda")
    assert torch.equal(_bytes(gathered), _bytes(gather_tokens(wanted[:, skip : skip + width], valid)))
    assert not gathered[lost.to(device)].any()


def test_random_tokens(device: torch.device) -> None:
    _tokens(device)


# Sizes that random ones do not reach.


@pytest.mark.parametrize(
    "shapes",
    [[(256, 256)] * 3, [(1, 1)] * 5000, [(0, 0)] * 3000, [(0, 7), (16, 16)] * 700, [(1, 2048), (2048, 1), (32, 64)]],
    ids=["large", "one cell", "no cell", "gaps", "whole blocks"],
)
@pytest.mark.parametrize("threshold", [-1.0, 0.5, 2.0], ids=["all", "half", "none"])
def test_objects_of_any_size(device: torch.device, shapes: list[tuple[int, int]], threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    grid_shapes = torch.tensor(shapes, dtype=torch.int64)
    mask = torch.rand(int(grid_shapes.prod(1).sum()), generator=generator) - threshold
    for capacity in (len(mask), len(mask) // 3):
        wanted = pack_objects(mask, grid_shapes, capacity, backend="torch")
        _same(pack_objects(mask.to(device), grid_shapes.to(device), capacity, backend="cuda"), wanted)


def test_thousands_of_views(device: torch.device) -> None:
    grids = torch.tensor([(2 * (i % 7), 2 * (i % 5), 1 + i % 2) for i in range(5000)])
    patches = int(grids[:, :2].prod(1).sum()) + 5
    wanted = pack_views(grids, patches, backend="torch")
    _same(pack_views(grids.to(device), patches, backend="cuda"), wanted)


# What torch asks of an operator.


@pytest.mark.parametrize("name", NAMES)
def test_operator(name: str, device: torch.device) -> None:
    op = registry()[name]
    for sample in op.samples(torch.Generator().manual_seed(0), torch.float32):
        arguments = _moved(sample, device)
        torch.library.opcheck(op.operator, arguments, {"backend": "cuda"})


@pytest.mark.parametrize("name", NAMES)
def test_compiled_as_one_graph(name: str, device: torch.device) -> None:
    op = registry()[name]
    compiled = torch.compile(_returning(op), fullgraph=True, backend="aot_eager", dynamic=False)
    for sample in op.samples(torch.Generator().manual_seed(0), torch.float32):
        torch._dynamo.reset()
        _same(compiled(*_moved(sample, device)), _returning(op, "torch")(*_moved(sample, torch.device("cpu"))))


def test_out_variants_are_operators(device: torch.device) -> None:
    operators = torch.ops.pixelrefer_fast

    def empty(size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    mask, shapes = torch.rand(15, device=device) - 0.5, torch.tensor([[3, 5]], device=device)
    long, int32 = torch.int64, torch.int32
    outputs = [empty(9, long), empty(9, int32), empty(9, int32), empty(1, long), empty(2, long), empty(64, long)]
    torch.library.opcheck(operators.pack_objects_out.default, (mask, shapes, *outputs))
    outputs = [empty(9, int32), empty(9, int32), empty(9, int32), empty(2, int32), empty(1, int32), empty(64, long)]
    torch.library.opcheck(operators.pack_views_out.default, (torch.tensor([[2, 4, 2]], device=device), *outputs))
    embeds, tokens, slots = (t.to(device) for t in (torch.rand(5, 8), torch.rand(2, 8), torch.tensor([3, -1])))
    torch.library.opcheck(operators.scatter_tokens_.default, (embeds, tokens, slots))
    torch.library.opcheck(operators.gather_tokens_out.default, (embeds, slots, tokens))


def _moved(sample: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    return tuple(a.clone().to(device) if isinstance(a, torch.Tensor) else a for a in sample)


def _returning(op: Op, backend: str = "cuda") -> Callable[..., tuple[torch.Tensor, ...]]:
    """The operation as a function that returns what it writes."""

    def run(*arguments: Any) -> tuple[torch.Tensor, ...]:
        returned = op(*arguments, backend=backend)
        if isinstance(returned, torch.Tensor):
            return (returned,)
        return (arguments[0],) if returned is None else tuple(returned)

    return run


# The C++ code does not rely on the checks before it.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeds": torch.zeros(4)}, r"expected embeds of shape \(any, any\), got \(4,\)"),
        ({"embeds": torch.zeros(4, 3).double()}, "expected embeds of float32, float16 or bfloat16, got another dtype"),
        ({"tokens": torch.zeros(2, 2)}, r"expected tokens of shape \(2, 3\), got \(2, 2\)"),
        ({"tokens": torch.zeros(2, 3).half()}, r"expected tokens of float32, got float16"),
        ({"tokens": torch.zeros(3, 2).t()}, r"expected tokens with contiguous rows, got strides \(1, 2\)"),
        ({"slots": torch.zeros(2, 1, dtype=torch.int64)}, r"expected slots of shape \(any,\), got \(2, 1\)"),
        ({"slots": torch.zeros(2, dtype=torch.int32)}, r"expected slots of int64, got int32"),
        ({"slots": torch.zeros(4, dtype=torch.int64)[::2]}, r"expected contiguous slots, got strides \(2,\)"),
        ({"slots": torch.tensor([0, 4])}, r"expected slots from -1 to 3, got 4 for token 1"),
        ({"slots": torch.tensor([-2, 4])}, r"expected slots from -1 to 3, got -2 for token 0"),
    ],
)
def test_tokens_are_checked(change: dict[str, torch.Tensor], message: str) -> None:
    arguments = {"embeds": torch.zeros(4, 3), "tokens": torch.zeros(2, 3), "slots": torch.tensor([1, 0])} | change
    with pytest.raises(RuntimeError, match=f"^scatter_tokens_: {message}"):
        torch.ops.pixelrefer_fast.scatter_tokens_(*arguments.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_grids": torch.zeros(5)}, "expected 6 cells or more for these shapes, got 5"),
        ({"mask_grids": torch.zeros(6).double()}, "expected mask_grids of float32, got another dtype"),
        ({"grid_shapes": torch.tensor([[-2, -3]])}, "expected sides of grid_shapes from 0 to 2147483647"),
        ({"grid_shapes": torch.tensor([[2**62, 4]])}, "expected sides of grid_shapes from 0 to 2147483647"),
        ({"row": torch.zeros(3, dtype=torch.int32)}, r"expected row of shape \(4,\), got \(3,\)"),
        ({"column": torch.zeros(4, dtype=torch.int64)}, "expected column of int32, got int64"),
        ({"counts": torch.zeros(2, dtype=torch.int64)}, r"expected counts of shape \(1,\), got \(2,\)"),
        ({"offsets": torch.zeros(1, dtype=torch.int64)}, r"expected offsets of shape \(2,\), got \(1,\)"),
    ],
)
def test_objects_are_checked(change: dict[str, torch.Tensor], message: str) -> None:
    long, int32 = torch.int64, torch.int32
    arguments = {
        "mask_grids": torch.zeros(6),
        "grid_shapes": torch.tensor([[2, 3]]),
        "cell": torch.zeros(4, dtype=long),
        "row": torch.zeros(4, dtype=int32),
        "column": torch.zeros(4, dtype=int32),
        "counts": torch.zeros(1, dtype=long),
        "offsets": torch.zeros(2, dtype=long),
        "scratch": torch.zeros(0, dtype=long),
    } | change
    with pytest.raises(RuntimeError, match=f"^pack_objects_out: {message}"):
        torch.ops.pixelrefer_fast.pack_objects_out(*arguments.values())


@pytest.mark.parametrize(
    ("grid", "patches", "message"),
    [
        ((3, 4, 2), 4, r"got \(3, 4, 2\) for view 1"),
        ((2**62, 4, 1), 4, r"for view 1"),
        ((2**16, 2**16, 1), 4, r"at most 2147483647 patches, got \(65536, 65536, 1\) for view 1"),
        ((1, 1, 1), 3, r"expected row of shape \(any,\), got \(3, 1\)"),
    ],
)
def test_views_are_checked(grid: tuple[int, int, int], patches: int, message: str) -> None:
    row, column, sequence = (torch.zeros(patches, dtype=torch.int32) for _ in range(3))
    if patches == 3:
        row = row[:, None]
    cu_seqlens, longest = torch.zeros(3, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    arguments = (torch.tensor([(1, 1, 1), grid]), row, column, sequence, cu_seqlens, longest, torch.zeros(0).long())
    with pytest.raises(RuntimeError, match=f"^pack_views_out: .*{message}"):
        torch.ops.pixelrefer_fast.pack_views_out(*arguments)


def test_rows_that_are_not_contiguous_are_left_to_the_definition() -> None:
    embeds = torch.zeros(3, 4).t()
    with pytest.raises(
        ValueError, match=r"declines: the rows of embeds are not contiguous, their strides are \(1, 4\)$"
    ):
        scatter_tokens(embeds, torch.ones(2, 3), torch.tensor([3, 0]), backend="cuda")
    scatter_tokens(embeds, torch.ones(2, 3), torch.tensor([3, 0]))
    assert embeds.sum(1).tolist() == [3, 0, 0, 3]
    scatter_tokens(embeds, torch.full((3, 2), 2.0).t(), torch.tensor([3, 0]))  # tokens are copied when they have to be
    assert embeds.sum(1).tolist() == [6, 0, 0, 6]


def test_other_floats_are_left_to_the_definition() -> None:
    arguments = (torch.ones(6).double(), torch.tensor([[2, 3]]), 6)
    with pytest.raises(ValueError, match=r"declines: mask_grids are torch.float64, the extension reads torch.float32$"):
        pack_objects(*arguments, backend="cuda")
    assert pack_objects(*arguments).counts.tolist() == [6]
    embeds, slots = torch.zeros(2, 3).double(), torch.tensor([1])
    with pytest.raises(ValueError, match=r"declines: embeds are torch.float64, the extension moves torch.float32, "):
        scatter_tokens(embeds, embeds[:1] + 1, slots, backend="cuda")
    with pytest.raises(ValueError, match=r"^gather_tokens: backend 'cuda' .* declines: embeds are torch.float64"):
        gather_tokens(embeds, slots, backend="cuda")
    scatter_tokens(embeds, embeds[:1] + 1, slots)
    assert embeds.tolist() == [[0, 0, 0], [1, 1, 1]]
