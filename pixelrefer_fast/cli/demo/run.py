"""Both embedded models, asked the same about an image and a video that neither has seen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pixelrefer_fast.checkpoint.embedded import EMBEDDED_FULL, EMBEDDED_LITE, TITLES
from pixelrefer_fast.checks.printable import one_line

if TYPE_CHECKING:
    from pixelrefer_fast.world.questions import Question
    from pixelrefer_fast.world.scene import Scene

NAMES = {EMBEDDED_LITE: "Lite", EMBEDDED_FULL: "Full"}
SEED = 294  # four of its five objects move, no two of them alike
# two about motion: what they say of two objects shows most of what a video adds
CATEGORIES = {
    False: ("name", "color", "pattern", "description", "relation", "counting", "context", "selection"),
    True: ("motion", "motion", "motion", "description", "relation", "counting", "context", "selection"),
}
MEASURED = {False: "Please describe <region> in detail.", True: "How does <region> move?"}
MAX_NEW_TOKENS = 24


def run_demo(folder: Path, seed: int | None = None, out: TextIO | None = None) -> dict[str, Any]:
    """Asks, prints to `out` if given, and saves a picture of the scene and a contact sheet of the video.

    Args:
        folder: where the pictures go; made if missing.
        seed: of the held-out scene and the held-out video; None: SEED.
        out: for people; None: the report says it all.

    Raises:
        ValueError: the folder cannot be made or written.
    """
    import pixelrefer_fast
    from pixelrefer_fast.cli.demo.picture import DemoQuestion, scene_picture, video_picture
    from pixelrefer_fast.pictures import answers
    from pixelrefer_fast.world import make_scene

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder}: cannot make this folder: {error.strerror}") from error
    targets = {
        video: answers.check_writable(folder / f"{'video' if video else 'image'}.png") for video in (False, True)
    }
    seed = SEED if seed is None else seed
    models = {name: pixelrefer_fast.load(name, feature_bytes=0) for name in NAMES}
    report: dict[str, Any] = {"seed": seed, "models": dict(TITLES)}
    for video, target in targets.items():
        scene = make_scene(seed, "heldout", video)
        questions = chosen_questions(scene, seed)
        what = "video" if video else "image"
        if out:
            height, width = scene.size
            length = f" of {len(scene.frames)} frames" if video else ""
            print(f"{what}{length}, {width}x{height}, {len(scene.things)} objects, seed {seed}", file=out)
        asked = [_asked(models, scene, question) for question in questions]
        costs = _costs(models, scene)
        if out:
            _print(asked, costs, out)
        lines = [
            DemoQuestion(
                q.text,
                q.objects,
                q.answer,
                {NAMES[name]: (a["text"], a["right"]) for name, a in entry["answers"].items()},
            )
            for q, entry in zip(questions, asked, strict=True)
        ]
        right = {name: sum(entry["answers"][name]["right"] for entry in asked) for name in NAMES}
        score = " and ".join(f"{TITLES[name]} {right[name]} of {len(asked)}" for name in NAMES)
        title = f"Ask about what is marked: {'a video' if video else 'an image'}"
        subtitle = f"Right answers: {score}. Neither model was trained on this scene (held-out split, seed {seed})."
        draw = video_picture if video else scene_picture
        facts = [f"{TITLES[name]}: {_fact(costs[name])}" for name in NAMES]
        answers.save(draw(scene, title, subtitle, lines, facts), target)
        report[what] = {
            "scene": scene.summary(),
            "questions": asked,
            "right": right,
            "measured": MEASURED[video],
            "costs": costs,
            "saved": str(target),
        }
        if out:
            print(f"{score}; picture in {target}\n", file=out)
    return report


def chosen_questions(scene: Scene, seed: int) -> list[Question]:
    """One question for each entry of CATEGORIES that the scene has one for, about different objects where possible."""
    from pixelrefer_fast.world import ask_about

    # the form that names objects first is for questions about encoded objects; it is long to read
    found = [q for q in ask_about(scene, seed) if "\n" not in q.text]
    chosen: list[Question] = []
    used = dict.fromkeys(range(len(scene.things)), 0)
    for category in CATEGORIES[scene.video]:
        options = [q for q in found if q.category == category and q not in chosen]
        if options:
            best = min(options, key=lambda q: sum(used[i] for i in q.objects) / len(q.objects))
            chosen.append(best)
            for i in best.objects:
                used[i] += 1
    return chosen


def _asked(models: dict[str, Any], scene: Scene, question: Question) -> dict[str, Any]:
    """A question with what each model says and the seconds that took."""
    from pixelrefer_fast.world import normalise
    from pixelrefer_fast.world.marked import scene_media, scene_region

    answers = {}
    for name, model in models.items():
        regions = [scene_region(scene, i, model.kind) for i in question.objects]
        start = time.perf_counter()
        text = model.ask(scene_media(scene), question.text, regions, max_new_tokens=MAX_NEW_TOKENS)
        seconds = time.perf_counter() - start
        answers[name] = {"text": text, "right": normalise(text) == normalise(question.answer), "seconds": seconds}
    return {
        "category": question.category,
        "question": question.text,
        "objects": list(question.objects),
        "truth": question.answer,
        "answers": answers,
    }


def _costs(models: dict[str, Any], scene: Scene) -> dict[str, dict[str, Any]]:
    """What one question about one object of the scene costs each model: the object that is seen best."""
    from pixelrefer_fast.cli.demo.costs import measure
    from pixelrefer_fast.world.marked import scene_media, scene_region

    best = int(scene.facts.areas.min(axis=1).argmax())
    return {
        name: measure(
            model,
            scene_media(scene),
            MEASURED[scene.video],
            [scene_region(scene, best, model.kind)],
            max_new_tokens=MAX_NEW_TOKENS,
        ).to_json()
        for name, model in models.items()
    }


def _fact(costs: dict[str, Any]) -> str:
    vision = f" + {costs['vision_tokens']} vision" if costs["vision_tokens"] else ""
    return (
        f"{costs['object_tokens']} object{vision} tokens, {_mega(costs['flops'])} MFLOPs, "
        f"{1000 * costs['seconds']:.0f} ms, {_mega(costs['memory'])} MB for one question about one object"
    )


def _mega(number: float) -> str:
    return f"{number / 1e6:,.0f}"


def _print(asked: Sequence[dict[str, Any]], costs: dict[str, dict[str, Any]], file: TextIO) -> None:
    """A table of questions, truths, answers and times, and one of what a question costs."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = 150
    table = Table(box=None, pad_edge=False)
    for heading in ("question", "truth", *NAMES.values(), "seconds"):
        table.add_column(heading, overflow="fold")
    for entry in asked:
        question = entry["question"]
        for i in entry["objects"]:
            question = question.replace("<region>", f"<{i}>", 1)
        answers = [
            Text(("" if a["right"] else "WRONG ") + one_line(a["text"]), "green" if a["right"] else "red")
            for a in entry["answers"].values()
        ]
        seconds = ", ".join(f"{a['seconds']:.2f}" for a in entry["answers"].values())
        table.add_row(Text(one_line(question)), entry["truth"], *answers, seconds)
    console.print(table)
    stages = ("encoder", "region", "prefill", "decode")
    costing = Table(box=None, pad_edge=False)
    costing.add_column("one question about one object")
    for heading in ("object", "vision", "prompt", "answer tokens", *stages, "MFLOPs", "ms", "MB"):
        costing.add_column(heading, justify="right")
    for name, cost in costs.items():
        costing.add_row(
            TITLES[name],
            *(str(cost[f"{part}_tokens"]) for part in ("object", "vision", "prompt", "answer")),
            *(_mega(cost[f"{stage}_flops"]) for stage in stages),
            _mega(cost["flops"]),
            f"{1000 * cost['seconds']:.0f}",
            _mega(cost["memory"]),
        )
    console.print(costing)
