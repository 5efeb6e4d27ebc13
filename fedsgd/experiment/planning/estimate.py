"""Estimates of memory, disk space and time, and the plan with all figures."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import numpy as np

from fedsgd.experiment.builder import Experiment
from fedsgd.experiment.planning.calibration import Calibration
from fedsgd.experiment.planning.cohorts import CohortSequence
from fedsgd.experiment.planning.encoded_sizes import round_half_up
from fedsgd.experiment.planning.run_plan import DiskPlan, MemoryPlan, RunPlan, TimePlan, TrafficPlan
from fedsgd.experiment.planning.traffic import estimate_traffic
from fedsgd.numerics.arrays import F64
from fedsgd.storage.parquet import SEGMENT_ROWS, SEGMENT_SECONDS
from fedsgd.storage.run_directory import CHECKPOINT_FOLDER

LEDGER_ROW_BYTES, LEDGER_SEGMENT_BYTES = 20, 7_000
ROUND_ROW_BYTES, ROUND_SEGMENT_BYTES = 60, 3_800
CLIENT_ROW_BYTES = 30
"""Bytes of a row of each compressed table, and of a segment besides its rows. Most bytes of a ledger's row are the hash."""
SMALL_FILES_BYTES = 8_000
"""Bytes of scenario.toml, summary.json and the tables' schemas."""
RECORD_BYTES, MEMBER_BYTES = 1_000, 72
"""Memory of the record of a round, and of each client in the record."""


def estimate_run(experiment: Experiment, workers: int, calibration: Calibration, cohorts: CohortSequence) -> RunPlan:
    """Return the plan of a run.

    Args:
        experiment: description of the run.
        workers: number of processes that train clients.
        calibration: its first rounds.
        cohorts: its cohorts.
    """
    scenario, traffic = experiment.scenario, estimate_traffic(experiment, calibration, cohorts)
    totals = _count_totals(experiment, calibration, cohorts)
    time = _estimate_time(experiment, calibration, cohorts)
    target = scenario.stop.resolved_target
    return RunPlan(
        name=scenario.name,
        rounds=scenario.rounds,
        clients=experiment.plan.n_clients,
        cohort=experiment.plan.cohort_size,
        parameters=experiment.plan.layout.size,
        workers=workers,
        engine=str(experiment.engine_choice),
        calibrated_rounds=calibration.n_rounds,
        calibration_seconds=sum(record.seconds for record in calibration.history),
        uplink=_sum_traffic(traffic.uplink),
        downlink=_sum_traffic(traffic.downlink),
        memory=_estimate_memory(experiment, workers, calibration, totals),
        disk=_estimate_disk(experiment, calibration, totals, time.total - time.start),
        time=time,
        stops_at=None if target is None else str(target),
        warnings=experiment.warnings,
    )


def _sum_traffic(n_bytes: F64) -> TrafficPlan:
    return TrafficPlan(*(round_half_up(float(figure)) for figure in (n_bytes[0], n_bytes[-1], n_bytes.sum())))


@dataclass(frozen=True)
class _RunTotals:
    """Counts over all rounds of a run.

    Attributes:
        messages: number of messages.
        participants: number of clients that take part, at most.
        models: number of different models that clients have stored after the last round; 0 if they store none.
    """

    messages: int
    participants: int
    models: int


def _count_totals(experiment: Experiment, calibration: Calibration, cohorts: CohortSequence) -> _RunTotals:
    n_rounds, drawn = experiment.scenario.rounds, cohorts.cohorts
    n_messages = sum(len(cohort.base_rounds) for cohort in drawn)
    are_complete = len(drawn) == n_rounds
    participants = cohorts.n_participants if are_complete else experiment.state_budget.max_participants
    models = cohorts.n_models if experiment.plan.downlink.clients_keep_model else 0
    return _RunTotals(n_messages * n_rounds // max(len(drawn), 1), participants, models)


def _estimate_memory(experiment: Experiment, workers: int, calibration: Calibration, totals: _RunTotals) -> MemoryPlan:
    """Return the memory of the calibration, and of what grows after it: client states, stored models and records."""
    budget, plan = experiment.state_budget, experiment.plan
    model_bytes = 4 * plan.layout.size
    state_bytes = budget.bytes_per_client if budget.location == "memory" else 0
    n_later_rounds = experiment.scenario.rounds - calibration.n_rounds
    growth = n_later_rounds * (RECORD_BYTES + MEMBER_BYTES * plan.cohort_size)
    client_states, models = totals.participants * state_bytes, totals.models * model_bytes
    shared = client_states + models if workers > 1 else 0
    if workers == 1:
        growth += (totals.participants - len(calibration.participants)) * state_bytes
        growth += max(totals.models - min(calibration.n_rounds, totals.models), 0) * model_bytes
    main = None if calibration.peak_memory is None else calibration.peak_memory + growth
    worker = max(calibration.worker_memory, default=None) if workers > 1 else 0
    total = None if main is None or worker is None else main + (workers if workers > 1 else 0) * worker + shared
    return MemoryPlan(main, worker, shared, total, client_states, models, budget.evaluation_bytes, budget.aggregation_bytes)


def _estimate_disk(experiment: Experiment, calibration: Calibration, totals: _RunTotals, seconds: float) -> DiskPlan:
    scenario, budget, files = experiment.scenario, experiment.state_budget, calibration.list_files()
    frames = sum(len(record.cohort) for record in calibration.history)
    rows = totals.messages * calibration.n_rows / max(frames, 1)
    segments = min(1 + max(seconds / SEGMENT_SECONDS, rows / SEGMENT_ROWS), scenario.rounds)
    ledger = rows * LEDGER_ROW_BYTES + segments * LEDGER_SEGMENT_BYTES
    files_bytes = float(sum(size for name, size in files.items() if name.endswith(".safetensors") and "/" not in name))
    files_bytes += scenario.rounds * ROUND_ROW_BYTES + segments * ROUND_SEGMENT_BYTES + SMALL_FILES_BYTES
    if scenario.evaluation.clients:
        files_bytes += experiment.plan.n_clients * CLIENT_ROW_BYTES
    checkpoints = _estimate_checkpoints(experiment, calibration, totals, seconds)
    states = totals.participants * budget.bytes_per_client if budget.location == "disk" else 0
    parts = {"ledger": ledger, "files": files_bytes, "checkpoints": checkpoints, "client_states": float(states)}
    figures = {name: round_half_up(n_bytes) for name, n_bytes in parts.items()}
    state_folder = None if budget.folder is None or not states else str(budget.folder)
    return DiskPlan(**figures, total=sum(figures.values()), state_folder=state_folder)


def _estimate_checkpoints(experiment: Experiment, calibration: Calibration, totals: _RunTotals, seconds: float) -> float:
    """Return the bytes of the checkpoints that are kept after the last round."""
    config, rounds = experiment.scenario.checkpoint, experiment.scenario.rounds
    sizes = {"server": 0, "clients": 0, "model": 0, "checkpoint": 0}
    for name, size in calibration.list_files().items():
        folder, _, file = name.partition("/")
        if folder == CHECKPOINT_FOLDER:
            sizes[file.partition("-")[0]] += size
    n_written = _count_checkpoints(experiment, seconds)
    n_kept = min(config.keep, n_written)
    if not n_kept:
        return 0.0
    state_bytes = sizes["clients"] / max(len(calibration.participants), 1)
    n_states = _count_stored_states(totals.participants, experiment.participation.n_invited, rounds / n_written, n_kept)
    models = (totals.models + n_kept - 1) * (4 * experiment.plan.layout.size if sizes["model"] else 0)
    return n_kept * (sizes["server"] + sizes["checkpoint"]) + n_states * state_bytes + models


def _count_stored_states(participants: int, cohort: int, interval: float, n_kept: int) -> float:
    """Return the number of client states in the files of `n_kept` checkpoints, `interval` rounds apart.

    If each checkpoint writes all states, each has one file. Else a file stays until a quarter of its states count, so that all
    files have ln 4 / (1 − 1/4) = 1.85 times the states that count, and each checkpoint adds the states that changed.
    """
    changed_share = 1 - (1 - min(cohort / max(participants, 1), 1.0)) ** interval
    if changed_share == 1:
        return participants * n_kept
    n_states: float = participants * (1 + 0.85 * (1 - changed_share) + n_kept * changed_share)
    return n_states


def _count_checkpoints(experiment: Experiment, seconds: float) -> int:
    """Return the number of checkpoints of a run, of which the last is written at the end."""
    config, rounds = experiment.scenario.checkpoint, experiment.scenario.rounds
    if config.every_seconds is not None:
        return min(math.floor(seconds / config.every_seconds) + 1, rounds)
    return 0 if config.every_rounds is None else math.ceil(rounds / config.every_rounds)


def _estimate_time(experiment: Experiment, calibration: Calibration, cohorts: CohortSequence) -> TimePlan:
    """Return the time: as measured, then in proportion to the local steps of each cohort, and for each evaluation."""
    scenario, n_measured = experiment.scenario, calibration.n_rounds
    measured = sum(record.seconds for record in calibration.history)
    rounds = np.arange(n_measured + 1, scenario.rounds + 1)
    seconds_per_step = _measure_step(calibration, cohorts)
    drawn_steps = [cohort.n_steps for cohort in cohorts.cohorts]
    later_steps = drawn_steps[n_measured:]
    mean_steps = float(np.mean(later_steps or drawn_steps or [0]))
    steps = sum(later_steps) + (len(rounds) - len(later_steps)) * mean_steps
    n_evaluations = int(np.count_nonzero((rounds % scenario.evaluation.every == 0) | (rounds == scenario.rounds)))
    later = steps * seconds_per_step + n_evaluations * calibration.evaluation_seconds
    n_checkpoints = _count_checkpoints(experiment, measured + later)
    later += n_checkpoints * calibration.checkpoint_seconds
    round_seconds = later / len(rounds) if len(rounds) else measured / n_measured
    total = calibration.start_seconds + measured + later + calibration.end_seconds
    return TimePlan(calibration.start_seconds, round_seconds, calibration.evaluation_seconds, total)


def _measure_step(calibration: Calibration, cohorts: CohortSequence) -> float:
    """Return the seconds of a round, without its evaluation, for each local step of its clients: the median over rounds.

    The first round is left out, because engines prepare in it; so are rounds before kernels were compiled.
    """
    first_round = min(2, calibration.n_rounds) if calibration.loops_from is None else calibration.loops_from + 1
    first_round = min(first_round, calibration.n_rounds)
    ratios = []
    for record in calibration.history[first_round - 1 :]:
        seconds = record.seconds - (calibration.evaluation_seconds if record.metrics is not None else 0.0)
        ratios.append(max(seconds, 0.0) / max(cohorts.cohorts[record.round - 1].n_steps, 1))
    return statistics.median(ratios)
