"""The committed list of what breaks a rule of loads (`tools/load_rules.py`), and what has to be done about the others.

`docs/kernels/loads.json` has an entry for each kernel, element type and rule: how much of it there is where, and why it
is so. `tools/compile_check.py` and `tools/kernel_counts.py` hold kernels to it, each to its own rules: what is in no
entry or more than there is refused, what is less or gone has to be written, and an entry without a reason is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

NAME = "loads.json"


@dataclass(frozen=True)
class Entry:
    """A rule that a kernel breaks.

    Attributes:
        kernel: `file.kernel`.
        dtype: "bf16" or "fp32"; "" of a kernel that has no types to choose from.
        rule: as in `load_rules`.
        numbers: by case or call and architecture: how often, or how many times the ideal.
        reason: in a line.
    """

    kernel: str
    dtype: str
    rule: str
    numbers: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kernel, self.dtype, self.rule


@dataclass(frozen=True)
class Found:
    """What a tool has read.

    Attributes:
        rules: that it reads.
        covers: whether it has looked at a kernel in a place.
        broken: of (kernel, element type, rule) in which places how much.
    """

    rules: Sequence[str]
    covers: Callable[[str, str], bool]
    broken: Mapping[tuple[str, str, str], Mapping[str, float]]


def gather(
    broken: Iterable[tuple[tuple[str, str, str], str, float]],
) -> dict[tuple[str, str, str], dict[str, float]]:
    """Of (key, place, number) the largest number of each place."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for key, place, number in broken:
        numbers = found.setdefault(key, {})
        numbers[place] = max(number, numbers.get(place, 0))
    return found


def read(path: Path) -> list[Entry]:
    return [Entry(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def write(path: Path, entries: Iterable[Entry]) -> None:
    """A line for each entry."""
    lines = ",\n".join(json.dumps(asdict(entry)) for entry in sorted(entries, key=lambda entry: entry.key))
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def refused(known: Sequence[Entry], found: Found) -> Iterator[str]:
    """What is new or grew."""
    before = {entry.key: entry.numbers for entry in known}
    for key, numbers in found.broken.items():
        for place, number in numbers.items():
            was = before.get(key, {}).get(place)
            if was is None or number > was:
                listed = f"{was:g} in {NAME}" if was is not None else f"none in {NAME}"
                yield f"{_shown(key, place)}: {_much(key[2], number)}, {listed} (the rule: tools/load_rules.py)"


def outdated(known: Sequence[Entry], found: Found) -> Iterator[str]:
    """What became less or is gone, and what nobody has explained."""
    for entry in known:
        if entry.rule not in found.rules:
            continue
        if not entry.reason:
            yield f"{NAME}: expected a reason why {entry.kernel} ({entry.dtype}) has {entry.rule}"
        for place, was in entry.numbers.items():
            now = found.broken.get(entry.key, {}).get(place, 0)
            if found.covers(entry.kernel, place) and now < was:
                yield f"{_shown(entry.key, place)}: {_much(entry.rule, now)}, {was:g} in {NAME}: write it (UPDATE=1)"


def merged(known: Sequence[Entry], found: Found) -> list[Entry]:
    """The list with what was found, without what is gone. What is new has no reason yet."""
    before = {entry.key: entry for entry in known}
    entries = []
    for key in dict.fromkeys([*before, *found.broken]):
        entry = before.get(key, Entry(*key))
        kept = {p: n for p, n in entry.numbers.items() if key[2] not in found.rules or not found.covers(key[0], p)}
        numbers = kept | dict(found.broken.get(key, {}))
        if numbers:
            entries.append(Entry(*key, dict(sorted(numbers.items())), entry.reason))
    return entries


def table(entries: Sequence[Entry]) -> Iterator[str]:
    """A section of the page of kernels."""
    yield from (
        "",
        "## Loads that break a rule",
        "",
        "The rules are those of `tools/load_rules.py`. All else keeps them, and these their numbers: how often, or",
        "for sectors and wavefronts how many times the ideal (`loads.json`: in each case and call).",
        "",
        "| kernel | rule | number | why |",
        "| :--- | :--- | ---: | :--- |",
    )
    for entry in entries:
        numbers = " to ".join(dict.fromkeys(f"{of(entry.numbers.values()):g}" for of in (min, max)))
        kernel = f"{entry.kernel}, {entry.dtype}" if entry.dtype else entry.kernel
        yield f"| {kernel} | {entry.rule} | {numbers} | {entry.reason} |"


def _shown(key: tuple[str, str, str], place: str) -> str:
    return f"{key[0]} ({place})"


def _much(rule: str, number: float) -> str:
    return f"{number:g} {rule}" if isinstance(number, int) or not number else f"{number:g} times the ideal {rule}"
