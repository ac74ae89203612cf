"""What is saved takes no other place than a regular file's: whoever writes it, and whatever was there."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fuzzing import limited
from PIL import Image

from pixelrefer_fast import Objects
from pixelrefer_fast.bench.profile import calls
from pixelrefer_fast.bench.report import results
from pixelrefer_fast.checks.new_files import file_to_write, new_file
from pixelrefer_fast.pictures import answers
from pixelrefer_fast.planning.request import ObjectTokens


def _objects() -> Objects:
    return Objects("lite", torch.ones(2, 4), (ObjectTokens((2,), None),), None, None, {"model": "x"})


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "objects": ("out.safetensors", lambda path: _objects().save(path)),
    "picture": ("out.png", lambda path: answers.save(Image.new("RGB", (4, 4)), path)),
    "result": ("out.json", lambda path: results.append(path, {"benchmark": "old"})),
    "calls": ("out.safetensors", lambda path: calls.save([], path)),
}
PLACES = ("fifo", "device", "socket", "folder", "link to a device", "loop of links")


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> tuple[str, Callable[[Path], object]]:
    return WRITERS[request.param]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        path, kind = tmp_path / name, request.param
        if kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                os.chdir(tmp_path)
                server.bind(name)
        elif kind == "loop of links":
            path.symlink_to(path.name)
        else:
            if os.geteuid() != 0:
                pytest.skip("only root makes device files")
            device = path if kind == "device" else tmp_path / "null"
            os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null
            if device != path:
                path.symlink_to("null")
        return path

    return make


@pytest.fixture(autouse=True)
def _inside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with limited(30):  # a pipe that is opened waits for ever
        yield


def test_special_places_are_refused_and_stay(
    writer: tuple[str, Callable[[Path], object]], place: Callable[[str], Path]
) -> None:
    name, write = writer
    path = place(name)
    before, beside = os.lstat(path), sorted(os.listdir(path.parent))
    with pytest.raises(ValueError, match="expected the name of a file to write, got"):
        write(path)
    assert os.path.samestat(os.lstat(path), before)
    assert os.lstat(path).st_mode == before.st_mode
    assert sorted(os.listdir(path.parent)) == beside


@pytest.mark.parametrize("folder", ["x" * 300, "a/" * 3000, "nul\0"])
def test_names_that_cannot_be_are_bad_input(writer: tuple[str, Callable[[Path], object]], folder: str) -> None:
    name, write = writer
    path = Path(folder, name) if "\0" not in folder else Path(folder + name)
    with pytest.raises(ValueError, match=r"expected|does not exist|cannot be") as error:
        write(path)
    assert len(str(error.value)) < 500
    if name == "out.safetensors":
        with pytest.raises(ValueError, match="expected a file of encoded objects, found none"):
            Objects.load(path)


def test_a_name_of_the_longest_length(writer: tuple[str, Callable[[Path], object]], tmp_path: Path) -> None:
    """The hidden name beside it is not longer."""
    name, write = writer
    path = tmp_path / f"{'x' * (255 - len(name))}{name}"
    write(path)
    assert path.is_file()
    assert os.listdir(tmp_path) == [path.name]


def test_a_link_is_written_through(writer: tuple[str, Callable[[Path], object]], tmp_path: Path) -> None:
    name, write = writer
    (tmp_path / "there").mkdir()
    link = tmp_path / name
    link.symlink_to(Path("there", name))
    write(link)
    assert link.is_symlink()
    assert (tmp_path / "there" / name).stat().st_size > 0
    (tmp_path / "there" / name).chmod(0o604)
    write(link)
    assert stat.S_IMODE((tmp_path / "there" / name).stat().st_mode) == 0o604


def test_a_place_that_becomes_a_device_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def written() -> None:
        with new_file(target) as beside:
            beside.write_text("x")
            os.mkfifo(target)

    with pytest.raises(ValueError, match="got a device, pipe or socket"):
        written()
    assert stat.S_ISFIFO(target.stat().st_mode)
    assert os.listdir(tmp_path) == ["out"]


def test_what_the_system_refuses_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("before")

    def written() -> None:
        with new_file(target) as beside:
            beside.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        written()
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["out"]
    with pytest.raises(ValueError, match="path: expected a path, got int"):
        file_to_write(3)  # type: ignore[arg-type]
