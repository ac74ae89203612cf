"""A prepared launch runs the very kernel that Triton would choose, and Triton launches where somebody looks on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from kernel_place import EMULATED

from pixelrefer_fast.kernels import _prepared
from pixelrefer_fast.kernels._launch import PINNED, launch

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not EMULATED, reason="needs compiled kernels in the emulator: make emulate"),
]

_STEP = tl.constexpr(1)
SCALE, FREE = 0.5, 3


@triton.jit(do_not_specialize=["free"])
def _scaled(x, out, count, free, scale, BLOCK: tl.constexpr, TWICE: tl.constexpr = False):
    place = tl.arange(0, BLOCK)
    value = tl.load(x + place, mask=place < count, other=0).to(tl.float32) * scale + free + _STEP
    if TWICE:
        value *= 2
    tl.store(out + place, value, mask=place < count)


@pytest.fixture(autouse=True)
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(_prepared, "_kernels", {})
    _prepared.counts.clear()
    yield _prepared.counts
    _scaled.pre_run_hooks.clear()


def _run(x: torch.Tensor, out: torch.Tensor, count: int, free: int, scale: float, **constants: Any) -> None:
    launch(_scaled, "scratch.scaled", (1,), x, out, count, free, scale, **constants)
    size = min(count, len(out))
    expected = (x[:size].float() * scale + free + 1) * (2 if constants.get("TWICE") else 1)
    assert torch.equal(out[:size].float(), expected)


def _calls() -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """The first, and others that differ from it in one thing that Triton compiles for."""
    x, out = torch.arange(48.0), torch.zeros(48)
    first: list[Any] = [x[:32], out[:32], 16, FREE, SCALE]
    found: dict[str, tuple[list[Any], dict[str, Any]]] = {"first": (first, {"BLOCK": 32})}
    for what, place, value in (
        ("dtype of one", 0, x[:32].half()),
        ("dtype of the other", 1, out[:32].half()),
        ("address of one", 0, x[1:33]),
        ("address of the other", 1, out[1:33]),
        ("no multiple of 16", 2, 17),
        ("one", 2, 1),
        ("more than 32 bits", 2, 2**31),
        ("unspecialised integer of 64 bits", 3, 2**33),
        ("a float for an unspecialised integer", 3, 3.0),
        ("an integer for a float", 4, 2),
    ):
        found[what] = ([*first[:place], value, *first[place + 1 :]], {"BLOCK": 32})
    found["address of both"] = ([x[1:33], out[1:33], *first[2:]], {"BLOCK": 32})
    for what, constants in (
        ("block", {"BLOCK": 64}),
        ("flag", {"BLOCK": 32, "TWICE": True}),
        ("warps", {"BLOCK": 32, "num_warps": 2}),
        ("stages", {"BLOCK": 32, "num_stages": 1}),
        ("option that is pinned", {"BLOCK": 32, "enable_fp_fusion": False}),
    ):
        found[what] = (first, constants)
    return found


def test_what_differs_in_one_thing_runs_the_kernel_that_triton_chooses(counts: Any) -> None:
    calls = _calls()
    left = {"more than 32 bits", "unspecialised integer of 64 bits"}
    for _ in range(2):
        for args, constants in calls.values():
            _run(*args, **constants)
    prepared = len(calls) - len(left)
    assert counts == {"first of its key": prepared, "prepared": prepared, "arguments of other kinds": 2 * len(left)}
    known, chosen = _prepared._kernels[id(_scaled)], {}
    for what, (args, constants) in calls.items():
        key = known.key(_prepared.driver.active, 0, args, constants)
        assert (key is None) == (what in left)
        compiled = _scaled[(1,)](*args, **{**PINNED, **constants})
        chosen[what] = id(compiled)
        if key is not None:
            assert known.forms[key].compiled is compiled, what
    assert len(set(chosen.values())) == len(calls)


def test_another_value_of_the_same_kind_is_prepared(counts: Any) -> None:
    (x, out, *_), constants = _calls()["first"]
    _run(x, out, 16, FREE, SCALE, **constants)
    _run(x + 1, out, 32, 16, 0.25, **constants)  # 16 is specialised nowhere else
    _run(x + 1, out, 16, 1, 1.0, **constants)
    assert counts == {"first of its key": 1, "prepared": 2}


def test_other_devices_and_drivers_have_keys_of_their_own() -> None:
    args, constants = _calls()["first"]
    kernel, active = _prepared.PreparedKernel(_scaled), _prepared.driver.active
    keys = {
        kernel.key(one, device, args, constants)
        for one, device in ((active, 0), (active, 1), (type(active)(active.arch), 0))
    }
    assert len(keys) == 3


def test_hooks_hear_of_every_launch(counts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    args, constants = _calls()["first"]
    _run(*args, **constants)
    heard: list[int] = []
    _scaled.add_pre_run_hook(lambda *args, **kwargs: heard.append(args[2]))
    _run(*args, **constants)
    _run(*args, **constants)
    assert heard == [16, 16]
    assert counts == {"first of its key": 1, "the kernel has a hook": 2}
    _scaled.pre_run_hooks.clear()
    monkeypatch.setattr(triton.knobs.runtime, "launch_exit_hook", lambda metadata: None)
    _run(*args, **constants)
    assert counts["a hook hears of launches"] == 1
    monkeypatch.undo()
    counts.clear()
    monkeypatch.setattr(triton.knobs.runtime, "debug", True)
    launch(_scaled, "scratch.scaled", (1,), *args, **constants)
    assert counts == {"a debugging mode of Triton": 1}


def test_a_variable_that_the_kernel_reads_may_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    args, constants = _calls()["first"]
    _run(*args, **constants)
    monkeypatch.setitem(globals(), "_STEP", tl.constexpr(2))
    with pytest.raises(RuntimeError, match="_STEP has changed"):
        launch(_scaled, "scratch.scaled", (1,), *args, **constants)
