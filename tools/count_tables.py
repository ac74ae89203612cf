"""Counts of kernels as they run: rows, their file, their tables, and what is worse than before.

`tools/kernel_counts.py` makes the rows; `tools/compile_check.py` puts their tables beside registers and spills.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pixelrefer_fast.bench.profile.counted import KernelCounts

# what may not grow: name, and how it is called
MEASURES = {
    "instructions": "instructions",
    "barriers": "barriers",
    "products": "matrix products",
    "waits": "waits for loads",
    "sectors": "sectors",
    "wavefronts": "shared-memory wavefronts",
}
SLACK = {"instructions": 0.01}  # parts that count for nothing: the compiler chooses other ones for the same thing
LOOPS = 3  # of a kernel that a table shows


@dataclass(frozen=True)
class CountRow(KernelCounts):
    """Of one call, for one architecture.

    Attributes:
        call: of what: operation, sizes and element type.
        arch: 80 or 90.
        loops: as there; where one stands is "" in the committed table, which no comment changes.
    """

    call: str
    arch: int

    def without_lines(self) -> CountRow:
        """As it is committed."""
        return replace(self, loops=[["", *loop[1:]] for loop in self.loops])

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.kernel, self.call, self.configuration, self.arch

    def __str__(self) -> str:
        return f"{self.kernel} ({self.call}; {self.configuration}) on sm_{self.arch}"


def worse(row: CountRow, before: CountRow) -> Iterator[str]:
    """What a kernel's launches take more of than before."""
    for name, shown in MEASURES.items():
        now, was = getattr(row, name), getattr(before, name)
        if now > was * (1 + SLACK.get(name, 0.0)):
            yield f"{row}: {now:,} {shown}, {was:,} before"


def read(path: Path) -> tuple[str, dict[str, str], list[CountRow]]:
    """Triton's version, hashes of the kernels' files, and the rows; nothing where there is no file."""
    if not path.is_file():
        return "", {}, []
    table = json.loads(path.read_text(encoding="utf-8"))
    return table["triton"], table["sources"], [CountRow(**row) for row in table["rows"]]


def write(path: Path, triton_version: str, sources: dict[str, str], rows: Sequence[CountRow]) -> None:
    """A line for each row."""
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    head = f'"triton": {json.dumps(triton_version)}, "sources": {json.dumps(dict(sorted(sources.items())))}'
    path.write_text(f'{{{head}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")


HEADINGS = ("call", "configuration", "sm", "warps", "instructions", "barriers", "products", "waits")
HEADINGS += ("sectors, of the ideal", "wavefronts, of the ideal", "loops: instructions, barriers, products, turns")


def table(rows: Sequence[CountRow]) -> list[str]:
    """A Markdown table of the rows of one kernel; what warps do is told of one warp."""
    text = ["| " + " | ".join(HEADINGS) + " |", "| :--- | :--- |" + " ---: |" * 8 + " :--- |"]
    return text + ["| " + " | ".join(_cells(row)) + " |" for row in rows]


def _cells(row: CountRow) -> Iterator[str]:
    yield from (row.call, row.configuration, str(row.arch), f"{row.warps:,}")
    for name in ("instructions", "barriers", "products", "waits"):
        yield _short(getattr(row, name) / max(row.warps, 1))
    for name in ("sectors", "wavefronts"):
        moved, ideal = getattr(row, name), getattr(row, f"ideal_{name}")
        yield f"{moved:,}, {moved / ideal:.2f}" if ideal else "0"
    yield "; ".join(_loop(loop, row.warps) for loop in row.loops[:LOOPS]) or "none"


def _loop(loop: list[str | int], warps: int) -> str:
    source, instructions, barriers, products, turns = loop
    where = f"{source}: " if source else ""
    return f"{where}{instructions}, {barriers}, {products}, {_short(int(turns) / max(warps, 1))}x"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
