"""Host time of the region stage, from its plan on the device to its last launch, with a driver that runs nothing.

    python benchmarks/dispatch.py --json PATH
    git worktree add /tmp/before 3d59d65 && python benchmarks/dispatch.py --against /tmp/before --json PATH

Triton specialises, binds and launches as for sm_90, and the launch itself returns at once. Tensors lie on the CPU and
are 16 wide, so that the library's products take next to no time and the host's own work is left; keys and values are
projected or folded as they are at full width. What a CUDA device adds (its context, its stream) is not in it. Each
checkout runs in processes of its own, in turn, and of all calls the fastest counts. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixelrefer_fast.bench.measure import machine
from pixelrefer_fast.bench.report import results, tables

REPOSITORY = Path(__file__).resolve().parent.parent
OBJECTS = (1, 16)
LIMIT = 0.5  # of the other checkout's time

# runs in a checkout of any time whose benchmarks/launches.py makes a region pass
CHILD = """
import json, os, sys, time
checkout, emulator, objects, calls = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
sys.path[:0] = [checkout, os.path.join(checkout, "benchmarks"), emulator]
os.environ["TRITON_INTERPRET"] = "0"
import torch, triton
torch.set_num_threads(1)
from ptx_emulator import triton_driver
triton_driver.install("sm_90")
class Nothing:
    def __init__(self, source, metadata): pass
    def __call__(self, *arguments): pass
triton.runtime.driver.active.launcher_cls = Nothing
triton.runtime.driver.active.utils.load_binary = lambda name, ptx, *rest: (name, name, 0, 0, 1024)
from pixelrefer_fast.ops import _registry
_registry.interpreted = lambda: True  # the kernels take tensors of the CPU
import launches
found = {}
module = launches.tokenizer(torch.device("cpu"), torch.bfloat16, 16, 32)
steps = sys.modules[type(module.infusion.local_step).__module__]
for count in objects:
    steps.is_projected = lambda *sizes, many=count > 1: many  # as at full width
    own = launches.region_pass(module, count, 1, 16, 32)
    best = float("inf")
    with torch.inference_mode():
        for call in range(calls + 5):
            begun = time.perf_counter()
            own.run()
            if call >= 5:  # the first ones compile
                best = min(best, time.perf_counter() - begun)
    found[str(count)] = 1e3 * best
print(json.dumps(found))
"""


def measured(checkout: Path, objects: Sequence[int], calls: int) -> dict[str, float]:
    """Milliseconds of a checkout's fastest call by number of objects, in a process of its own.

    Raises:
        SystemExit: the process failed; what it said.
    """
    command = [sys.executable, "-c", CHILD, str(checkout), str(REPOSITORY / "emulator"), json.dumps(objects)]
    ran = subprocess.run(
        [*command, str(calls)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=checkout,
    )
    if ran.returncode:
        raise SystemExit(f"dispatch: {checkout}: {ran.stderr.strip().splitlines()[-1:]}")
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def benchmark(against: Path | None, calls: int, rounds: int) -> dict[str, Any]:
    """The fastest of all rounds, this checkout and the other in turn."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name, checkout in (("dispatch_ms", REPOSITORY), ("against_ms", against)):
            if checkout is not None:
                own = best.setdefault(name, {})
                own |= {n: min(ms, own.get(n, ms)) for n, ms in measured(checkout, OBJECTS, calls).items()}
    return {"benchmark": "dispatch", **machine.provenance(), "calls": calls, "rounds": rounds, **best}


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines, one for each number of objects, as text."""
    lines = []
    for objects, ms in result["dispatch_ms"].items():
        line = [objects, f"{ms:.3f}"]
        if "against_ms" in result:
            before = result["against_ms"][objects]
            part = ms / before
            line += [f"{before:.3f}", f"{part:.2f}x", f"at most {LIMIT:g}x: {'met' if part <= LIMIT else 'missed'}"]
        lines.append(line)
    return ["objects", "this checkout, ms", "the other, ms", "", "goal"][: len(lines[0])], lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Host time of the region stage with a driver that runs nothing.")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout, measured in turn")
    parser.add_argument("--calls", type=int, default=200, help="in each process (default: 200)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each checkout (default: 3)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="result file to append to")
    options = parser.parse_args(arguments)
    if options.calls < 1 or options.rounds < 1:
        parser.error("--calls and --rounds: expected at least 1")
    result = benchmark(options.against, options.calls, options.rounds)
    if options.json:
        results.append(options.json, result)
    tables.terminal("dispatch", *table(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
