"""Running cells, here one after the other, or in processes, several at a time."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsgd import errors
from fedsgd.config.component import import_by_path
from fedsgd.errors import FedsgdError, OutputError, ScenarioError, ScenarioWarning
from fedsgd.federation.round_record import RoundRecord
from fedsgd.scenario.scenario import Scenario
from fedsgd.sweeps.cells import Cell, PlannedCell
from fedsgd.system.forkserver import EXIT_MISSING_MAIN_GUARD, hide_missing_main, single_threaded_children

RoundCallback = Callable[[Cell, RoundRecord], None]


@dataclass(frozen=True)
class CellOutcome:
    """Result of a cell.

    Attributes:
        seconds: duration of the run.
        cause: name of the error's class in fedsgd.errors, None for a run without an error.
        error: the error's message.
        warnings: lines about settings that a component is not made for.
    """

    seconds: float
    cause: str | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()

    def to_error(self) -> FedsgdError:
        """The error again, as one that has nothing but a message."""
        known = {cls.__name__: cls for cls in (errors.DataError, errors.ModelError, errors.LawError, ScenarioError)}
        return known.get(self.cause or "", FedsgdError)(self.error)


CellResults = Generator[tuple[Cell, CellOutcome], None, None]
"""Cells as they end. To be closed."""


def run_cell(
    scenario: Scenario, folder: Path, data: str | None, on_round: Callable[[RoundRecord], None] | None = None
) -> CellOutcome:
    """Run it into its folder. Only an OutputError, which is not of the experiment's making, and what is not ours are raised."""
    begun, texts = time.perf_counter(), []
    try:
        with _record_warnings() as texts:
            run = import_by_path("fedsgd.experiment.runner:run")  # imports torch, which the plan of a sweep does not need
            run(scenario, out=folder, overwrite=True, data=data, on_round=on_round)
    except OutputError:
        raise
    except FedsgdError as error:
        cause = next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
        return CellOutcome(time.perf_counter() - begun, cause, str(error), tuple(texts))
    return CellOutcome(time.perf_counter() - begun, warnings=tuple(texts))


@contextmanager
def _record_warnings() -> Iterator[list[str]]:
    """Yield the list that takes up each ScenarioWarning, which the sweep issues once for all cells."""
    texts: list[str] = []
    with warnings.catch_warnings():
        show_other = warnings.showwarning

        def record(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, ScenarioWarning):
                texts.append(str(message))
            else:
                show_other(message, category, *where, **more)

        warnings.simplefilter("always", ScenarioWarning)
        warnings.showwarning = record
        yield texts


def run_sequentially(plan: Sequence[PlannedCell], out: Path, data: str | None, on_round: RoundCallback | None) -> CellResults:
    """Runs the cells in this process."""
    for one in plan:
        show = None if on_round is None else _bind_cell(one.cell, on_round)
        yield one.cell, run_cell(one.scenario, out / one.cell.folder, data, show)


def _bind_cell(cell: Cell, on_round: RoundCallback) -> Callable[[RoundRecord], None]:
    return lambda record: on_round(cell, record)


def run_in_processes(plan: Sequence[PlannedCell], out: Path, data: str | None, jobs: int) -> CellResults:
    """Runs the cells in so many processes, and gives them as they end. However this is left, none of these is left running; if
    this process is killed they end by themselves. FedsgdError if one of them is."""
    before, started = {*mp.active_children()}, set()
    pool = ProcessPoolExecutor(min(jobs, len(plan)), mp.get_context("spawn"), initializer=_initialize_process)
    try:
        with _block_interrupts(), single_threaded_children(), hide_missing_main():
            futures: dict[Future[CellOutcome], Cell] = {}
            for one in plan:
                futures[pool.submit(run_cell, one.scenario, out / one.cell.folder, data)] = one.cell
                started |= {*mp.active_children()} - before
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
        pool.shutdown()
    except BrokenProcessPool:
        pool.shutdown()
        if any(process.exitcode == EXIT_MISSING_MAIN_GUARD for process in started):
            raise ScenarioError(
                "jobs: each process imports the script that is run, and this one starts a sweep when it is imported: "
                'put that under `if __name__ == "__main__":`'
            ) from None
        raise FedsgdError("a process of the sweep was killed, perhaps for want of memory: try fewer --jobs") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in {*mp.active_children()} - before:
            process.kill()
        pool.shutdown()


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Processes that are started here are deaf to Ctrl-C from their first moment; what was pressed comes afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ----------------------------------------------------------------------------------------------------- in the process of a cell


def _initialize_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the sweep, which ends this process
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sys.stdout = sys.stderr  # what somebody's own module prints is not a result


def _exit_with_parent() -> None:
    sweep = mp.parent_process()
    if sweep is not None:
        sweep.join()
        os._exit(1)
