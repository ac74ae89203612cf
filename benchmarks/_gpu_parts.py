"""What `gpu_check.py` can run, each part with its command, its limit, and what it needs."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
OPS_BENCH = (PYTHON, "benchmarks/ops_bench.py")
# what runs with a device only, whatever else is in the file; `tests` runs all of them
ON_DEVICE = (
    "tests/test_device_pass.py",
    "tests/extension/test_device.py",
    "tests/device/test_graphs.py",
    "tests/device/test_transfers.py",
    "tests/device/test_memory.py",
    "tests/benchmarks/test_launches.py",
)
# the same with a stand-in for the capture
STAND_IN = ("tests/device/test_graphs.py", "tests/device/test_trust.py")
# all of the extension or a failure: `doctor --build` is content with what can be built
BUILD = (
    "import sys; from pixelrefer_fast.doctor import probes; from pixelrefer_fast.ops.extension import load; "
    "sys.exit(probes.main(['--build']) or load.reason('cpu') or load.reason('cuda'))"
)
EXTENSION = ("mask_grids", "pack_masks", "pack_objects", "pack_views", "place_patches", "scatter_tokens")
KERNELS = (
    "add_norm",
    "best_token",
    "infuse",
    "linear_gelu",
    "norm_linear",
    "object_pool",
    "object_tokens",
    "paged_attention",
    "rope2d",
    "swiglu",
    "varlen_attention",
    "view_patches",
)
SANITIZERS = ("memcheck", "racecheck", "initcheck")
# `python -m` would put the root on the path, where kernels/ is in the way of a library of that name
SAFE = {"PYTHONSAFEPATH": "1"}
MARKS = ("mark.kernel", "mark.gpu")


@dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        limit: seconds after which it is ended.
        core: one of the parts that run when none is named. On a GPU their limits, but for those that run beside
            others, fit into the nine minutes.
        beside: it needs the processor and not the device: what follows runs beside it, up to a part that `waits`.
        waits: it begins when everything before it has ended.
        lacking: why it is left out, if anything says so before it begins.
        probe: a command that fails where this part cannot work.
        environment: set for it.
    """

    name: str
    command: tuple[str, ...]
    limit: int
    core: bool = False
    beside: bool = False
    waits: bool = True
    lacking: str | None = None
    probe: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def parts(out: Path, device: str = "cuda", reference: Path | None = None, golden: Path | None = None) -> list[Part]:
    """All parts, the most telling first.

    Args:
        out: folder of the results.
        device: "cuda", or "cpu" for a rehearsal: small sizes, and what only a GPU can do is left out.
        reference: a checkout of the reference, a rival.
        golden: folder with folders `lite` and `full` of recorded cases, beside those that ship.
    """
    cuda = device == "cuda"
    results = str(out / "results.json")
    here = ("--device", device)
    only_cuda = None if cuda else "it needs a GPU"
    pytest = (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors")
    spread = ("-n", "8") if importlib.util.find_spec("xdist") and cuda else ()
    readable = readable_tests() or ["tests"]
    marked = (*pytest, "-m", "kernel or gpu" if cuda else "kernel")
    no_tests = None if importlib.util.find_spec("pytest") else "pytest is not installed"
    smoke = (*OPS_BENCH, *here, "--smoke", "--repeats", "1")
    to_json = ("--json", results)

    def sanitized(tool: str, what: str, names: tuple[str, ...]) -> Part:
        sanitizer = ("compute-sanitizer", "--error-exitcode", "9", "--tool", tool)
        # every allocation by itself, so that what lies beyond a tensor is nobody's
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        lacking = only_cuda or (None if shutil.which("compute-sanitizer") else "compute-sanitizer is not here")
        asked = (*sanitizer, PYTHON, "-c", "import torch; torch.zeros(9, device='cuda').sum().item()")
        command = (*sanitizer, *smoke, "--op", *names)
        return Part(f"{tool}-{what}", command, 120, lacking=lacking, probe=asked, environment=alone)

    def ops(name: str, limit: int, *more: str, core: bool = False) -> Part:
        # results are written at the end, so that it has to end by itself
        seconds = str(limit - 25) if cuda else "5"
        repeats = () if cuda else ("--op", "add_norm", "rope2d", "--repeats", "5")
        return Part(name, (*OPS_BENCH, *here, *repeats, "--seconds", seconds, *more, *to_json), limit, core)

    def script(name: str, limit: int, *more: str) -> Part:
        file = name.partition("-")[0]
        return Part(name, (PYTHON, f"benchmarks/{file}.py", *here, *more, *to_json), limit, lacking=only_cuda)

    on_device = [path for path in ON_DEVICE if path in readable] if cuda else STAND_IN
    rival = () if reference is None else ("--reference", str(reference))
    size = ("--seconds", "65", "--model", "lite-2b") if cuda else ("--seconds", "20")
    bench = (PYTHON, "-m", "pixelrefer_fast.cli", "bench", "--quick", *here, *size, "--out", str(out / "bench"), *rival)
    how = ("lite-2b", "lite-7b", "--repeats", "5") if cuda else ("embedded:lite", "--repeats", "1", "--smoke")
    decode = (PYTHON, "benchmarks/decode.py", *here, "--model", *how, *to_json)
    replayed = (PYTHON, "benchmarks/replayed.py", *here, *(("--golden", str(golden)) if golden else ()), *to_json)
    fewer = () if cuda else ("--model", "embedded:lite", "--requests", "20")
    every = [
        Part(
            "build",
            (PYTHON, "-c", BUILD),
            150,
            core=True,
            beside=True,
            lacking=only_cuda,
            environment={**SAFE, **architecture()},
        ),
        Part(
            "machine",
            ("nvidia-smi",),
            15,
            core=True,
            waits=False,
            lacking=None if shutil.which("nvidia-smi") else "nvidia-smi is not here",
        ),
        # compiles every kernel, so that what follows need not
        Part("kernels", (*smoke, *to_json, "--op", *KERNELS), 110, core=True, waits=False),
        Part("extension", (*smoke, *to_json, "--op", *EXTENSION), 30, core=True),
        Part(
            "waits-graphs",
            (*pytest, "-m", "gpu" if cuda else "not gpu and not slow", *on_device),
            60,
            core=True,
            lacking=no_tests or (None if on_device else "what its tests import is not installed"),
            environment=SAFE,
        ),
        Part(
            "verify",
            replayed,
            50,
            core=True,
            lacking=None if importlib.util.find_spec("cv2") else "OpenCV is not installed",
        ),
        Part(
            "launches",
            (PYTHON, "benchmarks/launches.py", *here, *(() if cuda else ("--objects", "1")), *to_json),
            30,
            core=True,
        ),
        Part("decode", decode, 75, core=True),
        Part("bench", bench, 90, core=True, environment=SAFE),
        ops("ops", 45, core=True),
        Part(
            "tests",
            (*marked, *spread, *(readable if cuda else ["tests/ops/test_add_norm_kernel.py"])),
            240 if cuda else 120,
            lacking=no_tests,
            environment=SAFE if cuda else {**SAFE, "TRITON_INTERPRET": "1"},
        ),
        *(sanitized(tool, "kernels", KERNELS) for tool in SANITIZERS),
        *(sanitized(tool, "extension", EXTENSION) for tool in SANITIZERS),
        ops("ops-compiled", 300, "--compiled", "--repeats", "10"),
        script("region_stage", 120, *rival),
        Part("decode-eager", (*decode, "--graph-bytes", "0"), 120, lacking=only_cuda),
        script("throughput", 120),
        Part(
            "vllm",
            (PYTHON, "benchmarks/vllm_engine.py", *here, *fewer, "--json", str(out / "vllm.jsonl")),
            240,
            lacking=None if importlib.util.find_spec("vllm") else "vllm is not installed",
            environment=SAFE,
        ),
        Part("tune", (PYTHON, "tools/tune.py", "--seconds", "240"), 300, lacking=only_cuda),
        Part("tuned-tests", (*marked, *spread, "tests/ops"), 180, lacking=only_cuda or no_tests, environment=SAFE),
        ops("tuned-ops", 180),
    ]
    # a rehearsal shows that parts run, on a machine that may be slow
    return every if cuda else [replace(part, limit=3 * part.limit) for part in every]


def readable_tests() -> list[str]:
    """The test files with kernels or a GPU in them whose imports are all here."""
    own = {path.stem for path in (REPOSITORY / "tests" / "helpers").glob("*.py")} | {"pixelrefer_fast"}
    found: dict[str, bool] = {}
    files = []
    for path in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if not any(mark in text for mark in MARKS):
            continue
        for name in set(_imported(text)) - own:
            found.setdefault(name, importlib.util.find_spec(name) is not None)
        if all(found.get(name, True) for name in _imported(text)):
            files.append(path.relative_to(REPOSITORY).as_posix())
    return files


def _imported(text: str) -> Iterator[str]:
    """Packages that a module imports as it is imported itself."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def architecture() -> dict[str, str]:
    """What to compile the extension for: this device alone, if it says what it is."""
    try:
        asked = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        found = []
    return {"TORCH_CUDA_ARCH_LIST": found[0]} if found else {}
