"""Options of `eval`, in the groups that its help shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from pixelrefer_fast.cli.options import examples

_WORLD = "The world"
_PUBLISHED = "Published benchmarks"
_SCORES = "Scores"
_PARAGRAPHS = (
    "Benchmarks: lvis, paco, vg, refl4, hcstvg, videorefer-q, videorefer-d, dlc, refl4-clair, ferret, and world, which "
    "needs no files and is asked where none is named.",
    "eval run BENCHMARK answers, eval score scores what --out holds, eval BENCHMARK does both. --out DIR gets "
    "questions.jsonl, answers.jsonl, judge.jsonl (raw replies), scores.json and table.md.",
    "docs/evaluation.md says which files --data needs, what the paper's numbers were made with, and what to expect.",
)
EXAMPLES = (
    examples(
        "eval world --questions 5000 --json",
        "eval lvis --data /data --out out/lvis --encoder ./all-MiniLM-L6-v2 --model ./PixelRefer-Lite-2B",
        "eval run dlc --data /data --out out/dlc --model ./PixelRefer-2B --resume",
        "eval run vg --data /data --out out/vg --model ./PixelRefer-7B --engine vllm "
        "--engine-option tensor_parallel_size=2",
        "eval score --out out/dlc --judge-url http://localhost:9000/v1 --judge-model Llama-3.1-8B-Instruct",
    )
    + "\n\n"
    + "\n\n".join(_PARAGRAPHS)
)


@dataclass(frozen=True)
class WorldQuestions:
    """The synthetic world's questions."""

    world: Annotated[bool, typer.Option("--world", help="The same as the benchmark world.", rich_help_panel=_WORLD)] = (
        False
    )
    questions: Annotated[
        int, typer.Option("--questions", metavar="N", help="How many, of all categories.", rich_help_panel=_WORLD)
    ] = 2000
    models: Annotated[
        str, typer.Option("--models", metavar="lite,full", help="Which embedded ones.", rich_help_panel=_WORLD)
    ] = "lite,full"
    videos: Annotated[
        float,
        typer.Option(
            "--videos", metavar="SHARE", help="Of the questions but those about motion.", rich_help_panel=_WORLD
        ),
    ] = 0.4
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the first scene.", rich_help_panel=_WORLD)] = (
        1_000_000
    )


@dataclass(frozen=True)
class PublishedFiles:
    """What is asked of a published benchmark, and where its files are."""

    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="The published files, in benchmarks/ and data/ as the authors' scripts read them.",
            rich_help_panel=_PUBLISHED,
            show_default=False,
        ),
    ] = None
    out: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="DIR", help="Answers and scores.", rich_help_panel=_PUBLISHED, show_default=False
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="N", min=1, help="The first N items.", rich_help_panel=_PUBLISHED, show_default=False
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with a run that --out holds; nothing is lost.", rich_help_panel=_PUBLISHED
        ),
    ] = False
    correct: Annotated[
        list[str] | None,
        typer.Option(
            "--correct",
            metavar="NAME",
            help="Do right what the recorded numbers were not made right with: a name of docs/evaluation.md, or all; "
            "repeatable.",
            rich_help_panel=_PUBLISHED,
            show_default=False,
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            max=4096,
            help="At most so many questions at one time; 1 is how the paper's times were taken.",
            rich_help_panel=_PUBLISHED,
            show_default=False,
        ),
    ] = None
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens",
            metavar="N",
            min=1,
            help="Longest answer; the authors' scripts allow 2048.",
            rich_help_panel=_PUBLISHED,
        ),
    ] = 2048


@dataclass(frozen=True)
class Scoring:
    """Who and what scores."""

    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="DIR",
            help="A sentence encoder for SSim; the paper's is all-MiniLM-L6-v2.",
            rich_help_panel=_SCORES,
            show_default=False,
        ),
    ] = None
    judge_url: Annotated[
        str | None,
        typer.Option(
            "--judge-url",
            metavar="URL",
            help="An OpenAI-style endpoint, as far as /v1; its key is in PIXELREFER_FAST_JUDGE_KEY.",
            rich_help_panel=_SCORES,
            show_default=False,
        ),
    ] = None
    judge_model: Annotated[
        str | None,
        typer.Option(
            "--judge-model",
            metavar="NAME",
            help="The judge's name there. Scores of different judges cannot be compared.",
            rich_help_panel=_SCORES,
            show_default=False,
        ),
    ] = None
    judge_workers: Annotated[
        int,
        typer.Option(
            "--judge-workers", metavar="N", min=1, max=256, help="Questions at one time.", rich_help_panel=_SCORES
        ),
    ] = 8
    judge_image: Annotated[
        bool,
        typer.Option(
            "--judge-image",
            help="dlc: the judge sees the image, the region in its alpha channel.",
            rich_help_panel=_SCORES,
        ),
    ] = False
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="DIR",
            help="A checkout of the authors' repository, whose words for judges are taken instead of ours.",
            rich_help_panel=_SCORES,
            show_default=False,
        ),
    ] = None
    row: Annotated[
        str | None,
        typer.Option(
            "--row",
            metavar="NAME",
            help="The paper's row to stand beside: Lite-2B, Lite-7B, 2B or 7B; default: by the model's name.",
            rich_help_panel=_SCORES,
            show_default=False,
        ),
    ] = None
