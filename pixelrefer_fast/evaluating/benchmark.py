"""What each benchmark tells: which files it needs, its questions, and how answers become scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pixelrefer_fast.evaluating.items import BenchmarkItem, Json, Reply
from pixelrefer_fast.evaluating.judging.judge import Judge
from pixelrefer_fast.evaluating.judging.prompts import JudgePrompts
from pixelrefer_fast.evaluating.layout import PublishedFile

Kind = Literal["lite", "full"]


@dataclass(frozen=True)
class Metric:
    """A number of the paper's tables.

    Attributes:
        name: as the paper calls it.
        scale: what the computed number is multiplied by to be in the paper's unit.
        digits: after the point, as the paper prints it.
    """

    name: str
    scale: float = 100.0
    digits: int = 1


@dataclass(frozen=True)
class Reading:
    """How published files are read.

    Attributes:
        data: the folder of --data.
        kind: of the model that is asked: Lite is shown every marked frame of a video, Full one.
        split: one of the benchmark's.
        corrections: names of `corrections.CORRECTIONS`; what they name is done right, all else as it was recorded.
    """

    data: Path
    kind: Kind
    split: str
    corrections: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Tools:
    """What scoring may use.

    Attributes:
        encoder: folder of a sentence encoder, None where none was given.
        judge: None where none was given.
        prompts: what judges are told.
        corrections: as `Reading`'s.
    """

    encoder: Path | None = None
    judge: Judge | None = None
    prompts: JudgePrompts = field(default_factory=JudgePrompts)
    corrections: frozenset[str] = frozenset()

    def needed_judge(self) -> Judge:
        if self.judge is None:
            raise ValueError("--judge-url, --judge-model: expected a judge, which scores this benchmark, got none")
        return self.judge


@dataclass
class Scores:
    """Scores of one run.

    Attributes:
        values: by metric, not rounded, in the unit of the authors' scripts; None where one could not be computed.
        details: of each item, by its id.
        counts: what else was counted: questions by type, replies that could not be read, ...
        unavailable: metrics that could not be computed, and why.
    """

    values: dict[str, float | None]
    details: dict[str, Json] = field(default_factory=dict)
    counts: Json = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)


class Benchmark(ABC):
    """One benchmark of the paper.

    Attributes:
        name: on the command line.
        title: as the paper calls it.
        metrics: what is scored.
        splits: parts of it; the first is asked where nothing is said.
        corrections: names of `corrections.CORRECTIONS` that concern it.
        media_origin: where its images or videos come from.
        judged: whether a judge scores it.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    splits: tuple[str, ...] = ("val",)
    corrections: tuple[str, ...] = ()
    media_origin: str
    judged: bool = False

    @abstractmethod
    def sources(self, kind: Kind) -> Sequence[PublishedFile]:
        """The published files that questions and scores are made from."""

    @abstractmethod
    def items(self, reading: Reading) -> Iterator[BenchmarkItem]:
        """The questions in the order of the published files.

        Raises:
            ValueError: naming the file and what is wrong with it.
        """

    def check(self, tools: Tools) -> None:
        """ValueError unless there is what scores of this benchmark need; told before a model answers."""
        if self.judged:
            tools.needed_judge()

    @abstractmethod
    def score(self, replies: Sequence[Reply], tools: Tools) -> Scores:
        """The scores of answers, in the order of their items.

        Raises:
            ValueError: a tool that this benchmark needs was not given, or a library that it needs is missing.
        """
