"""What an operation is: a PyTorch definition, the providers that may replace it, its tolerance and its samples.

The definition is the specification, the CPU path and the oracle of the tests. A provider (a Triton kernel, the CUDA
extension, a library) attaches to it under a name, says on which devices it runs, why it is not available and why it
declines a call, and is counted when it is passed over. A backend asked for by name never falls back.

Every operation is also a `torch.library` operator, `torch.ops.pixelrefer_fast.<name>`, which is what `torch.compile`
sees. Eager calls go to the provider directly: an operator's dispatch costs microseconds a call.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from pixelrefer_fast.kernels._launch import interpreted

P = ParamSpec("P")
R = TypeVar("R")
Reason = str | None

BACKENDS = ("torch", "triton", "cuda")
# names of providers that are libraries; only varlen_attention has such
LIBRARIES = ("flash_attn_4", "flash_attn_3", "torch_varlen", "flash_attn", "xformers")

ABSENT = "not part of this version"

log = logging.getLogger("pixelrefer_fast")
library = torch.library.Library("pixelrefer_fast", "DEF")
_OPS: dict[str, Op] = {}
_WARNED: set[str] = set()  # "backend: reason"
_LISTENERS: list[Callable[[Op, tuple[Any, ...]], None]] = []


class BackendError(ValueError):
    """A backend was asked for by name and cannot serve the call."""


@dataclass(frozen=True)
class Provider:
    """One implementation of an operation.

    `available()` and `accepts(*args)` return None for yes, or the reason why not. `devices` are the device types on
    which "auto" considers it; asked for by name it is always asked whether it accepts.
    """

    backend: str
    run: Callable[..., Any]
    devices: tuple[str, ...]
    available: Callable[[], Reason]
    accepts: Callable[..., Reason]


@dataclass
class Op(Generic[P, R]):
    """An operation: call it like its definition, with `backend=` to choose who computes it."""

    definition: Callable[P, R]
    source: str
    tolerance: dict[torch.dtype, float]
    samples: Callable[[torch.Generator, torch.dtype], Iterator[tuple[Any, ...]]]
    schema: str = ""
    mutates: tuple[str, ...] = ()
    result: Callable[..., Any] | None = None
    _providers: list[Provider] = field(default_factory=list)
    _passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return self.definition.__name__

    @property
    def operator(self) -> Any:
        """The `torch.library` operator."""
        return getattr(torch.ops.pixelrefer_fast, self.name).default

    def provider(
        self,
        backend: str,
        *,
        devices: tuple[str, ...] = ("cuda",),
        available: Callable[[], Reason] = lambda: None,
        accepts: Callable[..., Reason] = lambda *args, **kwargs: None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Attach a provider; `auto` tries providers in the order in which they were attached."""
        names = (*BACKENDS[1:], *LIBRARIES)
        if backend not in names:
            raise ValueError(f"op {self.name}: expected a backend out of {names}, got {backend!r}")

        def attach(run: Callable[P, R]) -> Callable[P, R]:
            self._providers.append(Provider(backend, run, devices, available, accepts))
            return run

        return attach

    def __call__(self, *args: P.args, backend: str = "auto", **kwargs: P.kwargs) -> R:  # type: ignore[valid-type]
        if torch.compiler.is_compiling():
            returned = self.operator(*args, **kwargs, backend=backend)
            return returned if self.result is None else self.result(*returned)
        return self.dispatch(*args, backend=backend, **kwargs)

    def dispatch(self, *args: Any, backend: str = "auto", **kwargs: Any) -> Any:
        """Run the first provider that takes the call, else the definition."""
        definition: Callable[..., Any] = self.definition
        if kwargs:  # providers and what is asked of the arguments know them by place
            bound = inspect.signature(definition).bind(*args, **kwargs)
            bound.apply_defaults()
            args = bound.args
        for listener in _LISTENERS:
            listener(self, args)
        if backend == "torch":
            return definition(*args)
        if backend != "auto" and backend not in BACKENDS and backend not in [p.backend for p in self._providers]:
            known = ("auto", *BACKENDS, *(p.backend for p in self._providers if p.backend not in BACKENDS))
            raise BackendError(f"backend: expected one of {known}, got {backend!r}")
        device = _device(args) if self._providers else "cpu"
        differentiated = torch.is_grad_enabled() and _needs_grad(args)
        for provider in self._providers:
            if backend not in ("auto", provider.backend) or (backend == "auto" and device not in provider.devices):
                continue
            reason = provider.available()
            if reason is None and differentiated:
                reason = "an argument needs a gradient, which only the definition gives"
            reason = reason or provider.accepts(*args)
            if reason is None:
                return provider.run(*args)
            if backend == provider.backend:
                raise BackendError(f"op {self.name}: backend {backend!r} was asked for but declines: {reason}")
            self._pass_over(provider.backend, reason)
        return definition(*args)

    def providers(self) -> list[tuple[str, bool, str]]:
        """Who can compute this operation here: (backend, available, reason when it is not)."""
        rows = [("torch", True, "")]
        libraries = [p.backend for p in self._providers if p.backend in LIBRARIES]
        for backend in (*BACKENDS[1:], *libraries):
            found = [p for p in self._providers if p.backend == backend]
            reason = found[0].available() if found else ABSENT
            rows.append((backend, reason is None, reason or ""))
        return rows

    def fallbacks(self) -> dict[str, int]:
        """How often a provider was passed over, by `backend: reason`."""
        return dict(self._passed_over)

    def _pass_over(self, backend: str, reason: str) -> None:
        key = f"{backend}: {reason}"
        if not self._passed_over[key]:
            # one warning for a reason that several operations share; a library that is one of several is no loss
            known = backend in LIBRARIES or key in _WARNED
            log.log(logging.INFO if known else logging.WARNING, "op %s: not using %s (%s)", self.name, backend, reason)
            _WARNED.add(key)
        self._passed_over[key] += 1


def register_op(
    *,
    source: str,
    tolerance: dict[torch.dtype, float],
    samples: Callable[[torch.Generator, torch.dtype], Iterator[tuple[Any, ...]]],
    schema: str,
    fake: Callable[..., Any],
    mutates: tuple[str, ...] = (),
    result: Callable[..., Any] | None = None,
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Make the decorated PyTorch definition an operation and an operator.

    Args:
        source: where the formula stands (paper section or reference file).
        tolerance: per dtype, the absolute floor that is added to twice PyTorch's own error when a provider is judged.
        samples: yields argument tuples in a dtype, the odd and the empty ones included.
        schema: the operator's, "(Tensor x, int n) -> Tensor"; `backend` is added to it.
        fake: empty results of the right shape, dtype and device, from the same arguments.
        mutates: arguments that are written to, marked in the schema as well.
        result: the named tuple that the definition returns, which an operator returns as a plain one.
    """

    def register(definition: Callable[P, R]) -> Op[P, R]:
        op = Op(definition, source, tolerance, samples, schema, mutates, result)
        op.__doc__ = definition.__doc__
        arguments, returns = schema.split(") ->")
        library.define(f'{op.name}{arguments}, *, str backend="auto") ->{returns}')
        library.impl(op.name, op.dispatch, "CompositeExplicitAutograd")

        def fake_of(*args: Any, backend: str = "auto", **kwargs: Any) -> Any:
            return fake(*args, **kwargs)

        torch.library.register_fake(f"pixelrefer_fast::{op.name}", fake_of, lib=library)
        _OPS[op.name] = op
        return op

    return register


@contextmanager
def listen(listener: Callable[[Op, tuple[Any, ...]], None]) -> Iterator[None]:
    """Call `listener` with the operation and its arguments before every call within the block."""
    _LISTENERS.append(listener)
    try:
        yield
    finally:
        _LISTENERS.remove(listener)


def registry() -> dict[str, Op]:
    """Every operation by name."""
    return dict(_OPS)


def check_backend(backend: str) -> None:
    """Raise a BackendError unless `backend` is "auto" or can serve at least one operation here."""
    if backend in ("auto", "torch"):
        return
    if backend not in BACKENDS:
        raise BackendError(f"backend: expected one of {('auto', *BACKENDS)}, got {backend!r}")
    rows = [(op.name, ok, why) for op in _OPS.values() for name, ok, why in op.providers() if name == backend]
    if not any(ok for _, ok, _ in rows):
        reasons = "; ".join(sorted({why for _, _, why in rows} - {ABSENT})) or ABSENT
        raise BackendError(f"backend {backend!r} was asked for but serves no operation here: {reasons}")


def triton_available() -> Reason:
    """Why Triton kernels cannot run here, or None. Nothing is imported or asked of a device before the first call."""
    if not _triton_installed():
        return "triton is not installed"
    if torch.cuda.is_available() or interpreted():
        return None
    return "there is no CUDA device (TRITON_INTERPRET=1 runs kernels on the CPU, slowly)"


@functools.cache
def _triton_installed() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except (ImportError, ValueError):  # an import hook that blocks it, or a stand-in without a spec
        return False


def triton_device(tensor: torch.Tensor) -> Reason:
    """Why Triton kernels cannot run on this tensor's device, or None."""
    if tensor.device.type == "cuda" or (tensor.device.type == "cpu" and interpreted()):
        return None
    return f"its tensors are on {tensor.device.type}, kernels run on cuda"


def _tensors(args: tuple[Any, ...]) -> Iterator[torch.Tensor]:
    for value in args:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(tuple(value))


def _device(args: tuple[Any, ...]) -> str:
    return next((t.device.type for t in _tensors(args)), "cpu")


def _needs_grad(args: tuple[Any, ...]) -> bool:
    return any(t.requires_grad for t in _tensors(args))
