"""The options of `eval`, `train` and `world`; what they do is in `cli.eval` and `cli.train`, which take longer to
import."""

from __future__ import annotations

from typing import Annotated

import typer

from pixelrefer_fast.checks.printable import write_json
from pixelrefer_fast.cli.interrupts import clean_end
from pixelrefer_fast.cli.options import AsJson, Backend, Device, Dtype, examples
from pixelrefer_fast.cli.output import reserved_stdout

EVAL_EXAMPLES = examples("eval --world", "eval --world --questions 5000 --json", "eval --world --model ./my-model")
TRAIN_EXAMPLES = examples("train lite.yaml", "train lite.yaml --check", "train lite.yaml --resume --json")
WORLD_EXAMPLES = examples("world ./world --scenes 1000", "world ./held --split heldout --annotation --lines")


def evaluate(
    world: Annotated[
        bool, typer.Option("--world", help="Ask about the synthetic world: the one set of questions there is.")
    ] = False,
    split: Annotated[str, typer.Option("--split", metavar="S", help="heldout or train.")] = "heldout",
    questions: Annotated[int, typer.Option("--questions", metavar="N", help="How many, of all categories.")] = 2000,
    models: Annotated[str, typer.Option("--models", metavar="lite,full", help="Which embedded ones.")] = "lite,full",
    model: Annotated[
        str | None, typer.Option("--model", metavar="FOLDER|ID", help="Another one instead.", show_default=False)
    ] = None,
    videos: Annotated[
        float, typer.Option("--videos", metavar="SHARE", help="Of the questions but those about motion.")
    ] = 0.4,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the first scene.")] = 1_000_000,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    as_json: AsJson = False,
) -> None:
    """Ask questions whose answers are known, and count the right ones by category."""
    from pixelrefer_fast.cli.eval import models_asked, print_eval, run_eval

    with reserved_stdout() as out:
        if not world:
            raise ValueError("eval: expected --world, the one set of questions there is, got none")
        report = run_eval(models_asked(models, model), questions, split, seed, videos, device, dtype, backend)
        if as_json:
            write_json(report, out)
        else:
            print_eval(report, out)


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="What to train; docs/training.md has the keys.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in the output folder.")] = False,
    folder: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Write there instead of where the file says.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read all samples of the files and their media; no training.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train or fine-tune a checkpoint on samples in the released format."""
    from pixelrefer_fast.cli.train import print_check, print_training, run_check, run_training

    with reserved_stdout() as out, clean_end():
        report = run_check(config) if check else run_training(config, resume, folder)
        if as_json:
            write_json(report, out)
        else:
            (print_check if check else print_training)(report, out)


def world(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder to write; must not exist or be empty.")],
    scenes: Annotated[int, typer.Option("--scenes", metavar="N", min=1, help="How many images and videos.")] = 100,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the first scene.")] = 0,
    split: Annotated[str, typer.Option("--split", metavar="S", help="train or heldout.")] = "train",
    one_frame: Annotated[
        bool, typer.Option("--one-frame", help="Mark objects of a video in one frame, as PixelRefer takes them.")
    ] = False,
    annotation: Annotated[bool, typer.Option("--annotation", help="Videos' masks in VideoRefer-700K's form.")] = False,
    lines: Annotated[bool, typer.Option("--lines", help="One sample a line instead of a JSON list.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write scenes of the synthetic world with their questions, in the released training format."""
    from pixelrefer_fast.cli.train import run_world

    with reserved_stdout() as out, clean_end():
        report = run_world(folder, scenes, seed, split, "full" if one_frame else "lite", annotation, lines)
        if as_json:
            write_json(report, out)
        else:
            print(
                f"{report['file']}: {report['samples']} samples about {report['images']} images and "
                f"{report['videos']} videos",
                file=out,
            )
