"""From pixels to the first token on a CPU, this checkout against another: both in turn, in one run.

    git worktree add /tmp/before 3d59d65
    python benchmarks/first_token.py --against /tmp/before --json PATH

Each checkout answers in a process of its own, which has its own `pixelrefer_fast`; the processes take turns, question
by question, and of each case the median of the ratios and the fastest calls are told. Every question is about pixels
that nobody has seen before, so that nothing kept from an earlier one helps. A compiled extension is used where a
checkout has one. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
SIZE = (480, 640)
FRAMES = 20
CASES = ("one object", "8 objects", "20-frame video")
GOAL = 1.5  # times as fast as at 3d59d65


def serve(name: str, threads: int) -> None:
    """A checkout's process: each line of stdin names a case and a number of pixels, each answer is one line of JSON."""
    import numpy as np
    import torch

    import pixelrefer_fast as pf

    torch.set_num_threads(threads)
    model = pf.load(name, device="cpu", dtype="float32")
    height, width = SIZE
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (height // 40 + 3, width // 40 + 1, 3), dtype=np.uint8)
    scene = np.kron(coarse, np.ones((40, 40, 1), np.uint8))
    scene ^= random.integers(0, 32, scene.shape, dtype=np.uint8)
    corners = [(20 + 70 * i, 30 + 45 * i) for i in range(8)]
    boxes = [[x, y, x + 90, y + 80] for x, y in corners]
    tags = " ".join(["<region>"] * len(boxes))

    def question(case: str, number: int) -> Callable[[], str]:
        frames = [(scene[i : i + height, :width] + np.uint8(number)) for i in range(FRAMES if "video" in case else 1)]
        if "video" in case:
            clip = pf.open_media(np.stack(frames), times=[0.5 * i for i in range(FRAMES)])
            marks = {i: [40 + i, 50, 140 + i, 150] for i in range(FRAMES)}
            return lambda: model.ask(clip, "What does <region> do?", [marks], max_new_tokens=1)
        if case == "one object":
            return lambda: model.ask(frames[0], "What is <region>?", boxes[:1], max_new_tokens=1)
        return lambda: model.ask(frames[0], f"Which of {tags} is red?", boxes, max_new_tokens=1)

    print(json.dumps({"package": str(Path(pf.__file__).resolve().parents[1])}), flush=True)
    for line in sys.stdin:
        case, number = json.loads(line)
        run = question(case, number)
        start = time.perf_counter()
        text = run()
        print(json.dumps({"ms": 1e3 * (time.perf_counter() - start), "text": text}), flush=True)


@contextmanager
def checkout(folder: Path, name: str, threads: int) -> Iterator[Callable[[str, int], dict[str, Any]]]:
    """Asks the process of a checkout.

    Raises:
        RuntimeError: the process ended, or has another package than the checkout's.
    """
    code = f"import runpy; runpy.run_path({str(Path(__file__).resolve())!r})['serve']({name!r}, {threads})"
    # the root stays off the path: its folder kernels/ has the name of Hugging Face's package
    path = tempfile.TemporaryDirectory()
    Path(path.name, "pixelrefer_fast").symlink_to(folder.resolve() / "pixelrefer_fast")
    environment = {**os.environ, "PYTHONPATH": path.name, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=path.name,  # which is looked in first
    )
    assert process.stdin is not None
    assert process.stdout is not None
    answers, asked = process.stdout, process.stdin

    def answer() -> dict[str, Any]:
        line = answers.readline()
        if not line:
            raise RuntimeError(f"{folder}: its process ended with {process.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said

    def ask(case: str, number: int) -> dict[str, Any]:
        print(json.dumps([case, number]), file=asked, flush=True)
        return answer()

    try:
        package = answer()["package"]
        if Path(package).resolve() != folder.resolve():
            raise RuntimeError(f"expected the package of {folder}, got that of {package}")
        yield ask
    finally:
        asked.close()
        process.wait()
        path.cleanup()


def benchmark(against: Path, name: str, repeats: int, threads: int) -> dict[str, Any]:
    """Times of both checkouts by case."""
    from pixelrefer_fast.bench.measure import machine

    rows = []
    with checkout(HERE, name, threads) as now, checkout(against, name, threads) as before:
        for case in CASES:
            times: dict[str, list[float]] = {"now": [], "before": []}
            texts: dict[str, list[str]] = {"now": [], "before": []}
            for repeat in range(repeats + 1):
                for side, ask in (("now", now), ("before", before))[:: 1 if repeat % 2 else -1]:
                    said = ask(case, repeat)
                    if repeat:  # the first warms
                        times[side].append(said["ms"])
                        texts[side].append(said["text"])
            ratios = [b / n for b, n in zip(times["before"], times["now"], strict=True)]
            rows.append(
                {
                    "case": case,
                    "now_ms": min(times["now"]),
                    "before_ms": min(times["before"]),
                    "times_as_fast": min(times["before"]) / min(times["now"]),
                    "median_of_ratios": statistics.median(ratios),
                    "equal_texts": sum(a == b for a, b in zip(texts["now"], texts["before"], strict=True)),
                }
            )
    commit, _ = machine.commit_of(against)
    return {
        "benchmark": "first token",
        **machine.provenance(),
        "against": commit,
        "model": name,
        "size": list(SIZE),
        "repeats": repeats,
        "threads_each": threads,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines, one for each case, as text."""
    lines = [
        [
            row["case"],
            f"{row['before_ms']:.1f}",
            f"{row['now_ms']:.1f}",
            f"{row['times_as_fast']:.2f}x",
            f"{row['median_of_ratios']:.2f}x",
            f"{row['equal_texts']} of {result['repeats']}",
            f"at least {GOAL}x",
        ]
        for row in result["rows"]
    ]
    return ["", "before, ms", "now, ms", "fastest calls", "median of ratios", "equal texts", "goal"], lines


def main(arguments: Sequence[str] | None = None) -> int:
    from pixelrefer_fast.bench.report import results, tables

    parser = argparse.ArgumentParser(description="Pixels to the first token, against another checkout.")
    parser.add_argument("--against", type=Path, required=True, metavar="FOLDER", help="the other checkout")
    parser.add_argument("--model", default="embedded:lite", help="that both load (default: embedded:lite)")
    parser.add_argument("--repeats", type=int, default=15, help="questions of each case (default: 15)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: 1)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="result file to append to")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or options.threads < 1:
        parser.error("--repeats, --threads: expected at least 1")
    if not (options.against / "pixelrefer_fast").is_dir():
        parser.error(f"--against {options.against}: expected a checkout with a folder pixelrefer_fast")
    result = benchmark(options.against, options.model, options.repeats, options.threads)
    if options.json:
        results.append(options.json, result)
    tables.terminal("first token", *table(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
