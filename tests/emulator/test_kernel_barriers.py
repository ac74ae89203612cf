"""What orders the threads of a kernel, taken away, is found to be missing: `cluster` of kernels/object_pool.py reads
and writes `members`, the parts of `paged_attention` add up what others of them wrote."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_place import EMULATED
from paged_cases import paged_case
from pool_cases import random_case

import pixelrefer_fast.kernels

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not EMULATED, reason="needs compiled kernels in the emulator: make emulate"),
]

KERNELS = Path(pixelrefer_fast.kernels.__path__[0])
WRITE = "            tl.store(members + first + i, after, mask=i < count)\n"
BARRIER = "            tl.debug_barrier()\n"


def _module(text: str, path: Path) -> Any:
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # Triton looks a kernel's module up by name
    spec.loader.exec_module(module)
    return module


def test_members_are_written_after_all_have_read_them(tmp_path: Path) -> None:
    from ptx_emulator import FindingsError

    text = (KERNELS / "object_pool.py").read_text(encoding="utf-8")
    assert text.count(BARRIER + WRITE) == 1
    # in float32 a block has fewer rows than threads, so that several have each row; more patches than one tile holds
    case = random_case([40], 3, 8, 1, separate=True).to(dtype=torch.float32)
    arguments = vars(case).values()
    _module(text, tmp_path / "pool_as_it_is.py").object_pool(*arguments)
    raced = _module(text.replace(BARRIER + WRITE, WRITE), tmp_path / "pool_without_a_barrier.py")
    with pytest.raises(
        FindingsError, match=r"race: warp \d of block 0 writes what several warps read.*pool_without_a_"
    ):
        raced.object_pool(*arguments)


@pytest.mark.parametrize("order", ["relaxed", "release", "acquire"])
def test_parts_are_added_up_when_all_are_there(order: str, tmp_path: Path) -> None:
    from ptx_emulator import FindingsError

    text, written = (KERNELS / "paged_attention.py").read_text(encoding="utf-8"), 'sem="acq_rel"'
    assert text.count(written) == 1
    case = paged_case([300], 64, (2, 1), 16)
    raced = _module(text.replace(written, f'sem="{order}"'), tmp_path / f"paged_{order}.py")
    with pytest.raises(FindingsError, match=r"race: warp \d of block \d+ reads what warp \d of block \d+ wrote"):
        raced.paged_attention(*case)
