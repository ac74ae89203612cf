"""All that wants a GPU, in one command of at most nine minutes: is everything right there, and how fast is it?

    python benchmarks/gpu_check.py --out DIR
    python benchmarks/gpu_check.py --dry-run                 only say what it would run
    python benchmarks/gpu_check.py --out DIR --only build ops tune
    python benchmarks/gpu_check.py --out DIR --device cpu    a rehearsal of what does not need a GPU, in small

Meant for a machine that is lent for minutes and has no network: a Python with torch, triton, transformers and what they
bring, pytest, pytest-benchmark and nvidia-ml-py will do, and what more a part needs and does not find is said. The
parts that tell most come first, each has its own limit, none stops the others. More parts than fit into the nine
minutes are there to be asked for by name (docs/gpu.md).

Everything lands in DIR, a few files of a few megabytes: `page.md` with the answers and every table, `results.json` with
all numbers and where they come from, `summary.json`, `log.txt`, pictures, the tuned launch configurations. The checkout
need not be installed nor have its history: with COMMIT set, results name that commit. Python packages that the machine
lacks are taken from wheels in `.whl/` if there is such a folder.
"""

from __future__ import annotations

import argparse
import contextlib
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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from _gpu_parts import PYTHON, REPOSITORY, Part, parts

MINUTES = 9.0
PAGE_SECONDS = 10  # of them, for the page
LOG_BYTES = 200_000  # of each part that are kept


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
    """What the benchmark has left in a folder of its own: its results to the others, its pictures as one file."""
    folder = out / "bench"
    if not folder.is_dir():
        return
    if (folder / "bench.json").is_file():
        found = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
        results = out / "results.json"
        others = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else []
        results.write_text(json.dumps([*others, *found], indent=1) + "\n", encoding="utf-8")
        (folder / "bench.json").unlink()
    if any(folder.iterdir()):
        with tarfile.open(out / "pictures.tar.gz", "w:gz") as archive:
            archive.add(folder, "pictures")
    shutil.rmtree(folder)


def write_page(out: Path, device: str, environment: Mapping[str, str]) -> str:
    """Let the page be made, in a process that finds the package; what it says."""
    command = [PYTHON, str(REPOSITORY / "benchmarks" / "gpu_page.py"), str(out), "--device", device]
    settings = {**os.environ, **environment}
    done = subprocess.run(command, cwd=REPOSITORY, env=settings, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else f"no page: {(done.stderr.splitlines() or [''])[-1]}\n"


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
        outcomes = run_all(chosen, environment, out, end - PAGE_SECONDS)
        with contextlib.suppress(OSError, ValueError):
            collect(out)
        said = write_page(out, options.device, environment)
    if any(part.name == "tune" for part in chosen):
        keep_configurations(out)
    print(f"\nparts, in the order of their ends; all of it in {out}")
    for outcome in outcomes:
        print(_line(outcome))
    print(f"\n{said}", end="")
    return 0 if all(str(o["outcome"]).startswith(("passed", "left out")) for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
