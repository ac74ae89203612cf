"""Real vLLM engines with the embedded models. `make test-vllm` has an environment with vLLM."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from mixed_requests import mixed_requests
from vllm_requests import SMALL

import pixelrefer_fast as pf
from pixelrefer_fast.world import make_scene

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


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares an engine runs in one process (`--dist loadgroup`): starting engines is most of the time."""
    for item in items:
        kind = item.callspec.params.get("kind") if hasattr(item, "callspec") else None
        file = "engine" if "engine" in item.fixturenames else item.path.stem
        item.add_marker(pytest.mark.xdist_group(f"{file}-{kind}"))


@pytest.fixture(scope="session", autouse=True)
def _no_interpreter() -> Any:
    """Engines compute with PyTorch, as they do on a machine without a GPU."""
    before = os.environ.pop("TRITON_INTERPRET", None)
    yield
    if before is not None:
        os.environ["TRITON_INTERPRET"] = before


@functools.cache
def native(kind: str) -> Any:
    return pf.load(f"embedded:{kind}", dtype="float32")


@functools.cache
def asked(kind: str) -> tuple[list[pf.Ask], list[pf.Answer]]:
    """Mixed requests, and what `ask` answers."""
    asks = mixed_requests(kind, REQUESTS)
    answers = native(kind).ask_batch(asks, progress=False)
    assert all(answer.ok for answer in answers)
    assert len({answer.tokens for answer in answers}) > REQUESTS / 4  # not all say the same
    return asks, answers


@pytest.fixture(scope="session", params=["lite", "full"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def requests_of() -> Any:
    return asked


@pytest.fixture(scope="session")
def own(kind: str) -> Any:
    """This package's own engine."""
    return native(kind)


@pytest.fixture(scope="session")
def engine(kind: str) -> Iterator[Any]:
    """The same model by `pf.load(..., engine="vllm")`, for the tests of several files."""
    options = {name: value for name, value in SMALL.items() if name != "dtype"} | {"enable_lora": True}
    # a model that has learned no JSON would write blanks wherever they may stand
    options |= {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}
    model = pf.load(f"embedded:{kind}", engine="vllm", dtype="float32", engine_options=options)
    yield model
    model.close()


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    return np.asarray(make_scene(102, "heldout", False).frames[0])


@pytest.fixture(scope="session")
def masks() -> list[np.ndarray]:
    return [mask[0] for mask in make_scene(102, "heldout", False).masks]
