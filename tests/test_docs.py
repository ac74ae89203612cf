"""Documents name what there is: paths, modules, links, and the README's map of the folders."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import pixelrefer_fast as pf

ROOT = Path(__file__).parents[1]
SUFFIXES = (".py", ".md", ".sh", ".cpp", ".cu", ".cuh", ".h")  # of sources; `config.json` is a user's file
HISTORY = ("CHANGELOG.md", "docs/log.md")  # they tell what was
MAP_LINES = 30
EXTRAS = (
    "ray",
    "pandas",  # of Ray
    "openai",
    "vllm.LLM",
    "vllm.SamplingParams",
)  # packages of extras that the tests' environment does without


def listed() -> list[str]:
    """Files of the repository, those not yet committed too."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]


FILES = listed()
FOLDERS = {f"{parent}/" for name in FILES for parent in Path(name).parents if parent != Path()}
PATHS = [*FILES, *FOLDERS, *(folder.rstrip("/") for folder in FOLDERS)]
DOCUMENTS = [name for name in FILES if name.endswith(".md") and name not in HISTORY]


def exists(path: str) -> bool:
    """Whether a path of the repository is, or ends in, this one; `X`, `<file>` and `*` stand for any name."""
    pattern = re.sub(r"<[^>]*>|(?<![A-Za-z])X(?![A-Za-z])", "*", path)
    return any(fnmatchcase(known, pattern) or fnmatchcase(known, f"*/{pattern}") for known in PATHS)


def alternatives(word: str) -> list[str]:
    """`a/{b,c}.py` -> `a/b.py`, `a/c.py`."""
    found = re.search(r"\{([^}]*)\}", word)
    if found is None:
        return [word]
    whole = (word[: found.start()] + part + word[found.end() :] for part in found[1].split(","))
    return [each for part in whole for each in alternatives(part)]


def named_paths(text: str) -> Iterator[str]:
    """Words of code spans that are written as paths of a source or of a folder that this repository could have."""
    for span in re.findall(r"`([^`\n]+)`", text):
        for word in span.split():
            folder = word.partition("/")[0] + "/"
            inside = "/" in word and any(known.endswith(("/" + folder, folder)) for known in FOLDERS)
            if re.fullmatch(r"[a-z_*][\w.*/<>{},-]*", word, re.I) and (
                word.endswith(SUFFIXES) or (word.endswith("/") and word.islower()) or inside
            ):
                yield from alternatives(word)


def named_modules(text: str) -> Iterator[str]:
    """Dotted names below `pixelrefer_fast` or `pf`, in code spans and in the imports of code blocks."""
    for span in re.findall(r"`([^`\n]+)`", text):
        yield from re.findall(r"\bpixelrefer_fast(?:\.[A-Za-z_]\w*)+", span)
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
    for name in re.findall(r"\bpf\.([A-Za-z_]\w*)", text):
        yield f"pixelrefer_fast.{name}"


def resolves(name: str) -> bool:
    """Whether a dotted name is a module or an attribute of one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert [path for path in named_paths(text) if not exists(path)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert sorted({name for name in named_modules(text) if name not in EXTRAS and not resolves(name)}) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = re.sub(r"`[^`\n]*`", "", (ROOT / document).read_text(encoding="utf-8"))
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (ROOT / document).parent.joinpath(link).exists()] == []


def test_every_page_and_picture_is_led_to() -> None:
    """A page that no other page links, and a picture that no page shows, would be kept for nobody."""
    reached = set()
    for document in [*DOCUMENTS, *HISTORY]:
        text = (ROOT / document).read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", text)
        targets = ("".join(link).partition("#")[0] for link in links if "://" not in "".join(link))
        reached |= {(ROOT / document).parent.joinpath(target).resolve() for target in targets} - {ROOT / document}
    kept = [name for name in FILES if name.startswith("docs/") and name.endswith((".md", ".png", ".svg"))]
    assert [name for name in kept if ROOT / name not in reached] == []


def test_what_is_gone_is_found() -> None:
    text = "`ops/rope2d.py`, `ops/gone.py`, `python tools/tune.py`, `python tools/gone.py`, `OUT/log.jsonl`, `gone.py`"
    assert [path for path in named_paths(text) if not exists(path)] == ["ops/gone.py", "tools/gone.py", "gone.py"]
    text = "`bench/run/`, `bench/gone/`, `gone/`, `kernels/X.py`, `gone/X.py`, `tests/ops/test_{rope2d,gone}.py`"
    assert [path for path in named_paths(text) if not exists(path)] == [
        "bench/gone/",
        "gone/",
        "gone/X.py",
        "tests/ops/test_gone.py",
    ]
    text = "`pixelrefer_fast.ops`, `pixelrefer_fast.gone`, `pf.load()`, `pf.gone`"
    text += "\n```python\nfrom pixelrefer_fast import no\n```"
    assert sorted(name for name in named_modules(text) if not resolves(name)) == [
        "pixelrefer_fast.gone",
        "pixelrefer_fast.gone",
        "pixelrefer_fast.no",
    ]


def map_of_the_readme() -> list[str]:
    """Lines of the first code block under the README's heading of the map."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## The flow")[2]
    return section.split("```")[1].strip("\n").splitlines()


def test_map_is_short_and_names_what_there_is() -> None:
    lines = map_of_the_readme()
    assert len(lines) <= MAP_LINES
    parent, named = "", []
    for line in lines:
        name = line.split()[0]
        if not line.startswith(" "):
            parent = ""
        named.append(parent + name)
        if not line.startswith(" "):
            parent = name
    assert [name for name in named if name not in PATHS] == []


def test_map_names_every_folder() -> None:
    words = {word.strip(",") for line in map_of_the_readme() for word in line.split()}
    links = {"pixelrefer_fast/kernels", "pixelrefer_fast/csrc"}  # symbolic links to the folders of these names
    rooms = {Path(name).parts[0] for name in FILES if "/" in name and not name.startswith(".")}
    rooms |= {Path(name).parts[1] for name in FILES if name.startswith("pixelrefer_fast/") and name.count("/") > 1}
    assert not any((ROOT / link).is_symlink() and f"{link}/" in FOLDERS for link in links)
    assert sorted(room for room in rooms if f"{room}/" not in words) == []


@pytest.mark.parametrize("name", [name for name in pf.__all__ if not name.startswith("__")])
def test_public_names_exist_and_say_what_they_are(name: str) -> None:
    assert (getattr(pf, name).__doc__ or "").strip()
