"""Every block of Python and of commands on the site is run, or says who runs it, or why nobody does."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny_sam
from pages import RUN, Block, Command, blocks, commands, marks, matches, shown, written_otherwise
from typist import ROOT, Typist, given, typing_in

import pixelrefer_fast as pf

PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in shown() if name.endswith(".md")}
BLOCKS = {name: [block for block in blocks(text) if block.language in RUN] for name, text in PAGES.items()}
TARGETS = {  # make targets that run blocks, and what their environments have besides
    "test-slow": (),
    "test-docs": ("mkdocs",),
    "test-serve": ("fastapi", "openai"),
    "test-web": ("gradio", "playwright"),
    "test-ray": ("ray",),
    "test-vllm": ("vllm",),
}
STANDING_IN = ("Lite-2B", "Lite-7B", "2B", "7B")  # released checkpoints, in whose place are copies of embedded ones


def cases() -> Iterator[Any]:
    """Pages with blocks that are run here, and pages with blocks for each target."""
    for name, found in BLOCKS.items():
        targets = {block.target for block in found if block.reason is None}
        for target in sorted(target or "" for target in targets):
            lacking = [module for module in TARGETS.get(target, ()) if find_spec(module) is None]
            conditions = [pytest.mark.skipif(bool(lacking), reason=f"make {target} runs it: no {', '.join(lacking)}")]
            if target == "test-slow":
                conditions.append(pytest.mark.slow)
            yield pytest.param(name, target, marks=conditions, id=f"{name}-{target or 'here'}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What the examples of all pages use, made as the quickstart makes it: files and names."""
    folder = tmp_path_factory.mktemp("examples")
    before, names = Path.cwd(), {"__name__": "__main__"}
    os.chdir(folder)
    try:
        Typist(folder, names).type(given(PAGES["docs/quickstart.md"]))
    finally:
        os.chdir(before)
    sam = folder / "facebook" / "sam2.1-hiera-tiny"
    sam.mkdir(parents=True)
    tiny_sam.save("sam2_video", sam)
    for size in STANDING_IN:
        own = folder / ("PixelRefer-Lite-2B" if size.startswith("Lite") else "PixelRefer-2B")
        for copy in (folder / "Alibaba-DAMO-Academy" / f"PixelRefer-{size}", folder / f"PixelRefer-{size}"):
            if not copy.exists():
                shutil.copytree(own, copy, copy_function=os.link)
    return folder, names


@pytest.mark.parametrize(("page", "target"), list(cases()))
def test_a_page_does_what_it_says(
    page: str,
    target: str,
    made: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "page"
    if page == "docs/quickstart.md":  # it makes the files itself
        folder.mkdir()
    else:
        shutil.copytree(made[0], folder, copy_function=os.link)
    monkeypatch.chdir(folder)
    with typing_in(folder, {**made[1], "model": pf.load("embedded:lite")}) as typist:
        for block in BLOCKS[page]:
            if block.reason is None and block.target in (None, target):
                typist.type(block)


def test_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {block.target for found in BLOCKS.values() for block in found} - {None}
    assert named <= TARGETS.keys()
    for target in named:
        recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.M)
        assert recipe is not None
        assert target == "test-slow" or f"tests/docs -k {target}" in recipe[1]


def test_every_page_is_on_the_site() -> None:
    there = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".ipynb")
    }
    assert {name for name in shown() if name.startswith("docs/")} == there
    assert all((ROOT / name).is_file() for name in shown())


def test_commands_are_written_in_one_way() -> None:
    assert {name: found for name, text in PAGES.items() if (found := written_otherwise(text))} == {}


@pytest.mark.parametrize("page", PAGES)
def test_installs_name_what_pyproject_has(page: str) -> None:
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M))
    for block in BLOCKS[page]:
        if block.language == "console":
            for command in commands(block):
                if command.installs and "torch" not in command.typed:
                    found = re.fullmatch(
                        r"pip install '?\"?(?:\.|pixelrefer-fast)(?:\[([\w,]+)\])?'?\"?", command.typed
                    )
                    assert found is not None, command.typed
                    assert set((found[1] or "test").split(",")) <= extras


def test_what_is_run_and_what_is_not(record_property: Any) -> None:
    """No more than a third of all blocks go without being run, and reasons name tests that there are."""
    every = [block for found in BLOCKS.values() for block in found]
    idle = [block for block in every if block.reason is not None]
    record_property("blocks", len(every))
    record_property("not run", len(idle))
    named = {word for block in idle for word in re.findall(r"tests/[\w/.]*\w", block.reason or "")}
    assert [word for word in named if not (ROOT / word).exists()] == []
    assert len(every) > 60
    assert len(idle) * 3 < len(every)


def test_blocks_of_a_page() -> None:
    text = "\n".join(
        (
            "# a",
            "<!-- not run: wants a GPU -->",
            "```python",
            "b",
            "```",
            "- c",
            "",
            "    ```console",
            "    $ one --x  # why",
            "    1",
            "    $ two \\",
            "      three",
            "    ```",
            "```python",
            "d",
            "```",
            "```text",
            "e",
            "```",
        )
    )
    first, second, third, last = blocks(text)
    assert first == Block(4, "python", "b\n", None, {"not run": "wants a GPU"})
    assert list(commands(second)) == [Command("one --x", "1\n"), Command("two \\\n  three", "")]
    assert (third.line, third.printed, third.reason, third.target) == (15, "e\n", None, None)
    assert (last.language, last.marks) == ("text", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- not run: GPU -->\n```python\n```", "line 2: expected some words after 'not run', got 'GPU'"),
        ("<!-- not run: -->\n```python\n```", "some words"),
        ("<!-- not ran: wants a GPU -->\n```python\n```", "expected one of not run, run by"),
        ("<!-- not run: wants a GPU -->\n```json\n```", "expected a block of python or console"),
        ("<!-- not run: wants a GPU -->\n\n```python\n```", "directly before a block"),
    ],
)
def test_marks_that_nobody_reads(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        blocks(text)


def test_what_comes_out_is_compared() -> None:
    assert matches("a ... b\n", "a 1\n2 b")
    assert not matches("a", "a b")
    assert marks("x\n<!-- run by: make y -->\n<!-- goes on until: it runs -->\n", 4) == {
        "run by": "make y",
        "goes on until": "it runs",
    }
    with pytest.raises(ValueError, match="expected '\\$ ' before"):
        list(commands(Block(1, "console", "ls\n", None, {})))
    assert written_otherwise("    pixelrefer-fast ask\n```sh\nls\n```\n```python\n    pip install\n```") == [
        "    pixelrefer-fast ask",
        "```sh",
    ]


def test_a_program_that_does_not_print_it(tmp_path: Path) -> None:
    with typing_in(tmp_path, {}) as typist:
        typist.type(Block(1, "python", "import asyncio\nawait asyncio.sleep(0)\nprint(1)\n", "1\n", {}))
        with pytest.raises(AssertionError, match="line 1 prints"):
            typist.type(Block(1, "python", "print(1)\n", "2\n", {}))
        with pytest.raises(AssertionError, match="ends with 3"):
            typist.type(Block(1, "console", "$ exit 3\n", None, {}))
        with pytest.raises(AssertionError, match="prints"):
            typist.type(Block(1, "console", "$ echo 1 | cat\n2\n", None, {}))
