"""Blocks of keys and values: who holds them, what is in them, how their memory grows."""

from __future__ import annotations

import weakref

import pytest
import torch

from pixelrefer_fast.decoding import cache
from pixelrefer_fast.decoding.cache import FIRST_BLOCKS, TRASH, BlockPool, default_limit

LAYERS, SIZE, HEADS, HEAD = 2, 4, 3, 5
BLOCK = 2 * LAYERS * SIZE * HEADS * HEAD * 4
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def _pool(limit: int) -> BlockPool:
    return BlockPool(LAYERS, HEADS, HEAD, torch.float32, CPU, SIZE, limit * BLOCK)


def _rows(count: int, value: float) -> torch.Tensor:
    return torch.full((count, HEADS, HEAD), value)


def test_what_is_written_is_read() -> None:
    pool = _pool(10)
    assert pool.block_bytes == BLOCK
    first, second = pool.allocate(2), pool.allocate(1)
    assert TRASH not in (*first, *second)
    rows = torch.from_numpy(pool.rows([*first, *second], 2, 10))
    assert len(set(rows.tolist())) == 8
    pool.write(1, rows, _rows(8, 1.0), _rows(8, 2.0))
    keys, values = pool.read(1, rows)
    assert keys.eq(1).all()
    assert values.eq(2).all()
    assert pool.keys[0].eq(0).all()
    assert pool.keys[1].sum() == 8 * HEADS * HEAD


def test_rows_are_copied_in_all_layers() -> None:
    pool = _pool(10)
    a, b = pool.allocate(2)
    for layer in range(LAYERS):
        pool.write(layer, torch.from_numpy(pool.rows([a], 0, 3)), _rows(3, layer + 1.0), _rows(3, layer + 5.0))
    pool.copy(torch.from_numpy(pool.rows([a], 0, 2)), torch.from_numpy(pool.rows([b], 0, 2)))
    for layer in range(LAYERS):
        assert pool.keys[layer][b, :2].eq(layer + 1).all()
        assert pool.values[layer][b, :2].eq(layer + 5).all()
        assert pool.values[layer][b, 2:].eq(0).all()


def test_soiled_blocks_come_back_as_zeros() -> None:
    pool = _pool(4)
    blocks = pool.allocate(3)
    for held in (*pool.keys, *pool.values):
        held[blocks[:2]] = torch.nan
        held[blocks[2:]] = 7
    pool.soil(blocks[:2])
    pool.release(blocks)
    again = pool.allocate(3)
    assert sorted(again) == sorted(blocks)
    for held in (*pool.keys, *pool.values):
        assert held[blocks[:2]].eq(0).all()
        assert held[blocks[2:]].eq(7).all()  # finite: what is masked out of it is 0 in every sum
    pool.release(again)
    pool.keys[0][again] = 1
    assert pool.keys[0][pool.allocate(3)].eq(1).all()  # clean by now


def test_growing_holds_old_and_new_memory_of_one_tensor_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = _pool(4 * FIRST_BLOCKS)
    pool.allocate(2)
    made: list[weakref.ref[torch.Tensor]] = []
    most = 0
    zeros = pool._zeros

    def counted(blocks: int) -> torch.Tensor:
        nonlocal most
        new = zeros(blocks)
        made.append(weakref.ref(new))
        old = {id(x): x.nbytes for x in (*pool.keys, *pool.values)}
        live = {id(x): x.nbytes for x in (ref() for ref in made) if x is not None}
        most = max(most, sum((old | live).values()))
        return new

    monkeypatch.setattr(pool, "_zeros", counted)
    pool.allocate(FIRST_BLOCKS)
    assert pool.blocks > FIRST_BLOCKS
    assert pool.held_bytes < most <= pool.held_bytes + pool.keys[0].nbytes


def test_growing_that_runs_out_of_memory_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = _pool(4 * FIRST_BLOCKS)
    blocks = pool.allocate(FIRST_BLOCKS - 1)
    for layer in range(LAYERS):
        pool.write(layer, torch.from_numpy(pool.rows(blocks[:1], 0, 4)), _rows(4, layer + 1.0), _rows(4, 3.0))
    zeros, calls = pool._zeros, iter([True, True, True, False])
    with monkeypatch.context() as patch:

        def short(count: int) -> torch.Tensor:
            if not next(calls):
                raise torch.OutOfMemoryError("no more")
            return zeros(count)

        patch.setattr(pool, "_zeros", short)
        with pytest.raises(torch.OutOfMemoryError):
            pool.allocate(1)
    assert pool.held_bytes == FIRST_BLOCKS * BLOCK
    blocks += pool.allocate(5)
    assert len(set(blocks)) == FIRST_BLOCKS + 4
    for layer in range(LAYERS):
        assert pool.keys[layer][blocks[0]].eq(layer + 1).all()
        assert len(pool.keys[layer]) == len(pool.values[layer]) == pool.blocks


def test_blocks_are_free_when_nobody_holds_them() -> None:
    pool = _pool(6)
    assert pool.free == 5
    blocks = pool.allocate(3)
    pool.hold(blocks[:2])
    pool.release(blocks)
    assert pool.free == 3
    assert set(pool.allocate(3)).isdisjoint(blocks[:2])
    with pytest.raises(MemoryError, match=r"^cache: expected at most 0 free blocks, got a need of 1$"):
        pool.allocate(1)
    pool.release(blocks[:2])
    assert sorted(pool.allocate(2)) == sorted(blocks[:2])


def test_memory_grows_within_its_limit_and_keeps_what_is_in_it() -> None:
    limit = 4 * FIRST_BLOCKS
    pool = _pool(limit)
    assert pool.held_bytes == 0
    blocks = pool.allocate(2)
    assert pool.held_bytes == FIRST_BLOCKS * BLOCK
    rows = torch.from_numpy(pool.rows(blocks, 0, 8))
    pool.write(0, rows, _rows(8, 3.0), _rows(8, 4.0))
    version = pool.version
    blocks += pool.allocate(FIRST_BLOCKS)
    assert FIRST_BLOCKS * BLOCK < pool.held_bytes <= limit * BLOCK
    assert pool.version > version
    keys, values = pool.read(0, rows)
    assert keys.eq(3).all()
    assert values.eq(4).all()
    blocks += pool.allocate(pool.free)
    assert len(set(blocks)) == len(blocks) == limit - 1
    assert pool.held_bytes == limit * BLOCK
    with pytest.raises(RuntimeError, match=f"expected no blocks in use, got {limit - 1}"):
        pool.clear()
    pool.release(blocks)
    pool.clear()
    assert pool.held_bytes == 0
    assert len(pool.allocate(3)) == 3


def test_needed() -> None:
    assert [_pool(2).needed(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_a_limit_from_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "free_memory", {CPU: 1000, CUDA: 2000}.__getitem__)
    assert (default_limit(CPU), default_limit(CUDA)) == (250, 1600)
