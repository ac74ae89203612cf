"""The import graph of the package, drawn from its sources, and the order that it is held to.

    python tools/layers.py               # this checkout
    python tools/layers.py ../another    # any checkout, of any time

Prints the rooms (top folders and top files), floors (the longest way down), arrows, circles, and arrows that run up.
An import counts wherever it stands: when a module is imported, inside a function, or for type checkers only.
Nothing is imported, so the standard library is enough; tests/test_layers.py fails on what this finds.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "pixelrefer_fast"

# From the top to the bottom. A room imports from layers below its own; rooms of one layer leave each other alone.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("page",),
    ("bench", "doctor", "train", "engines", "serving", "evaluating"),
    ("world",),
    ("pictures",),
    ("__init__",),  # the public names, each imported when it is first used
    ("verify",),
    ("loading",),
    ("model",),
    ("batching",),
    ("network",),
    ("decoding",),
    ("encoding",),
    ("planning",),
    ("segmenting",),
    ("checkpoint", "regions"),
    ("media",),
    ("ops",),
    ("kernels",),
    ("device",),
    ("checks",),
    ("_auto_classes", "_version", "assets"),
)

# What the checkout holds beside the package, and its tests' helpers: a user's installation has none of it.
OUTSIDE = ("training", "recipe", "tests", "benchmarks", "emulator", "tools", "conftest")

WHEN_IMPORTED, IN_FUNCTION, FOR_TYPES = "when imported", "in a function", "for types"


@dataclass(frozen=True)
class Import:
    """`source` imports `target`, both modules by their full names; `when` is one of the three constants above."""

    source: str
    target: str
    when: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} -> {self.target} ({self.when})"


def module_files(root: Path) -> dict[str, Path]:
    """The package's modules by name. Its folders are followed through links, as `kernels` is one."""
    found = {}
    for folder, folders, names in os.walk(root / PACKAGE, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            if name.endswith(".py"):
                path = Path(folder) / name
                parts = list(path.relative_to(root).with_suffix("").parts)
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    if PACKAGE not in found:
        raise ValueError(f"{root}: expected a checkout that holds {PACKAGE}/__init__.py, got none")
    return found


def read_imports(root: Path) -> list[Import]:
    """Every import of a module of the package by another, and of what stands outside, which keeps its own name."""
    files = module_files(root)
    return [found for name, path in files.items() for found in _imports_of(name, path, files)]


def _imports_of(name: str, path: Path, modules: Mapping[str, Path]) -> Iterator[Import]:
    parent = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node, when in _import_nodes(tree.body, WHEN_IMPORTED):
        for target in _targets(node, parent, modules):
            if target != name and (target in modules or target.split(".")[0] in OUTSIDE):
                yield Import(name, target, when, node.lineno)


def _import_nodes(body: Iterable[ast.AST], when: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, when
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and when == WHEN_IMPORTED:
            yield from _import_nodes(ast.iter_child_nodes(node), IN_FUNCTION)
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            yield from _import_nodes(node.body, FOR_TYPES)
            yield from _import_nodes(node.orelse, when)
        else:
            yield from _import_nodes(ast.iter_child_nodes(node), when)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.id if isinstance(test, ast.Name) else test.attr if isinstance(test, ast.Attribute) else ""
    return name == "TYPE_CHECKING"


def _targets(node: ast.Import | ast.ImportFrom, parent: str, modules: Mapping[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        kept = parent.split(".")[: len(parent.split(".")) - node.level + 1]
        base = ".".join([*kept, base] if base else kept)
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield inner if inner in modules else base


def room_of(module: str) -> str:
    """The folder or file right below the package that `module` lies in; `__init__` is the package's own file."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def inside(imports: Iterable[Import]) -> list[Import]:
    """Those between two modules of the package."""
    return [found for found in imports if found.target.split(".")[0] == PACKAGE]


def leaving(imports: Iterable[Import]) -> list[Import]:
    """Those of what only a checkout holds."""
    return [found for found in imports if found.target.split(".")[0] in OUTSIDE]


def arrows(imports: Iterable[Import], *, of_rooms: bool = False) -> dict[str, set[str]]:
    """What each module, or each room, imports of the others."""
    graph: dict[str, set[str]] = {}
    for found in inside(imports):
        source, target = (room_of(m) if of_rooms else m for m in (found.source, found.target))
        graph.setdefault(source, set())
        graph.setdefault(target, set())
        if source != target:
            graph[source].add(target)
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Every group of nodes that reach each other, in Tarjan's order: what lies below comes first."""
    return sorted(sorted(group) for group in _groups(graph) if len(group) > 1)


def floors(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The nodes by the longest way down from them, the lowest floor first; a circle stands on one floor."""
    level: dict[str, int] = {}
    for group in _groups(graph):
        below = [level[target] for node in group for target in graph[node] if target not in group]
        level |= dict.fromkeys(group, max(below, default=-1) + 1)
    return [sorted(n for n in level if level[n] == at) for at in range(max(level.values(), default=-1) + 1)]


def _groups(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components (Tarjan 1972), each after all that it reaches."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    open_nodes: set[str] = set()
    found = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        open_nodes.add(node)
        for target in sorted(graph[node]):
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in open_nodes:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            open_nodes.difference_update(group)
            found.append(group)

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def running_up(imports: Iterable[Import], layers: Sequence[Sequence[str]] = LAYERS) -> list[Import]:
    """Imports of a room that does not lie below the importing one; a room that no layer names has no place yet."""
    place = {room: at for at, rooms in enumerate(layers) for room in rooms}
    up = []
    for found in inside(imports):
        source, target = room_of(found.source), room_of(found.target)
        if source != target and source in place and target in place and place[target] <= place[source]:
            up.append(found)
    return up


def unplaced(imports: Iterable[Import], layers: Sequence[Sequence[str]] = LAYERS) -> list[str]:
    """Rooms that no layer names."""
    return sorted(set(arrows(imports, of_rooms=True)) - {room for rooms in layers for room in rooms})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1], help="a checkout")
    root = parser.parse_args(arguments).root
    try:
        imports = read_imports(root)
    except ValueError as error:
        parser.error(str(error))
    modules, rooms = arrows(imports), arrows(imports, of_rooms=True)
    whens = {
        when: sum(found.when == when for found in inside(imports)) for when in (WHEN_IMPORTED, IN_FUNCTION, FOR_TYPES)
    }
    print(f"modules: {len(module_files(root))}; arrows between them: {sum(map(len, modules.values()))}")
    print(f"imports: {', '.join(f'{count} {when}' for when, count in whens.items())}")
    print(f"rooms: {len(rooms)}; arrows between them: {sum(map(len, rooms.values()))}")
    levels = floors(rooms)
    print(f"floors: {len(levels)}")
    for at, level in reversed(list(enumerate(levels, 1))):
        print(f"  {at:2}  {', '.join(level)}")
    for title, graph in (("rooms", rooms), ("modules", modules)):
        rings = circles(graph)
        print(f"circles of {title}: {len(rings)}")
        for ring in rings:
            print(f"  {', '.join(ring)}")
    up, strangers = running_up(imports), unplaced(imports)
    pairs = sorted({(room_of(found.source), room_of(found.target)) for found in up})
    print(f"arrows of rooms that run up: {len(pairs)}")
    for source, target in pairs:
        print(f"  {source} -> {target}")
        for found in up:
            if (room_of(found.source), room_of(found.target)) == (source, target):
                print(f"      {found}")
    print(f"rooms without a layer: {', '.join(strangers) or 'none'}")
    out = leaving(imports)
    print(f"imports of what only a checkout holds: {len(out)}")
    for found in out:
        print(f"  {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
