"""What all tests share: poisoned memory, fixed seeds, the numeric bar, and the bundled models."""

from __future__ import annotations

import functools
import os
import random
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# Triton decides at import whether its kernels are interpreted; without a GPU that is the only way to run them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # a lent GPU machine: benchmarks/gpu_check.py runs the files there that do without
    pass
else:
    # A machine under load must not fail a test for its speed, and a drawn example must be the same one on every run.
    settings.register_profile(
        "pixelrefer",
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("pixelrefer")

PACKAGE = "pixelrefer_fast"

# a failed assertion of a helper shows its values, as one in a test does
pytest.register_assert_rewrite("command_line", "hostile_checkpoints", "limits", "media_files")


def poison_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Fill with NaN, with a number no index may have, or with True."""
    with torch.no_grad():
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.fill_(float("nan"))
        return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max - 6)


def poison_array(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "fc":
        array.fill(np.nan)
    elif array.dtype.kind in "iu":
        array.fill(np.iinfo(array.dtype).max - 6)
    elif array.dtype.kind == "b":
        array.fill(True)
    return array


def _poisoning(allocate: Callable[..., Any], poison: Callable[[Any], Any]) -> Callable[..., Any]:
    @functools.wraps(allocate)
    def allocate_poisoned(*args: Any, **kwargs: Any) -> Any:
        fresh = allocate(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return poison(fresh) if caller.split(".")[0] == PACKAGE else fresh

    return allocate_poisoned


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Memory that the package allocates without filling it holds NaN, so that reading it shows in any result.

    Session-wide: a fixture of each test would be set up once for all examples that hypothesis draws anyway.
    """
    to_empty = torch.nn.Module.to_empty

    @functools.wraps(to_empty)
    def to_poisoned(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        module = to_empty(self, *args, **kwargs)
        if sys._getframe(1).f_globals.get("__name__", "").split(".")[0] == PACKAGE:
            for tensor in (*module.parameters(), *module.buffers()):
                poison_tensor(tensor)
        return module

    # torch remembers at the first use which functions a device context redirects: it must see the real ones
    with torch.device("meta"):
        assert torch.empty(1).is_meta
    with pytest.MonkeyPatch.context() as patch:
        for name in ("empty", "empty_like"):
            patch.setattr(torch, name, _poisoning(getattr(torch, name), poison_tensor))
            patch.setattr(np, name, _poisoning(getattr(np, name), poison_array))
        patch.setattr(torch.Tensor, "new_empty", _poisoning(torch.Tensor.new_empty, poison_tensor))
        patch.setattr(torch.nn.Module, "to_empty", to_poisoned)
        yield


@pytest.fixture(scope="session", autouse=True)
def masks_of_bool() -> Iterator[None]:
    """The interpreter refuses a mask that is not bool, as Triton's own does from 3.9 on; that of 3.6 takes integers."""
    if os.environ.get("TRITON_INTERPRET", "0") in ("", "0"):
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder

    def checked(access: Callable[..., Any], place: int) -> Callable[..., Any]:
        @functools.wraps(access)
        def accessed(*arguments: Any) -> Any:
            kind = arguments[place].data.dtype
            if kind != np.bool_:
                raise TypeError(f"mask of {access.__name__}: expected bool, got {kind}")
            return access(*arguments)

        return accessed

    with pytest.MonkeyPatch.context() as patch:
        for name, place in (("create_masked_load", 2), ("create_masked_store", 3)):
            patch.setattr(InterpreterBuilder, name, checked(getattr(InterpreterBuilder, name), place))
        yield


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (libraries draw from it)
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """Where Triton kernels run: on the GPU if there is one, else in the interpreter on tensors of the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def numeric_bar() -> Callable[..., None]:
    """Judge a result in a low precision by an oracle in float64.

    `check(op, result, exact, plain)`: `exact` is the oracle's result in float64, `plain` that of a straightforward
    computation in the dtype of `result` (for a provider: the definition's). The largest error of `result` may be twice
    that of `plain`, plus the operation's tolerance for the dtype.
    """

    def check(op: Any, result: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor) -> None:
        assert exact.dtype == torch.float64
        assert plain.dtype == result.dtype
        assert result.shape == exact.shape == plain.shape
        if not result.numel():
            return
        error, allowed = ((x.double() - exact).abs().max().item() for x in (result, plain))
        limit = 2 * allowed + op.tolerance[result.dtype]
        # written so that NaN fails
        assert error <= limit, f"{op.name} in {result.dtype}: error {error:.3g}, limit {limit:.3g}"

    return check


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of the bundled checkpoints."""
    return Path(str(files("pixelrefer_fast.assets")))


@pytest.fixture(scope="session")
def lite(assets: Path) -> Any:
    import pixelrefer_fast

    return pixelrefer_fast.load(assets / "lite", device="cpu", dtype="float32", feature_bytes=0)


@pytest.fixture(scope="session")
def full(assets: Path) -> Any:
    import pixelrefer_fast

    return pixelrefer_fast.load(assets / "full", device="cpu", dtype="float32", feature_bytes=0)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray in a cluster of one machine, for the tests of several files."""
    from ray_cluster import local_cluster

    with local_cluster(tmp_path_factory.mktemp("r")):
        yield
