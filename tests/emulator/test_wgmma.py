"""The order that the PTX ISA asks of a warpgroup's products: fences, waits, and the registers in between (9.7.15)."""

from __future__ import annotations

import numpy as np
import pytest
from ptx_emulator import Options, Report, parse, run
from wgmma_kernel import COMMIT, FENCE, LATER, SHOW, WAIT, product, text


def launched(*lines: str) -> tuple[np.ndarray, Report]:
    made = np.zeros(128, np.float32)
    kernel = parse(text(*lines))["k"]
    report = run(kernel, 1, [made], shared=256, options=Options(findings="collect"))
    return made, report


@pytest.mark.parametrize(
    ("lines", "value"),
    [
        ((SHOW, FENCE, product(), COMMIT, WAIT), 16),
        # of one shape, products add to an accumulator in their order
        ((SHOW, FENCE, product(), product(), COMMIT, WAIT), 32),
        ((SHOW, FENCE, product(), COMMIT, FENCE, product(), COMMIT, WAIT), 32),
        # an older group that is waited for, while a later one adds up elsewhere
        ((SHOW, FENCE, product(), COMMIT, product(40), COMMIT, LATER), 16),
        # between a use of registers and the next product a fence
        ((SHOW, FENCE, product(), COMMIT, WAIT, "add.f32 %r30, %r30, 0f3F800000;", FENCE, product(), COMMIT, WAIT), 33),
    ],
)  # fmt: skip
def test_what_is_allowed(lines: tuple[str, ...], value: float) -> None:
    made, report = launched(*lines)
    assert report.findings == []
    assert (made == value).all()


@pytest.mark.parametrize("schedule", ["lockstep", "forward", "reverse"])
@pytest.mark.parametrize("fence", ["fence.proxy.async.shared::cta; bar.sync 0;", "bar.sync 0;"])
def test_a_warpgroup_that_is_ahead(schedule: str, fence: str) -> None:
    """The first of two has written what both read; its next fence takes nothing back from the one that showed it."""
    lines = fence, FENCE, product(), COMMIT, WAIT, "fence.proxy.async.shared::cta;"
    made = np.zeros(256, np.float32)
    kernel = parse(text(*lines).replace(".maxntid 128", ".maxntid 256"))["k"]
    report = run(kernel, 1, [made], shared=256, options=Options(schedule=schedule, findings="collect"))
    assert {finding.kind for finding in report.findings} == (set() if fence == SHOW else {"proxy"})
    assert (made == 16).all()


USED = "uses %r{} of a wgmma that is not waited for"
FENCED = "has accessed %r{}, with no wgmma.fence since"


@pytest.mark.parametrize(
    ("lines", "kind", "told"),
    [
        ((SHOW, FENCE, product(), COMMIT), "wgmma", USED.format(30)),  # by the store
        ((SHOW, FENCE, product(), WAIT), "wgmma", USED.format(30)),  # of no group yet
        ((SHOW, FENCE, product(), COMMIT, LATER), "wgmma", USED.format(30)),
        ((SHOW, FENCE, product(), COMMIT, "mov.b32 %r20, 0;", WAIT), "wgmma", USED.format(20)),
        ((SHOW, FENCE, product(), COMMIT, "@%p3 mov.b32 %r5, %r31;", WAIT), "wgmma", USED.format(31)),  # not lane 0
        # an accumulator in flight as the next one's A, A in flight as its accumulator, an accumulator in another shape
        ((SHOW, FENCE, product(), COMMIT, product(40, 30), COMMIT, WAIT), "wgmma", "uses %r30, %r31, %r32, %r33 of"),
        ((SHOW, FENCE, product(), COMMIT, product(20, 40), COMMIT, WAIT), "wgmma", "uses %r20, %r21, %r22, %r23 of"),
        (
            (SHOW, FENCE, product(), COMMIT, product(30, 20, "m64n16k16", 8), COMMIT, WAIT),
            "wgmma",
            "uses %r30, %r31, %r32, %r33 of",
        ),
        ((SHOW, product(), COMMIT, WAIT), "wgmma", "with no wgmma.fence since"),  # before the first
        ((SHOW, FENCE, "mov.b32 %r21, %r2;", product(), COMMIT, WAIT), "wgmma", FENCED.format(21)),
        (
            (SHOW, FENCE, product(), COMMIT, WAIT, "mov.b32 %r5, %r32;", product(), COMMIT, WAIT),
            "wgmma",
            FENCED.format(32),  # to read one orders nothing
        ),
        (("bar.sync 0;", FENCE, product(), COMMIT, WAIT), "proxy", "no fence.proxy.async has shown"),
        (("bar.sync 0;", FENCE, product(), "fence.proxy.async;", COMMIT, WAIT), "proxy", "no fence.proxy.async"),
        (("fence.proxy.async;", FENCE, product(), COMMIT, WAIT, "bar.sync 0;"), "race", "no barrier between"),
        (
            (SHOW, FENCE, product(), COMMIT, "@%p1 st.shared.b32 [%r4], %r3;", WAIT),
            "wgmma",
            "writes shared memory that a wgmma in flight reads",
        ),
    ],
)
def test_what_is_found(lines: tuple[str, ...], kind: str, told: str) -> None:
    _, report = launched(*lines)
    assert kind in {finding.kind for finding in report.findings}
    assert any(told in str(finding) for finding in report.findings), report.findings
