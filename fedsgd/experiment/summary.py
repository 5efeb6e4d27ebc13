"""What is written down of a run: a record a round, and a summary of all of it."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsgd._version import __version__
from fedsgd.compression import CodecContext
from fedsgd.compression.operators.dense import Dense
from fedsgd.data import ClientData
from fedsgd.experiment.builder import Experiment
from fedsgd.experiment.divergence import detect_divergence
from fedsgd.experiment.ledger import Ledger
from fedsgd.experiment.time_to_target import find_first_reached
from fedsgd.federation import FederationPlan
from fedsgd.federation.round_record import ResidualStatistics, RoundRecord
from fedsgd.numerics.arrays import F32, F64
from fedsgd.storage.parquet import TableWriter
from fedsgd.storage.run_directory import CLIENT_COLUMNS, ROUND_COLUMNS
from fedsgd.system.machine import measure_peak_memory, memcpy_seconds
from fedsgd.training.flops import count_training_flops
from fedsgd.wire import Frame, FrameKind, Header, encode_frame


def dense_frame_bytes(plan: FederationPlan) -> int:
    """The length of a frame, up or down, that carries every coordinate as float32, by encoding one: the base of all ratios."""
    zeros = np.zeros(plan.layout.size, dtype=np.float32)
    sections, _ = Dense().encode(zeros, CodecContext(plan.seed, 1, 0, plan.layout))
    return len(encode_frame(Frame(Header(FrameKind.UPDATE, 1, Dense.codec), sections)))


def build_summary(
    experiment: Experiment,
    history: Sequence[RoundRecord],
    ledger: Ledger,
    residuals: ResidualStatistics,
    parameters: F32,
    seconds: float,
) -> dict[str, Any]:
    """The figures of a finished run, as summary.json has them. parameters: the server's final model [P]."""
    scenario, last = experiment.scenario, history[-1]
    policy = scenario.model.batch_norm
    target = experiment.target_accuracy
    failures = [failure for record in history for failure in record.failures]
    up, down, folder = ledger.totals["up"], ledger.totals["down"], experiment.state_budget.folder
    summary = {
        "name": scenario.name,
        "seed": scenario.seed,
        "rounds": last.round,
        "parameters": experiment.plan.layout.size,
        "clients": experiment.plan.n_clients,
        "cohort": experiment.plan.cohort_size,
        "engine": asdict(experiment.engine_choice),
        **_summarize_evaluations(history, evaluate_initial_model(experiment)),
        "target_accuracy": target,
        "stopped_by": "rounds" if last.round == scenario.rounds else "target_accuracy",
        **_cost_to_target(history, target),
        "failures": len(failures),
        "first_failure": next(iter(failures), None),
        "timeouts": sum("TimeoutError: " in failure for failure in failures),
        "batch_norm": policy if experiment.plan.buffers is not None and policy in ("mean", "local") else None,
        "buffers": _count_buffers(experiment),
        "uplink_bytes": up.n_bytes,
        "uplink_received_bytes": up.received,
        "downlink_bytes": down.n_bytes,
        "downlink_broadcast_bytes": down.broadcast,
        "dense_uplink_bytes": last.dense_uplink_bytes,
        "dense_downlink_bytes": last.dense_downlink_bytes,
        **last.compression_ratios,
        "states": {**asdict(experiment.state_budget), "folder": folder and str(folder), "text": str(experiment.state_budget)},
        "residuals": residuals.summarize(),
        "uplink": asdict(up),
        "downlink": asdict(down),
        "params_sha256": hashlib.sha256(parameters.astype("<f4").tobytes()).hexdigest(),
        "ledger_sha256": ledger.sha256,
        "seconds": seconds,
        "peak_memory_bytes": measure_peak_memory(),
        "work": compute_profile(experiment),
        "versions": _collect_versions(),
    }
    return json_safe(summary)


def _count_buffers(experiment: Experiment) -> dict[str, int] | None:
    """Return how many numbers beside the model's parameters each message carries ("sent"), and how many numbers of a model stay
    at its client ("local"); None if there are none of either."""
    carried = experiment.plan.buffers
    if carried is None:
        return None
    local = 0 if carried.local is None else len(carried.local)
    return {"sent": carried.n_averaged, "local": local + len(carried.local_parameters)}


def evaluate_initial_model(experiment: Experiment) -> dict[str, float] | None:
    """Evaluate the initial model on the test examples, once the run is over.

    Returns:
        The metrics by name; None where clients' own models are evaluated, or where the user's module, loss or metrics fail.
    """
    evaluator, server = experiment.evaluator, experiment.initial_server_state
    if evaluator.local_model_of is not None:
        return None
    evaluator = replace(evaluator, engine=experiment.engine, held_out=None, train=None)  # workers are gone by now
    try:
        return evaluator(server.public_model.weights, server.buffers)[0]
    except Exception:  # code of the user: the results of a finished run are worth more than this comparison
        return None


def _summarize_evaluations(history: Sequence[RoundRecord], initial_metrics: Mapping[str, float] | None) -> dict[str, Any]:
    """Return accuracy, metrics and divergence of a run. initial: metrics of the initial model, None if not known."""
    last = history[-1]
    evaluations = [(record.round, record.metrics) for record in history if record.metrics is not None]
    norms = [record.residual_norm for record in history if record.residual_norm is not None]
    return {
        "final_accuracy": last.accuracy,
        "best_accuracy": _find_best_accuracy(history),
        "initial_metrics": initial_metrics and json_safe(initial_metrics),
        "final_metrics": json_safe(last.metrics or {}),
        "never_finite_metrics": [
            name for name in last.metrics or () if not any(math.isfinite(metrics[name]) for _, metrics in evaluations)
        ],
        "diverged": detect_divergence(evaluations, norms, initial_metrics),
    }


def _find_best_accuracy(history: Sequence[RoundRecord]) -> float | None:
    """Return the largest finite accuracy, None if there is none."""
    return max((r.accuracy for r in history if r.accuracy is not None and math.isfinite(r.accuracy)), default=None)


def _cost_to_target(history: Sequence[RoundRecord], target: float | None) -> dict[str, float | None]:
    """Rounds and bytes until the target was reached, by the rule of `fedsgd.experiment.time_to_target`; None: it was not, or
    there is none."""
    measured = [(r.round, r.accuracy) for r in history if r.accuracy is not None]
    found = None if target is None else find_first_reached(measured, target)
    axes = {
        "rounds_to_target": range(len(history) + 1),
        "uplink_bytes_to_target": [0, *(r.uplink_bytes for r in history)],
        "downlink_bytes_to_target": [0, *(r.downlink_bytes for r in history)],
    }
    return {name: None if found is None else found.interpolate_on(axis) for name, axis in axes.items()}


def compute_profile(experiment: Experiment) -> dict[str, float | str]:
    """The units of what the ledger has of a run's work, which is what a price of computing and coding rests on.
    flops_per_example: of training on one, forward and backward, and by which rule it was found; copy_seconds: what copying the
    P float32 numbers took on this machine, for which encode_seconds and decode_seconds stand beside them."""
    flops = count_training_flops(experiment.task, experiment.dataset.train)
    copying = memcpy_seconds(experiment.plan.layout.size)
    return {"flops_per_example": flops.per_example, "flops_rule": flops.rule, "copy_seconds": copying}


def json_safe(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not finite as None: JSON knows neither infinities nor NaN."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}


def _collect_versions() -> dict[str, str]:
    """What the digests hold for: the same build on the same processor type."""
    import torch

    return {
        "fedsgd": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def save_clients(path: Path, train: ClientData, held_out: ClientData, accuracy: F64) -> None:
    """Write clients.parquet: accuracy [N] of the final model on each client's own test examples, NaN for none."""
    table = TableWriter(path, CLIENT_COLUMNS)
    sizes = (data.sizes().tolist() for data in (train, held_out))
    known = (value if math.isfinite(value) else None for value in accuracy.tolist())
    for row in zip(range(len(train)), *sizes, known, strict=True):
        table.append(dict(zip(CLIENT_COLUMNS, row, strict=True)))
    table.close()


def build_table_row(record: RoundRecord) -> dict[str, Any]:
    """Return a round as the row of rounds.parquet."""
    row = {name: getattr(record, name, None) for name in ROUND_COLUMNS}
    return {
        **row,
        "clients": len(record.cohort),
        "accepted": len(record.accepted),
        "failures": len(record.failures),
        **(record.metrics or {}),
    }
