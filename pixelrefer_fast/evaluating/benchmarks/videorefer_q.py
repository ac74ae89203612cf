"""VideoRefer-Bench-Q: a thousand questions with four choices about objects in videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pixelrefer_fast.evaluating.benchmark import Benchmark, Kind, Metric, Reading, Scores, Tools
from pixelrefer_fast.evaluating.benchmarks.videorefer import ORIGIN, marked_objects
from pixelrefer_fast.evaluating.items import BenchmarkItem, Json, Reply
from pixelrefer_fast.evaluating.layout import HUB, PublishedFile, entries, found, read_list
from pixelrefer_fast.evaluating.scoring.choices import gold_letter, letter_of, meant_letter

ONE_FRAME = PublishedFile(
    ("benchmarks/VideoRefer-Bench/VideoRefer-Bench-Q.json", "VideoRefer-Bench/VideoRefer-Bench-Q.json"), ORIGIN
)
ALL_FRAMES = PublishedFile(
    ("benchmarks/VideoRefer-Bench-Q-allframe.json", "VideoRefer-Bench-Q-allframe.json"),
    f"{HUB}/CircleRadon/referring_evaluation",
)
REQUEST = "Answer with the option's letter from the given choices directly."
ACCURACY = "accuracy"


class VideoReferQ(Benchmark):
    """A file of questions: `video`, a path below `data/`, `Question`, `options`, `Answer`, `type`, `annotation`."""

    name = "videorefer-q"
    title = "VideoRefer-Bench-Q"
    metrics = (Metric(ACCURACY),)
    corrections = ("choice-letter", "missing-masks")
    media_origin = "MeViS (https://henghuiding.com/MeViS) and DAVIS (https://davischallenge.org), below data/"

    def sources(self, kind: Kind) -> Sequence[PublishedFile]:
        return (ALL_FRAMES if kind == "lite" else ONE_FRAME,)

    def items(self, reading: Reading) -> Iterator[BenchmarkItem]:
        path = found(reading.data, self.sources(reading.kind)[0])
        keys = ("video", "Question", "options", "Answer", "type", "annotation")
        for number, row in entries(path, read_list(path), keys):
            question = f"{row['Question']} {' '.join(row['options'])}. {REQUEST}"
            gold = {"answer": row["Answer"], "options": row["options"], "type": row["type"]}
            media = reading.data / "data" / row["video"]
            yield BenchmarkItem(str(number), media, marked_objects(row, reading), question, gold, video=True)

    def score(self, replies: Sequence[Reply], tools: Tools) -> Scores:
        meant = "choice-letter" in tools.corrections
        asked: Counter[str] = Counter()
        right: Counter[str] = Counter()
        details: dict[str, Json] = {}
        for reply in replies:
            gold = reply.gold
            letter = meant_letter(reply.said, gold["options"]) if meant else letter_of(reply.said)
            wanted = gold_letter(gold["answer"])
            asked[gold["type"]] += 1
            right[gold["type"]] += letter == wanted
            details[reply.id] = {"letter": letter, "right": letter == wanted}
        by_type = {name: {"n": n, "right": right[name], "accuracy": right[name] / n} for name, n in asked.items()}
        return Scores({ACCURACY: sum(right.values()) / max(1, len(replies))}, details, {"types": by_type})


VIDEOREFER_Q = VideoReferQ()
