"""`describe --batch FILES --out FOLDER --ray local`, in a real cluster: `make test-ray`."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import one_error_line
from PIL import Image

import pixelrefer_fast as pf
from pixelrefer_fast.cli.batch.cluster import count_answers

pytest.importorskip("ray", reason="needs Ray: `make test-ray` installs it in an environment of its own")
pq = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.usefixtures("cluster")  # less than `--ray local` would take; the command finds it there

QUESTION = "What is <region>?"
Run = Callable[..., SimpleNamespace]


@pytest.fixture
def start(run: Run, tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (60, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{i}.png")
    given = ("--out", "texts", "--ray", "local", "--model", str(assets / "lite"), "--max-new-tokens", "4")
    return lambda source, *more: run("describe", "--batch", source, *given, "--question", QUESTION, *more)


def answers() -> list[dict[str, Any]]:
    return [row for file in sorted(Path("texts").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_lines_are_answered_as_by_ask(start: Run, lite: pf.PixelReferLite) -> None:
    lines: list[dict[str, Any]] = [{"id": i, "image": f"{i % 3}.png", "box": [5, 5, 20 + i, 40]} for i in range(12)]
    lines[4]["box"] = [5, 5]
    lines[7]["image"] = "none.png"
    Path("in.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    result = start("in.jsonl", "--json")
    assert result.code == 2
    report = json.loads(result.out)
    assert (report["rows"], report["errors"]) == (12, 2)
    found = {int(one["line"]): one for one in answers()}
    for number, line in enumerate(lines, 1):
        if number in (5, 8):
            assert found[number]["text"] == ""
            assert ("box: " if number == 5 else "none.png") in found[number]["error"]
        else:
            expected = lite.ask(line["image"], QUESTION, [line["box"]], max_new_tokens=4)
            assert (found[number]["text"], found[number]["id"]) == (expected, str(number - 1))
    files = sorted(Path("texts").iterdir())
    again = start("in.jsonl")  # nothing is left to be done
    assert again.code == 2
    assert again.out == "texts: 12 rows, 2 of them with an error\n"
    assert sorted(Path("texts").iterdir()) == files
    one_error_line(start("in.jsonl", "--seed", "3"), "texts: expected the options it was made with")


def test_samples_of_webdataset(start: Run, lite: pf.PixelReferLite) -> None:
    with tarfile.open("in.tar", "w") as tar:
        for i in range(3):
            fields = json.dumps({"regions": [[5, 5, 20 + i, 40]]}).encode()
            for name, data in ((f"k{i}.png", Path(f"{i}.png").read_bytes()), (f"k{i}.json", fields)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    result = start("in.tar")
    assert (result.code, [one["error"] for one in answers()]) == (0, [""] * 3)
    assert count_answers(Path("texts")) == (3, 0)
    assert {one["__key__"]: one["text"] for one in answers()} == {
        f"k{i}": lite.ask(f"{i}.png", QUESTION, [[5, 5, 20 + i, 40]], max_new_tokens=4) for i in range(3)
    }


def test_a_folder_of_others_is_left_alone(start: Run) -> None:
    Path("in.jsonl").write_text("{}\n")
    Path("texts").mkdir()
    Path("texts/mine.txt").touch()
    one_error_line(start("in.jsonl"), "texts: expected a folder that is new or of this command")
    one_error_line(start("1.png"), "expected a file or a folder of files of one kind")
    assert [file.name for file in Path("texts").iterdir()] == ["mine.txt"]
