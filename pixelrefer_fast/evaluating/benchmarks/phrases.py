"""Visual Genome: a brief description of a box, by the authors' file of 5,000 regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pixelrefer_fast.evaluating.benchmark import Benchmark, Kind, Metric, Reading, Scores, Tools
from pixelrefer_fast.evaluating.items import BenchmarkItem, Json, Reply
from pixelrefer_fast.evaluating.layout import HUB, PublishedFile, benchmark_file, entries, found, read_list
from pixelrefer_fast.evaluating.marks import filled_box, run_lengths
from pixelrefer_fast.evaluating.scoring.captions import CIDER, METEOR, caption_scores, check_captioning, first_words

FILE = benchmark_file("vg_val_5000.json", f"{HUB}/CircleRadon/referring_evaluation")
QUESTION = "Please describe <region> briefly."


class VisualGenome(Benchmark):
    """A file of regions: `image[0]`, a path below `data/`, `caption`, `boxes[0]` (x, y, width, height) and `mask`."""

    name = "vg"
    title = "Visual Genome"
    metrics = (Metric(METEOR), Metric(CIDER))
    corrections = ("vg-mask", "caption-length")
    media_origin = "https://homes.cs.washington.edu/~ranjay/visualgenome (below data/ as the file names them)"

    def sources(self, kind: Kind) -> Sequence[PublishedFile]:
        return (FILE,)

    def check(self, tools: Tools) -> None:
        check_captioning()

    def items(self, reading: Reading) -> Iterator[BenchmarkItem]:
        path = found(reading.data, FILE)
        keys = ("image", "height", "width", "caption", "mask", "boxes")
        for number, region in entries(path, read_list(path), keys):
            height, width = region["height"], region["width"]
            mark: Json = filled_box(region["boxes"][0], height, width)
            if "vg-mask" in reading.corrections:
                mark = run_lengths(region["mask"], height, width)
            media = reading.data / "data" / region["image"][0]
            yield BenchmarkItem(str(number), media, (mark,), QUESTION, {"caption": region["caption"]})

    def score(self, replies: Sequence[Reply], tools: Tools) -> Scores:
        return scored_captions(
            [reply.said for reply in replies], [[reply.gold["caption"]] for reply in replies], replies, self, tools
        )


def scored_captions(
    said: Sequence[str], right: Sequence[Sequence[str]], replies: Sequence[Reply], benchmark: Benchmark, tools: Tools
) -> Scores:
    """The benchmark's metrics of captions, cut after 100 words as the authors' script does."""
    captions = list(said) if "caption-length" in tools.corrections else [first_words(text) for text in said]
    wanted = [metric.name for metric in benchmark.metrics]
    values, details, unavailable = caption_scores(captions, right, wanted)
    named: dict[str, Json] = {reply.id: dict(own) for reply, own in zip(replies, details, strict=True)}
    return Scores(values, named, unavailable=unavailable)


VG = VisualGenome()
