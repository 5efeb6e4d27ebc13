"""Execution of cells: one after the other in this process, or several at a time in processes."""

from __future__ import annotations

import math
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
from functools import partial
from pathlib import Path
from typing import Any

from fedsgd import errors
from fedsgd.config.registry import import_by_path
from fedsgd.errors import FedsgdError, OutputError, RunInterrupted, ScenarioError, ScenarioWarning
from fedsgd.federation.round_record import RoundRecord
from fedsgd.scenario.scenario import Scenario
from fedsgd.sweeps.cells import Cell, PlannedCell
from fedsgd.sweeps.directory import find_difference
from fedsgd.sweeps.options import RoundCallback
from fedsgd.system.forkserver import EXIT_MISSING_MAIN_GUARD, hide_missing_main, single_threaded_children


@dataclass(frozen=True)
class CellOutcome:
    """Result of a cell.

    Attributes:
        seconds: duration of the run.
        cause: name of the error's class in fedsgd.errors, None for a run without an error.
        error: message of the error.
        warnings: lines about settings that a component is not made for.
        is_run: False if the sweep's time was over, and the cell did not run.
    """

    seconds: float
    cause: str | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()
    is_run: bool = True

    def to_error(self) -> FedsgdError:
        """Return an error with the outcome's message, of the same class if the class takes only a message."""
        classes = {cls.__name__: cls for cls in (errors.DataError, errors.ModelError, errors.LawError, ScenarioError)}
        return classes.get(self.cause or "", FedsgdError)(self.error)


CellResults = Generator[tuple[Cell, CellOutcome], None, None]
"""Generator of cells with their outcomes, in the order in which they end. It must be closed."""
CellFunction = Callable[..., CellOutcome]
"""`run_cell` with the sweep's data folder and end: a function of scenario, folder, and a callback after each round."""


def bind_run_cell(data: str | None, end: float) -> CellFunction:
    """Return `run_cell` for a data folder and an end; processes can unpickle it."""
    return partial(run_cell, data=data, end=end)


def run_cell(
    scenario: Scenario,
    folder: Path,
    on_round: Callable[[RoundRecord], None] | None = None,
    *,
    data: str | None,
    end: float = math.inf,
) -> CellOutcome:
    """Run a scenario into a folder, from a checkpoint of the same scenario if there is one.

    Return the outcome, with an error of fedsgd as a part of it. Nothing is run after the time `end`, in seconds of `time.time`.

    An OutputError, which the scenario does not cause, and errors outside fedsgd are raised.
    """
    if time.time() > end:
        return CellOutcome(0.0, is_run=False)
    start, texts = time.perf_counter(), []
    try:
        with _record_warnings() as texts:
            # imports torch, which the plan of a sweep does not need
            resume, run = (import_by_path(f"fedsgd.experiment.{name}") for name in ("resume:run_or_resume", "runner:run"))
            if find_difference(folder / "scenario.toml", scenario):
                run(scenario, out=folder, overwrite=True, data=data, on_round=on_round)
            else:
                resume(scenario, folder, data, on_round)
    except OutputError:
        raise
    except FedsgdError as error:
        cause = next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
        return CellOutcome(time.perf_counter() - start, cause, str(error), tuple(texts))
    return CellOutcome(time.perf_counter() - start, warnings=tuple(texts))


@contextmanager
def _record_warnings() -> Iterator[list[str]]:
    """Yield a list that receives the text of each ScenarioWarning, because the sweep issues each text once for all cells."""
    texts: list[str] = []
    with warnings.catch_warnings():
        show_warning = warnings.showwarning

        def record(message: Warning | str, category: type[Warning], *arguments: Any, **options: Any) -> None:
            if issubclass(category, ScenarioWarning):
                texts.append(str(message))
            else:
                show_warning(message, category, *arguments, **options)

        warnings.simplefilter("always", ScenarioWarning)
        warnings.showwarning = record
        yield texts


def run_sequentially(plan: Sequence[PlannedCell], out: Path, run: CellFunction, on_round: RoundCallback | None) -> CellResults:
    """Run cells in this process, one after the other."""
    for planned_cell in plan:
        on_cell_round = None if on_round is None else _bind_cell(planned_cell.cell, on_round)
        try:
            outcome = run(planned_cell.scenario, out / planned_cell.cell.folder, on_cell_round)
        except RunInterrupted as interrupt:
            raise RunInterrupted(f'cell "{planned_cell.cell}": {interrupt.situation}; to continue, sweep again') from None
        yield planned_cell.cell, outcome


def _bind_cell(cell: Cell, on_round: RoundCallback) -> Callable[[RoundRecord], None]:
    return lambda record: on_round(cell, record)


def run_in_processes(plan: Sequence[PlannedCell], out: Path, run: CellFunction, jobs: int) -> CellResults:
    """Run cells in `jobs` processes, and yield their outcomes in the order in which the cells end.

    No process remains after an error or an interrupt. If this process is killed, the processes end by themselves. A killed
    process raises a FedsgdError. A main script without `if __name__ == "__main__":` raises a ScenarioError.
    """
    other_processes, processes = {*mp.active_children()}, set()
    try:
        pool = ProcessPoolExecutor(min(jobs, len(plan)), mp.get_context("spawn"), initializer=_initialize_process)
    except OSError as error:
        raise OutputError(f"processes of a sweep need shared memory ({error.strerror}); use --jobs 1") from None
    try:
        with _block_interrupts(), single_threaded_children(), hide_missing_main():
            futures: dict[Future[CellOutcome], Cell] = {}
            for planned_cell in plan:
                futures[pool.submit(run, planned_cell.scenario, out / planned_cell.cell.folder)] = planned_cell.cell
                processes |= {*mp.active_children()} - other_processes
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
        pool.shutdown()
    except BrokenProcessPool:
        pool.shutdown()
        if any(process.exitcode == EXIT_MISSING_MAIN_GUARD for process in processes):
            raise ScenarioError(
                "jobs: each process imports the main script, and this script starts a sweep when it is imported: "
                'start the sweep under `if __name__ == "__main__":`'
            ) from None
        raise FedsgdError("a process of the sweep was killed; it may have run out of memory: use fewer --jobs") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in {*mp.active_children()} - other_processes:
            process.kill()
        pool.shutdown()


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Block SIGINT, so that processes that are started in the context never receive Ctrl-C.

    A signal that arrives in the context is delivered to this process at the end of the context.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    blocked_signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_signals)


# ----------------------------------------------------------------------------------------------------- in the process of a cell


def _initialize_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep handles an interrupt, and ends this process
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sys.stdout = sys.stderr  # the output of a user's module is not a result


def _exit_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
