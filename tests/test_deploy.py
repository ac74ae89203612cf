"""deploy/: what the image copies is there and all that an installation needs, and every command knows its options."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, in order."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def of(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def copied() -> list[str]:
    """What the image takes from the checkout."""
    return [source for line in of("COPY") for source in line.split()[:-1]]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))


def test_every_source_is_there_and_sent_to_the_builder() -> None:
    sources = copied()
    assert sources
    assert [name for name in sources if not (ROOT / name).exists()] == []
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    sent = [rule[1:] for rule in rules if rule.startswith("!")]
    assert sorted(sent) == sorted(sources)
    assert {"*", "**/__pycache__", "**/*.so"} <= set(rules)  # all else, and what is built here


def test_the_image_has_all_that_an_installation_needs(project: dict[str, Any]) -> None:
    names = {name.partition("/")[0] for name in copied()}
    needed = {"pyproject.toml", "setup.py", "pixelrefer_fast", "csrc", project["readme"], *project["license-files"]}
    links = [path for path in (ROOT / "pixelrefer_fast").iterdir() if path.is_symlink()]
    needed |= {path.resolve().relative_to(ROOT).parts[0] for path in links}
    assert needed <= names
    (python,) = (re.fullmatch(r"python:(\d+\.\d+)-slim", line) for line in of("FROM"))
    assert python is not None
    assert python[1] in SpecifierSet(project["requires-python"])
    (extras,) = re.findall(r'pip install --no-cache-dir "\.\[(.*?)\]"', " ".join(of("RUN")))
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert json.loads(*of("ENTRYPOINT")) == [name for name in project["scripts"] if name == "pixelrefer-fast"]


def test_compose_builds_that_image_and_mounts_a_folder(compose: dict[str, Any]) -> None:
    assert compose["services"].keys() == {"head", "worker"}
    for service in compose["services"].values():
        build = service["build"]
        context = (DEPLOY / build["context"]).resolve()
        assert context == ROOT
        assert (context / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
        (volume,) = service["volumes"]
        assert volume.partition(":")[2] == of("WORKDIR")[-1]
    commands = [" ".join(service["entrypoint"]) for service in compose["services"].values()]
    (port,) = re.findall(r"--port=(\d+)", commands[0])
    assert f"--address=head:{port}" in commands[1]  # a service's name is its address
    assert f"port {port}" in COMPOSE.read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """Our commands in the image, and in what compose.yaml says of its use."""
    text = COMPOSE.read_text(encoding="utf-8")
    told = "\n".join(line[1:].strip() for line in text.splitlines() if line.startswith("#")).replace("\\\n", "")
    written = re.findall(r"pixelrefer-fast (.*)", told)
    written += [found for line in of("RUN") for found in re.findall(r"pixelrefer-fast ([^&]*)", line)]
    return [*map(shlex.split, written), json.loads(*of("CMD"))]


def test_every_command_knows_its_options() -> None:
    found = commands()
    assert [words[0] for words in found] == ["describe", "doctor", "doctor"]
    helps: dict[str, str] = {}
    for name, *words in found:
        if name not in helps:
            asked = [sys.executable, "-m", "pixelrefer_fast.cli", name, "--help"]
            env = {"COLUMNS": "200", "PYTHONSAFEPATH": "1", "PATH": ""}
            helps[name] = subprocess.run(asked, capture_output=True, text=True, check=True, env=env).stdout
        options = [word for word in words if word.startswith("--")]
        assert [option for option in options if not re.search(rf"{option}\b", helps[name])] == []


def test_every_command_of_ray_knows_its_options(compose: dict[str, Any]) -> None:
    pytest.importorskip("ray", reason="needs Ray: `make test-ray` installs it in an environment of its own")
    from ray.scripts.scripts import cli

    for service in compose["services"].values():
        program, command, *words = service["entrypoint"]
        assert program == "ray"
        known = {option for own in cli.commands[command].params for option in own.opts}
        assert {word.partition("=")[0] for word in words} <= known
