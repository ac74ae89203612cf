"""A cluster of one machine for the tests of `make test-ray`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

CPUS = 6  # logical ones: two workers, Ray's own tasks, and what reads checkpoints
STARTS = 4  # Ray gives its own processes 15 seconds to start, which a busy machine may not have


@contextlib.contextmanager
def local_cluster(folder: Path) -> Iterator[None]:
    """Ray, running until the end of the context; `folder` has a short name, as sockets in it have 107 characters."""
    import ray

    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
        "RAY_worker_register_timeout_seconds": "180",
    }
    for attempts_left in reversed(range(STARTS)):
        try:
            ray.init(
                num_cpus=CPUS,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=200 * 2**20,
                _temp_dir=str(folder),
                _node_ip_address="127.0.0.1",
            )
            break
        except Exception as error:  # what Ray raises here has no class of its own
            ray.shutdown()
            if not attempts_left or "timed out during startup" not in str(error):
                raise
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()
