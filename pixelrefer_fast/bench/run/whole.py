"""Whole questions, from opened pixels to text: one object, many, a video, a batch; and how time grows with each size.

What a call is given lies in memory, decoded; what it computes is not known from the call before. Answers are as long as
wanted, whatever their end tokens would be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pixelrefer_fast.batching.preparing import DESCRIBE_IMAGE, DESCRIBE_VIDEO
from pixelrefer_fast.bench.measure import memory, power, timing
from pixelrefer_fast.bench.report.results import Quantiles, Row
from pixelrefer_fast.bench.run import stages, workloads
from pixelrefer_fast.bench.run.askers import (
    Asker,
    Ours,
    Request,
    add_counts,
    answer_all,
    as_measured,
    check,
    counting_stages,
    object_tokens,
)
from pixelrefer_fast.checkpoint.config import GLOBAL_VIEW
from pixelrefer_fast.device.counters import Counts, counting
from pixelrefer_fast.media import open_media

Size = tuple[int, int]  # height, width
FRAMES = 20  # of the video, as in the paper's tables
BATCH = 64
# 1,408 patches, and in a video of 20 frames 7,040 vision tokens: nearly those of the paper's table 5
PAPER_PICTURE: Size = (448, 616)
HD_PICTURE: Size = (1080, 1920)
SMALL_PICTURE: Size = (168, 168)  # the embedded models' world
# powers of two; of n the model's own number is among them
CURVES: dict[str, tuple[int, ...]] = {
    "objects": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "frames": (1, 2, 4, 8, 16, 32, 64),
    "side": (224, 448, 896, 1792, 4096),
    "n": (1, 2, 4, 8, 16, 32, 64),
    "batch": (1, 2, 4, 8, 16, 32, 64, 128),
}
QUICK_CURVES: dict[str, tuple[int, ...]] = {
    "objects": (1, 8, 64),
    "frames": (1, 8),
    "side": (224, 896),
    "n": (1, 8, 32),
    "batch": (1, 8, 64),
}
LEAST_POWER_SECONDS = 1.0  # the counters of a device move a few times a second


@dataclass(frozen=True)
class Effort:
    """How much is spent on a row.

    Attributes:
        repeats: timed calls at the most,
        seconds: and so long about: three calls at least, one where a call takes longer than that.
        tokens: of an answer.
        curve_tokens: of an answer in a curve.
        curves: the points of each curve.
    """

    repeats: int = 20
    seconds: float = 6.0
    tokens: int = 64
    curve_tokens: int = 16
    curves: dict[str, tuple[int, ...]] = field(default_factory=lambda: CURVES)

    def enough(self, seconds: Sequence[float]) -> bool:
        """Whether these timed calls are enough."""
        least = 1 if seconds and seconds[0] > self.seconds else 3
        return len(seconds) >= self.repeats or (len(seconds) >= least and sum(seconds) >= self.seconds)


FULL_EFFORT = Effort()
QUICK_EFFORT = Effort(repeats=7, seconds=1.0, tokens=16, curve_tokens=8, curves=QUICK_CURVES)


class Budget:
    """Seconds that a run may take; None: as long as it takes."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def refuses(self, expected: float = 0.0) -> str | None:
        """Why something that takes so many seconds is left out; None where there is time for it."""
        if self._end is None or time.monotonic() + expected <= self._end:
            return None
        return f"no time left of {self.seconds:g} s"


@dataclass(frozen=True, eq=False)
class Load:
    """What one call is asked.

    Attributes:
        case: in words.
        requests: all asked at once.
        sizes: objects, frames, marked, height, width, batch.
        batch_size: requests that may run together; None: as the library thinks best.
    """

    case: str
    requests: Sequence[Request]
    sizes: dict[str, int]
    batch_size: int | None = None

    @property
    def together(self) -> Request | None:
        """All regions as one question's, where they are of one image or video: what is encoded in one call."""
        first = self.requests[0]
        if any(r.media is not first.media for r in self.requests):
            return None
        return Request(first.media, first.question, [region for r in self.requests for region in r.regions])


def ellipses(count: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """(H, W) uint8 masks, each wholly inside the picture and of a tenth to a fifth of its sides from centre to edge."""
    random = np.random.default_rng(seed)
    masks = []
    y, x = np.arange(height)[:, None], np.arange(width)[None]
    for _ in range(count):
        ry, rx = random.uniform(0.1, 0.2) * height, random.uniform(0.1, 0.2) * width
        cy, cx = random.uniform(ry, height - ry), random.uniform(rx, width - rx)
        masks.append((((y + 0.5 - cy) / ry) ** 2 + ((x + 0.5 - cx) / rx) ** 2 <= 1).astype(np.uint8))
    return masks


def image_load(case: str, size: Size, objects: int = 1, seed: int = 0) -> Load:
    """So many objects of one image, each described by itself."""
    picture = workloads.picture(*size, seed)
    requests = [Request(picture, DESCRIBE_IMAGE, [mask]) for mask in ellipses(objects, *size, seed)]
    return Load(case, requests, _sizes(size, objects=objects))


def video_load(case: str, size: Size, frames: int, kind: str, marked: int | None = None) -> Load:
    """One object of a video, which moves; marked in so many frames (None: in all, by PixelRefer in one)."""
    # a frame a second: Full, which takes as many of a video, sees all of them
    pictures = open_media(list(workloads.video(frames, *size, 0)), times=[float(i) for i in range(frames)])
    count = 1 if kind == "full" else frames if marked is None else marked
    mask = ellipses(1, *size)[0]
    chosen = [frames // 2] if count == 1 else [round(i * (frames - 1) / (count - 1)) for i in range(count)]
    own = {frame: np.roll(mask, 2 * (frame - frames // 2), axis=1) for frame in chosen}
    request = Request(pictures, DESCRIBE_VIDEO, [own])
    return Load(case, [request], _sizes(size, frames=frames, marked=count))


def batch_load(case: str, size: Size, batch: int) -> Load:
    """So many images, one object each, all at once."""
    requests = [Request(workloads.picture(*size, i), DESCRIBE_IMAGE, ellipses(1, *size, i)) for i in range(batch)]
    return Load(case, requests, _sizes(size, objects=batch, batch=batch), batch)


def _sizes(size: Size, objects: int = 1, frames: int = 1, marked: int = 1, batch: int = 1) -> dict[str, int]:
    named = {"objects": objects, "frames": frames, "marked": marked, "height": size[0], "width": size[1]}
    return named | {"batch": batch}


def pictures_of(config: Any) -> tuple[Size, Size]:
    """Sizes of pictures for a model: (one that is large for it, one as in the paper's tables)."""
    released = config.global_view_size == GLOBAL_VIEW
    return (HD_PICTURE, PAPER_PICTURE) if released else (SMALL_PICTURE, SMALL_PICTURE)


def case_loads(model: Any) -> Iterator[Load]:
    """The whole cases, each made when its turn comes."""
    large, usual = pictures_of(model.config)
    yield image_load("one object", large)
    yield image_load("8 objects of one image", large, 8)
    yield video_load(f"{FRAMES}-frame video", usual, FRAMES, model.kind)
    yield batch_load(f"batch of {BATCH}", usual, BATCH)


CASES = 4


def curve_load(model: Any, curve: str, value: int) -> Load:
    """One point of a curve."""
    _, usual = pictures_of(model.config)
    case = f"{curve} {value}"
    if curve == "objects":
        return image_load(case, usual, value)
    if curve == "frames":
        return video_load(case, usual, value, model.kind)
    if curve == "side":
        return image_load(case, (value, value))
    if curve == "n":
        return image_load(case, usual)
    return batch_load(case, usual, value)


@dataclass
class Times:
    """Seconds of each call of one asker, and what it said.

    Attributes:
        answers: of the first call, to every request.
        whole: until all answers are written.
        first: with answers of one token: until every first token is there.
        encode: pixels to object tokens, where one call encodes the whole load.
    """

    answers: list[tuple[int, ...]]
    whole: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)


def time_in_turn(askers: Sequence[Asker], load: Load, tokens: int, effort: Effort) -> list[Times]:
    """Time one load with everybody, in turn, so that the machine's noise meets all of them; of each in order.

    Raises:
        RuntimeError: an answer is not as long as wanted.
    """
    found = []
    for asker in askers:  # the first call of a shape compiles, captures and takes memory
        answers = answer_all(asker, load.requests, tokens, load.batch_size)
        if any(len(own) != tokens for own in answers):
            lengths = sorted({len(own) for own in answers})
            raise RuntimeError(f"{load.case}: expected answers of {tokens} tokens of {asker.name}, got {lengths}")
        found.append(Times(answers))

    together = load.together
    for what in ("whole", "first", "encode"):
        own: list[list[float]] = [getattr(times, what) for times in found]
        if what == "encode" and together is None:
            continue

        def run(asker: Asker, what: str = what) -> Any:
            if what == "encode" and together is not None:
                return asker.encode(together.media, together.regions)
            return answer_all(asker, load.requests, tokens if what == "whole" else 1, load.batch_size)

        with timing.quiet():
            while not all(map(effort.enough, own)):
                for asker, seconds in zip(askers, own, strict=True):
                    timing.synchronize(asker.device)
                    start = time.perf_counter()
                    run(asker)
                    timing.synchronize(asker.device)
                    seconds.append(time.perf_counter() - start)
    return found


def measure(
    asker: Asker,
    load: Load,
    tokens: int,
    effort: Effort,
    model_name: str,
    suite: str = "whole",
    checked: bool = True,
    times: Times | None = None,
) -> Row:
    """One row: times, counts, memory, energy and check of one load.

    The model must be `as_measured` where it is ours.

    Args:
        asker: who is asked.
        load: what.
        tokens: of each answer.
        effort: how many calls are timed.
        model_name: for the row.
        checked: whether our answers are held against the definitions.
        times: where they were measured before.
    """
    times = times or time_in_turn([asker], load, tokens, effort)[0]

    def ask(count: int) -> list[tuple[int, ...]]:
        return answer_all(asker, load.requests, count, load.batch_size)

    row: Row = {
        "suite": suite,
        "case": load.case,
        "by": asker.name,
        "model": model_name,
        "dtype": str(asker.dtype).removeprefix("torch."),
        "sizes": {**load.sizes, "answer": tokens},
        "seconds": _quantiles(times.whole),
        "calls": len(times.whole),
        "ok": True,
    }
    extra: dict[str, Any] = {
        "kind": asker.kind,
        "first": timing.quantiles(times.first),
        "weights": _bytes(asker.weights()),
    }
    row["extra"] = extra
    timed_again(row)
    if times.encode:
        extra["encode"] = timing.quantiles(times.encode)
    row |= _counts(asker, ask, tokens, extra)
    extra["tokens"] = _tokens(asker, load, tokens)
    facts = _power(asker.device, lambda: ask(tokens))
    if facts is not None:
        extra["power"] = facts
        if facts["joules"] is not None:
            row["joules"] = facts["joules"] / facts["calls"]
            extra["joules_per_object"] = row["joules"] / load.sizes["objects"]
    row |= _memory(asker, lambda: ask(tokens))
    if checked and isinstance(asker, Ours):
        found = check(asker, load.requests, times.answers, tokens)
        row |= {"error": found.error, "limit": found.limit, "ok": found.ok}
        extra |= {"equal": found.equal, "asked_again": found.asked}
    return row


def timed_again(row: Row) -> None:
    """What follows from `seconds`, where these are new: the rate, and the time of each token but the first."""
    extra, median = row["extra"], row["seconds"]["median"]
    objects, answer = (int(row["sizes"][name]) for name in ("objects", "answer"))
    extra["objects_per_second"] = objects / median
    if answer > 1:
        # of all sequences together: what lies between the first token and the last
        extra["token"] = max(0.0, median - extra["first"]["median"]) / (answer - 1)


def _counts(asker: Asker, ask: Callable[[int], Any], tokens: int, extra: dict[str, Any]) -> Row:
    if isinstance(asker, Ours):
        with counting_stages(asker.device.type) as parts:
            ask(tokens)
        # planning is the host's work alone, and infusion Lite's
        stages = {n: own for n, own in parts.items() if n != "plan" and (n != "infusion" or asker.kind == "lite")}
        extra["stages"] = {name: _numbers(own, asker.device) for name, own in stages.items()}
        counts = add_counts(stages.values())
    else:
        with counting(asker.device.type) as counts:
            ask(tokens)
    return _numbers(counts, asker.device)


def _numbers(counts: Counts, device: torch.device) -> Row:
    row: Row = {"flops": counts.flops, "moved": counts.moved, "launches": counts.launches.total()}
    if device.type == "cuda":  # elsewhere what the host reads of its own tables cannot be told from a device's
        row["waits"] = counts.waits.total()
    return row


def _tokens(asker: Asker, load: Load, tokens: int) -> dict[str, int]:
    """Tokens of all questions of a load: what the language model sees, and what it writes."""
    found = {"answer": tokens * len(load.requests)}
    if not isinstance(asker, Ours):
        return found
    object_count = vision = 0
    for request in load.requests:
        objects = asker.objects(request.media, request.regions)
        object_count += len(objects.tokens)
        vision += 0 if objects.scene is None else len(objects.scene.tokens)
    prompts = sum(answer.prompt_tokens for answer in asker.answers(load.requests, 1, load.batch_size))
    return found | {"object": object_count, "vision": vision, "prompt": prompts}


def _memory(asker: Asker, run: Callable[[], Any]) -> Row:
    """Bytes with the asker's own weights, whatever else lies on the device: at the most, and when it is done."""
    weights = list(asker.weights())
    if isinstance(asker, Ours):
        asker.model.decoder.clear()  # else its cache is from before
    with memory.watching(asker.device, weights) as watched:
        run()
    beside = watched.start if asker.device.type == "cuda" else 0
    own = _bytes(weights) if asker.device.type == "cuda" else 0
    return {"peak_bytes": watched.peak - beside + own, "final_bytes": max(0, watched.final - beside + own)}


def _quantiles(seconds: Sequence[float]) -> Quantiles:
    found = timing.quantiles(seconds)
    return Quantiles(q10=found["q10"], median=found["median"], q90=found["q90"])


def _bytes(tensors: Any) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _power(device: torch.device, run: Callable[[], Any]) -> dict[str, Any] | None:
    """What the device drew during calls in a row, and how many there were; None where it cannot be asked."""
    if device.type != "cuda":
        return None
    calls = 0
    with power.watching(device) as watch:
        start = time.perf_counter()
        while not calls or time.perf_counter() - start < LEAST_POWER_SECONDS:
            run()
            calls += 1
        timing.synchronize(device)
    facts = watch.facts()
    return None if facts is None else facts | {"calls": calls}


def left_out(load_case: str, suite: str, model: Any, model_name: str, sizes: dict[str, int], reason: str) -> Row:
    """The row of a case that was not run."""
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "suite": suite,
        "case": load_case,
        "by": "ours",
        "model": model_name,
        "dtype": dtype,
        "sizes": {**sizes},
        "ok": False,
        "reason": reason,
    }


Told = Callable[[str], Any]


def run_cases(model: Any, name: str, effort: Effort, budget: Budget, told: Told | None = None) -> list[Row]:
    """The whole cases of a model.

    Args:
        model: one of this package.
        name: what it is called.
        effort, budget: how much is spent.
        told: called with the name of each case before it.
    """
    rows = []
    ours = Ours(model)
    with as_measured(model):
        for load in case_loads(model):
            if told is not None:
                told(load.case)
            reason = budget.refuses()
            if reason is None:
                rows.append(measure(ours, load, effort.tokens, effort, name))
            else:
                rows.append(left_out(load.case, "whole", model, name, load.sizes, reason))
    return rows


def run_stages(model: Any, name: str, effort: Effort, budget: Budget, told: Told | None = None) -> list[Row]:
    """One question about one object, a row for each of its stages; nothing where there is no time for it."""
    if told is not None:
        told("stages of one object")
    if budget.refuses() is not None:
        return []
    load = next(case_loads(model))
    request, dtype = load.requests[0], str(model.dtype).removeprefix("torch.")
    with as_measured(model):
        found = stages.run(
            model, request.media, request.question, list(request.regions), effort.tokens, max(3, effort.repeats // 2)
        )
    return [stage.row(load.case, name, dtype, {**load.sizes, "answer": effort.tokens}) for stage in found]


def run_curves(
    model: Any, name: str, effort: Effort, budget: Budget, told: Told | None = None, curves: Sequence[str] | None = None
) -> list[Row]:
    """How time, memory and work grow with each size; points that there is no time or memory for have a reason."""
    rows: list[Row] = []
    ours = Ours(model)
    with as_measured(model):
        for curve in curves or effort.curves:
            spent, before, failed = 0.0, 1, None
            for value in effort.curves[curve]:
                if told is not None:
                    told(f"{curve} {value}")
                # the next point takes as much more as it is larger; of an image's side, by its area
                growth = (value / before) ** (2 if curve == "side" else 1)
                reason = failed or budget.refuses(spent * growth)
                if reason is None:
                    start = time.monotonic()
                    try:
                        with object_tokens(model, value) if curve == "n" else nullcontext():
                            load = curve_load(model, curve, value)
                            row = measure(ours, load, effort.curve_tokens, effort, name, "scaling")
                    except (ValueError, torch.OutOfMemoryError, MemoryError) as error:
                        reason = failed = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                    spent, before = time.monotonic() - start, value
                if reason is not None:
                    row = left_out(f"{curve} {value}", "scaling", model, name, {curve: value}, reason)
                row["extra"] = {**row.get("extra", {}), "curve": curve, "value": value}
                rows.append(row)
    return rows
