"""Ref-L4: boxes in Objects365 described briefly (METEOR, CIDEr of phrases) and in detail (CLAIR)."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from pixelrefer_fast.evaluating.benchmark import Benchmark, Kind, Metric, Reading, Scores, Tools
from pixelrefer_fast.evaluating.benchmarks.phrases import scored_captions
from pixelrefer_fast.evaluating.items import BenchmarkItem, Json, Reply
from pixelrefer_fast.evaluating.judging.endpoint import Message
from pixelrefer_fast.evaluating.judging.prompts import filled
from pixelrefer_fast.evaluating.layout import HUB, PublishedFile, entries, folder_in, found, read_lines, read_object
from pixelrefer_fast.evaluating.marks import filled_box
from pixelrefer_fast.evaluating.scoring.captions import CIDER, METEOR, check_captioning

QUESTIONS = PublishedFile(
    ("benchmarks/Ref-L4/ref-l4-val.json", "Ref-L4/ref-l4-val.json"), f"{HUB}/CircleRadon/referring_evaluation"
)
PHRASES = PublishedFile(("benchmarks/Ref-L4/refl4_gt.json", "Ref-L4/refl4_gt.json"), QUESTIONS.origin)
IMAGES = ("benchmarks/Ref-L4/images", "Ref-L4/images")
RECORDED, WHOLE = "objects365", "all"
WORDS = 5  # of an answer that needs no condensing
CLAIR = "CLAIR"
_NUMBER = re.compile(r"\d*\.?\d+")


def _regions(reading: Reading, question: str) -> Iterator[tuple[int, BenchmarkItem]]:
    """The questions about boxes, numbered as the authors' scripts number them."""
    path = found(reading.data, QUESTIONS)
    folder = folder_in(reading.data, IMAGES)
    number = 0
    for _, row in entries(path, read_lines(path), ("file_name", "height", "width", "caption", "bbox")):
        if reading.split == RECORDED and RECORDED not in row["file_name"]:
            continue
        region = filled_box(row["bbox"], row["height"], row["width"])
        yield (
            number,
            BenchmarkItem(str(number), folder / row["file_name"], (region,), question, {"caption": row["caption"]}),
        )
        number += 1


class RefL4(Benchmark):
    """Lines of regions; phrases that GPT-4o made of the right captions stand in a file of their own, by number."""

    name = "refl4"
    title = "Ref-L4"
    metrics = (Metric(METEOR), Metric(CIDER))
    splits = (RECORDED,)
    corrections = ("caption-length",)
    media_origin = f"{HUB}/JierunChen/Ref-L4"
    judged = True

    def sources(self, kind: Kind) -> Sequence[PublishedFile]:
        return (QUESTIONS, PHRASES)

    def check(self, tools: Tools) -> None:
        super().check(tools)
        check_captioning()

    def items(self, reading: Reading) -> Iterator[BenchmarkItem]:
        path = found(reading.data, PHRASES)
        phrases: defaultdict[str, list[str]] = defaultdict(list)
        for row in read_object(path).get("annotations", []):
            phrases[str(row["image_id"])].append(row["caption"])
        for number, item in _regions(reading, "Please describe <region> in brief."):
            if str(number) not in phrases:
                raise ValueError(f"{path}: expected a phrase for region {number}, got {len(phrases)} others")
            item.gold["phrases"] = phrases[str(number)]
            yield item

    def score(self, replies: Sequence[Reply], tools: Tools) -> Scores:
        long = [reply for reply in replies if len(reply.said.split(" ")) > WORDS]
        questions = [_condensing(tools.prompts.condensing, reply.said) for reply in long]
        phrases = tools.needed_judge().ask(questions)
        condensed = {reply.id: text for reply, text in zip(long, phrases, strict=True)}
        said = [condensed.get(reply.id, reply.said) for reply in replies]
        scores = scored_captions(said, [reply.gold["phrases"] for reply in replies], replies, self, tools)
        for reply, text in zip(replies, said, strict=True):
            scores.details[reply.id]["phrase"] = text
        scores.counts["condensed"] = len(long)
        return scores


def _condensing(system: str, text: str) -> list[Message]:
    return [{"role": "system", "content": system}, {"role": "user", "content": [{"type": "text", "text": text}]}]


class RefL4Clair(Benchmark):
    """The same regions, described in detail; a judge says how likely both captions are of one image."""

    name = "refl4-clair"
    title = "Ref-L4 CLAIR"
    metrics = (Metric(CLAIR),)
    splits = (RECORDED, WHOLE)
    corrections = ("clair-letters",)
    media_origin = RefL4.media_origin
    judged = True

    def sources(self, kind: Kind) -> Sequence[PublishedFile]:
        return (QUESTIONS,)

    def items(self, reading: Reading) -> Iterator[BenchmarkItem]:
        return (item for _, item in _regions(reading, "Please describe <region> in detail."))

    def score(self, replies: Sequence[Reply], tools: Tools) -> Scores:
        judge = tools.needed_judge()
        whole = "clair-letters" in tools.corrections
        questions: list[list[Message]] = []
        for reply in replies:
            caption = reply.gold["caption"]
            # an iteration over one text instead of a list of texts gives its letters
            targets = [caption] if whole and isinstance(caption, str) else list(caption)
            statements = {"candidate_statements": _listed([reply.said]), "target_statements": _listed(targets)}
            questions.append([{"role": "user", "content": filled(tools.prompts.clair, **statements)}])
        details: dict[str, Json] = {}
        unread = 0
        for reply, text in zip(replies, judge.ask(questions), strict=True):
            score = clair_score(text)
            unread += score is None
            details[reply.id] = {CLAIR: 0.0 if score is None else score / 100}
        total: float = sum(own[CLAIR] for own in details.values())
        return Scores({CLAIR: total / max(1, len(replies))}, details, {"unread": unread})


def _listed(texts: Sequence[str]) -> str:
    return "".join(f"- {text}\n" for text in texts)


def clair_score(text: str) -> float | None:
    """The score from 0 to 100 in a judge's reply: of its first JSON object, else its first number; None without one.

    Of a number outside of JSON, what is below 1 is taken for a share.
    """
    try:
        inside = text.split("{")[1].split("}")[0]
        return float(json.loads("{" + inside + "}")["score"])
    except (ValueError, KeyError, IndexError, TypeError):
        pass
    found_numbers = _NUMBER.findall(text)
    if not found_numbers:
        return None
    score = float(found_numbers[0])
    return score * 100 if score < 1 else score


REFL4 = RefL4()
REFL4_CLAIR = RefL4Clair()
