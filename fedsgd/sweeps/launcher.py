"""Cells as jobs of Slurm, or of processes that stand for Slurm on this machine, through the library submitit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsgd.errors import FedsgdError, OutputError, ScenarioError
from fedsgd.sweeps.cells import Cell, PlannedCell
from fedsgd.sweeps.executor import CellFunction, CellOutcome, CellResults

LAUNCHERS = ("slurm", "local")
"""Names of launchers: Slurm, and processes of this machine, with which a sweep for Slurm can be tried."""
JOB_FOLDER = ".jobs"
"""Folder of the jobs' logs and pickled calls, in the folder of the sweep."""
POLL_SECONDS = {"slurm": 10.0, "local": 0.1}
"""Seconds between two looks at the jobs."""


def run_with_launcher(
    plan: Sequence[PlannedCell], out: Path, run: CellFunction, launcher: str, jobs: int, options: Mapping[str, Any]
) -> CellResults:
    """Run cells as jobs, and yield their outcomes in the order in which the jobs end.

    Each job is one cell on one processor. The folder of the sweep must be visible to all machines. After an error or an
    interrupt, jobs that have not ended are cancelled. A job that was killed raises a FedsgdError.

    Args:
        plan: cells to run.
        out: folder of the sweep.
        run: function that runs a cell, from `bind_run_cell`.
        launcher: one of `LAUNCHERS`.
        jobs: number of jobs at the same time; 1: as many as Slurm starts.
        options: parameters of sbatch by name, such as partition, for Slurm only.

    Raises:
        ScenarioError: submitit is not installed, Slurm is not available, or an option is unknown.
        OutputError: jobs cannot be submitted.
    """
    executor = _make_executor(out / JOB_FOLDER, launcher, jobs if jobs > 1 else len(plan), options)
    jobs_of_cells: dict[Any, Cell] = {}
    try:
        with executor.batch():
            for planned_cell in plan:
                folder = (out / planned_cell.cell.folder).absolute()
                jobs_of_cells[executor.submit(run, planned_cell.scenario, folder)] = planned_cell.cell
    except Exception as error:  # of sbatch, or of the file system
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise OutputError(f"the jobs of the sweep cannot be submitted: {lines[-1]}") from error
    from submitit.helpers import as_completed

    try:
        for job in as_completed([*jobs_of_cells], poll_frequency=POLL_SECONDS[launcher]):
            yield jobs_of_cells.pop(job), _read_outcome(job)
    finally:
        for job in jobs_of_cells:
            job.cancel()


def _make_executor(folder: Path, launcher: str, n_parallel: int, options: Mapping[str, Any]) -> Any:
    try:
        import submitit
    except ModuleNotFoundError:
        raise ScenarioError("launcher: needs the package submitit: pip install 'fedsgd[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(folder.absolute(), cluster=launcher)
    except RuntimeError as error:
        raise ScenarioError(f"launcher: {launcher} is not available on this machine ({str(error).splitlines()[0]})") from None
    executor.update_parameters(name="fedsgd", cpus_per_task=1, timeout_min=24 * 60)
    if launcher != "slurm":
        if options:
            raise ScenarioError(f"launcher options: got {', '.join(options)}, expected none with the launcher {launcher}")
        return executor
    try:
        executor.update_parameters(slurm_array_parallelism=n_parallel, **{f"slurm_{name}": v for name, v in options.items()})
    except NameError as error:
        raise ScenarioError(f"launcher options: {' '.join(str(error).split())}") from None
    return executor


def _read_outcome(job: Any) -> CellOutcome:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        outcome: CellOutcome = job.result()
    except (FailedJobError, UncompletedJobError) as error:
        last_line = str(error).strip().splitlines()[-1]
        raise FedsgdError(f"job {job.job_id} of the sweep failed: {last_line}; its log: {job.paths.stderr}") from None
    return outcome
