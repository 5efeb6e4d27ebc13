"""Early start of the fork server, which imports modules for workers while this process imports its own.

Workers are forked from a server that has imported the workers' modules and nothing else. Without a fork server, workers are
spawned. As always with multiprocessing, workers also import the main script, and must not run it.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from fedsgd.errors import ScenarioError
from fedsgd.system.user_files import find_temporary_folder

WORKER_NAME_PREFIX = "fedsgd-worker-"
"""Prefix of the names of worker processes."""
HAS_FORKSERVER = "forkserver" in mp.get_all_start_methods()
MAX_PROCESSES = 4096
"""Maximum number of workers, jobs or nodes of a request."""
MAX_SEEDS = 100_000
"""Maximum number of seeds of a sweep."""
EXIT_MISSING_MAIN_GUARD = 79
"""Exit status of a worker whose import of the main script would start a run."""
THREAD_COUNT_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables with the number of threads of numerical libraries."""


def preload_workers(n_workers: int) -> None:
    """Start the fork server and its imports for several workers; one worker means training in this process.

    A worker can only get here by importing a main script without a guard; this function ends the worker's process.
    """
    if mp.current_process().name.startswith(WORKER_NAME_PREFIX):
        os._exit(EXIT_MISSING_MAIN_GUARD)
    check_worker_count(n_workers)
    if n_workers > 1 and choose_start_method() == "forkserver":
        from multiprocessing import forkserver

        mp.set_forkserver_preload(["fedsgd.runtime.workers.preload"])
        with single_threaded_children(), hide_missing_main():
            forkserver.ensure_running()


def check_worker_count(n_workers: int) -> None:
    """Raise a ScenarioError unless `n_workers` is a number of processes that this system supports."""
    if not isinstance(n_workers, int) or isinstance(n_workers, bool) or not 1 <= n_workers <= MAX_PROCESSES:
        expected = f"a number of processes that train clients, from 1 to {MAX_PROCESSES}"
        raise ScenarioError(f"workers: got {n_workers!r}, expected {expected}")
    if n_workers > 1 and not hasattr(os, "preadv"):
        raise ScenarioError(f"workers: got {n_workers}, expected 1: this system does not support several workers")


def choose_start_method() -> Literal["forkserver", "spawn"]:
    """Return the start method of workers: a fork server if the system has fork servers and a temporary folder for sockets."""
    return "forkserver" if HAS_FORKSERVER and find_temporary_folder() is not None else "spawn"


@contextmanager
def hide_missing_main() -> Iterator[None]:
    """Let processes that the body starts skip the import of a main script that was deleted, or read from standard input."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if main is None or path is None or Path(path).exists():
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = path


@contextmanager
def single_threaded_children() -> Iterator[None]:
    """Limit numerical libraries to one thread in processes that the body starts."""
    previous_values = {name: os.environ.get(name) for name in THREAD_COUNT_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_COUNT_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in previous_values.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
