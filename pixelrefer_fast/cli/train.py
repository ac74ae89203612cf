"""The commands `train` and `world`: training from a config, and the synthetic world as files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pixelrefer_fast.checks.printable import one_line


def run_training(config: str, resume: bool, out: str | None) -> dict[str, Any]:
    """Train as a config file says; the report.

    Raises:
        ValueError, ImportError, FloatingPointError: as `train.run.train`.
    """
    from pixelrefer_fast.train.config import load_config
    from pixelrefer_fast.train.run import check_packages, train

    loaded = load_config(config, out)
    check_packages(loaded)
    with _progress() as show:

        def tell(stage: Any, step: int, steps: int, entry: dict[str, float]) -> None:
            words = f"loss {entry['loss']:.4f}, accuracy {entry['accuracy']:.3f}"
            show(stage.name, step, steps, words)
            if not sys.stderr.isatty():
                _say(f"stage {stage.name}: step {step} of {steps}, {words}")

        try:
            return train(loaded, resume, tell, _say)
        except KeyboardInterrupt:
            _say(f"interrupted: --resume goes on with the last checkpoint in {loaded.output}")
            raise


def print_training(report: dict[str, Any], out: Any) -> None:
    """The end of a training for people."""
    for stage in report["stages"]:
        loss = "no loss logged" if stage["loss"] is None else f"loss {stage['loss']:.4f}"
        print(f"stage {stage['name']}: {stage['steps']} steps, {loss}, {stage['seconds']:.0f} s", file=out)
    if report["malformed"]:
        print(f"{report['malformed']} malformed samples were left out: {report['malformed_log']}", file=out)
    print(f"{report['model']}: written", file=out)


def run_check(config: str) -> dict[str, Any]:
    """Read all data of a config's files; the report of `train.check.check_data`."""
    from pixelrefer_fast.train.check import check_data
    from pixelrefer_fast.train.config import load_config

    loaded = load_config(config)
    with _progress() as show:
        return check_data(loaded, _say, lambda name, done, total: show(name, done, total, ""))


def print_check(report: dict[str, Any], out: Any) -> None:
    for file in report["files"]:
        print(f"{file['file']}: {file['samples']} samples, {file['malformed']} malformed", file=out)
    if not report["files"]:
        print("no files of samples in this config", file=out)


def run_world(
    folder: str, scenes: int, seed: int, split: str, kind: str, annotation: bool, lines: bool
) -> dict[str, Any]:
    """Write a part of the synthetic world as training data; the report.

    Raises:
        ValueError: the split is none, or the folder is not empty or cannot be written.
    """
    from pixelrefer_fast.checkpoint.new_folder import vacant
    from pixelrefer_fast.train.record_writer import write_world
    from pixelrefer_fast.world import ask_about, make_scene

    target = vacant(folder)
    name = "samples.jsonl" if lines else "samples.json"
    made = (make_scene(number, split) for number in range(seed, seed + scenes))
    with _progress() as show:
        counts = write_world(
            target,
            ((scene, ask_about(scene, scene.seed)) for scene in made),
            kind,
            "annotation" if annotation else "masks",
            name,
            lambda done: show("scenes", done, scenes, ""),
        )
    return {"file": str(target / name), **counts}


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int, str], None]]:
    """A bar on a terminal: what, done, of how many, and a few words; elsewhere nothing is shown."""
    if not sys.stderr.isatty():
        yield lambda name, done, total, words: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(name: str, done: int, total: int, words: str) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(one_line(name), total=total, words=words)
            bar.update(tasks[name], completed=done, total=total, words=words)

        yield show
