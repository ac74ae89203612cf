"""Tables of any shape and dtype in one buffer: the views hold what was put in, each at an aligned place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.device.transfers import ALIGNMENT, _staged, upload, views_of

DTYPES = (torch.int32, torch.int64, torch.float32, torch.float16, torch.bool, torch.uint8)
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def _tensors(kinds: list[tuple[tuple[int, ...], torch.dtype]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 100, shape, generator=generator).to(dtype) for shape, dtype in kinds]


@given(kinds=st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=6))
def test_what_goes_in_comes_out(kinds: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    tensors = _tensors(kinds)
    buffer = _staged(tensors, pin=False)
    for view, tensor in zip(views_of(buffer, tensors), tensors, strict=True):
        assert view.dtype == tensor.dtype
        assert torch.equal(view, tensor)
        if view.numel():
            assert (view.data_ptr() - buffer.data_ptr()) % ALIGNMENT == 0


def test_strided_tensors() -> None:
    table = torch.arange(12).view(3, 4)
    views = views_of(_staged([table.T, table[:, 1]], pin=False), [table.T, table[:, 1]])
    assert torch.equal(views[0], table.T)
    assert torch.equal(views[1], table[:, 1])


def test_on_the_cpu_nothing_is_copied() -> None:
    tensors = _tensors([((3, 2), torch.int64), ((0,), torch.float32)])
    moved = upload(tensors, torch.device("cpu"))
    assert [t.data_ptr() for t in moved] == [t.data_ptr() for t in tensors]
    assert upload([], torch.device("cpu")) == []


@pytest.mark.gpu
def test_one_copy_that_the_host_does_not_wait_for() -> None:
    tensors = _tensors([((3, 2), torch.int64), ((5,), torch.float32), ((2, 2), torch.int32)])
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = upload(tensors, torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len({t.untyped_storage().data_ptr() for t in moved}) == 1
    assert all(torch.equal(a.cpu(), b) for a, b in zip(moved, tensors, strict=True))
