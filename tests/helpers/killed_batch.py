"""Run in a process of its own: `describe --batch` is killed again and again, at moments that are drawn at random.

    killed_batch.py FOLDER INPUT OUT WHOLE KILLS SEED

The checkpoint is loaded once; each attempt is a fork, which a SIGKILL ends. Then once more without a kill, into WHOLE.
Prints a JSON list: lines that were there after each kill, then the exit codes of the last two attempts.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

import pixelrefer_fast
from pixelrefer_fast import cli

ARGUMENTS = ("--max-new-tokens", "3", "--batch-size", "8", "--model", "loaded")


def attempt(source: str, out: str) -> int:
    """A fork that runs the command; its process id."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = cli.main(["describe", "--batch", source, "--out", out, *ARGUMENTS])
        finally:
            os._exit(code)
    return child


def main(folder: str, source: str, out: str, whole: str, kills: str, seed: str) -> None:
    torch.set_num_threads(1)  # a fork has no threads of OpenMP
    model = pixelrefer_fast.load(folder, device="cpu", dtype="float32")
    loading: Any = lambda *_, **__: model  # noqa: E731
    pixelrefer_fast.load = loading
    rng = random.Random(int(seed))
    total = sum(1 for line in Path(source).read_bytes().splitlines() if line.strip())
    part = Path(f"{out}.part")
    found: list[int] = []
    for lines in sorted(rng.randrange(total - 40) for _ in range(int(kills))):
        child = attempt(source, out)
        while not part.exists() or part.read_bytes().count(b"\n") < lines:
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                raise SystemExit("the command ended before it was killed")
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found.append(part.read_bytes().count(b"\n"))
    for target in (out, whole):
        _, status = os.waitpid(attempt(source, target), 0)
        found.append(os.waitstatus_to_exitcode(status))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
