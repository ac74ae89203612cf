"""Real vLLM engines with the embedded models. `make test-vllm` has an environment with vLLM."""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec
from typing import Any

import pytest
from mixed_requests import mixed_requests

import pixelrefer_fast as pf

HERE = find_spec("vllm") is not None  # `make test` has none
collect_ignore_glob = [] if HERE else ["test_*.py"]
REQUESTS = 100

if HERE:  # for the engines, which are processes of their own
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="ERROR",
        HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS="1",
    )


@pytest.fixture(scope="session", autouse=True)
def _no_interpreter() -> Any:
    """Engines compute with PyTorch, as they do on a machine without a GPU."""
    before = os.environ.pop("TRITON_INTERPRET", None)
    yield
    if before is not None:
        os.environ["TRITON_INTERPRET"] = before


@functools.cache
def asked(kind: str) -> tuple[list[pf.Ask], list[pf.Answer]]:
    """Mixed requests, and what `ask` answers."""
    asks = mixed_requests(kind, REQUESTS)
    model = pf.load(f"embedded:{kind}", dtype="float32")
    answers = model.ask_batch(asks, progress=False)
    assert all(answer.ok for answer in answers)
    assert len({answer.tokens for answer in answers}) > REQUESTS / 4  # not all say the same
    return asks, answers


@pytest.fixture(scope="session", params=["lite", "full"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def requests_of() -> Any:
    return asked
