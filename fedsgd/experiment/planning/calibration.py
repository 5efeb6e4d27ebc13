"""Calibration: the first rounds of a run as the run makes them, and what they cost."""

from __future__ import annotations

import multiprocessing as mp
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fedsgd.errors import RunError
from fedsgd.experiment.builder import Experiment
from fedsgd.experiment.checkpoints import Checkpointer, CheckpointInterval, ClientFiles
from fedsgd.experiment.execution import Execution, make_execution
from fedsgd.experiment.federation import Federation
from fedsgd.experiment.final_model import build_final_model
from fedsgd.experiment.run_tables import RunTables
from fedsgd.experiment.summary import build_summary
from fedsgd.federation import ServerState
from fedsgd.federation.downlink import PublicModel
from fedsgd.federation.round_record import RoundRecord
from fedsgd.numerics.kernels import remaining_reference_share, use_loops
from fedsgd.storage.run_directory import CHECKPOINT_FOLDER
from fedsgd.system.forkserver import WORKER_NAME_PREFIX
from fedsgd.system.machine import measure_peak_memory

MIN_ROUNDS = 2
MAX_ROUNDS = 10
"""Rounds of a calibration, if the scenario has so many and they are fast enough."""
MAX_SECONDS = 5.0
"""Seconds of rounds after which no round begins, once `MIN_ROUNDS` have ended."""
MAX_FIRST_SECONDS = 60.0
"""Seconds of the first round above which it is the only round."""


@dataclass(frozen=True)
class ModelChange:
    """Change of the public model from one round to the next.

    Attributes:
        n_changed: number of coordinates that changed.
        difference_bytes: bytes of the frame with the difference; None without such a frame.
    """

    n_changed: int
    difference_bytes: int | None


@dataclass(eq=False)
class Calibration:
    """First rounds of a run.

    Attributes:
        history: records of the rounds.
        server: state of the server after the last round.
        n_rows: number of rows of the ledger.
        changes: change of the public model by the round whose clients decode the new model; empty under the policy "model".
        loops_from: round from which kernels use compiled loops because the run will compile them; None if nothing changed.
        folder: run directory with the files of the rounds.
        start_seconds: seconds until the first round began.
        evaluation_seconds: duration of one evaluation.
        end_seconds: duration of the end of a run: summary and files.
        checkpoint_seconds: duration of one checkpoint; 0 without checkpoints.
        peak_memory: peak memory of this process, bytes; None if the system does not report it.
        worker_memory: peak memory of each worker, bytes; empty without workers.
    """

    history: list[RoundRecord]
    server: ServerState
    folder: Path
    n_rows: int = 0
    changes: dict[int, ModelChange] = field(default_factory=dict)
    loops_from: int | None = None
    start_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    end_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    peak_memory: int | None = None
    worker_memory: Sequence[int] = ()

    @property
    def n_rounds(self) -> int:
        """Number of rounds."""
        return len(self.history)

    @property
    def participants(self) -> set[int]:
        """Clients that were sent a message."""
        return {client for record in self.history for client in record.cohort}

    def list_files(self) -> Mapping[str, int]:
        """Return the bytes of each file by its path in the run directory."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}


def calibrate(experiment: Experiment, workers: int, folder: Path, start_time: float) -> Calibration:
    """Run the first rounds of an experiment, write the files of a run, and measure both.

    Args:
        experiment: description of the run; several workers need one that was built for several.
        workers: number of processes that train clients.
        folder: empty folder for the files.
        start_time: time at which the process was started, seconds since the epoch.
    """
    with make_execution(experiment, workers) as execution:
        tables = RunTables(folder, experiment.evaluation.metric_names, experiment.scenario.evaluation.every)
        federation = Federation(execution, tables.ledger)
        calibration = Calibration([], federation.initial_state(), folder)
        calibration.start_seconds = time.time() - start_time
        _run_rounds(federation, tables, calibration)
        calibration.n_rows = sum(total.frames for total in tables.ledger.totals.values())
        metrics = _time_evaluation(federation, calibration)
        if experiment.scenario.checkpoint.every is not None:
            calibration.checkpoint_seconds = _time_checkpoint(execution, tables, calibration)
        calibration.end_seconds = _time_end(federation, tables, calibration, metrics)
        calibration.peak_memory = measure_peak_memory()
        calibration.worker_memory = _measure_workers()
    return calibration


def _run_rounds(federation: Federation, tables: RunTables, calibration: Calibration) -> None:
    """Run rounds until there are enough, and two more with compiled loops if the run will compile loops after them."""
    shares = [remaining_reference_share()]
    start = time.perf_counter()
    while not federation.is_over and _is_round_wanted(calibration.n_rounds, time.perf_counter() - start):
        _run_round(federation, tables, calibration)
        shares.append(remaining_reference_share())
    n_last_rounds = min(2, calibration.n_rounds)  # the first rounds need more references than later rounds
    share_per_round = (shares[-1 - n_last_rounds] - shares[-1]) / n_last_rounds
    n_later_rounds = federation.scenario.rounds - calibration.n_rounds
    if shares[-1] and share_per_round * n_later_rounds > shares[-1]:
        use_loops()
        calibration.loops_from = calibration.n_rounds + 1
        for _ in range(2):  # the first of the two rounds compiles
            if not federation.is_over:
                _run_round(federation, tables, calibration)


def _is_round_wanted(n_rounds: int, seconds: float) -> bool:
    if n_rounds < MIN_ROUNDS:
        return n_rounds == 0 or seconds <= MAX_FIRST_SECONDS
    return n_rounds < MAX_ROUNDS and seconds <= MAX_SECONDS


def _run_round(federation: Federation, tables: RunTables, calibration: Calibration) -> None:
    calibration.server, record = federation.step(calibration.server)
    calibration.history.append(record)
    tables.append(record)
    tables.flush()
    public_model = calibration.server.public_model
    if public_model.change_rounds is not None:
        calibration.changes[public_model.round] = _describe_change(public_model)


def _describe_change(public_model: PublicModel) -> ModelChange:
    assert public_model.change_rounds is not None
    frames = public_model.difference_frames
    n_changed = int(np.count_nonzero(public_model.change_rounds == public_model.round))
    return ModelChange(n_changed, len(frames[-1].data) if frames else None)


def _time_evaluation(federation: Federation, calibration: Calibration) -> Mapping[str, float]:
    """Evaluate the server's model, measure the seconds, and return the metrics."""
    start, server = time.perf_counter(), calibration.server
    try:
        metrics, _ = federation.execution.evaluator(server.public_model.weights, server.buffers)
    except Exception as error:  # the user's module, loss or metrics
        raise RunError(server.round - 1, None, f"evaluation: {type(error).__name__}: {error}") from error
    calibration.evaluation_seconds = time.perf_counter() - start
    return metrics


def _time_checkpoint(execution: Execution, tables: RunTables, calibration: Calibration) -> float:
    """Write a checkpoint and return its seconds."""
    start, folder = time.perf_counter(), calibration.folder / CHECKPOINT_FOLDER
    client_files = ClientFiles(folder, execution.experiment.plan.n_clients, execution.storage)
    checkpointer = Checkpointer(folder, client_files, CheckpointInterval(), 1)
    checkpointer.add_cohort(calibration.participants)
    run = {"scenario": execution.experiment.scenario.to_toml()}
    checkpointer.write(calibration.server, {}, tables.sync(), run)
    return time.perf_counter() - start


def _time_end(federation: Federation, tables: RunTables, calibration: Calibration, metrics: Mapping[str, float]) -> float:
    """Write the files of a finished run, and return the seconds. The last round gets the metrics."""
    start, server = time.perf_counter(), calibration.server
    model = build_final_model(federation.execution, server)
    history = [*calibration.history[:-1], replace(calibration.history[-1], metrics=metrics)]
    build_summary(federation, history, server.weights, 0.0)
    for write in model.make_file_writers(calibration.folder).values():
        write()
    tables.close_ledger()
    tables.close_rounds()
    return time.perf_counter() - start


def _measure_workers() -> list[int]:
    """Return the peak memory of each worker process in bytes, as far as the system reports it."""
    workers = [process for process in mp.active_children() if process.name.startswith(WORKER_NAME_PREFIX)]
    files = [Path(f"/proc/{process.pid}/status") for process in workers]
    figures = [measure_peak_memory(file) for file in files if file.exists()]
    return [figure for figure in figures if figure is not None]
