"""Lines of `describe --batch`, options, and what is there where results are to be written."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from checkpoints import ASSETS
from fuzzing import ODD_FLOATS, ODD_NUMBERS, Fuzzer, Hostile, damaged, odd_value

import pixelrefer_fast as pf
from pixelrefer_fast.batching.asks import as_ask
from pixelrefer_fast.cli.batch.lines import KEYS, BadLine, parse_line
from pixelrefer_fast.cli.batch.output import ResultFile
from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.decoding.prompt import check_question
from pixelrefer_fast.planning.options import EncodeOptions, split_options

GOOD = (
    {"id": 7, "image": "cat.jpg", "box": [60, 50, 360, 275], "question": "What is <region>?"},
    {"video": "clip.mp4", "frame": 12, "polygon": [[1, 2, 30, 4, 5, 60]], "max_new_tokens": 5},
    {"image": "x.png", "regions": [[1, 2, 3, 4], {"type": "scribble", "points": [1, 2, 3, 4], "width": 2}]},
)


def _plain(value: object) -> object:
    """What JSON can hold of a value."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, OverflowError):
        return "y" * 30_000 if isinstance(value, Hostile) else 10**30


def _line(rng: np.random.Generator) -> bytes:
    fields = dict(GOOD[rng.integers(len(GOOD))])
    for _ in range(int(rng.integers(0, 3))):
        key = KEYS[rng.integers(len(KEYS))] if rng.random() < 0.9 else "x" * int(rng.integers(1, 3_000))
        fields[key] = _plain(odd_value(rng, 2))
    text = json.dumps(fields).encode()
    return damaged(text, rng) if rng.random() < 0.3 else text


def test_lines(fuzzer: Fuzzer) -> None:
    def case(rng: np.random.Generator) -> str:
        line = parse_line(1, _line(rng))
        assert len(line.asks) > 0
        return "read"

    fuzzer.run("lines of JSON", case, 1200, (BadLine,))


def test_options(fuzzer: Fuzzer) -> None:
    """Alone and together, of the right name or not; questions; requests of any form."""
    names = [*Generation.__dataclass_fields__, *EncodeOptions.__dataclass_fields__]

    def case(rng: np.random.Generator) -> str:
        kind = rng.integers(4)
        if kind == 0:
            check_question(odd_value(rng))
            return "question"
        if kind == 1:
            as_ask(odd_value(rng))
            return "request"
        options = {names[rng.integers(len(names))]: odd_value(rng, 2) for _ in range(int(rng.integers(1, 4)))}
        if rng.random() < 0.1:
            options["max_new_token" + "s" * int(rng.integers(0, 900))] = 3
        split_options(options, EncodeOptions, Generation)
        return "options"

    fuzzer.run("options", case, 1200)


@pytest.fixture(scope="module")
def lite() -> pf.PixelRefer | pf.PixelReferLite:
    return pf.load(ASSETS / "lite", device="cpu")


def test_options_in_use(fuzzer: Fuzzer, lite: pf.PixelRefer | pf.PixelReferLite) -> None:
    """What is taken as an option is one that an answer can be written with."""
    objects = lite.encode(np.zeros((28, 28, 3), np.uint8), [[2, 2, 20, 20]])
    names = [name for name in Generation.__dataclass_fields__ if name != "max_new_tokens"]
    kinds = [name for name, kind in Generation.__annotations__.items() if "int" in kind or "float" in kind]

    def case(rng: np.random.Generator) -> str:
        options = {}
        for _ in range(int(rng.integers(1, 4))):
            number = [*ODD_NUMBERS, *ODD_FLOATS][rng.integers(len(ODD_NUMBERS) + len(ODD_FLOATS))]
            name = kinds[rng.integers(len(kinds))]
            options[name] = number
            if rng.random() < 0.3:
                options[names[rng.integers(len(names))]] = odd_value(rng, 2)
        options["max_new_tokens"] = int(rng.integers(1, 4))
        if "n" in options:
            options["n"] = int(rng.integers(1, 3))
        answer = lite.ask(objects, "What is <region>?", details=True, **options)
        assert len(answer.tokens) <= options["max_new_tokens"]
        return str(answer.finish)

    fuzzer.run("options in use", case, 150)


RECORDS = [
    {"line": 1, "id": 0, "texts": ["a"], "finish": ["stop"], "tokens": [3]},
    {"line": 2, "error": "no", "failure": "input"},
    {"line": 4, "id": "x", "texts": [None], "finish": ["error"], "tokens": [0], "error": "m", "failure": "run"},
    {"line": 5, "texts": ["c"], "finish": ["length"], "tokens": [1]},
]
INPUT = b'{"id": 0}\n\nnothing\n{"id": "x"}\n{}\n{"id": 9}\n'
RUN = {"model": "m"}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_bytes(INPUT.replace(b"\n\nnothing", b"\nnothing\n"))
    return tmp_path


def _begun() -> dict[str, bytes]:
    """The files of a run that was ended behind its fourth record."""
    for name in list(os.listdir()):
        if name != "in.jsonl":
            os.unlink(name)
    with ResultFile("out.jsonl", RUN, "in.jsonl") as file:
        for record in RECORDS:
            file.write(record)
    return {name: Path(name).read_bytes() for name in os.listdir() if name != "in.jsonl"}


def test_tampered_results(fuzzer: Fuzzer, results: Path) -> None:
    """What is gone on from holds the records that were written, in their order."""
    whole = _begun()
    names = sorted(whole)

    def case(rng: np.random.Generator) -> str:
        for name, content in whole.items():
            Path(name).write_bytes(content)
        name = names[rng.integers(len(names))]
        kind = rng.integers(4)
        if kind == 0:
            found = [json.loads(line) for line in whole["out.jsonl.part"].splitlines()]
            del found[int(rng.integers(len(found)))]
            Path("out.jsonl.part").write_bytes(b"".join(json.dumps(one).encode() + b"\n" for one in found))
        elif kind == 1:
            Path(name).write_bytes(damaged(whole[name], rng))
        elif kind == 2:
            fields = json.loads(whole["out.jsonl.part"].splitlines()[0])
            fields[list(fields)[rng.integers(len(fields))]] = _plain(odd_value(rng, 1))
            rest = whole["out.jsonl.part"].split(b"\n", 1)[1]
            Path("out.jsonl.part").write_bytes(json.dumps(fields).encode() + b"\n" + rest)
        else:
            Path("in.jsonl").write_bytes(damaged(INPUT, rng))
        try:
            with ResultFile("out.jsonl", RUN, "in.jsonl") as file:
                kept = [json.loads(line) for line in Path("out.jsonl.part").read_bytes().splitlines()]
                assert [record["line"] for record in kept] == [1, 2, 4, 5][: len(kept)] or kind == 3
                assert file.counts.lines == len(kept)
        finally:
            Path("in.jsonl").write_bytes(INPUT.replace(b"\n\nnothing", b"\nnothing\n"))
        return "goes on"

    fuzzer.run("tampered results", case, 200)


def test_special_places(fuzzer: Fuzzer, results: Path) -> None:
    """Pipes, devices, folders and links under the names that a run writes: never replaced, never waited for."""

    def case(rng: np.random.Generator) -> str:
        _begun()
        name = ["out.jsonl", "out.jsonl.part", "out.jsonl.run.json", "out.jsonl.stamps"][rng.integers(4)]
        Path(name).unlink(missing_ok=True)
        kind = rng.integers(4)
        if kind == 0:
            os.mkfifo(name)
        elif kind == 1:
            Path(name).mkdir()
        elif kind == 2 and os.geteuid() == 0:
            os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # of its own, as /dev/null
        else:
            Path(name).symlink_to(["nowhere", name, "in.jsonl"][rng.integers(3)])
        before = os.lstat(name)
        try:
            with ResultFile("out.jsonl", RUN, "in.jsonl"):
                pass
            return "goes on"
        finally:
            after = os.lstat(name)
            assert stat.S_IFMT(after.st_mode) == stat.S_IFMT(before.st_mode) or stat.S_ISLNK(before.st_mode)
            assert (results / "in.jsonl").read_bytes() == INPUT.replace(b"\n\nnothing", b"\nnothing\n")
            if stat.S_ISDIR(after.st_mode):
                os.rmdir(name)

    fuzzer.run("special places", case, 200)
