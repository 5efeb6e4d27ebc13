"""The beginning of worker processes, before anything heavy is imported here: it imports what they need, meanwhile.

They are forked from a server that has imported all that they need and nothing else (or started afresh where there is none). As
always with multiprocessing they import the main script too, and must not run it.
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
"""How the names of worker processes begin."""
HAS_FORKSERVER = "forkserver" in mp.get_all_start_methods()
MAX_PROCESSES = 4096
"""Most workers, jobs or nodes that can be asked for."""
MAX_SEEDS = 100_000
"""Most seeds of a sweep."""
EXIT_MISSING_MAIN_GUARD = 79
"""The exit status of a worker that was about to run the script that it imports."""
THREAD_COUNT_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def preload_workers(n_workers: int) -> None:
    """Let the imports of so many workers to come begin now, if there are to be several. ScenarioError for a number that makes
    no sense. Ends this process if it is a worker, which has got here by importing a script that lacks its guard."""
    if mp.current_process().name.startswith(WORKER_NAME_PREFIX):
        os._exit(EXIT_MISSING_MAIN_GUARD)
    if not isinstance(n_workers, int) or isinstance(n_workers, bool) or not 1 <= n_workers <= MAX_PROCESSES:
        expected = f"how many processes clients are to train in: 1 or more, at most {MAX_PROCESSES}"
        raise ScenarioError(f"workers: got {n_workers!r}, expected {expected}")
    if n_workers > 1 and not hasattr(os, "preadv"):
        raise ScenarioError(f"workers: got {n_workers}, expected 1: this system has not what several need")
    if n_workers > 1 and choose_start_method() == "forkserver":
        from multiprocessing import forkserver

        mp.set_forkserver_preload(["fedsgd.runtime.workers.preload"])
        with single_threaded_children(), hide_missing_main():
            forkserver.ensure_running()


def choose_start_method() -> Literal["forkserver", "spawn"]:
    """Return how worker processes start: a fork server needs a temporary folder for its socket, and some systems have none."""
    return "forkserver" if HAS_FORKSERVER and find_temporary_folder() is not None else "spawn"


@contextmanager
def hide_missing_main() -> Iterator[None]:
    """Start processes in this context that import no main script where there is no such file.

    A script on standard input is called "<stdin>"; a file may be gone. A process that is started would fail to run it.
    """
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
    """Libraries that count processors when they are loaded find one in processes that are started here."""
    before = {name: os.environ.get(name) for name in THREAD_COUNT_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_COUNT_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
