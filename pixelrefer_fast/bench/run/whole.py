"""Whole questions, from opened pixels to text: one object, many, a video, a batch; and how time grows with each size.

What a call is given lies in memory, decoded; what it computes is not known from the call before. Answers are as long as
wanted, whatever their end tokens would be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from pixelrefer_fast.bench.measure import memory, power, timing
from pixelrefer_fast.bench.report.results import Quantiles, Row
from pixelrefer_fast.bench.run import stages
from pixelrefer_fast.bench.run.askers import (
    Asker,
    Ours,
    add_counts,
    answer_all,
    as_measured,
    check,
    counting_stages,
    object_tokens,
)
from pixelrefer_fast.bench.run.effort import Effort, TimeLimit
from pixelrefer_fast.bench.run.loads import Load, case_loads, curve_load
from pixelrefer_fast.device.counters import Counts, counting

LEAST_POWER_SECONDS = 1.0  # the counters of a device move a few times a second


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
    """Bytes with the asker's own weights, whatever else lies on the device: at the most, and when it is done.

    The cache of an answer counts as far as it needs one; captures, which take room for all answers that may ever run
    together, are not used.
    """
    weights = list(asker.weights())
    aside = asker.model.decoder.aside() if isinstance(asker, Ours) else nullcontext()  # else its cache is from before
    with aside, memory.watching(asker.device, weights) as watched:
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


def run_cases(model: Any, name: str, effort: Effort, time_limit: TimeLimit, told: Told | None = None) -> list[Row]:
    """The whole cases of a model.

    Args:
        model: one of this package.
        name: what it is called.
        effort, time_limit: how much is spent.
        told: called with the name of each case before it.
    """
    rows = []
    ours = Ours(model)
    with as_measured(model):
        for load in case_loads(model):
            if told is not None:
                told(load.case)
            reason = time_limit.refuses()
            if reason is None:
                rows.append(measure(ours, load, effort.tokens, effort, name))
            else:
                rows.append(left_out(load.case, "whole", model, name, load.sizes, reason))
    return rows


def run_stages(model: Any, name: str, effort: Effort, time_limit: TimeLimit, told: Told | None = None) -> list[Row]:
    """One question about one object, a row for each of its stages; nothing where there is no time for it."""
    if told is not None:
        told("stages of one object")
    if time_limit.refuses() is not None:
        return []
    load = next(case_loads(model))
    request, dtype = load.requests[0], str(model.dtype).removeprefix("torch.")
    with as_measured(model):
        found = stages.run(
            model, request.media, request.question, list(request.regions), effort.tokens, max(3, effort.repeats // 2)
        )
    return [stage.row(load.case, name, dtype, {**load.sizes, "answer": effort.tokens}) for stage in found]


def run_curves(
    model: Any,
    name: str,
    effort: Effort,
    time_limit: TimeLimit,
    told: Told | None = None,
    curves: Sequence[str] | None = None,
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
                reason = failed or time_limit.refuses(spent * growth)
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
