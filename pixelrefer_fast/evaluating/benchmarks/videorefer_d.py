"""VideoRefer-Bench-D: descriptions of objects in 400 videos, rated by a judge in four ways from 0 to 5."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pixelrefer_fast.evaluating.benchmark import Benchmark, Kind, Metric, Reading, Scores, Tools
from pixelrefer_fast.evaluating.benchmarks.videorefer import ORIGIN, marked_objects
from pixelrefer_fast.evaluating.items import BenchmarkItem, Json, Reply
from pixelrefer_fast.evaluating.judging.endpoint import Message
from pixelrefer_fast.evaluating.layout import PublishedFile, entries, folder_in, found, read_list

FILE = PublishedFile(
    ("benchmarks/VideoRefer-Bench/VideoRefer-Bench-D.json", "VideoRefer-Bench/VideoRefer-Bench-D.json"), ORIGIN
)
VIDEOS = ("benchmarks/VideoRefer-Bench/Panda-70M-part", "VideoRefer-Bench/Panda-70M-part")
FULL_QUESTION = "<video>\nPlease describe in detail the marked object <region> in the video."
LITE_QUESTION = "There is one object in the video: <region>.\nPlease describe in detail the marked object in the video."
RATINGS = {
    "SC": "Subject Correspondence",
    "AD": "Appearance Description",
    "TD": "Temporal Description",
    "HD": "Hallucination Detection",
}
_RATING = re.compile(r"\d+\.\s+(.*?):\s+([\d.]+)")
_MARKDOWN = str.maketrans("", "", "*_`#")


class VideoReferD(Benchmark):
    """A file of objects: `video`, `caption`, `frame_idx`, `annotation`."""

    name = "videorefer-d"
    title = "VideoRefer-Bench-D"
    metrics = tuple(Metric(name, scale=1, digits=2) for name in (*RATINGS, "Avg"))
    corrections = ("missing-masks", "rating-marks")
    media_origin = f"{ORIGIN} (Panda-70M-part.zip)"
    judged = True

    def sources(self, kind: Kind) -> Sequence[PublishedFile]:
        return (FILE,)

    def items(self, reading: Reading) -> Iterator[BenchmarkItem]:
        path = found(reading.data, FILE)
        folder = folder_in(reading.data, VIDEOS)
        question = LITE_QUESTION if reading.kind == "lite" else FULL_QUESTION
        for number, row in entries(path, read_list(path), ("video", "caption", "frame_idx", "annotation")):
            regions = marked_objects(row, reading)
            yield BenchmarkItem(
                str(number), folder / row["video"], regions, question, {"caption": row["caption"]}, video=True
            )

    def score(self, replies: Sequence[Reply], tools: Tools) -> Scores:
        judge = tools.needed_judge()
        said = judge.ask([_question(tools.prompts.rating, reply) for reply in replies])
        plain = "rating-marks" in tools.corrections
        details: dict[str, Json] = {
            reply.id: _ratings(text.translate(_MARKDOWN) if plain else text)
            for reply, text in zip(replies, said, strict=True)
        }
        values: dict[str, float | None] = {}
        unavailable: dict[str, str] = {}
        for name in RATINGS:
            given = [ratings[name] for ratings in details.values() if name in ratings]
            values[name] = sum(given) / len(given) if given else None
            if not given:
                unavailable[name] = "the judge rated no answer so"
        rated = [value for value in values.values() if value is not None]
        values["Avg"] = sum(rated) / len(RATINGS) if len(rated) == len(RATINGS) else None
        counts = {"rated": {name: sum(name in own for own in details.values()) for name in RATINGS}}
        return Scores(values, details, counts, unavailable)


def _question(system: str, reply: Reply) -> list[Message]:
    text = f"##Correct answer: {reply.gold['caption']}\n##Predicted answer: {reply.said}\n"
    return [{"role": "system", "content": system}, {"role": "user", "content": [{"type": "text", "text": text}]}]


def _ratings(text: str) -> Json:
    """The ratings of a judge's reply by their short names; none of them where one is no number."""
    try:
        named = {name: float(number) for name, number in _RATING.findall(text)}
    except ValueError:
        return {}
    return {short: named[name] for short, name in RATINGS.items() if name in named}


VIDEOREFER_D = VideoReferD()
