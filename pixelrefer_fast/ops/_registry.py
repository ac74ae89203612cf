"""What an operation is: a PyTorch definition, the providers that may replace it, its tolerance and its samples.

The definition is the specification, the CPU path and the oracle of the tests, and its signature is the operation's
(`_signature`). A provider (a Triton kernel, the CUDA extension, a library) attaches to it under a name, says on which
devices it runs, why it is not available and why it declines a call, and is counted when it is passed over. A backend
asked for by name never falls back.

Every operation is also a `torch.library` operator, `torch.ops.pixelrefer_fast.<name>`, which is what `torch.compile`
sees. Eager calls go to the provider directly: an operator's dispatch costs microseconds a call.
"""

from __future__ import annotations

import functools
import importlib
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
from pixelrefer_fast.ops._signature import check_same, on_named, schema_of

P = ParamSpec("P")
R = TypeVar("R")
Reason = str | None

BACKENDS = ("torch", "triton", "cuda")
# names of providers that are libraries: of attention, and cuBLASLt, whose products end in an activation
LIBRARIES = ("flash_attn_4", "flash_attn_3", "torch_varlen", "flash_attn", "xformers", "cublaslt")

ABSENT = "not part of this version"

log = logging.getLogger("pixelrefer_fast")
library = torch.library.Library("pixelrefer_fast", "DEF")
_OPS: dict[str, Op] = {}
_WARNED: set[str] = set()  # "backend: reason"
_LISTENERS: list[Callable[[Op, tuple[Any, ...]], None]] = []


class BackendError(ValueError):
    """A backend was asked for by name and cannot serve the call."""


@dataclass
class Provider:
    """One implementation of an operation.

    `find()` gives the function, which is asked for at the first call. `available()` and `accepts(args)` return None for
    yes, or the reason why not. `devices` are the device types on which "auto" considers it; asked for by name it is
    always asked whether it accepts.
    """

    backend: str
    find: Callable[[], Callable[..., Any]]
    devices: tuple[str, ...]
    available: Callable[[], Reason]
    accepts: Callable[[tuple[Any, ...]], Reason]

    @functools.cached_property
    def run(self) -> Callable[..., Any]:
        """The function, of the definition's signature."""
        return self.find()


@dataclass
class Op(Generic[P, R]):
    """An operation: call it like its definition, with `backend=` to choose who computes it.

    The definition is the one place that says what the arguments are. The first of them is a tensor, and the operation
    runs on its device.

    An operation that is made of others, its `parts`, has a definition that takes `backend` by name ("torch" unless
    given) and hands it on to them. They find their providers, fall back and are heard as they are when called alone.
    """

    definition: Callable[P, R]
    source: str
    tolerance: dict[torch.dtype, float]
    samples: Callable[[torch.Generator, torch.dtype], Iterator[tuple[Any, ...]]]
    mutates: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    parts: tuple[Op[..., Any], ...] = ()
    _providers: list[Provider] = field(default_factory=list)
    _passed_over: Counter[str] = field(default_factory=Counter)
    _check: Callable[[tuple[Any, ...]], None] | None = None
    _fake: Callable[[tuple[Any, ...]], Any] | None = None

    def __post_init__(self) -> None:
        self.__doc__ = self.definition.__doc__
        self.signature = inspect.signature(self.definition, eval_str=True)
        if self.parts:
            arguments = [p for p in self.signature.parameters.values() if p.name != "backend"]
            self.signature = self.signature.replace(parameters=arguments)
        parameters = self.signature.parameters.values()
        self._arity = len(parameters)
        self._defaults = tuple(p.default for p in parameters if p.default is not p.empty)
        returns = self.signature.return_annotation
        # an operator returns a named tuple as a plain one
        self._named_result = returns if hasattr(returns, "_fields") else None

    @property
    def name(self) -> str:
        return self.definition.__name__

    @property
    def operator(self) -> Any:
        """The `torch.library` operator."""
        return getattr(torch.ops.pixelrefer_fast, self.name).default

    def check(self, function: Callable[..., None]) -> Callable[..., None]:
        """Attach what raises a ValueError for arguments that nobody computes; it takes those that it names.

        It is asked before a provider or the definition, which rely on it.
        """
        self._check = on_named(f"op {self.name}: check", self.signature, function)
        return function

    def fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Attach what makes empty results of the right shape, dtype and device; it takes the arguments that it names.

        Without it the definition runs on torch's fake tensors, which it can unless it reads what is in them.
        """
        self._fake = on_named(f"op {self.name}: fake", self.signature, function)
        return function

    def provider(
        self,
        backend: str,
        *,
        devices: tuple[str, ...] = ("cuda",),
        available: Callable[[], Reason] = lambda: None,
        accepts: Callable[..., Reason] = lambda: None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Attach the decorated function; `auto` tries providers in the order in which they were attached.

        Args:
            backend: the provider's name.
            devices: types of devices on which "auto" asks it.
            available: why it cannot be used here, or None.
            accepts: why it declines a call, or None; takes the arguments that it names, once they are checked.

        Raises:
            ValueError: no such backend, or a function of another signature than the definition's.
        """
        names = (*BACKENDS[1:], *LIBRARIES)
        if backend not in names:
            raise ValueError(f"op {self.name}: expected a backend out of {names}, got {backend!r}")

        def attach(run: Callable[P, R]) -> Callable[P, R]:
            described = f"op {self.name}: {backend}"
            check_same(described, self.signature, run)
            asked = on_named(described, self.signature, accepts)
            self._providers.append(Provider(backend, lambda: run, devices, available, asked))
            return run

        return attach

    def kernel(self, accepts: Callable[..., Reason] = lambda: None) -> None:
        """Attach the Triton kernel: the function of the operation's name in `kernels/<name>.py`.

        That file, and Triton with it, is imported by the first call that it takes; its signature is checked then.

        Args:
            accepts: why it declines a call on a device that it runs on, or None; as of `provider`.
        """
        described = f"op {self.name}: triton"
        asked = on_named(described, self.signature, accepts)

        def find() -> Callable[..., Any]:
            module = importlib.import_module(f"pixelrefer_fast.kernels.{self.name}")
            run: Callable[..., Any] = getattr(module, self.name)
            check_same(described, self.signature, run)
            return run

        def takes(args: tuple[Any, ...]) -> Reason:
            return triton_device(args[0]) or asked(args)

        self._providers.append(Provider("triton", find, ("cuda",), triton_available, takes))

    def __call__(self, *args: P.args, backend: str = "auto", **kwargs: P.kwargs) -> R:  # type: ignore[valid-type]
        if torch.compiler.is_compiling():
            returned = self.operator(*args, **kwargs, backend=backend)
            return returned if self._named_result is None else self._named_result(*returned)
        return self.dispatch(*args, backend=backend, **kwargs)

    def dispatch(self, *args: Any, backend: str = "auto", **kwargs: Any) -> Any:
        """Run the first provider that takes the call, else the definition."""
        if kwargs or len(args) != self._arity:
            args = self._completed(args, kwargs)
        for listener in () if self.parts else _LISTENERS:
            listener(self, args)
        if backend != "auto" and backend not in BACKENDS and backend not in [p.backend for p in self._providers]:
            known = ("auto", *BACKENDS, *(p.backend for p in self._providers if p.backend not in BACKENDS))
            raise BackendError(f"backend: expected one of {known}, got {backend!r}")
        if self._check is not None:
            self._check(args)
        definition: Callable[..., Any] = self.definition
        if self.parts:
            return definition(*args, backend=backend)
        for provider in self._providers if backend != "torch" else ():
            if backend == "auto":
                if args[0].device.type not in provider.devices:
                    continue
            elif backend != provider.backend:
                continue
            reason = provider.available() or _gradient(args) or provider.accepts(args)
            if reason is None:
                return provider.run(*args)
            if backend == provider.backend:
                raise BackendError(f"op {self.name}: backend {backend!r} was asked for but declines: {reason}")
            self._pass_over(provider.backend, reason)
        return definition(*args)

    def empty_results(self, *args: Any, **kwargs: Any) -> Any:
        """What a call returns, with nothing in it: how torch.compile finds shapes."""
        if self.signature.return_annotation is None:
            return None
        args = self._completed(args, kwargs)
        definition: Callable[..., Any] = self.definition
        return definition(*args) if self._fake is None else self._fake(args)

    def _completed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """All arguments by place, which is how everybody else knows them."""
        missing = self._arity - len(args)
        if not kwargs and 0 <= missing <= len(self._defaults):
            return args + self._defaults[len(self._defaults) - missing :]
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.args

    def providers(self) -> list[tuple[str, bool, str]]:
        """Who can compute this operation here: (backend, available, reason when it is not)."""
        rows = [("torch", True, "")]
        libraries = [p.backend for p in self._providers if p.backend in LIBRARIES]
        own = [*self._providers, *(p for part in self.parts for p in part._providers)]
        for backend in (*BACKENDS[1:], *libraries):
            found = [p for p in own if p.backend == backend]
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
    mutates: tuple[str, ...] = (),
    static: tuple[str, ...] = (),
    parts: tuple[Op[..., Any], ...] = (),
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Make the decorated PyTorch definition an operation and an operator, whose schema is the definition's signature.

    Args:
        source: where the formula stands (paper section or reference file).
        tolerance: per dtype, the absolute floor that is added to twice PyTorch's own error when a provider is judged.
        samples: yields argument tuples in a dtype, the odd and the empty ones included.
        mutates: arguments that are written to.
        static: integers for whose value torch.compile makes a graph; for others one graph serves all values.
        parts: operations that the definition is made of and hands `backend` on to.
    """

    def register(definition: Callable[P, R]) -> Op[P, R]:
        op = Op(definition, source, tolerance, samples, mutates, static, parts)
        arguments, returns = schema_of(op.signature, mutates, static).split(") ->")
        library.define(f'{op.name}{arguments}, *, str backend="auto") ->{returns}')
        library.impl(op.name, op.dispatch, "CompositeExplicitAutograd")

        def fake(*args: Any, backend: str = "auto", **kwargs: Any) -> Any:
            return op.empty_results(*args, **kwargs)

        torch.library.register_fake(f"pixelrefer_fast::{op.name}", fake, lib=library)
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


def kernels_serve(device: torch.device, backend: str) -> bool:
    """Whether kernels compute what lies on this device; definitions wait for it, and cannot be captured."""
    return device.type == "cuda" and backend in ("auto", "triton") and triton_available() is None


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


def _gradient(args: tuple[Any, ...]) -> Reason:
    """What every provider has against arguments that need a gradient, or None."""
    if torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args):
        return "an argument needs a gradient, which only the definition gives"
    return None
