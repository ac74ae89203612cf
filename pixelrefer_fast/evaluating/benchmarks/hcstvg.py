"""HC-STVG: a sentence about a person in a video, masked by SAM 2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pixelrefer_fast.evaluating.benchmark import Benchmark, Kind, Metric, Reading, Scores, Tools
from pixelrefer_fast.evaluating.benchmarks.phrases import scored_captions
from pixelrefer_fast.evaluating.items import BenchmarkItem, Reply
from pixelrefer_fast.evaluating.layout import HUB, PublishedFile, benchmark_file, entries, found, read_list
from pixelrefer_fast.evaluating.marks import marks_something, on_frames, run_lengths
from pixelrefer_fast.evaluating.scoring.captions import BLEU, CIDER, METEOR, ROUGE, SPICE, check_captioning

ORIGIN = f"{HUB}/CircleRadon/referring_evaluation"
ONE_FRAME = benchmark_file("hc_stvg_val.json", ORIGIN)
ALL_FRAMES = benchmark_file("hc-stvg-val-allframe.json", ORIGIN)
VIDEOS = "data/HC-STVG/video_parts"
FULL_QUESTION = "Please describe the object <region> in brief in the video."
LITE_QUESTION = (
    "There is one object in the video: <region>.\n"
    "Please give a description of the highlighted object in the video. Using only one sentense."  # spelled so
)


class HcStvg(Benchmark):
    """Full's file: `video`, `frame_idx`, `mask`, `caption`; Lite's: `video[0]`, `masks` by frame, `conversations`."""

    name = "hcstvg"
    title = "HC-STVG"
    metrics = tuple(map(Metric, (METEOR, CIDER, BLEU, ROUGE, SPICE)))
    corrections = ("caption-length",)
    media_origin = "https://github.com/tzhhhh123/HC-STVG"

    def sources(self, kind: Kind) -> Sequence[PublishedFile]:
        return (ALL_FRAMES if kind == "lite" else ONE_FRAME,)

    def check(self, tools: Tools) -> None:
        check_captioning()

    def items(self, reading: Reading) -> Iterator[BenchmarkItem]:
        return _all_frames(reading) if reading.kind == "lite" else _one_frame(reading)

    def score(self, replies: Sequence[Reply], tools: Tools) -> Scores:
        right = [[reply.gold["caption"]] for reply in replies]
        return scored_captions([reply.said for reply in replies], right, replies, self, tools)


def _one_frame(reading: Reading) -> Iterator[BenchmarkItem]:
    path = found(reading.data, ONE_FRAME)
    for number, row in entries(path, read_list(path), ("video", "frame_idx", "mask", "caption")):
        region = on_frames({int(row["frame_idx"]): run_lengths(row["mask"])})
        media = reading.data / VIDEOS / row["video"]
        yield BenchmarkItem(str(number), media, (region,), FULL_QUESTION, {"caption": row["caption"]}, video=True)


def _all_frames(reading: Reading) -> Iterator[BenchmarkItem]:
    path = found(reading.data, ALL_FRAMES)
    for number, row in entries(path, read_list(path), ("video", "masks", "conversations")):
        regions = []
        for frames in row["masks"]:
            marked = {int(frame): run_lengths(mask) for frame, mask in frames.items()}
            regions.append(on_frames({frame: mask for frame, mask in marked.items() if marks_something(mask)}))
        media = reading.data / VIDEOS / row["video"][0]
        gold = {"caption": row["conversations"][1]["value"]}
        yield BenchmarkItem(str(number), media, tuple(regions), LITE_QUESTION, gold, video=True)


HCSTVG = HcStvg()
