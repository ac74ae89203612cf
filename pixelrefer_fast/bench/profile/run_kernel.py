"""One operation, launched by itself: what ncu and nsys are to look at, and a quick time.

    python -m pixelrefer_fast.bench.profile.run_kernel infuse                            one object of an image, Lite-2B
    python -m pixelrefer_fast.bench.profile.run_kernel infuse --shape objects=16 rows=256
    python -m pixelrefer_fast.bench.profile.run_kernel object_pool --shape objects=2 patches=150,37 --dtype float16
    python -m pixelrefer_fast.bench.profile.run_kernel infuse --calls FILE --case infusion/infuse/0
    python -m pixelrefer_fast.bench.profile.run_kernel infuse --list                     its sizes and cases

Arguments are made at named sizes (--shape), or are those of a call that `pixelrefer-fast profile --calls FILE` kept, or
one of the operation's small samples (--case sample-0). On a CUDA device what is launched after the first call lies
between cudaProfilerStart and cudaProfilerStop and in an NVTX range of the operation's name. On a CPU kernels run in
Triton's interpreter, which is slow: choose small shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pixelrefer_fast.checks.printable import one_line

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def launch(op: Any, arguments: tuple[Any, ...], device: torch.device, backend: str, repeats: int) -> dict[str, Any]:
    """Call an operation `repeats` times after a first one that compiles, and say what that took.

    Args:
        op: the operation.
        arguments: of the call; those that it writes to are copied before each.
        device: where they lie.
        backend: who computes.
        repeats: timed calls.

    Returns:
        "kernels": for each launch of one call its name, grid, flops and bytes; "seconds" and "host_seconds": quantiles.

    Raises:
        ValueError: the backend declines.
    """
    from pixelrefer_fast.bench.measure import timing
    from pixelrefer_fast.bench.run.cases import written
    from pixelrefer_fast.device.launches import Launch, listen

    def prepare() -> tuple[Any, ...]:
        return tuple(a.clone() if i in written(op) else a for i, a in enumerate(arguments))

    def run(given: tuple[Any, ...]) -> None:
        op(*given, backend=backend)

    launches: list[Launch] = []
    with torch.inference_mode():
        with listen(launches.append):
            run(prepare())
        clock = timing.clock(device)
        with _watched(op.name, device):
            pairs = [clock.time(prepare, run) for _ in range(repeats)]
    return {
        "kernels": [{"name": x.kernel, "grid": x.grid, "flops": x.flops, "moved": x.moved} for x in launches],
        "seconds": timing.quantiles([seconds for seconds, _ in pairs]),
        "host_seconds": timing.quantiles([host for _, host in pairs]),
    }


@contextmanager
def _watched(name: str, device: torch.device) -> Iterator[None]:
    """Where a profiler of the device is to look, if one was told to wait for it."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.profiler.start()
    torch.cuda.nvtx.range_push(name)
    try:
        yield
        torch.cuda.synchronize(device)
    finally:
        torch.cuda.nvtx.range_pop()
        torch.cuda.profiler.stop()


def parsed_sizes(words: Sequence[str]) -> dict[str, Any]:
    """["rows=9", "patches=5,3", "kind=lite"] -> {"rows": 9, "patches": [5, 3], "kind": "lite"}.

    Raises:
        ValueError: a word that is none of these.
    """
    sizes: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or not value:
            raise ValueError(f"--shape: expected NAME=NUMBER, NAME=NUMBER,NUMBER or NAME=WORD, got {word!r}")
        numbers = value.split(",")
        if all(number.isdecimal() for number in numbers):
            sizes[name] = int(value) if len(numbers) == 1 else [int(number) for number in numbers]
        else:
            sizes[name] = value
    return sizes


def chosen_backend(op: Any, device: torch.device, wanted: str | None) -> str:
    """Who computes the operation: whoever is asked for, else the kernels of this project that run here.

    Raises:
        ValueError: there are no such, or they cannot run here.
    """
    reasons = {name: reason for name, _, reason in op.providers()}
    if wanted is not None:
        if wanted not in reasons:
            raise ValueError(f"--backend: expected one of {', '.join(reasons)} for {op.name}, got {wanted!r}")
        if reasons[wanted]:
            raise ValueError(f"--backend {wanted}: does not serve {op.name} here: {reasons[wanted]}")
        return wanted
    for name in ("triton", "cuda"):
        if not reasons[name]:
            return name
    why = "; ".join(f"{name}: {reasons[name]}" for name in ("triton", "cuda"))
    raise ValueError(f"{op.name}: expected kernels for {device.type}, got none ({why}); --backend torch runs it")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pixelrefer_fast.bench.profile.run_kernel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("op", metavar="OP", help="the operation, whose name its kernels' file has")
    parser.add_argument("--shape", nargs="+", metavar="NAME=N", help="sizes; the others as --list has them")
    parser.add_argument("--calls", type=Path, metavar="FILE", help="what `pixelrefer-fast profile --calls FILE` wrote")
    parser.add_argument("--case", metavar="NAME", help="a call of that file, or sample-N")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of floats (default: bfloat16; on a CPU float32)")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is one")
    parser.add_argument("--backend", help="triton, cuda, torch or a library; default: the project's own kernels")
    parser.add_argument("--repeats", type=int, metavar="N", help="timed calls (default: 20; in the interpreter 1)")
    parser.add_argument("--list", action="store_true", help="say which sizes and cases there are; launch nothing")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


def _arguments(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> tuple[str, tuple[Any, ...]]:
    """What to call the operation with, and the name of that."""
    from pixelrefer_fast.bench.profile import calls
    from pixelrefer_fast.bench.run import arguments
    from pixelrefer_fast.ops import registry

    if options.shape is not None and (options.case is not None or options.calls is not None):
        raise ValueError("--shape: expected without --case and --calls, whose shapes are what they are")
    if options.calls is not None:
        if options.dtype is not None:
            raise ValueError("--dtype: expected without --calls, whose calls have theirs")
        own = [call for call in calls.load(options.calls) if call.op == options.op]
        chosen = [call for call in own if options.case in (None, call.name)]
        if not chosen:
            known = ", ".join(call.name for call in own) or "no call of it at all"
            raise ValueError(f"--case: expected one of {known} in {options.calls}, got {options.case or options.op!r}")
        return chosen[0].name, chosen[0].make(device)
    if options.case is not None:
        samples = list(registry()[options.op].samples(torch.Generator().manual_seed(0), dtype))
        names = [f"sample-{i}" for i in range(len(samples))]
        if options.case not in names:
            raise ValueError(f"--case: expected one of {', '.join(names)} (or a call of --calls), got {options.case!r}")
        moved = (a.to(device) if isinstance(a, torch.Tensor) else a for a in samples[names.index(options.case)])
        return options.case, tuple(moved)
    sizes = parsed_sizes(options.shape or [])
    made = arguments.make(options.op, device, dtype, sizes)
    everything = {name: value for name, value in (arguments.sizes_of(options.op) | sizes).items() if value is not None}
    return ", ".join(f"{name}={_text(value)}" for name, value in everything.items()), made


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _list(options: argparse.Namespace) -> None:
    from pixelrefer_fast.bench.profile import calls
    from pixelrefer_fast.bench.run import arguments
    from pixelrefer_fast.ops import registry

    for name, value in arguments.sizes_of(options.op).items():
        print(f"--shape {name}={'(made of the others)' if value is None else _text(value)}")
    for i, sample in enumerate(registry()[options.op].samples(torch.Generator().manual_seed(0), torch.float32)):
        print(f"--case sample-{i}: {_shapes(sample)}")
    for call in calls.load(options.calls) if options.calls is not None else ():
        if call.op == options.op:
            print(f"--case {call.name}: {_shapes(call.make(torch.device('cpu')))}, {call.times} times")


def _shapes(arguments: Sequence[Any]) -> str:
    return " ".join("x".join(map(str, a.shape)) or "()" if isinstance(a, torch.Tensor) else str(a) for a in arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (ValueError, OSError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: expected a device that is here, got cuda")
    if device.type == "cpu" and options.backend in (None, "triton"):
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: kernels then take tensors of the CPU
    from pixelrefer_fast.ops import registry

    if options.op not in registry():
        raise ValueError(f"operation: expected one of {', '.join(sorted(registry()))}, got {options.op!r}")
    if options.repeats is not None and options.repeats < 1:
        raise ValueError(f"--repeats: expected at least 1, got {options.repeats}")
    if options.list:
        _list(options)
        return 0
    op = registry()[options.op]
    backend = chosen_backend(op, device, options.backend)
    interpreted = device.type == "cpu" and backend == "triton"
    dtype = DTYPES[options.dtype or ("float32" if device.type == "cpu" else "bfloat16")]
    case, given = _arguments(options, device, dtype)
    found = launch(op, given, device, backend, options.repeats or (1 if interpreted else 20))
    found = {"op": options.op, "case": case, "device": device.type, "backend": backend, **found}
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"{options.op} by {backend} on {device.type}: {case}")
    for kernel in found["kernels"]:
        grid = "x".join(map(str, kernel["grid"]))
        print(f"  {kernel['name']}: {grid} programs, {kernel['flops']:,} FLOP, {kernel['moved']:,} bytes")
    low, middle, high = (1e6 * found["seconds"][key] for key in ("q10", "median", "q90"))
    what = "in Triton's interpreter, no measure of a GPU" if interpreted else "a call"
    print(f"  {middle:,.1f} µs ({low:,.1f} to {high:,.1f}) {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
