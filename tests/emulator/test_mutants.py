"""A sample of mutants: what is removed or moved is noticed, or makes no difference for a reason that is found."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_place import EMULATED

from pixelrefer_fast.bench.run import arguments
from pixelrefer_fast.ops import registry

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not EMULATED, reason="needs compiled kernels in the emulator: make emulate"),
]

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.delitem(sys.modules, "mutants", raising=False)
    return importlib.import_module("mutants")


def tried(mutants: Any, op: str, sizes: dict[str, Any], step: int) -> list[Any]:
    given = arguments.make(op, torch.device("cpu"), torch.bfloat16, sizes)
    with torch.inference_mode(), mutants.Trial(2, lambda: op, step) as trial:
        registry()[op](*given, backend="triton")
    return [outcome for own in trial.outcomes.values() for outcome in own]


@pytest.mark.parametrize(
    ("op", "sizes"), [("add_norm", {"rows": 2, "width": 1024}), ("rope2d", {"patches": 16, "heads": 2})]
)
def test_every_mutant_of_a_small_kernel_is_noticed(mutants: Any, op: str, sizes: dict[str, Any]) -> None:
    outcomes = tried(mutants, op, sizes, 1)
    removed = [o for o in outcomes if o.mutant.what == "barrier removed"]
    assert removed
    assert {o.by for o in removed} == {"race"}
    assert [o.mutant.instruction.text for o in outcomes if o.by == mutants.SURVIVED] == []


def test_waits_and_copies_of_a_pipeline(mutants: Any) -> None:
    """Every fourth mutant of the kernels of one infusion."""
    outcomes = tried(mutants, "infuse", {"rows": 192, "width": 256, "heads": 2, "tokens": 64}, 4)
    assert len(outcomes) > 10
    assert {"race", "in flight"} <= {kind for o in outcomes for kind in o.by.split(", ")}
    # after the last turn of a loop it is waited for copies that nobody reads
    unread = {"cp.async.wait_group 0"}
    assert {o.mutant.instruction.text for o in outcomes if o.by == mutants.SURVIVED and not o.message} <= unread
