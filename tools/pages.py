"""The blocks of a page: what is typed, what is printed after it, and what says that a block is not run.

A comment in the line before a block tells who runs it, or why nobody does:

    <!-- not run: REASON -->
    <!-- run by: make TARGET -->            in that target's environment; `make test` leaves it out
    <!-- goes on until: TEXT -->            a command that does not end: what follows waits for this text

Commands stand in blocks of `console`, each behind "$ "; what follows is printed, and "..." in it stands for anything. A
block of `text` right after one of `python` is what that prints. Only the standard library is needed here.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {  # pages of the site that lie outside docs/, and their names there
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "emulator/README.md": "emulator.md",
}
MARKS = ("not run", "run by", "goes on until")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
MARK = re.compile(r"<!-- ([a-z ]+): *(.*?) *-->")
RUN = ("python", "console")
SHELLS = ("sh", "bash", "shell", "pycon")  # not written here: one convention is enough


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of the page, from 1, where its contents begin.
        language: the word behind its fence.
        body: its contents, without the indentation of a list.
        printed: the block of text that follows it directly, if one does.
        marks: what comments in the lines before it say, by their first words.
    """

    line: int
    language: str
    body: str
    printed: str | None
    marks: dict[str, str]

    @property
    def reason(self) -> str | None:
        """Why it is not run; None if it is."""
        return self.marks.get("not run")

    @property
    def target(self) -> str | None:
        """The make target that runs it; None if the tests of the package itself do."""
        return self.marks["run by"].removeprefix("make ") if "run by" in self.marks else None


@dataclass(frozen=True)
class Command:
    """A command line, and what the page says it prints ("" where the page says nothing)."""

    typed: str
    printed: str

    @property
    def installs(self) -> bool:
        return self.typed.startswith("pip install ")


def place(uri: str) -> str:
    """Where a page of the site lies in the repository."""
    for path, name in OUTSIDE.items():
        if name == uri:
            return path
    return f"docs/{uri.removesuffix('.md')}.ipynb" if uri.startswith("notebooks/") else f"docs/{uri}"


def shown() -> list[str]:
    """The pages of the site by their paths in the repository, in the order of its navigation."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    return [place(uri) for uri in re.findall(r"(\S+\.md)$", navigation, re.M)]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        ValueError: a mark is unknown or empty, or stands before nothing that runs.
    """
    found: list[Block] = []
    fences = list(FENCE.finditer(text))
    for at, fence in enumerate(fences):
        following = fences[at + 1] if at + 1 < len(fences) else None
        printed = None
        if following is not None and following[2] == "text" and not text[fence.end() : following.start()].strip():
            printed = textwrap.dedent(following[3])
        line = text.count("\n", 0, fence.start()) + 2
        found.append(Block(line, fence[2], textwrap.dedent(fence[3]), printed, marks(text[: fence.start()], line - 1)))
        if found[-1].marks and fence[2] not in RUN:
            raise ValueError(f"line {line}: expected a block of {' or '.join(RUN)} after a mark, got {fence[2]!r}")
    told = sum(len(block.marks) for block in found)
    written = [mark for mark in MARK.finditer(FENCE.sub("", text)) if mark[1] in MARKS]
    if told != len(written):
        raise ValueError(f"expected every mark directly before a block, got {len(written)} marks and {told} at blocks")
    return found


def marks(before: str, line: int) -> dict[str, str]:
    """What the comments say that stand directly before a line."""
    found: dict[str, str] = {}
    for text in reversed(before.splitlines()):
        mark = MARK.fullmatch(text.strip())
        if mark is None:
            break
        if mark[1] not in MARKS:
            raise ValueError(f"line {line}: expected one of {', '.join(MARKS)} in a mark, got {mark[1]!r}")
        if len(mark[2].split()) < 2:
            raise ValueError(f"line {line}: expected some words after {mark[1]!r}, got {mark[2]!r}")
        found[mark[1]] = mark[2]
    return found


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block of `console`.

    Raises:
        ValueError: it begins with something else.
    """
    first, *parts = re.split(r"^\$ ", block.body, flags=re.M)
    if first.strip():
        raise ValueError(f"line {block.line}: expected '$ ' before what is typed, got {first.splitlines()[0]!r}")
    for part in parts:
        lines = part.splitlines(keepends=True)
        here = re.search(r"<<'?(\w+)'?$", lines[0].rstrip())
        if here is not None:
            count = lines.index(here[1] + "\n") + 1
        else:
            count = next(i for i, line in enumerate(lines, 1) if not line.rstrip().endswith("\\"))
        typed = "".join(lines[:count])
        yield Command(re.sub(r"  +#.*", "", typed).strip(), "".join(lines[count:]))


def matches(printed: str, found: str) -> bool:
    """Whether this came out; "..." stands for anything."""
    pattern = re.escape(printed.strip()).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, found.strip(), re.S) is not None


def written_otherwise(text: str) -> list[str]:
    """Lines that look like commands and are in no block of `console`: indented, or in another shell's block."""
    bare = FENCE.sub(lambda fence: "" if fence[2] not in SHELLS else fence[0], text)
    names = r"(?:\$ |pixelrefer-fast |python3? |pip |make |pytest |torchrun |vllm |nsys |ncu |curl |COMMIT=)"
    return re.findall(rf"^ {{4,}}{names}.*|^```(?:{'|'.join(SHELLS)})$", bare, re.M)
