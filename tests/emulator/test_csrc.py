"""csrc/cuda/ in the emulator, bit for bit like the definitions: nvcc's PTX, launched by the host code as it is.

Pointers are given as bindings_cuda.cpp gives them. Buffers end with what the operation may touch, rows of a wider
tensor are buffers of their own, and what is written is full of a pattern before.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ptx_emulator import Buffer, Fault, FindingsError, Options, run
from ptx_emulator.cuda_program import CudaProgram
from ptx_emulator.nvcc import ARCHITECTURES, Compiled, compiled, find_nvcc
from ptx_emulator.options import SCHEDULES

from pixelrefer_fast.ops import (
    mask_grids,
    pack_masks,
    pack_objects,
    pack_views,
    place_patches,
    registry,
    scatter_tokens,
)
from pixelrefer_fast.ops.pack_masks import DTYPES as MASK_DTYPES
from pixelrefer_fast.ops.pack_masks import EXTENTS
from pixelrefer_fast.ops.scatter_tokens import gather_tokens

SOURCES = sorted((Path(__file__).parents[2] / "csrc" / "cuda").glob("*.cu"))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
POISON = 0x5A
WILD = (-2, 2**62, -(2**62))
LOCKSTEP = Options()

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc: neither in CUDA_HOME/bin nor on the PATH")
every_schedule = pytest.mark.parametrize("options", [Options(schedule=s, seed=3) for s in SCHEDULES], ids=SCHEDULES)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    nvcc = find_nvcc()
    assert nvcc is not None
    return compiled(SOURCES, tmp_path_factory.mktemp("csrc"), nvcc)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def program(request: pytest.FixtureRequest, built: Compiled) -> CudaProgram:
    return CudaProgram(built, request.param)


def _buffer(name: str, tensor: torch.Tensor) -> Buffer:
    assert tensor.is_contiguous()
    return Buffer(tensor.data_ptr(), tensor.nbytes, name)


def _rows(name: str, tensor: torch.Tensor) -> list[Buffer]:
    """Each row for itself: what lies between them is not the operation's."""
    width = tensor.shape[1] * tensor.element_size()
    step = tensor.stride(0) * tensor.element_size()
    return [Buffer(tensor.data_ptr() + i * step, width, f"row {i} of {name}") for i in range(len(tensor))]


def _poisoned(size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((size * dtype.itemsize,), POISON, dtype=torch.uint8).view(dtype)


def _launch(program: CudaProgram, function: str, arguments: list[int | torch.Tensor], options: Options) -> None:
    """Tensors are given by their addresses, and are all that may be accessed."""
    buffers = [_buffer(f"argument {i}", a) for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)]
    values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
    stream = 0
    program.launches(function, *values, stream, buffers=buffers, options=options)


def _pack_objects(
    program: CudaProgram, mask: torch.Tensor, shapes: torch.Tensor, capacity: int, options: Options = LOCKSTEP
) -> list[torch.Tensor]:
    sizes = [(capacity, 8), (capacity, 4), (capacity, 4), (len(shapes), 8), (len(shapes) + 1, 8)]
    outputs = [_poisoned(size, torch.int64 if width == 8 else torch.int32) for size, width in sizes]
    scratch = _poisoned(program.number("pack_objects_scratch", len(mask), len(shapes)), torch.int64)
    arguments = [mask, len(mask), shapes, len(shapes), capacity, *outputs, scratch]
    _launch(program, "pack_objects", arguments, options)
    return outputs


def _pack_views(
    program: CudaProgram, grids: torch.Tensor, patches: int, options: Options = LOCKSTEP
) -> list[torch.Tensor]:
    outputs = [_poisoned(size, torch.int32) for size in (patches, patches, patches, len(grids) + 1, 1)]
    scratch = _poisoned(program.number("pack_views_scratch", len(grids)), torch.int64)
    _launch(program, "pack_views", [grids, len(grids), patches, *outputs, scratch], options)
    return outputs


def _move_tokens(
    program: CudaProgram,
    function: str,
    embeds: torch.Tensor,
    tokens: torch.Tensor,
    slots: torch.Tensor,
    options: Options = LOCKSTEP,
) -> None:
    """`scatter_tokens` or `gather_tokens` of csrc/cuda/ops.h."""
    size = embeds.element_size()
    pointers = [x for t in (embeds, tokens) for x in (t.data_ptr(), t.stride(0) * size)]
    counts = [len(embeds), len(slots), embeds.shape[1] * size, size]
    stream = 0
    buffers = [*_rows("embeds", embeds), *_rows("tokens", tokens), _buffer("slots", slots)]
    program.launches(function, *pointers, slots.data_ptr(), *counts, stream, buffers=buffers, options=options)


def _pack_masks(
    program: CudaProgram, masks: torch.Tensor, cuts: torch.Tensor, options: Options = LOCKSTEP
) -> list[torch.Tensor]:
    count, height, width = masks.shape
    bits = _poisoned(count * height * -(-width // 8), torch.uint8).view(count, height, -(-width // 8))
    extents = _poisoned(EXTENTS * count, torch.int64).view(count, EXTENTS)
    kind = max(MASK_DTYPES.index(masks.dtype) - 1, 0)  # bool and uint8 are one
    last = sum((size - 1) * step for size, step in zip(masks.shape, masks.stride(), strict=True)) + 1
    buffers = [Buffer(masks.data_ptr(), last * masks.element_size() if masks.numel() else 0, "masks")]
    buffers += [_buffer(name, t) for name, t in (("cuts", cuts), ("bits", bits), ("extents", extents))]
    numbers = [masks.data_ptr(), kind, *masks.stride(), count, height, width]
    pointers = [t.data_ptr() for t in (cuts, bits, extents)]
    program.launches("pack_masks", *numbers, *pointers, 0, buffers=buffers, options=options)
    return [bits, extents]


def _mask_grids(
    program: CudaProgram, bits: torch.Tensor, table: torch.Tensor, count: int, options: Options = LOCKSTEP
) -> torch.Tensor:
    cells = _poisoned(count, torch.float32)
    _launch(program, "mask_grids", [bits, len(bits), table, len(table), count, cells], options)
    return cells


def _place_patches(
    program: CudaProgram,
    row: torch.Tensor,
    column: torch.Tensor,
    offsets: torch.Tensor,
    table: torch.Tensor,
    corners: int,
    nowhere: int,
    options: Options = LOCKSTEP,
) -> list[torch.Tensor]:
    slots = len(row)
    placed = [_poisoned(slots * width, dtype) for width, dtype in ((corners, torch.int64), (corners, torch.float32))]
    placed.append(_poisoned(slots * 2, torch.float32))
    numbers = [len(table), slots, corners, nowhere]
    _launch(program, "place_patches", [row, column, offsets, table, *numbers, *placed], options)
    return [t.view(slots, width) for t, width in zip(placed, (corners, corners, 2), strict=True)]


def _same(given: list[torch.Tensor], wanted: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(given, wanted, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


# Objects


def _mask(cells: int, spare: int = 0, seed: int = 0) -> torch.Tensor:
    """Cells that are and are not above zero, then some that nobody looks at."""
    values = torch.tensor([0.0, -0.0, -1.0, float("nan"), 1.0, 1e-42, float("inf"), 0.5])
    mask = values[torch.randint(8, (cells + spare,), generator=torch.Generator().manual_seed(seed))]
    mask[cells:] = 1.0
    return mask


def _grids(seed: int, count: int, most: int) -> list[tuple[int, int]]:
    """Random grids, every third without a cell or small."""
    drawn = torch.randint(most + 1, (count, 2), generator=torch.Generator().manual_seed(seed))
    drawn[::3] %= 3
    return [(int(h), int(w)) for h, w in drawn]


def _check_objects(
    program: CudaProgram, grids: list[tuple[int, int]], room: Callable[[int], int], options: Options = LOCKSTEP
) -> None:
    shapes = torch.tensor(grids, dtype=torch.int64).reshape(-1, 2)
    mask = _mask(int(shapes.prod(1).sum()), spare=3)
    capacity = room(int((mask[:-3] > 0).sum()))
    wanted = pack_objects(mask, shapes, capacity, backend="torch")
    _same(_pack_objects(program, mask, shapes, capacity, options), wanted)


@every_schedule
def test_ragged_objects(program: CudaProgram, options: Options) -> None:
    """Three blocks of cells, with more patches than there is room for."""
    _check_objects(program, [*_grids(1, 14, 34), (30, 60)], lambda selected: selected - 40, options)


@pytest.mark.parametrize(
    "grids",
    [
        [],
        [(1, 1)],
        [(0, 0)] * 5,
        [(0, 7), (1, 1), (3, 0)],
        [(2048, 1)],
        [(1, 2048), (2, 1024)],
        *(_grids(i, 9, 20) for i in (2, 3)),
    ],
    ids=["none", "one cell", "no cell", "gaps", "a whole block", "whole blocks", "ragged", "ragged too"],
)
def test_few_objects(program: CudaProgram, grids: list[tuple[int, int]]) -> None:
    for room in (lambda n: n, lambda n: n + 300, lambda n: n // 2, lambda n: 0):
        _check_objects(program, grids, room)


def test_more_objects_than_one_block_scans(program: CudaProgram) -> None:
    for count in (1023, 1024, 2100):
        _check_objects(program, [(1, 1), (0, 3), (2, 1)] * (count // 3), lambda selected: selected + 1)


@pytest.mark.parametrize(
    "options", [Options(lanes=1 << 15), Options(schedule="reverse", lanes=1 << 15)], ids=["all at once", "reverse"]
)
def test_a_sum_of_more_blocks_than_a_warp_looks_back_at(program: CudaProgram, options: Options) -> None:
    _check_objects(program, [(300, 260), (1, 3)], lambda selected: selected // 4, options)


def test_nothing_is_selected(program: CudaProgram) -> None:
    shapes = torch.tensor([(3, 5), (20, 110)])
    mask = torch.full((15 + 2200,), -1.0)
    _same(_pack_objects(program, mask, shapes, 7), pack_objects(mask, shapes, 7, backend="torch"))


def test_shapes_that_the_host_would_refuse(program: CudaProgram) -> None:
    """A negative side is none; columns beyond 32 bits take the division of 64 bits; cells that are not do not exist."""
    mask = _mask(2500, seed=5)
    for given, meant in (
        ([(-3, 5), (2, 3), (4, -1), (4, 11)], [(0, 5), (2, 3), (4, 0), (4, 11)]),
        ([(1, 1 << 40)], [(1, 2500)]),
        ([(2, 3), (1, 2**62), (-(2**62), 2)], [(2, 3), (1, 2494), (0, 2)]),
    ):
        wanted = pack_objects(mask, torch.tensor(meant), 2500, backend="torch")
        _same(_pack_objects(program, mask, torch.tensor(given), 2500), wanted)


# Views


def _views(seed: int, count: int, most: int) -> list[tuple[int, int, int]]:
    merges = torch.randint(1, 3, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [(h * m, w * m, m) for (h, w), m in zip(_grids(seed, count, most), merges, strict=True)]


def _check_views(
    program: CudaProgram, views: list[tuple[int, int, int]], room: int, options: Options = LOCKSTEP
) -> None:
    grids = torch.tensor(views, dtype=torch.int64).reshape(-1, 3)
    patches = max(0, int(grids[:, :2].prod(1).sum()) + room)
    wanted = pack_views(grids, patches, backend="torch")
    _same(_pack_views(program, grids, patches, options), wanted)


@every_schedule
def test_ragged_views(program: CudaProgram, options: Options) -> None:
    _check_views(program, _views(1, 12, 16), 30, options)


@pytest.mark.parametrize(
    "views",
    [[], [(1, 1, 1)], [(0, 0, 1)] * 3, [(0, 4, 2), (2, 2, 2), (6, 0, 1)], [(32, 32, 2)], _views(2, 9, 9)],
    ids=["none", "one patch", "no patch", "gaps", "a whole tile", "ragged"],
)
@pytest.mark.parametrize("room", [0, 5, -3])
def test_few_views(program: CudaProgram, views: list[tuple[int, int, int]], room: int) -> None:
    _check_views(program, views, room)


def test_more_views_than_one_block_scans(program: CudaProgram) -> None:
    for count in (1023, 1024, 2100):
        _check_views(program, [(1, 1, 1), (0, 2, 2), (2, 2, 2)] * (count // 3), 1)


# Masks


def _samples(name: str, dtype: torch.dtype = torch.float32) -> Iterator[tuple]:
    return registry()[name].samples(torch.Generator().manual_seed(1), dtype)


@every_schedule
def test_masks_of_many_rows(program: CudaProgram, options: Options) -> None:
    """More rows than a block takes, and more columns than its loads in flight."""
    masks = torch.rand(2, 19, 150, generator=torch.Generator().manual_seed(0)) > 0.97
    masks[1, :9] = False
    cuts = torch.zeros(2)
    _same(_pack_masks(program, masks, cuts, options), pack_masks(masks, cuts, backend="torch"))


@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
def test_masks_of_every_type(program: CudaProgram, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(3, 10, 70, generator=generator) * 3
    values = (values > 1 if dtype == torch.bool else values.abs() if dtype == torch.uint8 else values).to(dtype)
    values[1] = 0
    if dtype.is_floating_point:
        values[0, 3, 4], values[1, 2, 2] = torch.nan, -torch.inf
    cuts = torch.tensor([0.5, 0.5, 0.0])
    for masks in (values, values[:, ::3, 1::2], values.transpose(1, 2), values[:, :1, :1], values[:0]):
        _same(_pack_masks(program, masks, cuts[: len(masks)]), pack_masks(masks, cuts[: len(masks)], backend="torch"))


def test_the_samples_of_masks(program: CudaProgram) -> None:
    for masks, cuts in _samples("pack_masks"):
        _same(_pack_masks(program, masks, cuts), pack_masks(masks, cuts, backend="torch"))


@pytest.mark.parametrize("options", [Options(), Options(schedule="reverse", seed=3)], ids=["all at once", "reverse"])
def test_grids_of_masks(program: CudaProgram, options: Options) -> None:
    for bits, table, cells in _samples("mask_grids"):
        wanted = mask_grids(bits, table, cells, backend="torch")
        _same([_mask_grids(program, bits, table, cells, options)], (wanted,))


def test_masks_that_the_host_would_refuse(program: CudaProgram) -> None:
    """Bits that are not there are 0, and a table that means nothing draws nothing."""
    bits = torch.full((4,), 255, dtype=torch.uint8)
    good = [0, 0, 8, 0, 0, 4, 8, 0, 0, 4, 8, 4, 8, 0, 0]
    for column, value in ((1, 16), (1, -(2**62)), (2, 2**61), (11, 2**62), (12, -3), (9, 2**62), (13, 99), (0, 5)):
        table = torch.tensor([good])
        table[0, column] = value
        cells = _mask_grids(program, bits, table, 32)
        assert set(cells.tolist()) <= {0.0, 1.0}
    assert _mask_grids(program, bits, torch.tensor([good]), 33).tolist() == [1.0] * 32 + [0.0]


@pytest.mark.parametrize("options", [Options(), Options(schedule="reverse", seed=3)], ids=["all at once", "reverse"])
def test_places_of_patches(program: CudaProgram, options: Options) -> None:
    for arguments in _samples("place_patches"):
        wanted = place_patches(*arguments, backend="torch")
        _same(_place_patches(program, *arguments, options=options), wanted)


def test_places_of_many_patches(program: CudaProgram) -> None:
    """More than a block takes, four corners each, in grids whose quotients are not exact."""
    generator = torch.Generator().manual_seed(5)
    sizes = torch.randint(1, 40, (30, 4), generator=generator)
    counts = torch.randint(0, 25, (30,), generator=generator)
    owner = torch.repeat_interleave(torch.arange(30), counts)
    row, column = ((torch.rand(len(owner), generator=generator) * sizes[owner, side]).int() for side in (2, 3))
    boxes = torch.randint(0, 2000, (30, 6), generator=generator)
    table = torch.cat([torch.arange(30)[:, None] * 1600, sizes, boxes], dim=1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    wanted = place_patches(row, column, offsets, table, 4, 48000, backend="torch")
    _same(_place_patches(program, row, column, offsets, table, 4, 48000), wanted)


# Tokens


def _rows_of(count: int, width: int, dtype: torch.dtype, begin: int, unit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that begin `begin` elements into longer ones, whose length is a multiple of `unit`; the longer ones too."""
    wide = _poisoned(count * -(-(begin + width) // unit) * unit, dtype).reshape(
        count, -(-(begin + width) // unit) * unit
    )
    return wide[:, begin : begin + width], wide


def _check_tokens(
    program: CudaProgram,
    dtype: torch.dtype,
    length: int,
    width: int,
    count: int,
    begin: int = 0,
    unit: int = 1,
    options: Options = LOCKSTEP,
) -> None:
    """A third of the slots is none."""
    generator = torch.Generator().manual_seed(width)
    embeds, wide = _rows_of(length, width, dtype, begin, unit)
    embeds[:] = torch.randn(length, width, generator=generator)
    tokens, _ = _rows_of(count, width, dtype, begin, unit)
    tokens[:] = torch.randn(count, width, generator=generator)
    slots = torch.randperm(length, generator=generator)[:count]
    lost = torch.arange(count) % 3 == 1
    slots[lost] = torch.tensor([-1, length, *WILD])[torch.arange(int(lost.sum())) % 5]
    valid = torch.where(lost, -1, slots)

    wanted = wide.clone()
    scatter_tokens(wanted[:, begin : begin + width], tokens, valid, backend="torch")
    _move_tokens(program, "scatter_tokens", embeds, tokens, slots, options)
    assert torch.equal(wide.view(torch.uint8), wanted.view(torch.uint8))

    gathered, around = _rows_of(count, width, dtype, begin, unit)
    expected = around.clone()
    expected[:, begin : begin + width] = gather_tokens(embeds, valid)
    _move_tokens(program, "gather_tokens", embeds, gathered, slots, options)
    assert torch.equal(around.view(torch.uint8), expected.view(torch.uint8))


@every_schedule
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_tokens(program: CudaProgram, options: Options, dtype: torch.dtype) -> None:
    _check_tokens(program, dtype, 31, 72, 23, options=options)


# each with a rest of a vector and without
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("begin", "unit"), [(0, 1), (8, 8), (2, 2), (1, 1)], ids=["whole", "by 16 bytes", "by 4 or 8 bytes", "anywhere"]
)
@pytest.mark.parametrize("width", [1, 7, 24, 27, 1155])
def test_rows_of_any_alignment(program: CudaProgram, dtype: torch.dtype, begin: int, unit: int, width: int) -> None:
    _check_tokens(program, dtype, 6, width, 4, begin, unit)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(("size", "begin"), [(16, 8), (4, 2), (2, 1)])
def test_rounds_of_a_warp(program: CudaProgram, dtype: torch.dtype, size: int, begin: int) -> None:
    """A round is 128 vectors of `size` bytes; the compiler unrolls it four times."""
    for rounds in (1, 2, 3, 4, 5, 8):
        for missing in (0, 40):
            width = (128 * rounds - missing) * max(size // dtype.itemsize, 1)
            _check_tokens(program, dtype, 3, width, 3, begin, unit=begin)


@pytest.mark.parametrize(("length", "count", "width"), [(0, 0, 8), (3, 0, 8), (3, 2, 0), (1, 1, 1), (3, 3, 1)])
def test_few_tokens(program: CudaProgram, length: int, count: int, width: int) -> None:
    for dtype in DTYPES:
        _check_tokens(program, dtype, length, width, count)


def test_no_row_to_read_from(program: CudaProgram) -> None:
    """Slots of an empty prompt: rows of zeros."""
    embeds, tokens = torch.zeros(0, 8), _poisoned(16, torch.float32).reshape(2, 8)
    _move_tokens(program, "gather_tokens", embeds, tokens, torch.tensor([0, -1]))
    assert not tokens.any()


# Grids that are smaller than the work, which the host's are from 16 million items on


def test_few_threads_finish_many_objects(program: CudaProgram) -> None:
    counts = torch.randint(5, (3900,), generator=torch.Generator().manual_seed(0)).numpy()
    offsets = np.concatenate([[0], counts.cumsum()])
    capacity = int(offsets[-1]) + 4100
    given, places = np.full(3900, -7), [np.full(capacity, -7, dtype) for dtype in (np.int64, np.int32, np.int32)]
    run(program["finish"], 2, [offsets, 3900, capacity, given, *places])
    assert (given == counts).all()
    for place in places:
        assert (place[: offsets[-1]] == -7).all()
        assert (place[offsets[-1] :] == -1).all()


def test_few_threads_place_many_patches(program: CudaProgram) -> None:
    grids = torch.tensor(_views(4, 30, 14))
    patches = int(grids[:, :2].prod(1).sum()) + 9
    wanted = pack_views(grids, patches, backend="torch")
    outputs = [np.full(patches, -7, np.int32) for _ in range(3)]
    assert patches > 3 * 1024
    run(program["view_places"], 1, [grids.numpy(), wanted.cu_seqlens.long().numpy(), 30, patches, *outputs])
    _same([torch.from_numpy(o) for o in outputs], wanted[:3])


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("vector", ["5uint4j", "5uint4t", "jj", "jt", "tt"])
def test_few_warps_move_many_rows(program: CudaProgram, vector: str, gather: bool) -> None:
    dtype = np.uint16 if vector[-1] == "t" else np.uint32
    rows = np.arange(40 * 16, dtype=dtype).reshape(40, 16)
    slots = np.random.default_rng(0).permutation(40)
    moved = np.zeros_like(rows)
    step = rows.strides[0]
    run(program[f"move_rowsI{vector}Lb{gather:d}E"], 2, [rows, step, moved, step, slots, 40, 40, step])
    assert (moved == rows[slots] if gather else moved[slots] == rows).all()


# What the emulator would say


def _selected(program: CudaProgram, **shorter: int) -> None:
    """Two blocks' cells are packed into buffers some of which are declared too short."""
    shapes, mask = torch.tensor([(50, 50)]), torch.ones(2500)
    outputs = [
        torch.zeros(2500).long(),
        *(torch.zeros(2500).int() for _ in range(2)),
        torch.zeros(1).long(),
        torch.zeros(2).long(),
    ]
    scratch = _poisoned(program.number("pack_objects_scratch", 2500, 1), torch.int64)
    named = dict(
        zip(
            ("mask", "shapes", "cell", "row", "column", "counts", "offsets", "scratch"),
            (mask, shapes, *outputs, scratch),
            strict=True,
        )
    )
    buffers = [Buffer(t.data_ptr(), t.nbytes - shorter.get(name, 0), name) for name, t in named.items()]
    pointers = [o.data_ptr() for o in (*outputs, scratch)]
    program.launches("pack_objects", mask.data_ptr(), 2500, shapes.data_ptr(), 1, 2500, *pointers, 0, buffers=buffers)


@pytest.mark.parametrize("name", ["mask", "shapes", "cell", "row", "column", "counts", "offsets", "scratch"])
def test_a_byte_too_few_is_noticed(program: CudaProgram, name: str) -> None:
    _selected(program)
    with pytest.raises(Fault, match=f"^out of bounds: . bytes at byte .* of {name}"):
        _selected(program, **{name: 1})


def test_memory_is_set_within_buffers(program: CudaProgram) -> None:
    with pytest.raises(Fault, match=r"^cudaMemsetAsync: 40 bytes at 0x[0-9a-f]+ lie in no buffer$"):
        _selected(program, scratch=1000)


def _scan(program: CudaProgram, name: str) -> None:
    if name == "pack_objects":
        _check_objects(program, [(40, 60), (1, 3)], lambda selected: selected)
    else:
        _check_views(program, [(20, 30, 1), (36, 24, 2), (20, 20, 2)], 3)
        test_few_threads_place_many_patches(program)


# a barrier behind a block's sum is for kernels that sum twice, which none does: one for each kernel that sums
@pytest.mark.parametrize(("name", "redundant"), [("pack_objects", 2), ("pack_views", 1)])
def test_a_missing_barrier_is_noticed(built: Compiled, tmp_path: Path, name: str, redundant: int) -> None:
    survivors = []
    for line, change in _without_each("bar.sync", built, name, tmp_path):
        try:
            _scan(CudaProgram(change, ARCHITECTURES[0]), name)
        except FindingsError as findings:
            assert str(findings).startswith("race: warp")  # noqa: PT017 (it need not be raised)
        else:
            survivors.append(line)
    assert len(survivors) <= redundant


def _without_each(mark: str, built: Compiled, name: str, folder: Path) -> Iterator[tuple[int, Compiled]]:
    """The program without one of the instructions that begin so, one after another, each with its line."""
    (file,) = (f for f in built.ptx[ARCHITECTURES[0]] if f.name.startswith(name))
    lines = file.read_text().split("\n")
    places = [i for i, line in enumerate(lines) if line.strip().startswith(mark)]
    assert len(places) > 3
    for i in places:
        changed = folder / file.name
        changed.write_text("\n".join([*lines[:i], "", *lines[i + 1 :]]))
        yield i + 1, replace(built, ptx={ARCHITECTURES[0]: (changed,)})


# What the operations ask for


@pytest.mark.parametrize("name", ["pack_objects", "pack_views"])
def test_the_operations_ask_for_enough_scratch(
    name: str, program: CudaProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bindings_cuda.cpp refuses scratch that is shorter than what csrc/ says."""
    module = importlib.import_module(f"pixelrefer_fast.ops.{name}")
    words: list[int] = []
    monkeypatch.setattr(module, "scratch", lambda tensor, size: words.append(size))
    monkeypatch.setattr(module, f"_{name}_out", lambda *arguments: None)
    sizes = sorted({n + d for n in (0, 1, 1024, 2048, 4096, 1 << 20) for d in (-1, 0, 1)} - {-1})
    for count, cells in itertools.product(sizes, sizes if name == "pack_objects" else [0]):
        columns = 2 if name == "pack_objects" else 3
        grids = torch.empty(count, columns, dtype=torch.int64, device="meta")
        first = (torch.empty(cells, device="meta"), grids) if name == "pack_objects" else (grids,)
        module._extension(*first, 8)
        needed = program.number(f"{name}_scratch", *([cells] if name == "pack_objects" else []), count)
        assert words.pop() >= needed
