"""Why a mutant makes no difference, by a look at the kernel's own run; where it makes one, no reason is found."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptx_emulator import parse, run
from wgmma_kernel import COMMIT, FENCE, SHOW, WAIT, product, text

TOOLS = Path(__file__).parents[2] / "tools"
ADD = "add.f32 %r30, %r30, 0f3F800000;"
PROXY = "fence.proxy.async.shared::cta;"
BARRIER = "bar.sync 0;"


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.delitem(sys.modules, "mutant_traces", raising=False)
    return importlib.import_module("mutant_traces")


def explained(traces: Any, lines: tuple[str, ...], changed: str, which: int, what: str) -> str:
    """What is said of the `which`th instruction that begins so."""
    kernel = parse(text(*lines))["k"]
    trace = traces.Trace(kernel, 128)
    run(kernel, 1, [np.zeros(128, np.float32)], shared=256, observer=trace)
    own = [i for i in kernel.code if i.text.startswith(changed)]
    return str(trace.explanation(what, own[which]))


ONE = (SHOW, FENCE, product(), COMMIT, WAIT)
TWO = (SHOW, FENCE, product(), COMMIT, WAIT, FENCE, product(), COMMIT, WAIT)
USED = (SHOW, FENCE, product(), COMMIT, WAIT, ADD, FENCE, product(), COMMIT, WAIT)
TWICE = (SHOW, PROXY, BARRIER, FENCE, product(), COMMIT, WAIT)
STORED = ("fence.proxy.async;", "@%p1 st.shared.b32 [%r4], %r2;", SHOW, FENCE, product(), COMMIT, WAIT)
SKIPPED = (SHOW, "setp.ne.u32 %p4, %r1, %r1;", "@%p4 bra L1;", "bra L2;", "L1:", BARRIER, "L2:", *ONE[1:])


@pytest.mark.parametrize(
    ("lines", "changed", "which", "what", "reason"),
    [
        (TWO, "wgmma.wait", 0, "wait for products removed", "WAITED_LATER"),
        (TWO, "wgmma.wait", 1, "wait for products removed", None),  # the store comes after it
        (USED, "wgmma.wait", 0, "wait for products removed", None),
        (TWO, "wgmma.fence", 0, "fence of registers removed", None),  # the first of all
        (TWO, "wgmma.fence", 1, "fence of registers removed", "FENCED_BEFORE"),
        (USED, "wgmma.fence", 1, "fence of registers removed", None),
        (TWO, "wgmma.commit", 0, "end of a group of products removed", "WAITED_LATER"),
        (USED, "wgmma.commit", 0, "end of a group of products removed", None),
        (TWO, "wgmma.commit", 1, "end of a group of products removed", None),
        ((*ONE[:-1], COMMIT, WAIT), "wgmma.commit", 0, "end of a group of products removed", "SAME_WAIT"),
        (ONE, "fence.proxy", 0, "fence between proxies removed", None),
        (TWICE, "fence.proxy", 1, "fence between proxies removed", "SHOWN_BEFORE"),
        (STORED, "fence.proxy", 1, "fence between proxies removed", None),
        (TWICE, "bar.sync", 1, "barrier removed", "NOBODY_MEETS"),
        (SKIPPED, "bar.sync", 1, "barrier removed", "NOT_REACHED"),
    ],
)
def test_what_is_found(traces: Any, lines: tuple[str, ...], changed: str, which: int, what: str, reason: str) -> None:
    wanted = "" if reason is None else getattr(traces, reason)
    assert explained(traces, lines, changed, which, what) == wanted


COPIES = """
.version 8.0
.target sm_80
.address_size 64
.shared .align 16 .b8 room[1024];
.entry k(.param .u64 given, .param .u64 made) .maxntid 32 {{
  .reg .b32 %r<9>;
  .reg .b64 %rd<9>;
  ld.param.u64 %rd1, [given];
  ld.param.u64 %rd2, [made];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd3, %r1, 4;
  add.s64 %rd1, %rd1, %rd3;
  add.s64 %rd2, %rd2, %rd3;
  mov.u32 %r2, room;
  shl.b32 %r3, %r1, 2;
  add.u32 %r2, %r2, %r3;
  cp.async.ca.shared.global [%r2], [%rd1], 4;
  cp.async.commit_group;
  cp.async.ca.shared.global [%r2+512], [%rd1], 4;
  cp.async.commit_group;
  cp.async.wait_group 1;
  bar.sync 0;
  ld.shared.b32 %r4, [%r2];
  {read}
  cp.async.wait_group 0;
  bar.sync 0;
  ld.shared.b32 %r5, [%r2+{second}];
  add.u32 %r4, %r4, %r5;
  st.global.b32 [%rd2], %r4;
  ret;
}}
"""


@pytest.mark.parametrize(
    ("second", "wait", "reason"), [(0, 0, None), (0, 1, "UNREAD"), (512, 1, None)]
)  # offset that is read at last, which wait
def test_copies(traces: Any, second: int, wait: int, reason: str | None) -> None:
    kernel = parse(COPIES.format(read="", second=second))["k"]
    trace = traces.Trace(kernel, 32)
    run(kernel, 1, [np.arange(32, dtype=np.int32), np.zeros(32, np.int32)], shared=1024, observer=trace)
    own = [i for i in kernel.code if i.text.startswith("cp.async.wait_group")]
    found = trace.explanation("wait for copies removed", own[wait])
    assert found == ("" if reason is None else getattr(traces, reason))
