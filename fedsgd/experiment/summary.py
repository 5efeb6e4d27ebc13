"""Summary of a run: the figures of summary.json, the rows of rounds.parquet and clients.parquet.

Keys of summary.json. A dot separates the key of a table from its parent. null stands for numbers that are not finite, too.

| key | type | meaning |
|---|---|---|
| name, seed | str, int | name and seed of the scenario |
| rounds | int | rounds that were run |
| parameters | int | P, parameters that are sent |
| clients, cohort | int | registered clients, and clients that a round samples |
| hostile | table | `clients`: number of hostile clients; `kind` and `factor`: their attack; null without any |
| engine | table | `name`, `update` and `stack` of the engine that trained, and the `reason` for it |
| final_accuracy | float | accuracy after the last round; null if it was not measured |
| best_accuracy | float | largest accuracy of all rounds |
| initial_metrics | table | metrics of the model before round 1, by name; null if they cannot be computed |
| final_metrics | table | metrics after the last round, by name |
| never_finite_metrics | list | metrics without a finite value in any round |
| diverged | str | reason for which the run counts as diverged; null if it does not |
| set_metrics | list | names of the metrics of a whole set |
| target_accuracy | float | target of the accuracy; null without one |
| target | str | target of any metric, such as "loss<0.3"; null without one |
| best | table | `value`: best finite value of the target's `metric` in its `direction` |
| stopped_by | str | "rounds", or the key of `[stop]` that ended the run |
| rounds_to_target | float | rounds to the target, interpolated (McMahan et al. 2017); null if it was not reached |
| uplink_bytes_to_target | float | uplink bytes to the target, in the same way |
| downlink_bytes_to_target | float | downlink bytes to the target, in the same way |
| failures, timeouts | int | clients that failed over all rounds, and how many of them by a timeout |
| first_failure | str | error of the first client that failed; null without one |
| diverged_clients | int | clients over all rounds that were skipped because their update was not finite |
| dropped_stragglers | int | stragglers over all rounds that sent no update |
| batch_norm | str | policy of batch norm, "mean" or "local"; null if no buffers follow one |
| buffers | table | numbers of buffer entries: `sent` in a message, `local` to each client; null without buffers |
| uplink_bytes | int | bytes of all frames that clients sent |
| uplink_received_bytes | int | bytes of the UPDATE frames that were aggregated |
| downlink_bytes | int | bytes of all frames that the server sent, a shared frame once for each client |
| downlink_broadcast_bytes | int | the same over a broadcast channel, a shared frame once |
| dense_uplink_bytes | int | bytes of a dense float32 frame for each reply |
| dense_downlink_bytes | int | bytes of a dense float32 frame for each message |
| uplink_ratio | float | dense_uplink_bytes / uplink_bytes |
| downlink_ratio | float | dense_downlink_bytes / downlink_bytes |
| bidirectional_ratio | float | dense bytes of both directions / bytes of both directions |
| states.clients, states.seen | int | registered clients, and the maximum number of them that take part |
| states.bytes_per_client | int | bytes of the stored state of a client |
| states.models | int | bytes of the models that clients hold |
| states.place | str | "memory", "disk" or "nodes" |
| states.budget | int | bytes of memory that states and models may use |
| states.folder | str | folder of the states on disk; null for states in memory |
| states.text | str | the same in one line, as it is printed |
| residuals.clients | int | clients with a residual; `residuals` is null without any |
| residuals.norm_median, residuals.norm_max | float | Euclidean norm of their residuals |
| residuals.rounds_missed_median, residuals.rounds_missed_max | float | rounds between two replies of a client |
| uplink.frames, downlink.frames | int | frames of the direction |
| uplink.n_bytes, downlink.n_bytes | int | bytes of these frames: header + index + value + side |
| uplink.received, downlink.received | int | bytes of the frames whose fate is "received" |
| uplink.broadcast, downlink.broadcast | int | bytes over a broadcast channel |
| uplink.header, downlink.header | int | bytes of frame headers, section headers and checksums |
| uplink.index, downlink.index | int | bytes of positions |
| uplink.value, downlink.value | int | bytes of values |
| uplink.side, downlink.side | int | bytes of scales and all other sections |
| uplink.kept, downlink.kept | int | coordinates in these frames |
| params_sha256 | str | SHA-256 of the server's final parameters as little-endian float32 |
| ledger_sha256 | str | SHA-256 of the deterministic columns of the ledger |
| seconds | float | wall-clock seconds of the run, reading the data included |
| peak_memory_bytes | int | peak memory of this process, without workers; null where the system does not report it |
| work.flops_per_example | float | floating-point operations of an example, forward and backward pass |
| work.flops_rule | str | rule by which they were counted |
| work.copy_seconds | float | seconds to copy P float32 numbers on this machine |
| versions | table | versions of `fedsgd`, `python`, `numpy` and `torch`, and the `machine` |
| workers | int | worker processes |
| profile | table | with `--profile`: mean seconds of a round by phase, of "server" and "workers" |
| ranks | int | ranks of torch.distributed that trained the clients; only if a launcher started them |
| machines | int | machines of these ranks |
| given_in_python | list | arguments of `fedsgd.run` that replaced components of the scenario |
| user_code | table | SHA-256 of the user's sources by import path, and by `PATH, imports` of the modules that they import |
| reported_model | str | file of the model that was evaluated |
| warnings | list | settings that do not suit a component, one line each |
| flower | table | of a deployment, from round first_round on: nodes, TLS, seconds of a round, and bytes by direction |
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedsgd.data import ClientData
from fedsgd.experiment.builder import Experiment
from fedsgd.experiment.divergence import detect_divergence
from fedsgd.experiment.evaluation import Evaluator
from fedsgd.experiment.federation import Federation
from fedsgd.experiment.run_identity import collect_versions
from fedsgd.experiment.state_budget import StateBudget
from fedsgd.experiment.time_to_target import find_first_reached
from fedsgd.federation import FederationPlan
from fedsgd.federation.round_record import RoundRecord
from fedsgd.numerics.arrays import F32, F64
from fedsgd.scenario.target import Criterion, Target
from fedsgd.storage.parquet import TableWriter
from fedsgd.storage.run_directory import CLIENT_COLUMNS, ROUND_COLUMNS
from fedsgd.system.compute_device import CPU, name_gpu
from fedsgd.system.machine import measure_peak_memory, memcpy_seconds
from fedsgd.training.flops import count_training_flops
from fedsgd.training.selection import EngineChoice


def build_summary(federation: Federation, history: Sequence[RoundRecord], parameters: F32, seconds: float) -> dict[str, Any]:
    """Return the figures of summary.json, without those that the runner adds.

    `parameters` [P] is the server's final model, and `seconds` is the duration of the run.
    """
    experiment, ledger = federation.experiment, federation.ledger
    scenario, last, target = experiment.scenario, history[-1], experiment.target
    policy = scenario.model.batch_norm
    up, down = ledger.totals["up"], ledger.totals["down"]
    summary = {
        "name": scenario.name,
        "seed": scenario.seed,
        "rounds": last.round,
        "parameters": experiment.plan.layout.size,
        "clients": experiment.plan.n_clients,
        "cohort": experiment.plan.cohort_size,
        "hostile": _summarize_hostile_clients(experiment.plan),
        "engine": _summarize_engine(experiment.engine_choice),
        **_summarize_evaluations(history, evaluate_initial_model(experiment)),
        "set_metrics": [*experiment.task.set_metrics],
        "target_accuracy": None if target is None else target.accuracy,
        "target": None if target is None else str(target),
        "best": _find_best(history, target),
        "stopped_by": "rounds" if last.round == scenario.rounds else scenario.stop.target_key,
        **_cost_to_target(history, target),
        **_summarize_failures(history),
        "batch_norm": policy if experiment.plan.buffers is not None and policy in ("mean", "local") else None,
        "buffers": _count_buffers(experiment),
        "uplink_bytes": up.n_bytes,
        "uplink_received_bytes": up.received,
        "downlink_bytes": down.n_bytes,
        "downlink_broadcast_bytes": down.broadcast,
        "dense_uplink_bytes": last.dense_uplink_bytes,
        "dense_downlink_bytes": last.dense_downlink_bytes,
        **last.compression_ratios,
        "states": _summarize_states(federation.execution.state_budget),
        "residuals": federation.residuals.summarize(),
        "uplink": asdict(up),
        "downlink": asdict(down),
        "params_sha256": hashlib.sha256(parameters.astype("<f4", copy=False).data).hexdigest(),
        "ledger_sha256": ledger.sha256,
        "seconds": seconds,
        "peak_memory_bytes": measure_peak_memory(),
        "work": compute_profile(experiment),
        "versions": collect_versions(),
    }
    return json_safe(summary)


def _summarize_engine(choice: EngineChoice) -> dict[str, Any]:
    """Return the engine of a run; on a GPU with the model of the GPU."""
    gpu = {} if choice.device == CPU else {"gpu": name_gpu(choice.device)}
    return {**asdict(choice), **gpu}


def _summarize_hostile_clients(plan: FederationPlan) -> dict[str, Any] | None:
    """Return the number of hostile clients and their attack, None without any."""
    hostile = plan.hostile
    clients = () if hostile is None else hostile.clients(plan.seed, plan.n_clients)
    return {"clients": len(clients), "kind": hostile.kind, "factor": hostile.effective_factor} if hostile and clients else None


def _summarize_failures(history: Sequence[RoundRecord]) -> dict[str, Any]:
    """Return the number of clients that failed, the first error, and the number of timeouts."""
    failures = [failure for record in history for failure in record.failures]
    return {
        "failures": len(failures),
        "first_failure": next(iter(failures), None),
        "timeouts": sum("TimeoutError: " in failure for failure in failures),
        "diverged_clients": sum(len(record.diverged) for record in history),
        "dropped_stragglers": sum(len(record.dropped) for record in history),
    }


def _summarize_states(budget: StateBudget) -> dict[str, Any]:
    """Return the number, size and location of the client states, under the keys of summary.json."""
    return {
        "clients": budget.clients,
        "seen": budget.max_participants,
        "bytes_per_client": budget.bytes_per_client,
        "models": budget.model_bytes,
        "place": budget.location,
        "budget": budget.budget,
        "folder": None if budget.folder is None else str(budget.folder),
        "text": str(budget),
    }


def _count_buffers(experiment: Experiment) -> dict[str, int] | None:
    """Return the number of buffer entries in a message ("sent") and of buffer and parameter entries of a client ("local")."""
    buffer_plan = experiment.plan.buffers
    if buffer_plan is None:
        return None
    n_local = 0 if buffer_plan.local is None else len(buffer_plan.local)
    return {"sent": buffer_plan.n_averaged, "local": n_local + len(buffer_plan.local_parameters)}


def evaluate_initial_model(experiment: Experiment) -> dict[str, float] | None:
    """Evaluate the initial model after the run; None with local models, or if the user's module, loss or metrics fail."""
    buffer_plan, server = experiment.plan.buffers, experiment.initial_server_state
    if buffer_plan is not None and buffer_plan.has_local_state:
        return None
    evaluation = replace(experiment.evaluation, held_out=None, train=None, validation=None)
    try:
        return Evaluator(evaluation, experiment.engine)(server.public_model.weights, server.buffers)[0]
    except Exception:  # the user's code failed; the results of the finished run must not be lost
        return None


def _summarize_evaluations(history: Sequence[RoundRecord], initial_metrics: Mapping[str, float] | None) -> dict[str, Any]:
    """Return accuracy, metrics and divergence of a run."""
    last = history[-1]
    evaluations = [(record.round, record.metrics) for record in history if record.metrics is not None]
    norms = [record.residual_norm for record in history if record.residual_norm is not None]
    return {
        "final_accuracy": last.accuracy,
        "best_accuracy": Criterion().find_best(r.accuracy for r in history if r.accuracy is not None),
        "initial_metrics": initial_metrics and json_safe(initial_metrics),
        "final_metrics": json_safe(last.metrics or {}),
        "never_finite_metrics": [
            name for name in last.metrics or () if not any(math.isfinite(metrics[name]) for _, metrics in evaluations)
        ],
        "diverged": detect_divergence(evaluations, norms, initial_metrics),
    }


def _find_best(history: Sequence[RoundRecord], target: Target | None) -> dict[str, str | float | None]:
    """Return the best finite value of the target's metric; without a target, of the accuracy or, without accuracy, the loss."""
    all_metrics = [record.metrics for record in history if record.metrics is not None]
    criterion = Criterion.default(all_metrics[-1]) if target is None else target.criterion
    return {**asdict(criterion), "value": criterion.find_best(metrics[criterion.metric] for metrics in all_metrics)}


def _cost_to_target(history: Sequence[RoundRecord], target: Target | None) -> dict[str, float | None]:
    """Return rounds and bytes to the target, by the rule of `time_to_target`; None if the target is unset or not reached."""
    point = None
    if target is not None:
        measurements = [(r.round, r.metrics[target.metric]) for r in history if r.metrics is not None]
        point = find_first_reached(measurements, target)
    axes = {
        "rounds_to_target": range(len(history) + 1),
        "uplink_bytes_to_target": [0, *(r.uplink_bytes for r in history)],
        "downlink_bytes_to_target": [0, *(r.downlink_bytes for r in history)],
    }
    return {name: None if point is None else point.interpolate_on(axis) for name, axis in axes.items()}


def compute_profile(experiment: Experiment) -> dict[str, float | str]:
    """Return the figures from which computing and coding are priced.

    "flops_per_example" counts forward and backward pass, by the rule "flops_rule". "copy_seconds" is the time to copy P float32
    numbers on this machine; the ledger's encode_seconds and decode_seconds are compared with it.
    """
    flops = count_training_flops(experiment.task, experiment.dataset.train)
    return {
        "flops_per_example": flops.per_example,
        "flops_rule": flops.rule,
        "copy_seconds": memcpy_seconds(experiment.plan.layout.size),
    }


def json_safe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with None in place of infinities and NaN, which JSON lacks. Nested values stay unchanged."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}


def save_clients(path: Path, train: ClientData, held_out: ClientData, accuracy: F64) -> None:
    """Write clients.parquet: sizes of the clients' data, and accuracy [N] on their test examples, null if not finite."""
    table = TableWriter(path, CLIENT_COLUMNS)
    sizes = (data.sizes().tolist() for data in (train, held_out))
    accuracies = (value if math.isfinite(value) else None for value in accuracy.tolist())
    for row in zip(range(len(train)), *sizes, accuracies, strict=True):
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
