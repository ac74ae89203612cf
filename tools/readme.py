"""The README's first minute, typed line by line: does a newcomer see what is printed there?

python tools/readme.py                      # in this environment, in a folder of its own
python tools/readme.py --update             # and the README gets what came out
python tools/readme.py --fresh              # installs included: a clean clone, an environment of its own
python tools/readme.py --fresh --torch torch==2.13.0   # another torch than the README's line brings
python tools/readme.py --fresh --wheel FILE            # from this wheel: no clone, and nothing is compiled
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pages import blocks, commands

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
SECTION = "## The first minute"
SECONDS = 900  # for the slowest line, an install


@dataclass(frozen=True)
class Step:
    """What is typed, and what is printed after it.

    Attributes:
        typed: a command line, or a Python program.
        python: whether it is a program.
        printed: what the README says comes out.
    """

    typed: str
    python: bool
    printed: str

    @property
    def installs(self) -> bool:
        return not self.python and self.typed.startswith("pip ")


def steps(text: str) -> Iterator[Step]:
    """The steps of the README's section, in order.

    Raises:
        ValueError: there is no such section, or a program without its output.
    """
    section = text.partition(f"\n{SECTION}\n")[2].partition("\n## ")[0]
    if not section:
        raise ValueError(f"README.md: expected a section {SECTION!r}, found none")
    for block in blocks(section):
        if block.language == "python":
            if block.printed is None:
                raise ValueError("README.md: expected a block of text after each program, with what it prints")
            yield Step(block.body, True, block.printed)
        elif block.language == "console":
            for command in commands(block):
                yield Step(command.typed, False, command.printed)


def run(step: Step, folder: Path, binaries: Path) -> str:
    """What a step prints on its standard output.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [str(binaries / "python"), "-c", step.typed] if step.python else ["bash", "-c", step.typed]
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, step.typed, done.stdout, done.stderr)
    return done.stdout


def install(commands: list[str], folder: Path, options: argparse.Namespace) -> Path:
    """Type the README's installs in an environment of its own; where its programs are.

    A clean clone stands where they are typed, or with a wheel nothing does, and all that it needs comes as wheels too.
    """
    source = folder / "source"
    if options.wheel is None:
        subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    else:
        source.mkdir()
        os.environ["PIP_ONLY_BINARY"] = ":all:"
        commands = [line.replace("pip install .", f"pip install '{options.wheel.resolve()}'") for line in commands]
    subprocess.run([options.python, "-m", "venv", str(folder / "venv")], check=True)
    binaries = folder / "venv" / "bin"
    if options.torch is not None:
        commands = [
            f"pip install {options.torch}" if line.startswith("pip install torch") else line for line in commands
        ]
        os.environ["PIP_CONSTRAINT"] = str(folder / "constraint.txt")
        (folder / "constraint.txt").write_text(options.torch + "\n")
    for line in commands:
        print("$", line, flush=True)
        run(Step(line, False, ""), source, binaries)
    return binaries


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="with the installs, in a clean clone and environment")
    parser.add_argument("--torch", metavar="REQUIREMENT", help="with --fresh: in place of the README's torch")
    parser.add_argument("--wheel", metavar="FILE", type=Path, help="with --fresh: this file in place of a clone")
    parser.add_argument("--python", default=sys.executable, help="with --fresh: whose environment it is")
    parser.add_argument("--also", metavar="COMMAND", action="append", default=[], help="typed at the end; must succeed")
    parser.add_argument("--update", action="store_true", help="write what came out into the README")
    options = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    found = list(steps(text))
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder, binaries = Path(name), Path(sys.executable).parent
        if options.fresh:
            binaries = install([step.typed for step in found if step.installs], folder, options)
        work = folder / "work"
        work.mkdir()
        for step in found:
            if step.installs:
                continue
            print("$", "python" if step.python else step.typed, flush=True)
            printed = run(step, work, binaries)
            print(printed, end="", flush=True)
            if printed != step.printed:
                wrong += 1
                print(f"the README says:\n{step.printed}", end="")
                before = f"```text\n{step.printed}" if step.python else f"$ {step.typed}\n{step.printed}"
                text = text.replace(before, before.removesuffix(step.printed) + printed, 1)
        for command in options.also:
            print("$", command, flush=True)
            print(run(Step(command, False, ""), work, binaries), end="", flush=True)
    if options.update and wrong:
        README.write_text(text, encoding="utf-8")
    return int(wrong > 0 and not options.update)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"error: {error.cmd!r} failed:\n{error.stdout}{error.stderr}") from None
    except subprocess.TimeoutExpired as error:
        raise SystemExit(f"error: {error}") from None
