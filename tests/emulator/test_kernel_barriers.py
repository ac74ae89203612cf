"""Between reading and writing `members`, `cluster` (kernels/object_pool.py) has a barrier: without it is a race."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_place import EMULATED
from pool_cases import random_case

import pixelrefer_fast.kernels

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not EMULATED, reason="needs compiled kernels in the emulator: make emulate"),
]

SOURCE = Path(pixelrefer_fast.kernels.__path__[0]) / "object_pool.py"
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

    text = SOURCE.read_text(encoding="utf-8")
    assert text.count(BARRIER + WRITE) == 1
    # in float32 a block has fewer rows than threads, so that several have each row
    case = random_case([20], 3, 8, 1, separate=True).to(dtype=torch.float32)
    arguments = vars(case).values()
    _module(text, tmp_path / "pool_as_it_is.py").object_pool(*arguments)
    raced = _module(text.replace(BARRIER + WRITE, WRITE), tmp_path / "pool_without_a_barrier.py")
    with pytest.raises(
        FindingsError, match=r"race: warp \d of block 0 writes what several warps read.*pool_without_a_"
    ):
        raced.object_pool(*arguments)
