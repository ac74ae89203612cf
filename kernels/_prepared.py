"""Launches of kernels as they were launched before, without Triton's way to the compiled kernel.

At every launch Triton binds the arguments by name, describes each of them and makes a text of the descriptions to find
the compiled kernel by. Here that is found by a tuple of what its choice depends on, which takes a fraction of the time,
and its own launcher is called at once. A call whose tuple is new goes through Triton, which compiles, and so does every
call that a hook, a profiler or a debugging mode wants to see.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs
from triton.backends.driver import DriverBase
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

KNOWN = ("3.6", "3.7", "3.8", "3.9")
"""Versions of Triton that choose the compiled kernel by what `PreparedKernel.key` holds; their launchers are alike."""

INT32 = 2**31

log = logging.getLogger("pixelrefer_fast")
counts: Counter[str] = Counter()
"""Launches of this process that were "prepared", and of the others how many for which reason."""


class Form(NamedTuple):
    """A kernel as it was compiled for some types, alignments and constants.

    Attributes:
        compiled: of Triton; its code is unloaded with it.
        run: its launcher.
        function, metadata: what that takes.
        constants: values of the `tl.constexpr` arguments, in order.
        globals: variables that the kernel reads: where they lie, their names and what they were.
    """

    compiled: Any
    run: Callable[..., None]
    function: Any
    metadata: Any
    constants: tuple[Any, ...]
    globals: tuple[tuple[Mapping[str, Any], str, Any], ...]


class PreparedKernel:
    """The compiled forms of one `@triton.jit` function."""

    def __init__(self, function: JITFunction) -> None:
        self.function = function  # kept, so that no other one gets its id
        self.forms: dict[tuple[Any, ...], Form] = {}
        given = [p for p in function.params if not p.is_constexpr]
        self.last = function.params[len(given) :]
        # the launcher takes all arguments in order: constants can be put behind the others only if they are last
        self.specialised = [not p.do_not_specialize for p in given] if all(p.is_constexpr for p in self.last) else None

    def key(
        self, active: DriverBase, device: int, args: Sequence[Any], constants: Mapping[str, Any]
    ) -> tuple[Any, ...] | None:
        """What Triton's choice of a compiled form depends on, or None for a call that is left to Triton.

        Of a tensor that is its dtype and whether its address is a multiple of 16; of an integer whether it fits in 32
        bits and, unless the kernel does without, whether it is 1 or a multiple of 16. Of constants and options it is
        the values. Two calls of one key are one to Triton; the other way round they need not be.
        """
        if self.specialised is None or len(args) != len(self.specialised):
            return None
        kinds: list[Any] = [active, device]
        addresses = 0
        for value, specialised in zip(args, self.specialised):  # noqa: B905 (compared above)
            kind = type(value)
            if kind is int:
                if not -INT32 <= value < INT32:
                    return None
                kinds.append(_divisor(value) if specialised else int)
            elif kind is float:
                kinds.append(float)
            elif isinstance(value, torch.Tensor):
                kinds.append(value.dtype)
                addresses |= value.data_ptr()
            else:
                return None
        if addresses % 16:
            kinds.append(tuple(a.data_ptr() % 16 == 0 for a in args if isinstance(a, torch.Tensor)))
        return (*kinds, *constants, *constants.values())

    def form(self, compiled: Any, constants: Mapping[str, Any]) -> Form:
        """What a launch through Triton has left."""
        return Form(
            compiled,
            compiled.run,
            compiled.function,
            compiled.packed_metadata,
            tuple(constants.get(p.name, p.default) for p in self.last),
            tuple((names, name, names.get(name)) for (name, _), (_, names) in self.function.used_global_vals.items()),
        )


_kernels: dict[int, PreparedKernel] = {}


def launch(
    function: JITFunction, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any], pinned: Any
) -> None:
    """Launch on the current device and its current stream.

    Args:
        function, grid, args, constants: as of `_launch.launch`.
        pinned: options that `constants` need not name.
    """
    kernel = _kernels.get(id(function))
    if kernel is None:
        kernel = _kernels[id(function)] = PreparedKernel(function)
    active = driver.active
    reason = _unknown() or _watched(function)
    device = active.get_current_device()
    key = None if reason else kernel.key(active, device, args, constants)
    form = None if key is None else kernel.forms.get(key)
    if form is not None and _unchanged(form):
        x, y, z = (*grid, 1, 1)[:3]
        stream = active.get_current_stream(device)
        form.run(x, y, z, stream, form.function, form.metadata, None, None, None, *args, *form.constants)
        counts["prepared"] += 1
        return
    counts[reason or ("arguments of other kinds" if key is None else "first of its key")] += 1
    compiled = function[grid](*args, **{**pinned, **constants})
    if key is not None and isinstance(compiled, CompiledKernel):  # a hook may keep Triton from compiling
        kernel.forms[key] = kernel.form(compiled, constants)


def _divisor(value: int) -> str:
    return "1" if value == 1 else "16" if value % 16 == 0 else "any"


def _unchanged(form: Form) -> bool:
    """Whether the variables that the kernel reads are what they were when it was compiled; if not, Triton objects."""
    for names, name, value in form.globals:  # noqa: SIM110 (a generator takes longer than all of it)
        if names.get(name) is not value:
            return False
    return True


def _watched(function: JITFunction) -> str | None:
    """Who wants Triton itself to launch, or None."""
    runtime = knobs.runtime
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        if hook is not None and getattr(hook, "calls", True):  # a chain without calls is what there is by default
            return "a hook hears of launches"
    if function.pre_run_hooks:
        return "the kernel has a hook"
    if (
        runtime.debug
        or function.debug
        or knobs.compilation.instrumentation_mode
        or getattr(knobs.compilation, "fpsan_homomorphic_casts", False)  # from 3.9 on
        or runtime.add_stages_inspection_hook is not None
    ):
        return "a debugging mode of Triton"
    return None


@functools.cache
def _unknown() -> str | None:
    """Why Triton itself has to launch here, or None; said once."""
    reason = reason_of(triton.__version__, torch.version.hip)
    if reason is not None:
        log.warning("launches: not prepared (%s)", reason)
    return reason


def reason_of(version: str, hip: str | None) -> str | None:
    """Why launches cannot be prepared with this version of Triton, and torch for this version of HIP, or None."""
    if hip is not None:
        return "on AMD's devices Triton looks at sizes of tensors as well"
    if ".".join(version.split(".")[:2]) not in KNOWN:
        return f"triton {version} is not one of {', '.join(KNOWN)}, whose launches are known"
    return None
