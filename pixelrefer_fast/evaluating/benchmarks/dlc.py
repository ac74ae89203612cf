"""DLC-Bench: detailed descriptions, of which a judge answers questions with choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import util
from typing import Any

from pixelrefer_fast.checks.safe_files import listed
from pixelrefer_fast.evaluating.benchmark import Benchmark, Kind, Metric, Reading, Scores, Tools
from pixelrefer_fast.evaluating.items import BenchmarkItem, Json, Reply
from pixelrefer_fast.evaluating.judging.endpoint import Message
from pixelrefer_fast.evaluating.judging.pictures import picture_part
from pixelrefer_fast.evaluating.judging.prompts import JudgePrompts, filled
from pixelrefer_fast.evaluating.layout import HUB, PublishedFile, found, read_object
from pixelrefer_fast.evaluating.marks import run_lengths
from pixelrefer_fast.evaluating.scoring.choices import LETTERS, chosen_index

FOLDERS = ("benchmarks/DLC-Bench", "DLC-Bench")
ORIGIN = f"{HUB}/nvidia/DLC-Bench"
ANNOTATIONS, QUESTIONS, NAMES = (
    PublishedFile(tuple(f"{folder}/{name}.json" for folder in FOLDERS), ORIGIN)
    for name in ("annotations", "qa", "class_names")
)
ASKED = "Please describe the region <region> in the image in detail. Do not describe anything else."
POSITIVE, NEGATIVE, AVERAGE = "Pos", "Neg", "Avg"


class DlcBench(Benchmark):
    """COCO's annotations, `qa.json` with the questions of each and `class_names.json` with what each is."""

    name = "dlc"
    title = "DLC-Bench"
    metrics = tuple(map(Metric, (POSITIVE, NEGATIVE, AVERAGE)))
    media_origin = ORIGIN
    judged = True

    def sources(self, kind: Kind) -> Sequence[PublishedFile]:
        return (ANNOTATIONS, QUESTIONS, NAMES)

    def check(self, tools: Tools) -> None:
        super().check(tools)
        if util.find_spec("inflect") is None:
            raise ValueError("names of DLC-Bench are read by inflect, which the extra eval brings: got none")

    def items(self, reading: Reading) -> Iterator[BenchmarkItem]:
        path = found(reading.data, ANNOTATIONS)
        document = read_object(path)
        asked = read_object(found(reading.data, QUESTIONS))
        names = read_object(found(reading.data, NAMES))
        unasked = set(asked)
        by_image: dict[Any, list[Json]] = {image["id"]: [] for image in document["images"]}
        for annotation in document["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        for image in document["images"]:
            media = path.parent / "images" / image["file_name"]
            for annotation in by_image[image["id"]]:
                own = str(annotation["id"])
                if own not in asked:  # the questions decide what is scored
                    continue
                region = run_lengths(annotation["segmentation"], image["height"], image["width"])
                if own not in names:
                    raise ValueError(f"{path.parent / 'class_names.json'}: expected a name for {own}, got none")
                unasked.discard(own)
                yield BenchmarkItem(own, media, (region,), ASKED, {"questions": asked[own], "name": names[own]})
        if unasked:
            raise ValueError(
                f"{path}: expected an annotation for each of qa.json, got none for {listed(sorted(unasked))}"
            )

    def score(self, replies: Sequence[Reply], tools: Tools) -> Scores:
        judge = tools.needed_judge()
        asked = [_questions(reply.gold, tools.prompts) for reply in replies]
        messages = [
            _messages(tools.prompts, reply, question, judge.sees_images)
            for reply, questions in zip(replies, asked, strict=True)
            for question in questions
        ]
        said = iter(judge.ask(messages))
        details = {
            reply.id: judged_description(questions, [next(said) for _ in questions])
            for reply, questions in zip(replies, asked, strict=True)
        }
        positive, negative = (
            [own[name] for own in details.values() if own[name] is not None] for name in (POSITIVE, NEGATIVE)
        )
        values: dict[str, float | None] = {
            POSITIVE: sum(positive) / len(positive) if positive else None,
            NEGATIVE: sum(negative) / len(negative) if negative else None,
        }
        both = [value for value in values.values() if value is not None]
        values[AVERAGE] = sum(both) / 2 if len(both) == 2 else None
        unread = sum(own["unread"] for own in details.values())
        recognised = sum(own["recognised"] for own in details.values())
        return Scores(values, details, {"recognised": recognised, "unread": unread})


def _questions(gold: Json, prompts: JudgePrompts) -> list[Json]:
    """What the judge answers: first what the object is, then the questions of the file."""
    many, named = _named(gold["name"])
    text = filled(prompts.many_objects if many else prompts.one_object, class_name=named)
    first = {"question": text, "type": "recognition", "choices": [["Yes", "correct"], ["No", "incorrect"]]}
    return [first, *gold["questions"]]


def _named(name: str) -> tuple[bool, str]:
    """Whether a name is of many objects, and the name, with its article if it is of one."""
    import inflect

    words = inflect.engine()
    if name != "bus" and words.singular_noun(name) is not False:
        return True, name
    return False, words.a(name)


def _messages(prompts: JudgePrompts, reply: Reply, question: Json, sees_images: bool) -> list[Message]:
    choices = "".join(
        f"{letter.upper()}. {choice}\n" for letter, (choice, _) in zip(LETTERS, question["choices"], strict=False)
    )
    asked = f"{question['question']}\n{choices}".strip()
    text = filled(prompts.choice, pred_caption=reply.said, question_text_str=asked)
    if not sees_images:
        return [{"role": "user", "content": text}]
    parts = [{"type": "text", "text": text}, picture_part(reply.media, reply.regions[0])]
    return [{"role": "user", "content": parts}]


def judged_description(questions: Sequence[Json], said: Sequence[str]) -> Json:
    """The scores of one description.

    Args:
        questions: the first asks what the object is; the choices of all others have points.
        said: the judge's reply to each.

    Returns:
        Pos and Neg, the mean points of its questions of that type, None without one; a description whose object is not
        recognised gets no points above 0. Beside them `recognised`, and how many replies were `unread`.
    """
    points: dict[str, list[float]] = {"positive": [], "negative": []}
    recognised, unread = False, 0
    for question, text in zip(questions, said, strict=True):
        choices = question["choices"]
        index = chosen_index(text, [choice for choice, _ in choices])
        unread += index is None
        if question["type"] == "recognition":
            recognised = index is not None and choices[index][1] == "correct"
            continue
        if question["type"] not in points:
            raise ValueError(f"qa.json: expected a question that is positive or negative, got {question['type']!r}")
        value = choices[index][1] if index is not None else 0
        points[question["type"]].append(value if recognised else min(0, value))
    means = {kind: sum(own) / len(own) if own else None for kind, own in points.items()}
    return {
        POSITIVE: means["positive"],
        NEGATIVE: means["negative"],
        "recognised": recognised,
        "unread": unread,
    }


DLC = DlcBench()
