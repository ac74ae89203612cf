"""Full against Lite, and ours against a rival: the same loads, the same rows, and how much of a saving became time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from pixelrefer_fast.bench.estimate.estimate import paper_flops
from pixelrefer_fast.bench.report.results import Row, relative_error
from pixelrefer_fast.bench.run.askers import LIMIT, Asker, Ours, answer_all, as_measured, definitions, with_vision_in
from pixelrefer_fast.bench.run.effort import Effort, TimeLimit
from pixelrefer_fast.bench.run.loads import FRAMES, Load, case_loads, image_load, pictures_of, video_load
from pixelrefer_fast.bench.run.whole import Told, left_out, measure, time_in_turn

Rival = Asker  # what a rival must be
IMAGE, VIDEO, ONE_FRAME = "image", f"{FRAMES}-frame video", f"{FRAMES}-frame video, marked in one frame"
PAIRS = (IMAGE, VIDEO, ONE_FRAME)


def pair_loads(model: Any) -> Iterator[Load]:
    """What Full and Lite are both asked: about one object of an image and of a video, in pictures as in the paper.

    In the video Lite is shown the object in every frame and, once more, in one frame only; Full takes one at any time.
    """
    _, usual = pictures_of(model.config)
    yield image_load(IMAGE, usual)
    yield video_load(VIDEO, usual, FRAMES, model.kind)
    yield video_load(ONE_FRAME, usual, FRAMES, model.kind, marked=1)


def run_pairs(model: Any, name: str, effort: Effort, time_limit: TimeLimit, told: Told | None = None) -> list[Row]:
    """The rows of one of the two models; `pair` in `extra` says what belongs together."""
    rows: list[Row] = []
    ours = Ours(model)
    with as_measured(model):
        for load in pair_loads(model):
            if told is not None:
                told(f"{model.kind}, {load.case}")
            same = next((row for row in rows if row["sizes"].items() >= load.sizes.items()), None)
            reason = time_limit.refuses()
            if same is not None:  # Full, which takes one marked frame in either video
                row = same.copy()
                row["case"] = load.case
            elif reason is not None:
                row = left_out(load.case, "against", model, name, load.sizes, reason)
            else:
                row = measure(ours, load, effort.tokens, effort, name, "against")
                seen = row["extra"]["tokens"]
                counted = paper_flops(model.config, seen["object"], seen["vision"], load.sizes["marked"])
                row["extra"]["paper_flops"] = counted
            row["extra"] = {**row.get("extra", {}), "kind": model.kind}
            rows.append(row)
    return rows


def run_against_rival(
    rival: Rival, model: Any, name: str, effort: Effort, time_limit: TimeLimit, told: Told | None = None
) -> list[Row]:
    """Rows of the whole cases, two for each: of the rival and of ours, timed in turn in this process.

    Where the rival draws k-means starts (it has `starts`), ours begins with the same ones.

    Args:
        rival: who else is asked; with the weights of `model`.
        model: ours.
        name: of the model.
        effort, time_limit: how much is spent.
        told: called with the name of each case before it.
    """
    rows: list[Row] = []
    ours = Ours(model, _remembered(getattr(rival, "starts", None)))
    with as_measured(model):
        for load in case_loads(model):
            if told is not None:
                told(f"{rival.name}, {load.case}")
            reason = time_limit.refuses()
            if reason is not None:
                rows.append(left_out(load.case, "reference", model, name, load.sizes, reason))
                continue
            times = time_in_turn([rival, ours], load, effort.tokens, effort)
            theirs = measure(rival, load, effort.tokens, effort, name, "reference", times=times[0])
            own = measure(ours, load, effort.tokens, effort, name, "reference", times=times[1], checked=False)
            _judge(own, theirs, ours, rival, load, effort.tokens)
            rows += [theirs, own]
    return rows


def _judge(own: Row, theirs: Row, ours: Ours, rival: Rival, load: Load, tokens: int) -> None:
    """Whether ours says what the rival says: object tokens of the first question, and all answers."""
    first = load.requests[0]
    got, want = ours.encode(first.media, first.regions), rival.encode(first.media, first.regions)
    limit = LIMIT
    if ours.dtype == torch.float32:
        error = relative_error(got, want.to(got))
    else:  # neither is exact: ours may be twice as far off
        twin = with_vision_in(ours.model, torch.float32)
        with definitions(twin):
            exact = Ours(twin, ours.starts).encode(first.media, first.regions)
        error = relative_error(got.float(), exact)
        limit += 2 * relative_error(want.to(exact), exact)
    asked = answer_all(rival, load.requests, tokens)
    given = answer_all(ours, load.requests, tokens, load.batch_size)
    equal = sum(a == b for a, b in zip(asked, given, strict=True))
    fine = error <= limit and (ours.dtype != torch.float32 or equal == len(asked))
    own["error"], own["limit"], own["ok"] = error, limit, fine
    for row in (own, theirs):
        row["extra"] |= {"equal": equal, "asked_again": len(asked)}


def _remembered(starts: Callable[[Any, Any], Any] | None) -> Callable[[Any, Any], Any] | None:
    """The rival's starts, asked for once a question: they cost it a pass, which is not ours to pay."""
    if starts is None:
        return None
    known: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def remembered(media: Any, regions: Any) -> Any:
        key = (id(media), *map(id, regions))
        if key not in known:
            known[key] = (media, list(regions)), starts(media, regions)  # kept, so that an id stays one object's
        return known[key][1]

    return remembered
