"""A cluster of one machine for the tests of `make test-ray`."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CPUS = 6  # logical ones: two workers, Ray's own tasks, and what reads checkpoints
SECONDS = 120.0  # for its first process to listen
PORTS = ("port", "dashboard-agent-grpc-port", "runtime-env-agent-port", "dashboard-agent-listen-port")


@contextlib.contextmanager
def local_cluster(folder: Path) -> Iterator[None]:
    """Ray, running until the end of the context; `folder` has a short name, as sockets in it have 107 characters.

    `ray.init()` would let Ray find ports, and then gives each process 15 seconds to tell its own, which a busy machine
    does not have.
    """
    import ray
    from ray.data.checkpoint import CheckpointConfig

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    os.environ |= {"RAY_worker_niceness": "0"}  # else workers come last on a busy machine
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--include-dashboard=false"]
    command += [f"--num-cpus={CPUS}", f"--object-store-memory={200 * 2**20}", f"--temp-dir={folder}"]
    command += ["--node-ip-address=127.0.0.1", *(f"--{name}={port}" for name, port in ports.items())]
    with (folder / "start.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait_for(ports["port"])
            ray.init(address=f"127.0.0.1:{ports['port']}", log_to_driver=False)
            ray.data.DataContext.get_current().enable_progress_bars = False
            CheckpointConfig.CHECKPOINT_ACTOR_MEMORY_BYTES = 64 * 2**20  # what reads checkpoints reserves a gigabyte
            yield
        finally:
            ray.shutdown()
            process.terminate()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for own in found:
            own.bind(("127.0.0.1", 0))
        return [own.getsockname()[1] for own in found]


def _wait_for(port: int) -> None:
    until = time.monotonic() + SECONDS
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
