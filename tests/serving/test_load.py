"""Many callers at once, for a while: their answers, the memory, the latencies; many masks against one at a time."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import openai
from served import running

from pixelrefer_fast.serving import create_app

CALLERS = 64
SECONDS = float(os.environ.get("PIXELREFER_FAST_LOAD_SECONDS", "60"))
QUESTIONS = ("What color is <region>?", "What shape is <region>?", "Describe <region>.")
GROWTH = 96 * 2**20
"""Bytes that the process may grow after a third of the time: allocators keep some of what they had."""


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_many_callers_get_the_answers_of_one(lite: Any, picture: np.ndarray, url: str, box: list[int]) -> None:
    x0, y0, x1, y1 = box
    boxes = [[x0, y0, x1 - at, y1] for at in range(4)]
    cases = [(question, own) for question in QUESTIONS for own in boxes]
    expected = {(question, tuple(own)): lite.ask(picture, question, [own]) for question, own in cases}
    took: list[float] = []
    memory: list[int] = []

    async def caller(client: openai.AsyncOpenAI, number: int, end: float) -> None:
        at = number
        while time.monotonic() < end:
            question, own = cases[at % len(cases)]
            at += 1
            image = {"type": "image_url", "image_url": {"url": url}, "regions": [{"box": own}]}
            messages: Any = [{"role": "user", "content": [image, {"type": "text", "text": question}]}]
            begin = time.monotonic()
            found = await client.chat.completions.create(model="lite", messages=messages)
            took.append(time.monotonic() - begin)
            assert found.choices[0].message.content == expected[question, tuple(own)]

    async def watch(begin: float) -> None:
        for part in (1 / 3, 1):
            await asyncio.sleep(max(0, begin + SECONDS * part - time.monotonic()))
            memory.append(resident())

    async def all_of_them(address: str) -> None:
        begin = time.monotonic()
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as client:
            callers = [caller(client, number, begin + SECONDS) for number in range(CALLERS)]
            await asyncio.gather(watch(begin), *callers)

    with running(create_app({"lite": lite})) as address:
        asyncio.run(all_of_them(address))
    assert len(took) >= CALLERS
    assert memory[1] - memory[0] < GROWTH
    half, most = np.percentile(took, [50, 99])
    print(
        f"\n{CALLERS} callers, {SECONDS:g} s: {len(took)} answers, {len(took) / SECONDS:.1f}/s, "
        f"p50 {half * 1000:.0f} ms, p99 {most * 1000:.0f} ms, memory grew {(memory[1] - memory[0]) / 2**20:.1f} MiB"
    )


def test_many_masks_take_a_third_of_the_steps_that_they_take_one_by_one(
    client: Any, lite: Any, url: str, box: list[int]
) -> None:
    x0, y0, x1, y1 = box
    regions = [{"box": [x0, y0, x1 - at % 4, y1 - at // 4]} for at in range(16)]
    head = {"model": "lite", "image": url}

    def measured(groups: list[list[dict[str, Any]]]) -> tuple[list[str], int, float]:
        begin, before, texts = time.monotonic(), lite.decoder.counts()["steps"], []
        for group in groups:
            found = client.post("/regions", body={**head, "regions": group}, cast_to=object)
            texts += [one["text"] for one in found["data"]]
        return texts, lite.decoder.counts()["steps"] - before, time.monotonic() - begin

    measured([regions[:1]])
    single, single_steps, single_seconds = measured([[region] for region in regions])
    together, steps, seconds = measured([regions])
    assert together == single
    assert single_steps >= 3 * steps
    print(
        f"\n16 masks: {single_seconds:.2f} s one by one, {seconds:.2f} s as one request ({single_steps}, {steps} steps)"
    )
