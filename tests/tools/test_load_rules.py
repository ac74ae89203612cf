"""What breaks a rule of loads is found in an assembled kernel's loops, and nothing else is; the list is held to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports one of the tools."""
    monkeypatch.syspath_prepend(TOOLS)
    for name in ("sass", "load_rules", "known_loads", "count_tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def listing(*lines: str) -> str:
    """As nvdisasm writes it. A line is a label, or an instruction, behind which `sets N` and `waits N` name
    scoreboards; `N x line` is a line N times."""
    text = ["//---- .text.kernel ----", "kernel:", ".text.kernel:"]
    address = 0
    for line in lines:
        times, _, repeated = line.rpartition(" x ")
        for _ in range(int(times or 1)):
            words = repeated.split(" waits ") if repeated else [line]
            before, _, board = words[0].partition(" sets ")
            bits = int(board or 7) << 46 | (1 << 52 + int(words[1]) if len(words) > 1 else 0)
            if before.endswith(":"):
                text.append(before)
                continue
            text.append(f"        /*{address:04x}*/      {before} ;      /* 0x{address:016x} */")
            text.append(f"{' ' * 60}/* 0x{bits:016x} */")
            address += 16
    return "\n".join([*text, ".L_x_99:", "        /*ffff*/  BRA `(.L_x_99) ;  /* 0x0000000000000000 */"]) + "\n"


def loop(*body: str, leave: str = "@P0 BRA `(.L_x_0)") -> str:
    return listing("MOV R1, c[0x0][0x28]", ".L_x_0:", *body, leave, "EXIT")


WIDE = "LDGSTS.E.BYPASS.LTC128B.128 [R9], [R2.64]"
SMALL = "LDGSTS.E.LTC128B [R9], [R2.64]"
EIGHT = "LDGSTS.E.64 [R9], [R2.64], P2"
GROUP = "LDGDEPBAR sets 0"
PRODUCT = "HMMA.16816.F32.BF16 R4, R8, R10, R4"
LOAD = "LDG.E.128 R12, [R2.64] sets 2"
USED = "FADD R12, R12, R13 waits 2"


@pytest.mark.parametrize(
    ("body", "broken"),
    [
        ((WIDE, PRODUCT), {}),
        ((SMALL, EIGHT, PRODUCT), {"narrow copies": 2}),
        (("DEPBAR.LE SB0, 0x0", "8 x " + PRODUCT, WIDE, GROUP), {"drained copies": 1, "one buffer": 1}),
        # two buffers: the copies of the next turn are under way during the product, and then all is waited for
        (("DEPBAR.LE SB0, 0x0", WIDE, GROUP, "8 x " + PRODUCT), {"drained copies": 1}),
        # three: those of the next turn but one are
        (("DEPBAR.LE SB0, 0x1", "8 x " + PRODUCT, WIDE, GROUP), {}),
        (("DEPBAR.LE SB0, 0x2", "8 x " + PRODUCT, WIDE, GROUP, WIDE, GROUP), {}),
        # one of two operands has a single buffer
        (("DEPBAR.LE SB0, 0x1", "8 x " + PRODUCT, WIDE, GROUP, WIDE, GROUP), {"one buffer": 1}),
        ((WIDE, GROUP, WIDE, GROUP, "DEPBAR.LE SB0, 0x1", PRODUCT), {"one buffer": 1}),
        # another scoreboard's wait, and a loop that multiplies nothing
        (("DEPBAR.LE SB1, 0x0", PRODUCT, WIDE, GROUP), {}),
        (("DEPBAR.LE SB0, 0x0", WIDE, GROUP, "40 x IADD3 R1, R1, 0x1, RZ"), {}),
        (("DEPBAR.LE SB0, 0x0", WIDE, GROUP, "40 x FFMA R1, R1, R2, R3"), {"drained copies": 1}),
        # sm_100: the product runs on behind its instruction, and a barrier in memory says when it is done
        (("DEPBAR.LE SB0, 0x1", "UTCHMMA gdesc[UR4], tmem[UR6]", WIDE, GROUP, WIDE, GROUP, WIDE), {}),
        (("HGMMA.64x64x16.F32 R4, gdesc[UR4], R4, gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x0"), {"waited products": 1}),
        (("HGMMA.64x64x16.F32 R4, gdesc[UR4], R4, gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x1"), {}),
        ((LOAD, USED), {"waited loads": 1}),
        ((LOAD, LOAD, WIDE, USED), {"waited loads": 2}),
        ((LOAD, "LDG.E R3, [R2.64] sets 3", USED, "40 x FADD R1, R1, R1", "MOV R3, R3 waits 3"), {"waited loads": 1}),
        ((LOAD, PRODUCT, USED), {}),
        ((LOAD, "32 x FADD R1, R1, R1", USED), {}),
        ((LOAD, "31 x FADD R1, R1, R1", USED), {"waited loads": 1}),
        # the next turn's: waited for where the loop begins again
        ((USED, "40 x FADD R1, R1, R1", LOAD), {"waited loads": 1}),
        ((USED, LOAD, "40 x FADD R1, R1, R1"), {}),
        # nothing in the loop waits for it
        ((LOAD, "FADD R1, R1, R1"), {}),
    ],
)
def test_a_loop_that_breaks_a_rule_is_found(tools: Any, body: tuple[str, ...], broken: dict[str, int]) -> None:
    assert tools("load_rules").read(loop(*body)) == broken


def test_what_lies_in_no_loop_breaks_no_rule(tools: Any) -> None:
    straight = (SMALL, GROUP, "DEPBAR.LE SB0, 0x0", LOAD, USED, "HGMMA.64x64x16.F32 R4, gdesc[UR4], R4, gsb0")
    assert tools("load_rules").read(listing(*straight, "WARPGROUP.DEPBAR.LE gsb0, 0x0", "EXIT")) == {}
    drained = listing(".L_x_0:", WIDE, PRODUCT, "@P0 BRA `(.L_x_0)", "DEPBAR.LE SB0, 0x0", LOAD, USED, "EXIT")
    assert tools("load_rules").read(drained) == {}


def test_copies_before_an_inner_loop_and_the_drain_behind_it_are_not_the_outer_ones(tools: Any) -> None:
    inner = (".L_x_1:", "DEPBAR.LE SB0, 0x1", PRODUCT, WIDE, GROUP, "@P1 BRA `(.L_x_1)")
    outer = listing(".L_x_0:", SMALL, GROUP, WIDE, GROUP, *inner, "DEPBAR.LE SB0, 0x0", "@P0 BRA `(.L_x_0)", "EXIT")
    assert tools("load_rules").read(outer) == {"narrow copies": 1}


def test_a_loop_is_followed_through_its_branches(tools: Any) -> None:
    # left by a call that does not return, with a branch inside; a spinning wait is put behind the kernel's end
    body = (
        ".L_x_0:",
        "@!P3 BRA `(.L_x_2)",
        LOAD,
        ".L_x_2:",
        "@!P1 BRA `(.L_x_3)",
        ".L_x_4:",
        USED,
        "@P0 CALL.REL.NOINC `(.L_x_5)",
        "BRA `(.L_x_0)",
        ".L_x_5:",
        "EXIT",
        ".L_x_3:",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2",
        "@!P1 BRA `(.L_x_3)",
        "BRA `(.L_x_4)",
    )
    found = tools("sass").loops(listing(*body))
    assert [(len(one.body), one.innermost) for one in found] == [(9, True)]
    assert tools("load_rules").read(listing(*body)) == {"waited loads": 1}


def test_the_first_case_of_each_kernel_type_and_configuration_is_read(tools: Any) -> None:
    def case(name: str, shape: str, stages: int = 2) -> Any:
        return SimpleNamespace(
            name=name, shape=shape, constants={"WIDTH": 9, "BLOCK_K": 8}, options={"num_stages": stages}
        )

    first = [case("a.x", "bf16, 3"), case("a.x", "bf16, 5", stages=3), case("a.x", "fp32"), case("b.y", "4")]
    cases = [case("a.x", "fp16, 3"), first[0], case("a.x", "bf16, 4"), *first[1:]]
    assert tools("load_rules").representatives(cases) == first
    assert tools("load_rules").dtype_of("uint8 to fp32 (default)") == "fp32"


@pytest.mark.parametrize(
    ("sectors", "wavefronts", "broken"),
    [
        ((125, 100), (150, 100), {}),
        ((126, 100), (0, 0), {"sectors": 1.26}),
        ((1_251, 1_000), (1_501, 1_000), {"sectors": 1.26, "wavefronts": 1.51}),
    ],
)
def test_a_launch_that_moves_too_much_is_found(
    tools: Any, sectors: tuple[int, int], wavefronts: tuple[int, int], broken: dict[str, float]
) -> None:
    moved = (sectors[0], sectors[1], wavefronts[0], wavefronts[1])
    row = tools("count_tables").CountRow("a.x", "", 1, 4, 8, 0, 0, *moved, 0, [], "rows 3, bf16", 80)
    assert tools("load_rules").count(row) == broken


@pytest.fixture
def listed(tools: Any) -> tuple[Any, Any]:
    """The list's module, and makes what a tool has found of kernel `a.x`, of which it looked at sm_80 and sm_90."""
    known = tools("known_loads")

    def found(**broken: dict[str, float]) -> Any:
        named = {("a.x", "bf16", rule.replace("_", " ")): numbers for rule, numbers in broken.items()}
        return known.Found(("narrow copies", "one buffer"), lambda k, p: k == "a.x" and p != "sm_100", named)

    return known, found


def test_what_is_not_in_the_list_or_more_than_there_is_refused(listed: tuple[Any, Any]) -> None:
    known, found = listed
    entries = [known.Entry("a.x", "bf16", "narrow copies", {"sm_80": 4, "sm_90": 4}, "the mask")]
    as_listed = found(narrow_copies={"sm_80": 4, "sm_90": 4})
    assert [*known.refused(entries, as_listed), *known.outdated(entries, as_listed)] == []
    grown = list(known.refused(entries, found(narrow_copies={"sm_80": 5, "sm_90": 4}, one_buffer={"sm_80": 1})))
    assert [line.split(" (the rule")[0] for line in grown] == [
        "a.x (sm_80): 5 narrow copies, 4 in loads.json",
        "a.x (sm_80): 1 one buffer, none in loads.json",
    ]


def test_what_is_less_or_gone_has_to_be_written(listed: tuple[Any, Any]) -> None:
    known, found = listed
    entries = [
        known.Entry("a.x", "bf16", "narrow copies", {"sm_80": 4, "sm_90": 4, "sm_100": 4}, "the mask"),
        known.Entry("a.x", "bf16", "one buffer", {"sm_80": 1}, "shared memory"),
        known.Entry("a.x", "bf16", "sectors", {"rows 3, bf16, sm_80": 1.3}, "of the other tool"),
        known.Entry("b.y", "", "narrow copies", {"sm_80": 4}, "of another file"),
    ]
    better = found(narrow_copies={"sm_80": 2})
    assert list(known.refused(entries, better)) == []
    assert [line.split(" (", 1)[1] for line in known.outdated(entries, better)] == [
        "sm_80): 2 narrow copies, 4 in loads.json: write it (UPDATE=1)",
        "sm_90): 0 narrow copies, 4 in loads.json: write it (UPDATE=1)",
        "sm_80): 0 one buffer, 1 in loads.json: write it (UPDATE=1)",
    ]
    merged = known.merged(entries, better)
    assert [(e.kernel, e.rule, e.numbers) for e in merged] == [
        ("a.x", "narrow copies", {"sm_100": 4, "sm_80": 2}),
        ("a.x", "sectors", {"rows 3, bf16, sm_80": 1.3}),
        ("b.y", "narrow copies", {"sm_80": 4}),
    ]
    assert list(known.outdated(merged, better)) == []


def test_what_is_new_is_written_without_a_reason_and_refused_until_it_has_one(
    listed: tuple[Any, Any], tmp_path: Path
) -> None:
    known, found = listed
    new = found(one_buffer={"sm_80": 1})
    known.write(tmp_path / "loads.json", known.merged([], new))
    entries = known.read(tmp_path / "loads.json")
    assert entries == [known.Entry("a.x", "bf16", "one buffer", {"sm_80": 1}, "")]
    assert list(known.outdated(entries, new)) == ["loads.json: expected a reason why a.x (bf16) has one buffer"]


def test_the_committed_list_is_in_the_page_and_explained(tools: Any) -> None:
    known = tools("known_loads")
    folder = TOOLS.parent / "docs" / "kernels"
    entries = known.read(folder / known.NAME)
    assert entries == sorted(entries, key=lambda entry: entry.key)
    assert all(entry.reason and entry.numbers for entry in entries)
    assert "\n".join(known.table(entries)) in (folder / "resources.md").read_text(encoding="utf-8")
