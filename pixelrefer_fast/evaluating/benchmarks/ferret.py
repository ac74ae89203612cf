"""Ferret-Bench's referring reasoning: answers about boxes, rated by a judge beside GPT-4's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from pixelrefer_fast.evaluating.benchmark import Benchmark, Kind, Metric, Reading, Scores, Tools
from pixelrefer_fast.evaluating.items import BenchmarkItem, Json, Reply
from pixelrefer_fast.evaluating.judging.endpoint import Message
from pixelrefer_fast.evaluating.layout import (
    COCO_IMAGES,
    PublishedFile,
    coco_image,
    entries,
    found,
    read_lines,
    read_list,
    read_object,
)

ORIGIN = "https://github.com/apple/ml-ferret, ferret/eval/ferret_gpt4_data"
FOLDERS = ("benchmarks/ferret-bench", "ferret-bench")
REGIONS = PublishedFile(
    tuple(f"{folder}/box_refer_reason.json" for folder in FOLDERS),
    "https://github.com/CircleRadon/Osprey, osprey/eval/ferret-bench",
)
ASKED, CONTEXTS, ANSWERS = (
    PublishedFile(tuple(f"{folder}/refer_reason/{name}.jsonl" for folder in FOLDERS), ORIGIN)
    for name in ("question", "context", "answer")
)
RULES = PublishedFile(tuple(f"{folder}/rule.json" for folder in FOLDERS), ORIGIN)
SCORE = "score"
_BOX = re.compile(r"\[.*?\]")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class FerretReasoning(Benchmark):
    """Osprey's regions, and ml-ferret's questions, contexts and answers of GPT-4, which match them line by line."""

    name = "ferret"
    title = "Ferret-Bench, referring reasoning"
    metrics = (Metric(SCORE, scale=1),)
    corrections = ("review-line", "review-boxes")
    media_origin = COCO_IMAGES
    judged = True

    def sources(self, kind: Kind) -> Sequence[PublishedFile]:
        return (REGIONS, ASKED, CONTEXTS, ANSWERS, RULES)

    def items(self, reading: Reading) -> Iterator[BenchmarkItem]:
        from pixelrefer_fast.regions import Region

        path = found(reading.data, REGIONS)
        rules = read_object(found(reading.data, RULES))
        asked, contexts, answers = (read_lines(found(reading.data, source)) for source in (ASKED, CONTEXTS, ANSWERS))
        by_image = {context["image"]: context["text"] for context in contexts}
        rows = read_list(path)
        if not len(rows) == len(asked) == len(answers):
            raise ValueError(
                f"{path}: expected as many regions, questions and answers, "
                f"got {len(rows)}, {len(asked)} and {len(answers)}"
            )
        for number, row in entries(path, rows, ("question_id", "image", "category", "text", "annotation")):
            question, answer = asked[number], answers[number]
            rule = rules.get(question["category"])
            if rule is None or question["image"] != row["image"] or row["image"] not in by_image:
                raise ValueError(f"{path}: entry {number}: expected the image and category of its question, got others")
            text = row["text"]
            if reading.kind == "lite" and row["category"] == "reason":
                text = "There is 1 region in the image: <region> " + text.replace("<region>", "")
            gold = {
                "context": by_image[row["image"]],
                "question": question["text"],
                "answer": answer["text"],
                "rule": rule["prompt"],
                "role": rule["role"],
            }
            region = Region.of(row["annotation"]["segmentation"]).to_json()
            yield BenchmarkItem(str(row["question_id"]), coco_image(reading.data, row["image"]), (region,), text, gold)

    def score(self, replies: Sequence[Reply], tools: Tools) -> Scores:
        judge = tools.needed_judge()
        both = "review-boxes" in tools.corrections
        system: Message = {"role": "system", "content": tools.prompts.review}
        questions = [[system, {"role": "user", "content": [_review(reply, both)]}] for reply in replies]
        lenient = "review-line" in tools.corrections
        details: dict[str, Json] = {}
        pairs: list[tuple[float, float]] = []
        unread = 0
        for reply, text in zip(replies, judge.ask(questions), strict=True):
            pair = review_pair(text, lenient)
            unread += pair is None
            details[reply.id] = {"ratings": pair}
            if pair is not None or not lenient:
                pairs.append(pair or (-1.0, -1.0))
        counts = {"unread": unread}
        if not pairs:
            return Scores({SCORE: None}, details, counts, {SCORE: "the judge rated no answer"})
        own, other = (round(mean, 3) for mean in np.asarray(pairs).mean(0).tolist())
        return Scores({SCORE: round(own / other * 100, 1) if other else None}, details, counts)


def _review(reply: Reply, both: bool) -> Json:
    gold = reply.gold
    role = gold["role"]
    said = _without_boxes(reply.said) if both else reply.said
    # the backslash is the script's: it keeps the context from a line of its own, and belongs to the recorded question
    text = (
        f"[Context]\\{gold['context']}\n\n[Question]\n{gold['question']}\n\n"
        f"[{role} 1]\n{said}\n\n[End of {role} 1]\n\n"
        f"[{role} 2]\n{_without_boxes(gold['answer'])}\n\n[End of {role} 2]\n\n"
        f"[System]\n{gold['rule']}\n\n"
    )
    return {"type": "text", "text": text}


def _without_boxes(text: str) -> str:
    for box in _BOX.findall(text):
        text = text.replace(f" {box}", "")
    return text


def review_pair(text: str, lenient: bool = False) -> tuple[float, float] | None:
    """The ratings of both answers in the first line of a review; None where it is not just two numbers.

    Args:
        text: the judge's reply.
        lenient: whether anything may part the numbers; else it is one space or comma.
    """
    line = text.split("\n")[0]
    parts = _NUMBER.findall(line) if lenient else line.replace(",", " ").split(" ")
    if len(parts) != 2:
        return None
    try:
        return float(parts[0]), float(parts[1])
    except ValueError:
        return None


FERRET = FerretReasoning()
