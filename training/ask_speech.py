"""Do the embedded models understand how people ask? Wordings that no training has, against the plain ones.

    python training/ask_speech.py lite full      # asks the shipped models: training/speech/*.json, docs/wordings.md
    python training/ask_speech.py --page         # the page alone, from the files

Two sets: the held-out wordings of `world/spoken.py`, and training/speech/others.json, written by somebody who had seen
no wording of this repository, after the first training and before the last; of these, what the training has is left
out. Each is asked about the same objects as the plain wording of its kind, as it is written and once more respelt. It
is understood where both get the same answer, whether or not that is the right one.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from recipe.sizes import NAMES

from pixelrefer_fast.batching import Ask
from pixelrefer_fast.checkpoint.embedded import PREFIX
from pixelrefer_fast.loading import load
from pixelrefer_fast.model import PixelRefer, PixelReferLite
from pixelrefer_fast.world import Question, Scene, ask_about, make_scene, normalise
from pixelrefer_fast.world.composed import COMPOSED
from pixelrefer_fast.world.evaluate import MAX_NEW_TOKENS
from pixelrefer_fast.world.marked import scene_media, scene_region
from pixelrefer_fast.world.questions import Speech
from pixelrefer_fast.world.spelling import respell
from pixelrefer_fast.world.spoken import HELD_OUT, PLAIN, SPOKEN, TRAINED, bare
from pixelrefer_fast.world.wordings import PLAIN as PLAIN_WORDINGS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "training" / "speech"
PAGE = ROOT / "docs" / "wordings.md"
GOAL = 0.95
IMAGES, VIDEOS = 8, 5  # scenes that each wording is asked about
FIRST_SCENE = 3_000_000
Words = Mapping[str, Sequence[str]]
PLAINEST = {kind: (PLAIN.get(kind) or PLAIN_WORDINGS[kind][0],) for kind in SPOKEN if kind != "unknown"}


@dataclass(frozen=True)
class Said:
    """A question as somebody says it beside the plain one about the same objects; None where there is no plain one."""

    kind: str
    wording: str
    question: Question
    plain: Question | None


def sets() -> dict[str, Words]:
    """The wordings that are asked, by name of the set: none of them is in the training."""
    others = json.loads((RESULTS / "others.json").read_text(encoding="utf-8"))
    return {"held out": HELD_OUT, "of others": {kind: _unlearnt(kind, own) for kind, own in others.items()}}


def _unlearnt(kind: str, wordings: Sequence[str]) -> list[str]:
    own = (PLAIN_WORDINGS.get(kind, ()), TRAINED[kind], COMPOSED.get(kind, ()))
    learnt = {bare(wording) for texts in own for wording in texts}
    return [wording for wording in wordings if bare(wording) not in learnt]


def draw(asked: Words, number: int) -> Iterator[tuple[Scene, list[Said]]]:
    """Scenes with questions in the `number`-th of the wordings of every kind that has so many."""
    words = {kind: (own[number],) for kind, own in asked.items() if number < len(own)}
    spoken = {**PLAINEST, "unknown": asked["unknown"][:1], **words}
    plain = {**PLAINEST, "unknown": spoken["unknown"]}
    for i in range(IMAGES + VIDEOS):
        seed = FIRST_SCENE + number * (IMAGES + VIDEOS) + i
        scene = make_scene(seed, "heldout", i >= IMAGES)
        found = []
        for kind in words:  # one kind at a time in the words of people, so that every draw is the same as in plain ones
            said = ask_about(scene, seed, speech=Speech({**plain, kind: spoken[kind]}))
            for question, beside in zip(said, ask_about(scene, seed, speech=Speech(plain)), strict=True):
                if kind == "unknown" and question.kind == "unknown":
                    found.append(Said(kind, spoken[kind][0], question, None))
                elif question.text != beside.text:
                    found.append(Said(kind, spoken[kind][0], question, beside))
        yield scene, found


def ask(model: PixelRefer | PixelReferLite, words: Words) -> list[dict[str, Any]]:
    """One record for each question: kind, wording, text, respelt or not, its answer and that to the plain wording."""
    records: list[dict[str, Any]] = []
    asks: list[Ask] = []
    for number in range(max(map(len, words.values()))):
        for scene, said in draw(words, number):
            media = scene_media(scene)
            for one in said:
                typed = respell(one.question.text, np.random.default_rng([scene.seed, len(asks)]))
                for text, spelling in ((one.question.text, "as written"), (typed, "respelt")):
                    marked = [scene_region(scene, i, model.kind) for i in one.question.objects]
                    records.append(
                        {"kind": one.kind, "wording": one.wording, "spelling": spelling, "right": one.question.answer}
                    )
                    asks.append(Ask(media, text, marked))
                if one.plain is not None:
                    marked = [scene_region(scene, i, model.kind) for i in one.plain.objects]
                    records.append({"spelling": "plain"})
                    asks.append(Ask(media, one.plain.text, marked))
    texts = [""] * len(asks)
    for answer in model.ask_iter(asks, max_new_tokens=MAX_NEW_TOKENS):
        if not answer.ok:
            raise RuntimeError(f"question {answer.index}: {answer.error}")
        texts[answer.index] = answer.text
    return list(_beside_plain(records, texts))


def _beside_plain(records: Sequence[dict[str, Any]], texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    waiting: list[dict[str, Any]] = []
    for record, text in zip(records, texts, strict=True):
        if record["spelling"] != "plain":
            waiting.append(record | {"answer": text})
            if record["kind"] == "unknown" and record["spelling"] == "respelt":
                yield from waiting
                waiting = []
            continue
        yield from (one | {"plain": text} for one in waiting)
        waiting = []


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of questions that are understood, by spelling, by kind and by wording; and of those that get no answer."""

    def understood(one: dict[str, Any]) -> bool:
        if "plain" not in one:
            return bool(one["answer"].strip())
        return normalise(one["answer"]) == normalise(one["plain"])

    def share(own: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"n": len(own), "understood": sum(map(understood, own)) / len(own)}

    known = [one for one in records if one["kind"] != "unknown"]
    unknown = [one for one in records if one["kind"] == "unknown"]
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    wordings: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for one in known:
        kinds[one["kind"]].append(one)
        wordings[one["kind"], one["wording"]].append(one)
    return {
        "as_written": share([one for one in known if one["spelling"] == "as written"]),
        "respelt": share([one for one in known if one["spelling"] == "respelt"]),
        "empty": sum(not one["answer"].strip() for one in records),
        "unknown": {
            "n": len(unknown),
            "said": sum(one["answer"] == "unknown" for one in unknown) / len(unknown),
        },
        "kinds": {kind: share(own) for kind, own in kinds.items()},
        "wordings": [{"kind": kind, "wording": text, **share(own)} for (kind, text), own in wordings.items()],
    }


def read() -> dict[str, dict[str, Any]]:
    """What the last runs found, by kind of model and set of wordings."""
    files = {kind: RESULTS / f"{kind}.json" for kind in NAMES}
    return {
        kind: json.loads(path.read_text(encoding="utf-8"))["sets"] for kind, path in files.items() if path.is_file()
    }


def page(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """docs/wordings.md from the summaries by kind of model and set of wordings."""
    columns = [(kind, name) for kind, own in found.items() for name in own]
    counts = {name: sum(map(len, own.values())) for name, own in sets().items()}
    composed = sum(map(len, COMPOSED.values()))

    def row(title: str, of: Callable[[dict[str, Any]], str]) -> str:
        return f"| {title} | " + " | ".join(of(found[kind][name]) for kind, name in columns) + " |"

    def percent(share: dict[str, Any] | None) -> str:
        return "" if share is None else f"{100 * share['understood']:.1f} ({share['n']})"

    kinds = dict.fromkeys(kind for own in found.values() for one in own.values() for kind in one["kinds"])
    lines = [
        "# How people ask the embedded models",
        "",
        "Made by `training/ask_speech.py`; do not edit.",
        "",
        f"`pixelrefer_fast/world/spoken.py` has {sum(map(len, SPOKEN.values()))} wordings of {len(SPOKEN)} kinds",
        "of questions, written down before any training. The language models learn from two thirds of them, then from",
        f"these and {composed:,} that `world/composed.py` puts together (training/recipe/speaking.py).",
        "",
        f"- *held out*: the {counts['held out']} wordings of the last third that no training has, nor any that",
        "  differs from them in capitals and marks alone. `composed.py` was written after a first measurement on them.",
        f"- *of others*: {counts['of others']} of `training/speech/others.json`, by somebody who had seen none of",
        "  ours, used for nothing but this page.",
        "",
        "Each is asked about objects of held-out scenes, as it is written and once respelt, and counts as understood",
        "where the answer is that to the plain wording of its kind about the same objects. In percent (questions):",
        "",
        "| | " + " | ".join(f"{NAMES[kind]}, {name}" for kind, name in columns) + " |",
        "|---|" + "---|" * len(columns),
        row("as written", lambda own: percent(own["as_written"])),
        row("respelt", lambda own: percent(own["respelt"])),
        *(row(kind, lambda own, kind=kind: percent(own["kinds"].get(kind))) for kind in kinds),
        row("without any answer", lambda own: str(own["empty"])),
        row('nobody can know, and it says "unknown"', lambda own: f"{100 * own['unknown']['said']:.1f}"),
        "",
        "To what nobody can know, what is not called unknown gets the nearest thing that is known, or a wrong answer.",
        "",
        f"## Wordings that are understood in less than {100 * GOAL:.0f} percent",
        "",
        "| model | set | kind | wording | percent |",
        "|---|---|---|---|---|",
        *(
            f"| {kind} | {name} | {one['kind']} | `{one['wording']}` | {100 * one['understood']:.0f} (of {one['n']}) |"
            for kind, name in columns
            for one in sorted(found[kind][name]["wordings"], key=lambda one: float(one["understood"]))
            if one["understood"] < GOAL
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=(*NAMES, []))
    parser.add_argument("--page", action="store_true", help="the page alone")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for kind in options.kinds:
        model = load(f"{PREFIX}{kind}", device="cpu", dtype="float32")
        found = {name: summarise(ask(model, words)) for name, words in sets().items()}
        document = {"weights": model.fingerprint, "sets": found}
        (RESULTS / f"{kind}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        for name, own in found.items():
            print(kind, name, own["as_written"], own["respelt"], own["empty"], own["unknown"])
    PAGE.write_text(page(read()), encoding="utf-8")


if __name__ == "__main__":
    main()
