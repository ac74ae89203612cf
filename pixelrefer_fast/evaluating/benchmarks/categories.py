"""LVIS and PACO: the category of a masked object or part, by Osprey's thousand images of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pixelrefer_fast.evaluating.benchmark import Benchmark, Kind, Metric, Reading, Scores, Tools
from pixelrefer_fast.evaluating.items import BenchmarkItem, Json, Reply
from pixelrefer_fast.evaluating.layout import (
    COCO_IMAGES,
    HUB,
    PublishedFile,
    benchmark_file,
    coco_image,
    entries,
    found,
    read_list,
)
from pixelrefer_fast.evaluating.marks import run_lengths
from pixelrefer_fast.evaluating.scoring.similarity import SentenceSimilarity, mean_similarity
from pixelrefer_fast.evaluating.scoring.words import word_overlap

SSIM, SIOU = "SSim", "SIoU"


class CategoryBenchmark(Benchmark):
    """A file of images, each with `categories` and as many `annotations`.

    Args:
        name, title, question: of the benchmark.
    """

    metrics = (Metric(SSIM), Metric(SIOU))
    media_origin = COCO_IMAGES

    def __init__(self, name: str, title: str, question: str) -> None:
        self.name = name
        self.title = title
        self.question = question
        self._file = benchmark_file(f"{name}_val_1k_category.json", f"{HUB}/sunshine-lwt/Osprey-ValData")

    def sources(self, kind: Kind) -> Sequence[PublishedFile]:
        return (self._file,)

    def items(self, reading: Reading) -> Iterator[BenchmarkItem]:
        path = found(reading.data, self._file)
        count = 0
        keys = ("file_name", "height", "width", "categories", "annotations")
        for number, image in entries(path, read_list(path), keys):
            if len(image["annotations"]) < len(image["categories"]):
                raise ValueError(f"{path}: entry {number}: expected an annotation for each category, got fewer")
            media = coco_image(reading.data, image["file_name"])
            for category, annotation in zip(image["categories"], image["annotations"], strict=False):
                region = run_lengths(annotation["segmentation"], image["height"], image["width"])
                yield BenchmarkItem(str(count), media, (region,), self.question, {"category": category})
                count += 1

    def score(self, replies: Sequence[Reply], tools: Tools) -> Scores:
        overlaps = [word_overlap(reply.said, reply.gold["category"]) for reply in replies]
        details: dict[str, Json] = {
            reply.id: {"SIoU": overlap} for reply, overlap in zip(replies, overlaps, strict=True)
        }
        scores = Scores({SSIM: None, SIOU: sum(overlaps) / (len(replies) + 1e-10)}, details)
        if tools.encoder is None:
            scores.unavailable[SSIM] = "--encoder names no folder of a sentence encoder (the paper's: all-MiniLM-L6-v2)"
            return scores
        pairs = [(reply.said, reply.gold["category"]) for reply in replies]
        scores.values[SSIM], values = mean_similarity(SentenceSimilarity(tools.encoder), pairs)
        for reply, value in zip(replies, values, strict=True):
            details[reply.id][SSIM] = value
        return scores


LVIS = CategoryBenchmark("lvis", "LVIS", "What is the category of <region>? Using only one word or phrase.")
PACO = CategoryBenchmark(
    "paco",
    "PACO",
    "What is the category of <region>? It maybe a subpart of an object. If it is a subpart, output in the format of "
    "'category:subcategory', else just output the category.",
)
