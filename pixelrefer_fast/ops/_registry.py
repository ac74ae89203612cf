"""What an operation is: a PyTorch definition, the providers that may replace it, its tolerance and its samples.

The definition is the specification, the CPU path and the oracle of the tests. A provider (a Triton kernel, the CUDA
extension, a library) attaches to it under the name of a backend, says why it is not available or why it declines a
call, and is counted when it is passed over. A backend asked for by name never falls back.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
Reason = str | None

BACKENDS = ("torch", "triton", "cuda")

log = logging.getLogger("pixelrefer_fast")
_OPS: dict[str, Op] = {}


class BackendError(ValueError):
    """A backend was asked for by name and cannot serve the call."""


@dataclass(frozen=True)
class Provider:
    """One implementation of an operation.

    `available()` and `accepts(*args)` return None for yes, or the reason why not.
    """

    backend: str
    run: Callable[..., Any]
    available: Callable[[], Reason]
    accepts: Callable[..., Reason]


@dataclass
class Op(Generic[P, R]):
    """An operation: call it like its definition, with `backend=` to choose who computes it."""

    definition: Callable[P, R]
    source: str
    tolerance: dict[torch.dtype, float]
    samples: Callable[[torch.Generator, torch.dtype], Iterator[tuple[Any, ...]]]
    _providers: list[Provider] = field(default_factory=list)
    _passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return self.definition.__name__

    def provider(
        self,
        backend: str,
        *,
        available: Callable[[], Reason] = lambda: None,
        accepts: Callable[..., Reason] = lambda *args, **kwargs: None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Attach a provider; `auto` tries providers in the order in which they were attached."""
        if backend not in BACKENDS or backend == "torch":
            raise ValueError(f"op {self.name}: expected a backend out of {BACKENDS[1:]}, got {backend!r}")

        def attach(run: Callable[P, R]) -> Callable[P, R]:
            self._providers.append(Provider(backend, run, available, accepts))
            return run

        return attach

    def __call__(self, *args: P.args, backend: str = "auto", **kwargs: P.kwargs) -> R:  # type: ignore[valid-type]
        if backend not in ("auto", *BACKENDS):
            raise BackendError(f"backend: expected one of {('auto', *BACKENDS)}, got {backend!r}")
        for provider in self._providers:
            if backend not in ("auto", provider.backend):
                continue
            reason = provider.available() or provider.accepts(*args, **kwargs)
            if reason is None:
                return provider.run(*args, **kwargs)
            if backend == provider.backend:
                raise BackendError(f"op {self.name}: backend {backend!r} was asked for but declines: {reason}")
            self._pass_over(provider.backend, reason)
        return self.definition(*args, **kwargs)

    def providers(self) -> list[tuple[str, bool, str]]:
        """Who can compute this operation here: (backend, available, reason when it is not)."""
        rows = [("torch", True, "")]
        for backend in BACKENDS[1:]:
            found = [p for p in self._providers if p.backend == backend]
            reason = found[0].available() if found else "not part of this version"
            rows.append((backend, reason is None, reason or ""))
        return rows

    def fallbacks(self) -> dict[str, int]:
        """How often a provider was passed over, by `backend: reason`."""
        return dict(self._passed_over)

    def _pass_over(self, backend: str, reason: str) -> None:
        key = f"{backend}: {reason}"
        if not self._passed_over[key]:
            log.warning("op %s: not using %s (%s)", self.name, backend, reason)
        self._passed_over[key] += 1


def register_op(
    *,
    source: str,
    tolerance: dict[torch.dtype, float],
    samples: Callable[[torch.Generator, torch.dtype], Iterator[tuple[Any, ...]]],
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Make the decorated PyTorch definition an operation.

    Args:
        source: where the formula stands (paper section or reference file).
        tolerance: per dtype, the absolute floor that is added to twice PyTorch's own error when a provider is judged.
        samples: yields argument tuples in a dtype, the odd and the empty ones included.
    """

    def register(definition: Callable[P, R]) -> Op[P, R]:
        op = Op(definition, source, tolerance, samples)
        op.__doc__ = definition.__doc__
        _OPS[op.name] = op
        return op

    return register


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
        reasons = "; ".join(sorted({why for _, _, why in rows}))
        raise BackendError(f"backend {backend!r} was asked for but serves no operation here: {reasons}")
