"""PTX text to kernels: entries with their parameters, registers, shared variables, labels and instructions.

The syntax is that of the PTX ISA, "Syntax" and "Directives". What is parsed is what LLVM and nvcc write: entries,
module-scope and entry-scope variables, blocks with registers of their own (inline assembly), and `.loc` comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .faults import Fault
from .scalar_types import DTYPES

_LABEL = re.compile(r"([$\w]+):(?!:)\s*(.*)", re.S)
_LOCATION = re.compile(r"\s*\.loc\s[^/]*//\s*(\S+)")
_GUARD = re.compile(r"@(!?)([%$\w]+)\s+(.*)", re.S)
_NAME = re.compile(r"(?<![\w%$])[%$\w]+")
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", re.S)
_VARIABLE = re.compile(r"(?:\.extern\s+)?\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(\[(\d*)\])?")


@dataclass(frozen=True)
class Address:
    """[base + offset]: a register, a parameter or a variable, or no base at all."""

    base: str
    offset: int = 0


Operand = str | Address | tuple[str, ...]


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: its first part: "mul".
        modifiers: the others: ("lo", "s32").
        operands: destination first: names and literals, tuples of them, addresses.
        guard: (predicate register, negated), or None.
        line: of the PTX text, from 1.
        source: "file.py:line:column" of the last `.loc`, or "".
        text: as written, registers of inner blocks renamed.
    """

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: tuple[str, bool] | None
    line: int
    source: str
    text: str

    @property
    def name(self) -> str:
        """All of the opcode: "mul.lo.s32"."""
        return ".".join((self.opcode, *self.modifiers))


@dataclass(frozen=True)
class Parameter:
    """A parameter: its type ("b8" for an aggregate), and where it lies in the parameter space, in bytes."""

    kind: str
    offset: int
    size: int


@dataclass(eq=False)
class Kernel:
    """One entry.

    Attributes:
        name: of the entry.
        parameters: by name, in order.
        registers: name -> dtype.
        shared: variable -> offset in the block's shared memory; the dynamic part comes last.
        static_shared: bytes of all but the dynamic part.
        threads: (x, y, z) of a block if the PTX requires or bounds them, else None.
        code: instructions.
        labels: name -> index into `code`.
    """

    name: str
    parameters: dict[str, Parameter]
    registers: dict[str, np.dtype]
    shared: dict[str, int]
    static_shared: int
    threads: tuple[int, int, int] | None
    code: list[Instruction]
    labels: dict[str, int]


@dataclass
class Module:
    """A PTX file: its kernels by name."""

    kernels: dict[str, Kernel] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Kernel:
        """A kernel by its name or by a part of it that only one has (C++ names are mangled)."""
        if name in self.kernels:
            return self.kernels[name]
        found = [k for n, k in self.kernels.items() if name in n]
        if len(found) != 1:
            raise ValueError(
                f"kernel: expected a name or a part of one of {', '.join(self.kernels)}, got {name!r}"[:200]
            )
        return found[0]


def parse(ptx: str) -> Module:
    """Parse a PTX file.

    Raises:
        Fault: it has no entry, or one that is not ended.
    """
    module = Module()
    heads = list(_ENTRY.finditer(ptx))
    if not heads:
        raise Fault("the PTX has no entry")
    # variables outside entries: everything up to the first entry
    outer = _SharedLayout()
    for statement in _statements(ptx[: heads[0].start()]):
        outer.declare(statement)
    for head in heads:
        threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)(?:,\s*(\d+))?(?:,\s*(\d+))?", head[3])
        x, y, z = (int(n or 1) for n in threads.groups()) if threads else (0, 0, 0)
        reader = _Reader(outer.copy())
        reader.read(ptx[head.end() :], ptx.count("\n", 0, head.end()) + 1)
        module.kernels[head[1]] = Kernel(
            head[1],
            _parameters(head[2]),
            reader.registers,
            reader.shared.offsets(),
            reader.shared.size,
            (x, y, z) if threads else None,
            reader.code,
            reader.labels,
        )
    return module


def _statements(text: str) -> Iterator[str]:
    text = re.sub(r"//[^\n]*", "", text)
    yield from (part.strip() for part in text.split(";") if part.strip())


def _parameters(text: str) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    end = 0
    for part in filter(None, (p.strip() for p in text.split(","))):
        kind = re.search(r"\.(pred|[bsuf]\d+)\b", part)
        named = re.search(r"([\w$]+)(?:\[(\d+)\])?$", part)
        if kind is None or named is None:
            raise Fault(f"a parameter that is not understood: {part}")
        item = DTYPES[kind[1]].itemsize
        align = re.search(r"\.align\s+(\d+)\s+\.b8", part)
        unit = int(align[1]) if align else item
        start = -(-end // unit) * unit
        end = start + item * int(named[2] or 1)
        found[named[1]] = Parameter(kind[1], start, end - start)
    return found


class _SharedLayout:
    """Offsets of shared variables in the order they are declared; external ones begin where the others end."""

    def __init__(self) -> None:
        self.static: dict[str, int] = {}
        self.dynamic: list[str] = []
        self.size = 0

    def copy(self) -> _SharedLayout:
        other = _SharedLayout()
        other.static, other.dynamic, other.size = dict(self.static), list(self.dynamic), self.size
        return other

    def declare(self, statement: str) -> None:
        found = _VARIABLE.search(statement)
        if found is None:
            return
        align, kind, name, array, count = found.groups()
        if array and not count:
            self.dynamic.append(name)
            return
        item = DTYPES[kind].itemsize
        unit = int(align or item)
        start = -(-self.size // unit) * unit
        self.static[name] = start
        self.size = start + item * int(count or 1)

    def offsets(self) -> dict[str, int]:
        start = -(-self.size // 16) * 16
        return self.static | dict.fromkeys(self.dynamic, start)


class _Reader:
    """Reads the body of one entry."""

    def __init__(self, shared: _SharedLayout) -> None:
        self.shared = shared
        self.registers: dict[str, np.dtype] = {}
        self.code: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self._scopes: list[dict[str, str]] = []
        self._renamed = 0

    def read(self, body: str, first_line: int) -> None:
        source, pending, begun = "", "", first_line
        for line, raw in enumerate(body.split("\n"), first_line):
            if located := _LOCATION.match(raw):
                source = located[1]
                continue
            text = raw.split("//")[0].strip()
            if text.startswith((".loc", ".file", ".section", ".pragma")) and not pending:
                continue
            if not pending:
                begun = line
            pending = f"{pending} {text}".strip()
            while pending:
                if (label := _LABEL.match(pending)) is not None:
                    self.labels[label[1]] = len(self.code)
                    pending = label[2]
                elif pending[0] == "{":
                    self._scopes.append({})
                    pending = pending[1:].lstrip()
                elif pending[0] == "}":
                    if not self._scopes:
                        return
                    self._scopes.pop()
                    pending = pending[1:].lstrip()
                else:
                    statement, ended, rest = pending.partition(";")
                    if not ended:
                        break
                    self._statement(statement.strip(), begun, source)
                    pending, begun = rest.lstrip(), line
        raise Fault("an entry of the PTX is not ended")

    def _statement(self, text: str, line: int, source: str) -> None:
        if text.startswith(".reg"):
            self._declare(text)
        elif text.startswith(".shared"):
            self.shared.declare(text)
        elif text.startswith(".local"):
            raise Fault(f"PTX line {line}: local memory is not emulated: {text}")
        elif text and not text.startswith("."):
            self.code.append(self._instruction(self._rename(text), line, source))

    def _declare(self, text: str) -> None:
        kind, names = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S).groups()  # type: ignore[union-attr]
        for name in (n.strip() for n in names.split(",")):
            if several := re.fullmatch(r"(%?[\w$]+)<(\d+)>", name):
                self.registers |= {f"{several[1]}{i}": DTYPES[kind] for i in range(int(several[2]))}
                continue
            own = name
            if self._scopes:
                self._renamed += 1
                own = f"{name}_{self._renamed}_inner"
                self._scopes[-1][name] = own
            self.registers[own] = DTYPES[kind]

    def _rename(self, text: str) -> str:
        inner = {name: own for scope in self._scopes for name, own in scope.items()}
        return _NAME.sub(lambda m: inner.get(m[0], m[0]), text) if inner else text

    @staticmethod
    def _instruction(text: str, line: int, source: str) -> Instruction:
        guard, rest = None, text
        if guarded := _GUARD.fullmatch(text):
            guard, rest = (guarded[2], guarded[1] == "!"), guarded[3]
        name, *operands = rest.split(None, 1)
        opcode, *modifiers = name.split(".")
        parsed = tuple(_operand(part) for part in _split(operands[0])) if operands else ()
        return Instruction(opcode, tuple(modifiers), parsed, guard, line, source, " ".join(text.split()))


def _split(text: str) -> list[str]:
    """Operands, at the commas outside braces and brackets."""
    parts = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s{[][^,{[]*", text)
    return [part.strip() for part in parts]


def _operand(text: str) -> Operand:
    if text[0] == "{":
        return tuple(part.strip() for part in text[1:-1].split(","))
    if text[0] == "[":
        found = re.fullmatch(r"\[\s*([%$\w]+)\s*(?:([+-])\s*(-?\d+)\s*)?\]", text)
        if found is None:
            raise Fault(f"an address that is not understood: {text}")
        base, sign, offset = found.groups()
        if base.isdigit():
            return Address("", int(base))
        return Address(base, int(offset or 0) * (-1 if sign == "-" else 1))
    return text
