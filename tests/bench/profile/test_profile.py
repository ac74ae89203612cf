"""Where a question's time goes: traces as a GPU writes them, occupancy, command lines, a profile on the CPU."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelrefer_fast.bench.measure import rates, timing
from pixelrefer_fast.bench.profile import profile as profiling
from pixelrefer_fast.bench.profile import resources, run_kernel, traces
from pixelrefer_fast.bench.report.results import Quantiles
from pixelrefer_fast.bench.run.stages import MeasuredStage
from pixelrefer_fast.device.counters import Counts

ONE: Quantiles = {"q10": 1.0, "median": 1.0, "q90": 1.0}


def host(category: str, name: str, start: float, length: float, **facts: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": 1, "ts": start, "dur": length, "args": facts}


def kernel(name: str, length: float, correlation: int, **facts: Any) -> dict[str, Any]:
    taken = {"registers per thread": 40, "shared memory": 1024, "block": [128, 1, 1], "grid": [6, 2, 1]}
    facts = {"correlation": correlation, "stream": 7, **taken, **facts}
    return {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": 900.0, "dur": length, "args": facts}


def a_gpu_trace() -> list[dict[str, Any]]:
    """Two stages as torch.profiler writes them on a CUDA device: launches on the host, kernels later on the device."""
    return [
        {"ph": "M", "name": "process_name"},
        host("user_annotation", "encoder", 0.0, 100.0),
        host("cpu_op", "aten::linear", 1.0, 20.0),
        host("cpu_op", "aten::addmm", 2.0, 18.0),
        host("cuda_runtime", "cudaLaunchKernel", 3.0, 2.0, correlation=1),
        host("cuda_runtime", "cudaLaunchKernel", 6.0, 2.0, correlation=2),
        host("cuda_driver", "cuLaunchKernelEx", 30.0, 2.0, correlation=3),
        host("cpu_op", "aten::mystery", 40.0, 9.0),
        host("cuda_runtime", "cudaLaunchKernel", 41.0, 2.0, correlation=4),
        host("cuda_runtime", "cudaMemcpyAsync", 55.0, 2.0, correlation=5),
        host("user_annotation", "decode", 200.0, 50.0),
        host("cpu_op", "aten::addmm", 201.0, 10.0),
        host("cuda_runtime", "cudaLaunchKernel", 202.0, 2.0, correlation=6),
        host("cpu_op", "aten::addmm", 300.0, 10.0),  # outside of both
        host("cuda_runtime", "cudaLaunchKernel", 301.0, 2.0, correlation=7),
        {"ph": "X", "cat": "gpu_user_annotation", "name": "encoder", "pid": 0, "tid": 7, "ts": 1.0, "dur": 999.0},
        kernel("void cutlass::Kernel2<x>(x::Params)", 30.0, 1, block=[256, 1, 1]),
        kernel("splitKreduce", 4.0, 2),
        kernel("_scores", 50.0, 3, **{"registers per thread": 255, "block": [128, 1, 1]}),
        kernel("odd_kernel", 6.0, 4),
        {**kernel("Memcpy HtoD", 2.0, 5), "cat": "gpu_memcpy", "args": {"correlation": 5, "bytes": 9}},
        kernel("void cutlass::Kernel2<x>(x::Params)", 8.0, 6),
        kernel("late", 70.0, 7),
        kernel("from_nowhere", 70.0, 99),
    ]


def stage(name: str, **work: tuple[int, int]) -> MeasuredStage:
    counts = Counts()
    for operation, (flops, moved) in work.items():
        counts.launched(operation.replace("_dot_", "."), flops, moved)
    return MeasuredStage(name, ONE, ONE, ONE, 1, counts, {})


def test_kernels_belong_to_the_stage_and_operation_that_launched_them() -> None:
    measured = [stage("encoder", aten_dot_addmm=(640, 100), infuse_dot_scores=(80, 10)), stage("decode")]
    found = profiling.lines(a_gpu_trace(), measured, {"_scores": "infuse.scores"}, passes=2, arch=90)
    by_name = {(line.stage, line.operation): line for line in found}
    assert list(by_name) == [
        ("encoder", "infuse.scores"),
        ("encoder", "aten.addmm"),
        ("decode", "aten.addmm"),
        ("encoder", "aten.mystery"),
        ("encoder", "Memcpy HtoD"),
    ]
    product = by_name["encoder", "aten.addmm"]
    assert product.seconds == pytest.approx(17e-6)
    assert (product.launches, product.kernels, product.flops, product.moved) == (1.0, 2, 640, 100)
    assert product.kernel is not None
    assert (product.kernel.name, product.kernel.threads) == ("void cutlass::Kernel2<x>(x::Params)", 256)
    scores = by_name["encoder", "infuse.scores"]
    assert scores.own
    assert not product.own
    assert scores.kernel is not None
    assert (scores.kernel.registers, scores.kernel.shared, scores.kernel.blocks) == (255, 1024, 12)
    assert scores.occupancy == 0.125
    assert by_name["decode", "aten.addmm"].flops is None  # of a stage that has not counted it
    copied = by_name["encoder", "Memcpy HtoD"]
    assert copied.kernel is not None
    assert (copied.kernel.registers, copied.occupancy) == (0, None)


def test_launches_and_waits_of_one_pass() -> None:
    """All kernels and copies, and the waits that begin in the pass; what ends the measurement is none of them."""
    events = [
        host("user_annotation", "pass", 0, 50),
        kernel("_scores", 10.0, 1),
        kernel("_scores", 20.0, 2),
        kernel("gemm", 30.0, 3),
        {**kernel("Memcpy DtoH", 40.0, 4), "cat": "gpu_memcpy"},
        host("cuda_runtime", "cudaMemcpyAsync", 38, 1),
        host("cuda_runtime", "cudaStreamSynchronize", 41, 2),
        host("cuda_driver", "cuMemcpyHtoD_v2", 45, 2),
        host("cuda_runtime", "cudaLaunchKernel", 46, 2),
        host("cuda_runtime", "cudaDeviceSynchronize", 60, 2),
    ]
    found = traces.seen(events, "pass")
    assert found.kernels == {"_scores": 2, "gemm": 1}
    assert found.copies == {"Memcpy DtoH": 1}
    assert found.waits == {"cudaStreamSynchronize": 1, "cuMemcpyHtoD_v2": 1}


def test_a_host_has_its_own_time_in_the_operation_that_is_known() -> None:
    events = [e for e in a_gpu_trace() if e.get("cat") in ("cpu_op", "user_annotation")]
    found = {(o.stage, o.name): o for o in traces.read(events, {"encoder": {"aten.addmm"}, "decode": set()}, {})}
    assert found["encoder", "aten.addmm"].seconds == pytest.approx(18e-6)
    assert found["encoder", "aten.linear"].seconds == pytest.approx(2e-6)
    assert found["encoder", "aten.mystery"].launches == 1
    assert found["decode", "aten.addmm"].seconds == pytest.approx(10e-6)
    assert len(found) == 4
    nested = [host("user_annotation", "s", 0, 9), host("cpu_op", "aten::mm", 1, 5), host("cpu_op", "aten::empty", 2, 1)]
    (only,) = traces.read(nested, {"s": {"aten.mm"}}, {})
    assert (only.name, only.launches, only.seconds) == ("aten.mm", 1, pytest.approx(5e-6))


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "part"),
    [
        (90, 128, 32, 0, 1.0),
        (90, 128, 255, 0, 8 / 64),  # two warps in each quarter of the registers
        (90, 256, 168, 0, 8 / 64),  # three warps in each quarter hold one block of eight
        (90, 128, 32, 227 * 1024, 4 / 64),
        (90, 32, 16, 0, 32 / 64),  # no more blocks
        (80, 1024, 64, 0, 32 / 64),
        (86, 1024, 32, 0, 32 / 48),
        (89, 64, 32, 0, 48 / 48),
        (100, 128, 64, 100 * 1024, 8 / 64),
    ],
)
def test_occupancy(arch: int, threads: int, registers: int, shared: int, part: float) -> None:
    assert resources.occupancy(arch, threads, registers, shared) == pytest.approx(part)


def test_occupancy_of_what_is_not_known() -> None:
    assert resources.occupancy(30, 128, 32, 0) is None
    assert resources.occupancy(90, 0, 0, 0) is None


def test_kernels_of_ours_have_compile_cases() -> None:
    shapes = [case.shape for case in resources.shipped_cases("infuse.scores", "bf16")]
    assert shapes
    assert all("bf16" in shape for shape in shapes)
    assert len(list(resources.shipped_cases("object_pool.cluster", "bf16"))) == 2 * len(
        list(resources.shipped_cases("object_pool.cluster", "bf16"))
    ) - len(list(resources.shipped_cases("object_pool.cluster")))  # cases of no dtype are of all
    for name, words in (("infuse.what", "infuse.scores"), ("what.scores", "object_pool")):
        with pytest.raises(ValueError, match=words):
            list(resources.shipped_cases(name))


def after(command: str, word: str) -> list[str]:
    words = shlex.split(command)
    return words[words.index(word) + 1 :]


def test_commands_launch_the_kernel_alone(tmp_path: Path) -> None:
    found = profiling.commands("infuse.scores", "bfloat16", "_scores")
    ncu = shlex.split(found["ncu"])
    assert ncu[0] == "ncu"
    assert ncu[ncu.index("--kernel-name") + 1] == "regex:^_scores$"
    assert ncu[ncu.index("--profile-from-start") + 1] == "off"
    assert shlex.split(found["nsys"])[:2] == ["nsys", "profile"]
    for command in found.values():
        options = run_kernel._parser().parse_args(after(command, "pixelrefer_fast.bench.profile.run_kernel"))
        assert (options.op, options.device, options.dtype) == ("infuse", "cuda", "bfloat16")
    calls = tmp_path / "a file.safetensors"
    command = profiling.commands("rope2d.rows", "float16", None, calls, "encoder/rope2d/0")["ncu"]
    options = run_kernel._parser().parse_args(after(command, "pixelrefer_fast.bench.profile.run_kernel"))
    assert (options.calls, options.case, options.dtype) == (calls, "encoder/rope2d/0", None)
    assert "--kernel-name" not in command


def test_commands_of_a_stage() -> None:
    asked = ("pixelrefer-fast", "profile", "a b.png")
    found = profiling.stage_commands("encoder", "void at::native::elementwise<4, x>(int, x)", asked)
    ncu = shlex.split(found["ncu"])
    assert ncu[ncu.index("--nvtx-include") + 1] == "encoder/"
    assert ncu[ncu.index("--kernel-name") + 1] == "regex:^elementwise$"
    assert ncu[-4:] == [*asked, "--once"]
    assert "--kernel-name" not in profiling.stage_commands("encoder", None, asked)["ncu"]


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("_scores", "_scores"),
        ("void at::native::vectorized_elementwise_kernel<4, at::F<x>>(int, T)", "vectorized_elementwise_kernel"),
        ("void (anonymous namespace)::index<int>(int)", "index"),
        ("sm90_xmma_gemm_bf16bf16_cublas", "sm90_xmma_gemm_bf16bf16_cublas"),
    ],
)
def test_names_as_ncu_matches_them(kernel: str, name: str) -> None:
    assert profiling.function_name(kernel) == name


def test_a_profile_accounts_for_what_was_counted(lite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "quiet", nullcontext)
    monkeypatch.setattr(rates, "COPY", {"cpu": 1 << 20})
    monkeypatch.setattr(rates, "SIZES", {"cpu": 64})
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    trace = tmp_path / "trace.json"
    found = profiling.profile(lite, image, "What is <region>?", [[10, 10, 60, 50]], 3, repeats=1, trace=trace)
    flops, launches = Counter[str](), Counter[str]()
    for line in found.lines:
        flops[line.stage] += line.flops or 0
        if line.flops:
            launches[line.stage] += round(line.launches)
    for own in found.stages:
        assert flops[own.name] == own.counts.flops, own.name
        counted = sum(n for name, n in own.counts.launches.items() if own.counts.flops_by[name])
        assert launches[own.name] == counted, own.name
    names = [e["name"] for e in json.loads(trace.read_text())["traceEvents"] if e.get("cat") == "user_annotation"]
    # a stage may be of several calls: binding, planning and selecting are all "plan"
    assert [name for name, _ in groupby(names)] == [own.name for own in found.stages] * profiling.PASSES
    document = json.loads(json.dumps(found.to_json()))
    assert document["device"] is None
    assert {entry["launches"] for entry in document["stages"]} == {None}
    assert all(entry["kernel"] is None for entry in document["kernels"])
    assert {call.op for call in found.calls} >= {"view_patches", "rope2d", "object_pool", "infuse", "paged_attention"}
    for target in (tmp_path / "no" / "t.json", tmp_path):  # refused before and after the work
        with pytest.raises(ValueError, match="cannot be written"):
            profiling.profile(lite, image, "What is <region>?", [[10, 10, 60, 50]], 1, repeats=1, trace=target)
