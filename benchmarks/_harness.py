"""What every benchmark shares: timing, counting, errors, provenance, result files and tables."""

from __future__ import annotations

import datetime
import gc
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Run = Callable[[], torch.Tensor]
REPOSITORY = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "triton", "numpy", "opencv-python-headless", "pillow", "transformers")
QUANTILES = (0.1, 0.5, 0.9)


class _OpCounter(TorchDispatchMode):
    """Counts the operations that reach PyTorch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _cpu_attention_flops(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


# PyTorch counts the attention kernels of a GPU only.
UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}


def count(run: Run) -> dict[str, int]:
    """FLOPs (multiply-adds times two, of matrix products, convolutions and attention) and framework operations.

    Launches of Triton kernels count as an operation each, with the FLOPs that they declare.
    """
    from pixelrefer_fast.kernels import _launch

    flops, operations = FlopCounterMode(display=False, custom_mapping=UNCOUNTED), _OpCounter()
    launches: list[_launch.Launch] = []
    with flops, _launch.listen(launches.append):
        run()
    with operations:
        run()
    declared = sum(launch.flops for launch in launches)
    return {"flops": flops.get_total_flops() + declared, "operations": operations.count + len(launches)}


def interleaved(runs: Mapping[str, Run], repeats: int) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Time the candidates in turn, so that the machine's noise meets all of them.

    Args:
        runs: candidates by name; each has been called before (warm).
        repeats: rounds; the order is reversed every other round.

    Returns:
        Seconds of every call, and the output of each candidate's last call, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    outputs: dict[str, torch.Tensor] = {}
    names = list(runs)
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            gc.collect()
            start = time.perf_counter()
            outputs[name] = runs[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds, outputs


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """{"q10": ..., "median": ..., "q90": ...} in seconds."""
    low, middle, high = np.quantile(seconds, QUANTILES).tolist()
    return {"q10": low, "median": middle, "q90": high}


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference over the largest wanted value; infinite for another shape or values that are not finite."""
    if got.shape != want.shape or not bool(torch.isfinite(got).all()):
        return float("inf")
    return ((got - want).abs().max() / want.abs().max()).item()


def provenance() -> dict[str, Any]:
    """Where and from what a result comes."""
    status = git(REPOSITORY, "status", "--porcelain", "--untracked-files=no")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        # a lent machine gets the files without their history: gpu_check.py is told the commit
        "commit": git(REPOSITORY, "rev-parse", "HEAD") or os.environ.get("COMMIT") or None,
        "dirty": bool(status),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "device": device(),
    }


def device() -> dict[str, Any] | None:
    """The CUDA device that is measured on, None where there is none."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    except OSError:
        driver = []
    return {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "l2": properties.L2_cache_size,
        "memory": properties.total_memory,
        "driver": driver[0] if driver else None,
        "cuda": torch.version.cuda,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git(folder: Path, *arguments: str) -> str:
    """What git prints about the checkout in `folder`; nothing where it fails or there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def append_result(path: Path, result: Mapping[str, Any]) -> None:
    """Add a result to a JSON file, which holds a list of them; the file is replaced in one step."""
    results = json.loads(path.read_text()) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps([*results, result], indent=1) + "\n")
    beside.replace(path)


def latest_result(path: Path) -> dict[str, Any]:
    """The last result of a file that `append_result` wrote."""
    return json.loads(path.read_text())[-1]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left and all others to the right."""
    rules = [":---"] + ["---:"] * (len(headings) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, rules, *rows)) + "\n"


def terminal_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The same table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
