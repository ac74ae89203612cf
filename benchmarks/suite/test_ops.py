"""Every operation, by every provider, its compiled definition and its rivals, on the cases of `benchmarks/ops/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from encoder_case import cases as encoder_cases
from ops_bench import load_cases, op_files

from pixelrefer_fast.bench.run import ops
from pixelrefer_fast.bench.run.cases import Case


def all_cases(smoke: bool) -> Iterator[Case]:
    for name in op_files():
        yield from (case for case in load_cases(name) if case.smoke == smoke)
    yield from (case for case in encoder_cases() if case.smoke == smoke)


CASES: dict[str, tuple[Case, torch.dtype]] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    device, compiled = torch.device(config.getoption("--device")), config.getoption("--compiled")
    pairs = []
    for case in all_cases(config.getoption("--smoke")):
        for dtype in ops.floats(case, device):
            key = f"{case.op}: {case.name}, {str(dtype).removeprefix('torch.')}"
            CASES[key] = case, dtype
            pairs += [(key, by) for by in ops.names(case, device, compiled)]
    metafunc.parametrize(("work", "by"), pairs, indirect=["work"], ids=[f"{key}, {by}" for key, by in pairs])


@pytest.fixture(scope="module")
def work(request: pytest.FixtureRequest, device: torch.device) -> ops.Work:
    """A case with what it must give: made once for all who compute it."""
    with torch.inference_mode():
        try:
            return ops.Work(*CASES[request.param], device)
        except torch.OutOfMemoryError:
            pytest.skip("no memory for the definition in float64, by which all are judged")


def test_operation(work: ops.Work, by: str, timed_on_device: Callable, add_row: Callable, benchmark: object) -> None:
    with torch.inference_mode():
        candidate = work.candidate(by)
        if not candidate.runs:
            add_row(candidate.row)
            pytest.skip(f"{by}: {candidate.row['reason']}")
        row = timed_on_device(candidate.row, ops.apply, candidate.prepare)
        assert row["ok"], f"{by} is wrong: error {row['error']:.2e}, at most {row['limit']:.2e}"
