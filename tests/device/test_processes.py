"""A value in each process: the same for all threads, another one in a fork."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from pixelrefer_fast.device.processes import PerProcess


def test_all_threads_get_the_same() -> None:
    together = Barrier(8)
    own = PerProcess(object)

    def get(_: int) -> object:
        together.wait()
        return own.get()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(get, range(8))))) == 1


def test_a_fork_gets_another_and_keeps_it() -> None:
    own = PerProcess(object)
    mine = own.get()
    child = os.fork()
    if not child:
        theirs = own.get()
        os._exit(0 if theirs is not mine and own.get() is theirs else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert own.get() is mine
