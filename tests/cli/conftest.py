"""What the tests of the command line run on: a fake model, an image, a video, and the command itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from batch_files import Run, many, write
from command_line import HEIGHT, WIDTH, FakeModel
from PIL import Image

import pixelrefer_fast
from pixelrefer_fast import cli


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    loads: list[tuple[str, dict[str, str]]] = []

    def load(name: str, **where: str) -> FakeModel:
        loads.append((name, where))
        return fake

    monkeypatch.setattr(pixelrefer_fast, "load", load)
    monkeypatch.setenv("PIXELREFER_FAST_MODEL", "some/model")
    fake.loads = loads  # type: ignore[attr-defined]
    return fake


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image.png"
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 120, np.uint8)).save(path)
    return str(path)


@pytest.fixture
def video(tmp_path: Path) -> str:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    return str(folder)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    def call(*arguments: str) -> SimpleNamespace:
        code = cli.main(list(arguments))
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images and a video, where the command runs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(f"{i}.png")
    Path("clip").mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(f"clip/{i}.png")
    return tmp_path


@pytest.fixture
def loaded(lite: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(pixelrefer_fast, "load", lambda *_, **__: lite)
    monkeypatch.setenv("PIXELREFER_FAST_MODEL", "some/model")
    return lite


@pytest.fixture
def start(run: Run, folder: Path, loaded: Any) -> Callable[..., SimpleNamespace]:
    def call(*arguments: str) -> SimpleNamespace:
        return run("describe", "--batch", "in.jsonl", "--out", "out.jsonl", "--max-new-tokens", "3", *arguments)

    return call


@pytest.fixture
def whole(start: Run) -> bytes:
    """The result of a run that nothing interrupts."""
    write([*many(20), "garbage", *many(5)])
    assert start().code == 2
    content = Path("out.jsonl").read_bytes()
    Path("out.jsonl").unlink()
    return content
