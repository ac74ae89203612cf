"""The stages of a question, each under one name, and who hears of them.

Whatever runs a stage is marked `@stage("encoder")`. Listeners hear of every call of it: benchmarks time and count them,
profiles put ranges around them, the replay of recorded cases keeps what they return.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec, TypeVar, get_args

StageName = Literal["plan", "views", "encoder", "pooling", "infusion", "projector", "prompt", "prefill", "decode"]
STAGES: tuple[StageName, ...] = get_args(StageName)
"""In the order in which a question passes them; "infusion" is Lite's alone."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class StageCall:
    """One call of a stage.

    Attributes:
        stage: which.
        run: does it (again), on the same arguments; others may be given by name.
        result: what it returned, once it has.
    """

    stage: StageName
    run: functools.partial[Any]
    result: object = field(init=False)

    def run_by(self, backend: str) -> object:
        """Do it again by another backend, where that is an argument of it."""
        return self.run(backend=backend) if "backend" in self.run.keywords else self.run()


Listener = Callable[[StageCall], AbstractContextManager[object]]
_listeners: list[Listener] = []


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Have every call of a stage within the block, from any thread, run inside `listener(call)`."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def heard() -> bool:
    """Whether anybody listens: stages that were captured together would not be heard one by one."""
    return bool(_listeners)


def stage(name: StageName) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function as (part of) a stage."""

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            if not _listeners:
                return function(*args, **kwargs)
            bound = functools.partial(function, *args, **kwargs)
            call = StageCall(name, bound)
            with ExitStack() as stack:
                for listener in tuple(_listeners):
                    stack.enter_context(listener(call))
                call.result = result = bound()
            return result

        return run

    return mark
