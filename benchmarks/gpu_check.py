"""All that wants a GPU, in one command: the extension's build, tests, waits, memory checks, tuning and timings.

    python benchmarks/gpu_check.py --out DIR
    python benchmarks/gpu_check.py --dry-run                 only say what it would run
    python benchmarks/gpu_check.py --out DIR --only tests ops

Meant for a machine that is lent for minutes and has no network. The stages that tell most come first, each has its own
limit, none stops the others. Where one command may run ten minutes only, what does not fit goes into others, as
docs/gpu.md lists them; what one command builds is gone with the machine, so a command on a fresh one begins with
`build`.

Everything lands in DIR: `log.txt`, `summary.json`, the results, the tuned launch configurations. The checkout need not
be installed nor have its history: with COMMIT set, results name that commit. Python packages that the machine lacks are
taken from wheels in `.whl/` if there is such a folder.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
SMOKE = (PYTHON, "benchmarks/ops_bench.py", "--smoke", "--repeats", "1", "--op")
# all of the extension or a failure: `doctor --build` is content with what can be built
BUILD = (
    "import sys; from pixelrefer_fast import doctor, extension; "
    "sys.exit(doctor.main(['--build']) or extension.reason('cpu') or extension.reason('cuda'))"
)
EXTENSION = ("pack_objects", "pack_views", "scatter_tokens")
KERNELS = ("add_norm", "infuse", "object_pool", "paged_attention", "rope2d", "varlen_attention", "view_patches")
SANITIZERS = ("memcheck", "racecheck", "initcheck")


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        limit: seconds after which it is ended.
        tool: a program that it needs, else it is left out.
        environment: set for it.
    """

    name: str
    command: tuple[str, ...]
    limit: int
    tool: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def stages(out: Path, reference: Path | None) -> list[Stage]:
    pytest = (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors")
    kernels = (*pytest, "-m", "kernel or gpu")
    # `python -m` would put the root on the path, where kernels/ is in the way of a library of that name
    safe = {"PYTHONSAFEPATH": "1"}
    # every allocation by itself, so that what lies beyond a tensor is nobody's
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

    def sanitized(tool: str, what: str, names: tuple[str, ...]) -> Stage:
        sanitizer = ("compute-sanitizer", "--error-exitcode", "9", "--tool", tool)
        return Stage(f"{tool}-{what}", (*sanitizer, *SMOKE, *names), 120, "compute-sanitizer", alone)

    def ops(name: str, *more: str) -> tuple[str, ...]:
        # results are written at the end, so that it has to end by itself
        return (PYTHON, "benchmarks/ops_bench.py", "--seconds", "150", *more, "--json", str(out / f"{name}.json"))

    region = (PYTHON, "benchmarks/region_stage.py", "--device", "cuda", "--json", str(out / "region_stage.json"))
    decode = (PYTHON, "benchmarks/decode.py", "--json", str(out / "decode.json"), "--repeats", "5")
    graphs = ("--graph-bytes", str(2**30))
    rival = () if reference is None else ("--reference", str(reference))
    return [
        Stage("build", (PYTHON, "-c", BUILD), 180, environment=safe),
        Stage("machine", ("nvidia-smi",), 30, "nvidia-smi"),
        Stage("tests", kernels, 270, environment=safe),
        Stage("ops", ops("ops"), 210),
        Stage("region", (*region, *rival), 120),
        Stage("compiled", ops("ops-compiled", "--compiled", "--repeats", "10"), 300),
        Stage("smoke", (*SMOKE, *EXTENSION, *KERNELS), 120),  # compiles what the sanitizers then watch
        *(sanitized(tool, "extension", EXTENSION) for tool in SANITIZERS),
        *(sanitized(tool, "kernels", KERNELS) for tool in SANITIZERS),
        Stage("tune", (PYTHON, "tools/tune.py", "--seconds", "240"), 300),
        Stage("tuned-tests", (*kernels, "tests/ops"), 180, environment=safe),
        Stage("tuned-ops", ops("ops-tuned"), 210),
        Stage("decode", (*decode, "--model", "lite-2b", "lite-7b"), 240),
        Stage("decode-graphs", (*decode, "--model", "lite-2b", "lite-7b", *graphs), 240),
        Stage(
            "throughput",
            (PYTHON, "benchmarks/throughput.py", "--device", "cuda", "--json", str(out / "throughput.json")),
            120,
        ),
        Stage("tuned-region", (*region[:-1], str(out / "region-tuned.json"), *rival), 120),
    ]


def importable(folder: Path) -> dict[str, str]:
    """An environment in which `import pixelrefer_fast` finds this checkout, though its root is not on the path."""
    folder.joinpath("pixelrefer_fast").symlink_to(REPOSITORY / "pixelrefer_fast")
    paths = [str(folder)]
    wheels = sorted((REPOSITORY / ".whl").glob("*.whl"))
    if wheels:
        site = folder / "site"
        install = [PYTHON, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site)]
        subprocess.run([*install, *map(str, wheels)], check=False)
        paths.append(str(site))
    before = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": os.pathsep.join([*paths, *([before] if before else [])]),
        "PYTHONUNBUFFERED": "1",
        "TRITON_INTERPRET": "0",
    }


def run(stage: Stage, environment: Mapping[str, str], limit: float, log: Path) -> dict[str, object]:
    """Run one stage into the log; what became of it."""
    if stage.tool is not None and shutil.which(stage.tool) is None:
        return {"stage": stage.name, "outcome": f"left out: {stage.tool} is not here"}
    start = time.monotonic()
    with log.open("a", encoding="utf-8") as output:
        output.write(f"\n===== {stage.name}: {shlex.join(stage.command)}\n")
        output.flush()
        process = subprocess.Popen(
            stage.command,
            cwd=REPOSITORY,
            env={**os.environ, **environment, **stage.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            # with what it has started: a sanitizer's program would go on using the device
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = 124
    outcome = {0: "passed", 124: f"ended after {limit:.0f} s"}.get(code, f"failed with {code}")
    return {"stage": stage.name, "outcome": outcome, "seconds": round(time.monotonic() - start, 1)}


def last_lines(log: Path, stage: str, count: int = 12) -> Iterator[str]:
    """The end of what a stage printed."""
    lines = log.read_text(encoding="utf-8", errors="replace").split(f"\n===== {stage}: ")[-1].splitlines()[1:]
    return iter(lines[-count:])


def keep_configurations(out: Path) -> None:
    """The launch configurations as they are now, tuned ones included."""
    with tarfile.open(out / "configs.tar.gz", "w:gz") as archive:
        archive.add(REPOSITORY / "kernels" / "configs", "kernels/configs")


def main(arguments: Sequence[str] | None = None) -> int:
    names = [stage.name for stage in stages(Path(), None)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", "out/gpu")), help="folder for all results"
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="STAGE", help=f"out of {', '.join(names)}")
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything (default: 9.5)")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="checkout of the reference, a rival")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    chosen = [stage for stage in stages(out, options.reference) if not options.only or stage.name in options.only]
    if options.dry_run:
        for stage in chosen:
            set_first = "".join(f"{k}={v} " for k, v in stage.environment.items())
            print(f"{stage.name} (at most {stage.limit} s): {set_first}{shlex.join(stage.command)}")
        return 0

    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.txt"
    end = time.monotonic() + 60 * options.minutes
    outcomes: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = importable(Path(folder))
        for stage in chosen:
            left = end - time.monotonic()
            if left < 5:
                outcomes.append({"stage": stage.name, "outcome": "left out: no time"})
                continue
            outcomes.append(run(stage, environment, min(stage.limit, left), log))
            (out / "summary.json").write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")
    keep_configurations(out)
    for outcome in outcomes:
        if "seconds" in outcome:
            print(f"\n----- end of {outcome['stage']}")
            print(*last_lines(log, str(outcome["stage"])), sep="\n")
    print("\n----- summary")
    for outcome in outcomes:
        print(f"{outcome['stage']}: {outcome['outcome']}", f"({outcome['seconds']} s)" if "seconds" in outcome else "")
    return 0 if all(outcome["outcome"] == "passed" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
