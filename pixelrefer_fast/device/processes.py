"""What must not be inherited: a fork has its parent's locks, but not the threads that would release them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class PerProcess(Generic[Value]):
    """A value in each process, made when it is first asked for.

    Args:
        make: makes it. It may be called more often than once; all threads get the same.
    """

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._made: dict[int, Value] = {}

    def get(self) -> Value:
        """This process's own."""
        process = os.getpid()
        if process not in self._made:
            self._made.setdefault(process, self._make())  # one step: no lock that a fork could inherit
        own = self._made[process]
        if len(self._made) > 1:  # the parent's
            self._made = {process: own}
        return own
