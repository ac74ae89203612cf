"""Where results come from: commit, command, machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pixelrefer_fast.bench.measure import machine


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit of one file."""
    (tmp_path / "file").write_text("one")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "file"], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    return tmp_path


def test_provenance_has_what_a_result_must_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pytest", "tests"])  # a worker of xdist has another
    found = machine.provenance()
    wanted = {"date", "version", "commit", "dirty", "command", "cpu", "threads", "libraries", "device", "clocks"}
    assert wanted <= found.keys()
    assert found["libraries"]["torch"]
    assert {"triton", "transformers"} <= found["libraries"].keys()
    assert "pytest" in found["command"]


def test_commit_and_changes_of_a_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMIT", "another")
    commit, dirty = machine.commit_of(checkout)
    assert commit == machine.git(checkout, "rev-parse", "HEAD")
    assert len(commit) == 40
    assert dirty is False
    (checkout / "new").write_text("no tracked file")
    assert machine.commit_of(checkout) == (commit, False)
    (checkout / "file").write_text("two")
    assert machine.commit_of(checkout) == (commit, True)


def test_a_folder_inside_another_checkout_is_no_part_of_it(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment inside somebody's repository: its commit is not ours."""
    monkeypatch.delenv("COMMIT", raising=False)
    site = checkout / "site-packages"
    site.mkdir()
    assert machine.commit_of(site) == (None, None)


@pytest.mark.parametrize(("told", "found"), [("0123abc", ("0123abc", False)), ("0123abc-dirty", ("0123abc", True))])
def test_a_machine_without_git_is_told_the_commit(
    told: str, found: tuple[str, bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("COMMIT", told)
    provenance = machine.provenance()
    assert (provenance["commit"], provenance["dirty"]) == found


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(sys.executable).parent
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, str(here / "pixelrefer-fast"), "bench", "--model", "a b"])
    assert machine.command() == "pixelrefer-fast bench --model 'a b'"
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "pixelrefer_fast.cli", "bench"])
    assert machine.command() == f"{Path(sys.executable).name} -m pixelrefer_fast.cli bench"
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "benchmarks/decode.py"])
    assert machine.command() == f"{Path(sys.executable).name} benchmarks/decode.py"


def test_importing_the_package_loads_nothing() -> None:
    code = (
        "import sys, pixelrefer_fast.bench; print([m for m in ('torch', 'matplotlib', 'pynvml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
