"""The server under load: callers that ask again and again, and many masks in one request against one at a time.

python benchmarks/serving.py --json benchmarks/results/serving.json  # measures, with the extra `serve` and openai
python benchmarks/serving.py --write                                 # the result into docs/serving.md
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelrefer_fast.bench.report.tables import between

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "serving.json"
PAGE = ROOT / "docs" / "serving.md"
MARKS = "<!-- load: made by `python benchmarks/serving.py --write` -->", "<!-- end of load -->"
SEED = 1000
CALLERS = (1, 4, 16, 64)
MASKS = (16, 64)
QUESTIONS = ("What color is <region>?", "What shape is <region>?", "Describe <region>.")


def measured(callers: Sequence[int], masks: Sequence[int], seconds: float) -> dict[str, Any]:
    """The result: where and when, a row for each number of callers, and one for each number of masks."""
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from served import png_url, running

    import pixelrefer_fast as pf
    from pixelrefer_fast.serving import create_app
    from pixelrefer_fast.world import make_scene

    scene = make_scene(SEED, "heldout", False)
    rows, columns = np.nonzero(scene.masks[0, 0])
    box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    url, model = png_url(np.asarray(scene.frames[0])), pf.load("embedded:lite")
    found: dict[str, Any] = {
        "command": "python benchmarks/serving.py --json benchmarks/results/serving.json",
        "model": "embedded:lite", "weights": {"embedded:lite": model.fingerprint},
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2), "machine": platform.machine(), "seconds": seconds,
    }  # fmt: skip
    with running(create_app({"lite": model})) as address:
        asyncio.run(_calling(address, url, box, 1, 1.0))  # what a first request compiles and loads
        found["callers"] = [asyncio.run(_calling(address, url, box, count, seconds)) for count in callers]
        found["masks"] = [_masks(address, url, box, count) for count in masks]
    return found


async def _calling(address: str, url: str, box: list[int], callers: int, seconds: float) -> dict[str, float]:
    import openai

    took: list[float] = []

    async def caller(client: openai.AsyncOpenAI, number: int, end: float) -> None:
        while time.monotonic() < end:
            own = {"box": [box[0], box[1], box[2] - number % 4, box[3]]}
            image = {"type": "image_url", "image_url": {"url": url}, "regions": [own]}
            content: Any = [image, {"type": "text", "text": QUESTIONS[(number + len(took)) % len(QUESTIONS)]}]
            begin = time.monotonic()
            await client.chat.completions.create(model="lite", messages=[{"role": "user", "content": content}])
            took.append(time.monotonic() - begin)

    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300) as client:
        begin = time.monotonic()
        await asyncio.gather(*(caller(client, number, begin + seconds) for number in range(callers)))
        lasted = time.monotonic() - begin
    middle, most = np.percentile(took, [50, 99])
    return {"callers": callers, "answers": len(took), "rate": len(took) / lasted, "p50": middle, "p99": most}


def _masks(address: str, url: str, box: list[int], count: int) -> dict[str, float]:
    """The same boxes one by one and in one request, each twice; the quicker counts."""
    import openai

    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300)
    regions = [{"box": [box[0], box[1], box[2] - at % 8, box[3] - at // 8]} for at in range(count)]

    def seconds(groups: list[list[dict[str, Any]]]) -> float:
        begin = time.monotonic()
        for group in groups:
            client.post("/regions", body={"model": "lite", "image": url, "regions": group}, cast_to=object)
        return time.monotonic() - begin

    single = min(seconds([[region] for region in regions]) for _ in range(2))
    together = min(seconds([regions]) for _ in range(2))
    return {"masks": count, "single": single, "together": together, "ratio": single / together}


def table(found: dict[str, Any]) -> str:
    """Of a result, for people."""
    lines = ["| callers | answers a second | p50 | p99 |", "| ---: | ---: | ---: | ---: |"]
    for row in found["callers"]:
        numbers = f"{row['rate']:.1f} | {1000 * row['p50']:.0f} ms | {1000 * row['p99']:.0f} ms"
        lines.append(f"| {row['callers']} | {numbers} |")
    lines += ["", "| masks of one image | one request each | one request | ratio |", "| ---: | ---: | ---: | ---: |"]
    for row in found["masks"]:
        lines.append(f"| {row['masks']} | {row['single']:.2f} s | {row['together']:.2f} s | {row['ratio']:.1f} |")
    where = f"{found['cores']} cores ({found['machine']}), load {found['load']:g} before, {found['date']}"
    lines += ["", f"The embedded Lite on {where}; {found['seconds']:g} s each, with the official client."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of callers")
    parser.add_argument("--callers", type=int, nargs="+", default=CALLERS)
    parser.add_argument("--masks", type=int, nargs="+", default=MASKS)
    parser.add_argument("--write", action="store_true", help="the committed result into docs/serving.md, unmeasured")
    given = parser.parse_args(arguments)
    if given.write:
        made = table(json.loads(RESULT.read_text(encoding="utf-8")))
        PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), MARKS, made), encoding="utf-8")
        return
    found = measured(given.callers, given.masks, given.seconds)
    print(table(found))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
