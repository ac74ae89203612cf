"""All that wants a GPU, in one command of at most nine minutes: is everything right there, and how fast is it?

    python benchmarks/gpu_check.py --out DIR
    python benchmarks/gpu_check.py --dry-run                 only say what it would run
    python benchmarks/gpu_check.py --out DIR --only build ops tune
    python benchmarks/gpu_check.py --out DIR --device cpu    a rehearsal of what does not need a GPU, in small

Meant for a machine that is lent for minutes and has no network: a Python with torch, triton, transformers and what they
bring, pytest, pytest-benchmark and nvidia-ml-py will do, and what more a part needs and does not find is said. The
parts that tell most come first, each has its own limit, none stops the others. More parts than fit into the nine
minutes are there to be asked for by name (docs/gpu.md).

Everything lands in DIR, a few files of a few megabytes: `summary.json`, `results.json` and `bench.json`, `log.txt`,
pictures, the tuned launch configurations. The checkout need not be installed nor have its history: with COMMIT set,
results name that commit. Python packages that the machine lacks are taken from wheels in `.whl/` if there is such a
folder.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
MINUTES = 9.0
LOG_BYTES = 200_000  # of each part that are kept
OPS_BENCH = (PYTHON, "benchmarks/ops_bench.py")
# all of the extension or a failure: `doctor --build` is content with what can be built
BUILD = (
    "import sys; from pixelrefer_fast.doctor import probes; from pixelrefer_fast.ops.extension import load; "
    "sys.exit(probes.main(['--build']) or load.reason('cpu') or load.reason('cuda'))"
)
EXTENSION = ("pack_objects", "pack_views", "scatter_tokens")
KERNELS = ("add_norm", "infuse", "object_pool", "paged_attention", "rope2d", "varlen_attention", "view_patches")
SANITIZERS = ("memcheck", "racecheck", "initcheck")
# `python -m` would put the root on the path, where kernels/ is in the way of a library of that name
SAFE = {"PYTHONSAFEPATH": "1"}
GRAPH_BYTES = str(2 << 30)
MARKS = ("mark.kernel", "mark.gpu")


@dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        limit: seconds after which it is ended.
        core: one of the parts that run when none is named.
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
        golden: folder with folders `lite` and `full` of recorded cases.
    """
    cuda = device == "cuda"
    results = str(out / "results.json")
    here = ("--device", device)
    only_cuda = None if cuda else "it needs a GPU"
    pytest = (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors")
    spread = ("-n", "8") if importlib.util.find_spec("xdist") and cuda else ()
    readable = readable_tests() or ["tests"]
    marked = (*pytest, "-m", "kernel or gpu" if cuda else "kernel")
    on_device = ("tests/test_device_pass.py", "tests/extension/test_device.py", "tests/device/test_graphs.py")
    no_tests = None if importlib.util.find_spec("pytest") else "pytest is not installed"
    smoke = (*OPS_BENCH, *here, "--smoke", "--repeats", "1")

    def verify(kind: str) -> Part:
        folder = golden / kind if golden else Path(kind)
        lacking = None if importlib.util.find_spec("cv2") else "OpenCV is not installed"
        if not folder.is_dir():
            lacking = "no recorded cases are here: --golden DIR"
        command = (PYTHON, "-m", "pixelrefer_fast.cli", "verify", str(folder), *here, "--dtype", "float32")
        return Part(f"verify-{kind}", command, 60, core=True, waits=False, lacking=lacking, environment=SAFE)

    def sanitized(tool: str, what: str, names: tuple[str, ...]) -> Part:
        sanitizer = ("compute-sanitizer", "--error-exitcode", "9", "--tool", tool)
        # every allocation by itself, so that what lies beyond a tensor is nobody's
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        lacking = only_cuda or (None if shutil.which("compute-sanitizer") else "compute-sanitizer is not here")
        asked = (*sanitizer, PYTHON, "-c", "import torch; torch.zeros(9, device='cuda').sum().item()")
        limit = 75 if tool == "memcheck" else 120
        core = tool == "memcheck"
        command = (*sanitizer, *smoke, "--op", *names)
        return Part(f"{tool}-{what}", command, limit, core, lacking=lacking, probe=asked, environment=alone)

    def ops(name: str, limit: int, *more: str, core: bool = False) -> Part:
        # results are written at the end, so that it has to end by itself
        seconds = str(limit - 30) if cuda else "5"
        repeats = () if cuda else ("--op", "add_norm", "rope2d", "--repeats", "5")
        return Part(name, (*OPS_BENCH, *here, *repeats, "--seconds", seconds, *more, "--json", results), limit, core)

    def script(name: str, limit: int, *more: str) -> Part:
        file = name.partition("-")[0]
        return Part(name, (PYTHON, f"benchmarks/{file}.py", *here, *more, "--json", results), limit, lacking=only_cuda)

    rival = () if reference is None else ("--reference", str(reference))
    size = ("--seconds", "100", "--model", "lite-2b", "--graph-bytes", GRAPH_BYTES) if cuda else ("--seconds", "20")
    bench = (PYTHON, "-m", "pixelrefer_fast.cli", "bench", "--quick", *here, *size, "--out", str(out / "bench"), *rival)
    decode = ("--model", "lite-2b", "lite-7b", "--repeats", "5")
    every = [
        Part(
            "build",
            (PYTHON, "-c", BUILD),
            170,
            core=True,
            beside=True,
            lacking=only_cuda,
            environment={**SAFE, **architecture()},
        ),
        Part(
            "machine",
            ("nvidia-smi",),
            30,
            core=True,
            waits=False,
            lacking=None if shutil.which("nvidia-smi") else "nvidia-smi is not here",
        ),
        # compiles every kernel, so that what follows need not
        Part("kernels", (*smoke, "--op", *KERNELS), 120, core=True, waits=False),
        verify("lite"),
        verify("full"),
        Part("extension", (*smoke, "--op", *EXTENSION), 60, core=True),
        Part(
            "waits-graphs",
            (*pytest, "-m", "gpu", *(path for path in on_device if path in readable)),
            75,
            core=True,
            lacking=only_cuda or no_tests,
            environment=SAFE,
        ),
        Part("bench", bench, 135, core=True, environment=SAFE),
        ops("ops", 110, core=True),
        sanitized("memcheck", "kernels", KERNELS),
        sanitized("memcheck", "extension", EXTENSION),
        Part(
            "tests",
            (*marked, *spread, *(readable if cuda else ["tests/ops/test_add_norm_kernel.py"])),
            240 if cuda else 120,
            core=True,
            lacking=no_tests,
            environment=SAFE if cuda else {**SAFE, "TRITON_INTERPRET": "1"},
        ),
        ops("ops-compiled", 300, "--compiled", "--repeats", "10"),
        *(sanitized(tool, "kernels", KERNELS) for tool in SANITIZERS[1:]),
        *(sanitized(tool, "extension", EXTENSION) for tool in SANITIZERS[1:]),
        script("region_stage", 120, *rival),
        script("decode", 240, *decode),
        script("decode-graphs", 240, *decode, "--graph-bytes", GRAPH_BYTES),
        script("throughput", 120),
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


def golden_folder() -> Path | None:
    """Recorded cases of the reference, where somebody has put them."""
    places = (REPOSITORY / ".golden", REPOSITORY / "shared" / "golden", REPOSITORY.parent / "shared" / "golden")
    return next((place for place in places if place.is_dir()), None)


def importable(folder: Path, log: Path) -> dict[str, str]:
    """An environment in which `import pixelrefer_fast` finds this checkout, though its root is not on the path."""
    folder.joinpath("pixelrefer_fast").symlink_to(REPOSITORY / "pixelrefer_fast")
    paths = [str(folder)]
    site = folder / "site"
    install = [PYTHON, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site)]
    with log.open("a", encoding="utf-8") as output:
        for wheel in sorted((REPOSITORY / ".whl").glob("*.whl")):  # one that does not fit keeps no other out
            output.write(f"===== wheel {wheel.name}\n")
            output.flush()
            try:
                subprocess.run([*install, str(wheel)], check=False, timeout=60, stdout=output, stderr=output)
            except (OSError, subprocess.TimeoutExpired) as error:
                output.write(f"{error}\n")
    if site.is_dir():
        paths.append(str(site))
        sys.path.append(str(site))  # what is looked for here is found there too
    before = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": os.pathsep.join([*paths, *([before] if before else [])]),
        "PYTHONUNBUFFERED": "1",
        "TRITON_INTERPRET": "0",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "150",
    }


class Running:
    """A part that has been started; its output goes to a file of its own."""

    def __init__(self, part: Part, environment: Mapping[str, str], limit: float, folder: Path) -> None:
        self.part, self.limit, self.start = part, limit, time.monotonic()
        self.file = folder / f"{part.name}.txt"
        self.outcome: str | None = None
        self.process: subprocess.Popen[bytes] | None = None
        with self.file.open("wb") as output:
            try:
                self.process = subprocess.Popen(
                    part.command,
                    cwd=REPOSITORY,
                    env={**os.environ, **environment, **part.environment},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    preexec_fn=os.setpgrp,
                )
            except OSError as error:
                self.outcome = f"could not be started: {error.strerror or error}"

    def finish(self, log: Path) -> dict[str, object]:
        """Wait for its end, keep its output in the log; what became of it."""
        if self.process is not None:
            try:
                code = self.process.wait(max(0.0, self.start + self.limit - time.monotonic()))
                self.outcome = "passed" if code == 0 else f"failed with {code}"
            except subprocess.TimeoutExpired:
                self.end()
                self.outcome = f"ended after {self.limit:.0f} s"
        text = self.file.read_bytes()[-LOG_BYTES:].decode(errors="replace")
        with log.open("a", encoding="utf-8") as output:
            output.write(f"\n===== {self.part.name}: {shlex.join(self.part.command)}\n{text}")
        lines = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]
        return {
            "part": self.part.name,
            "outcome": self.outcome,
            "seconds": round(time.monotonic() - self.start, 1),
            "said": lines[-1][:160] if lines else "",
        }

    def end(self) -> None:
        """With all that it has started: a sanitizer's program would go on using the device."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def run_all(chosen: Sequence[Part], environment: Mapping[str, str], out: Path, end: float) -> list[dict[str, object]]:
    """Run the parts, each as long as it may and time is left; what became of them, in the order of their ends."""
    outcomes: list[dict[str, object]] = []
    beside: list[Running] = []
    log = out / "log.txt"

    def ended(outcome: dict[str, object]) -> None:
        outcomes.append(outcome)
        (out / "summary.json").write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")
        print(_line(outcome), flush=True)

    def wait() -> None:
        while beside:
            ended(beside.pop(0).finish(log))

    with tempfile.TemporaryDirectory() as folder:
        try:
            for part in chosen:
                if part.waits and not part.beside:
                    wait()
                reason = part.lacking or _failed_probe(part, environment)
                left = end - time.monotonic()
                if reason is None and left < 5:
                    reason = "no time"
                if reason is not None:
                    ended({"part": part.name, "outcome": f"left out: {reason}"})
                    continue
                running = Running(part, environment, min(part.limit, left), Path(folder))
                if part.beside:
                    beside.append(running)
                else:
                    try:
                        ended(running.finish(log))
                    except BaseException:
                        running.end()
                        raise
            wait()
        finally:
            for running in beside:
                running.end()
    return outcomes


def _failed_probe(part: Part, environment: Mapping[str, str]) -> str | None:
    if part.probe is None or part.lacking is not None:
        return None
    settings = {**os.environ, **environment, **part.environment}
    try:
        done = subprocess.run(part.probe, capture_output=True, text=True, check=False, timeout=45, env=settings)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{part.probe[0]} does not work here: {type(error).__name__}"
    if done.returncode == 0:
        return None
    said = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line or "not" in line]
    return f"{part.probe[0]} does not work here: {said[0].strip() if said else f'it ends with {done.returncode}'}"


def _line(outcome: Mapping[str, object]) -> str:
    seconds = f"{outcome['seconds']} s" if "seconds" in outcome else ""
    said = f"  {str(outcome.get('said', ''))[:80]}".rstrip()
    return f"{outcome['part']:18} {seconds:>8}  {outcome['outcome']}{said}"


def keep_configurations(out: Path) -> None:
    """The launch configurations as they are now, tuned ones included."""
    with tarfile.open(out / "configs.tar.gz", "w:gz") as archive:
        archive.add(REPOSITORY / "kernels" / "configs", "kernels/configs")


def collect(out: Path) -> None:
    """What the benchmark has left in a folder of its own, as two files: few are carried back more easily."""
    folder = out / "bench"
    if not folder.is_dir():
        return
    if (folder / "bench.json").is_file():
        shutil.move(folder / "bench.json", out / "bench.json")
    if any(folder.iterdir()):
        with tarfile.open(out / "pictures.tar.gz", "w:gz") as archive:
            archive.add(folder, "pictures")
    shutil.rmtree(folder)


def has_device() -> bool:
    """Whether torch sees a CUDA device; asked in a process of its own, which holds nothing on it afterwards."""
    asked = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([PYTHON, "-c", asked], check=False, capture_output=True).returncode == 0


def wanted(every: Iterable[Part], only: Sequence[str] | None) -> list[Part]:
    return [part for part in every if (part.name in only if only else part.core)]


def main(arguments: Sequence[str] | None = None) -> int:
    names = [part.name for part in parts(Path())]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT") or "out/gpu"), help="folder for all results"
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"out of {', '.join(names)}")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for everything (default: {MINUTES:g})")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal (default: cuda)")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="checkout of the reference, a rival")
    parser.add_argument("--golden", type=Path, metavar="DIR", help="recorded cases of the reference, for `verify`")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    sizes = options.device, options.reference, options.golden or golden_folder()
    if options.dry_run:
        every = parts(out, *sizes)
        chosen = wanted(every, options.only)
        for part in every:
            set_first = "".join(f"{k}={v} " for k, v in part.environment.items())
            kind = "" if part in chosen else ", by name"
            print(f"{part.name} (at most {part.limit} s{kind}): {set_first}{shlex.join(part.command)}")
        return 0
    end = time.monotonic() + 60 * options.minutes
    if options.device == "cuda" and not has_device():
        parser.error(f"{PYTHON} has no torch that sees a CUDA device (--device cpu rehearses what needs none)")
    try:
        out.mkdir(parents=True, exist_ok=True)
        log = out / "log.txt"
        log.write_text("", encoding="utf-8")
    except OSError as error:
        parser.error(f"--out: {out}: {error.strerror or error}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that parts are ended with it
    with tempfile.TemporaryDirectory() as folder:
        environment = importable(Path(folder), log)
        chosen = wanted(parts(out, *sizes), options.only)
        outcomes = run_all(chosen, environment, out, end)
    with contextlib.suppress(OSError):
        collect(out)
    if any(part.name == "tune" for part in chosen):
        keep_configurations(out)
    print(f"\nparts, in the order of their ends; all of it in {out}")
    for outcome in outcomes:
        print(_line(outcome))
    return 0 if all(str(o["outcome"]).startswith(("passed", "left out")) for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
