"""Where the time of one question goes: its stages, and the operations and kernels within them.

Times of stages are taken without a profiler; operations and kernels are those of a trace by torch.profiler, which costs
the host some time of its own. FLOPs and bytes are counted (`device/counters.py`), percentages are of what a copy and a
matrix product reach on the same device in the same run. Registers, shared memory and threads of a kernel are what the
driver told the profiler; from them follows its occupancy.
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pixelrefer_fast.bench.measure import machine, rates, timing
from pixelrefer_fast.bench.profile import calls as op_calls
from pixelrefer_fast.bench.profile import resources, traces
from pixelrefer_fast.bench.report.results import Quantiles
from pixelrefer_fast.bench.run import stages
from pixelrefer_fast.bench.run.stages import DECODER, MeasuredStage, StagedQuestion
from pixelrefer_fast.device.counters import Counts
from pixelrefer_fast.device.launches import Launch
from pixelrefer_fast.device.launches import listen as listen_to_launches
from pixelrefer_fast.device.stages import StageCall, StageName, listen
from pixelrefer_fast.ops import registry

PASSES = 3  # of the trace
RUNNER = ("python", "-m", "pixelrefer_fast.bench.profile.run_kernel")


@dataclass(frozen=True)
class OperationLine:
    """An operation of PyTorch, or one of our kernels, within one stage of one question.

    Attributes:
        stage: where it is.
        operation: "aten.addmm", "infuse.scores", ...
        launches: of kernels; where host and device are one, its calls.
        seconds: of all of them: of the device's kernels, or the host's own in it.
        flops, moved: counted; None where the operation is not known by its name (what a library does within another).
        kernel: as compiled, of several the one that took most, with what it takes; None where none ran.
        kernels: how many different ones.
        occupancy: resident warps over the most that a multiprocessor of this device holds.
    """

    stage: str
    operation: str
    launches: float
    seconds: float
    flops: int | None
    moved: int | None
    kernel: traces.Kernel | None = None
    kernels: int = 0
    occupancy: float | None = None

    @property
    def own(self) -> bool:
        """Whether it is a kernel of this project, which `run_kernel` can launch by itself."""
        return self.operation.split(".")[0] in registry()


@dataclass(frozen=True)
class Profile:
    """What `profile` found.

    Attributes:
        stages: in order.
        whole: seconds of the question at once, without waiting between stages.
        lines: operations and kernels, those that took longest first.
        rates: that percentages are of, as `rates.measured` gives them.
        dtype: of the model.
        device: as `machine.device`, None for a CPU.
        arch: compute capability, 90 for 9.0; None for a CPU.
        calls: of operations, as the question made them.
    """

    stages: list[MeasuredStage]
    whole: Quantiles
    lines: list[OperationLine]
    rates: dict[str, float]
    dtype: str
    device: dict[str, Any] | None
    arch: int | None
    calls: list[op_calls.Call]

    def percent(self, seconds: float, flops: int | None, moved: int | None) -> tuple[float | None, float | None]:
        """Of the copy bandwidth and of the matrix rate that were measured; None where nothing is known or done."""
        if not seconds:
            return None, None
        matrix = self.rates.get(self.dtype)
        return (
            100 * moved / seconds / self.rates["copy"] if moved else None,
            100 * flops / seconds / matrix if flops and matrix else None,
        )

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {**machine.provenance(), "dtype": self.dtype, "rates": self.rates}
        document |= {"whole": self.whole, "stages": [self.stage(stage) for stage in self.stages]}
        return document | {"kernels": [self.line(line) for line in self.lines]}

    def stage(self, stage: MeasuredStage) -> dict[str, Any]:
        """A stage as the document has it; launches and waits of a device only."""
        counts = stage.counts
        clock = stage.device_seconds or stage.seconds
        copy, matrix = self.percent(clock["median"], counts.flops, counts.moved)
        on_device = self.device is not None
        return {
            "stage": stage.name,
            "seconds": stage.seconds,
            "device_seconds": stage.device_seconds,
            "host_seconds": stage.host_seconds,
            "launches": sum(counts.launches.values()) if on_device else None,
            "waits": sum(counts.waits.values()) if on_device else None,
            "operations": dict(counts.launches),
            "flops": counts.flops,
            "moved": counts.moved,
            "percent_copy": copy,
            "percent_matrix": matrix,
            "sizes": stage.sizes,
        }

    def line(self, line: OperationLine) -> dict[str, Any]:
        """A line as the document has it."""
        copy, matrix = self.percent(line.seconds, line.flops, line.moved)
        return {**asdict(line), "percent_copy": copy, "percent_matrix": matrix}


def profile(
    model: Any,
    media: Any,
    question: str,
    regions: Any,
    max_new_tokens: int = 64,
    repeats: int = 5,
    trace: Path | None = None,
    tick: Callable[[str], None] | None = None,
) -> Profile:
    """Profile `model.ask(media, question, regions)`.

    Args:
        model: PixelRefer or PixelReferLite.
        media, question, regions: as `model.ask` takes them.
        max_new_tokens: longest answer.
        repeats: how often each stage and the whole are timed.
        trace: where to keep the trace, which Perfetto (ui.perfetto.dev) and chrome://tracing show.
        tick: called with the name of what is measured next.

    Raises:
        ValueError: as `model.ask`; the trace cannot be written.
    """
    if trace is not None and not trace.parent.is_dir():
        raise ValueError(f"{trace}: the trace cannot be written: {trace.parent} is no folder")
    tell = tick or (lambda name: None)
    device = model.device
    with stages.asked(model, media, question, regions, max_new_tokens) as own:
        tell("first pass")
        calls = _calls(own)
        measured = stages.measure(own, repeats, tick)
        tell("whole")
        whole = timing.quantiles(timing.sample(own.ask, device, repeats))
        tell("trace")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            functions = _traced(own, path)
            if trace is not None:
                _keep(path, trace)
            events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    tell("rates")
    found = rates.measured(device, [model.dtype])
    arch = None
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        arch = 10 * major + minor
    return Profile(
        measured,
        Quantiles(q10=whole["q10"], median=whole["median"], q90=whole["q90"]),
        lines(events, measured, functions, PASSES, arch),
        found,
        str(model.dtype).removeprefix("torch."),
        machine.device() if device.type == "cuda" else None,
        arch,
        calls,
    )


def once(model: Any, media: Any, question: str, regions: Any, max_new_tokens: int = 64) -> None:
    """Each stage once, after a first pass, in an NVTX range of its name: for ncu and nsys, which measure themselves.

    On a CUDA device it lies between cudaProfilerStart and cudaProfilerStop.

    Raises:
        ValueError: as `model.ask`.
    """
    with stages.asked(model, media, question, regions, max_new_tokens) as own:
        stages.through(own)
        cuda = model.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(model.device)
            torch.cuda.profiler.start()
        stages.through(own, in_range=True)
        if cuda:
            torch.cuda.profiler.stop()


def calls_of(model: Any, media: Any, question: str, regions: Any, max_new_tokens: int = 64) -> list[op_calls.Call]:
    """The calls of operations that a question makes, by stage; nothing is measured.

    Raises:
        ValueError: as `model.ask`.
    """
    with stages.asked(model, media, question, regions, max_new_tokens) as own:
        return _calls(own)


def _calls(own: StagedQuestion) -> list[op_calls.Call]:
    stage: StageName = own.names[0]

    @contextmanager
    def entered(call: StageCall) -> Iterator[None]:
        nonlocal stage
        stage = call.stage
        yield

    with op_calls.capturing(lambda: stage) as calls:
        with listen(entered):
            own.begin()
        for stage in DECODER:
            own.run(stage)
    return calls


def _traced(own: StagedQuestion, path: Path) -> dict[str, str]:
    """Write a trace of PASSES passes; our kernels' names by what they are compiled as."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if own.model.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    launches: dict[str, str] = {}

    def launched(launch: Launch) -> None:
        launches[launch.function] = launch.kernel

    stages.through(own)
    with listen_to_launches(launched), torch.profiler.profile(activities=activities) as profiler:
        for _ in range(PASSES):
            stages.through(own, in_range=True)
    profiler.export_chrome_trace(str(path))
    return launches


def _keep(trace: Path, target: Path) -> None:
    try:
        shutil.copyfile(trace, target)
    except OSError as error:
        raise ValueError(f"{target}: the trace cannot be written: {error.strerror or error}") from error


def lines(
    events: Sequence[Mapping[str, Any]],
    measured: Sequence[MeasuredStage],
    functions: Mapping[str, str],
    passes: int,
    arch: int | None,
) -> list[OperationLine]:
    """What a trace of so many passes says of one.

    Args:
        events: `traceEvents`.
        measured: the stages, with what was counted in them.
        functions: our kernels, compiled name -> "file.kernel".
        passes: that the trace holds.
        arch: compute capability of the device, 90 for 9.0.
    """
    counted: dict[str, Counts] = {stage.name: stage.counts for stage in measured}
    found = []
    for operation in traces.read(events, {name: set(c.launches) for name, c in counted.items()}, functions):
        counts, name, kernel = counted[operation.stage], operation.name, operation.longest
        known = name in counts.launches
        found.append(
            OperationLine(
                operation.stage,
                name,
                operation.launches / passes,
                operation.seconds / passes,
                counts.flops_by[name] if known else None,
                counts.moved_by[name] if known else None,
                None
                if kernel is None
                else replace(kernel, launches=round(kernel.launches / passes), seconds=kernel.seconds / passes),
                len(operation.kernels),
                None
                if kernel is None or arch is None
                else resources.occupancy(arch, kernel.threads, kernel.registers, kernel.shared),
            )
        )
    return found


# Commands for NVIDIA's profilers


def commands(
    kernel: str, dtype: str, function: str | None = None, calls: Path | None = None, case: str | None = None
) -> dict[str, str]:
    """Command lines that look at one of our kernels alone, launched by `run_kernel`.

    Args:
        kernel: "file.kernel"; its file is named as the operation.
        dtype: of its floats, for shapes by default.
        function: as compiled; without it ncu is shown every kernel of the operation.
        calls, case: a call to launch it with, as `profile` kept it; without, the operation's default sizes.

    Returns:
        "run": the launch itself; "ncu" and "nsys": the same under NVIDIA's tools.
    """
    op = kernel.split(".")[0]
    chosen = ["--calls", str(calls), *(["--case", case] if case else [])] if calls else ["--dtype", dtype]
    run = [*RUNNER, op, "--device", "cuda", *chosen, "--repeats"]
    only = [] if function is None else ["--kernel-name", f"regex:^{function}$", "--launch-count", "1"]
    ncu = [
        *("ncu", "--set", "full", "--import-source", "yes", "--profile-from-start", "off", "--target-processes", "all"),
        *(*only, "--force-overwrite", "--export", kernel),
    ]
    return {"run": _line([*run, "20"]), "ncu": _line([*ncu, *run, "1"]), "nsys": _line([*_nsys(kernel), *run, "20"])}


def stage_commands(stage: str, kernel: str | None, asked: Sequence[str]) -> dict[str, str]:
    """Command lines that look at a stage of a question, or at one kernel of another library within it.

    Args:
        stage: the NVTX range.
        kernel: as compiled, None for all.
        asked: `pixelrefer-fast profile` with what it was asked for.
    """
    run = [*asked, "--once"]
    name = [] if kernel is None else ["--kernel-name", f"regex:^{function_name(kernel)}$", "--launch-count", "1"]
    ncu = [
        *("ncu", "--set", "full", "--profile-from-start", "off", "--target-processes", "all"),
        *("--nvtx", "--nvtx-include", f"{stage}/", *name, "--force-overwrite", "--export", stage),
    ]
    return {"run": _line(run), "ncu": _line([*ncu, *run]), "nsys": _line([*_nsys(stage), *run])}


def function_name(kernel: str) -> str:
    """A C++ kernel's own name, as ncu matches it: without result, namespaces, template arguments and parameters."""
    name = kernel.replace("(anonymous namespace)", "").removeprefix("void ")
    for end in "<(":
        name = name.split(end)[0]
    return name.split("::")[-1].strip()


def _nsys(name: str) -> list[str]:
    return [
        *("nsys", "profile", "--trace=cuda,nvtx", "--sample=none", "--cuda-graph-trace=node"),
        *("--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--force-overwrite=true", f"--output={name}"),
    ]


def _line(words: Sequence[str]) -> str:
    return shlex.join(words)
