"""What is written down of a run: a record a round, and a summary of all of it."""

from __future__ import annotations

import hashlib
import math
import platform
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsgd.arrays import F32, F64
from fedsgd.build import Experiment
from fedsgd.compress import Context
from fedsgd.compress.dense import DenseOperator
from fedsgd.data import ClientData
from fedsgd.divergence import divergence
from fedsgd.engine.flops import training_flops
from fedsgd.ledger import Ledger
from fedsgd.memory import copy_seconds, peak_memory
from fedsgd.parquet import TableWriter
from fedsgd.rounds import Plan, Reply
from fedsgd.run_folder import CLIENT_COLUMNS, ROUND_COLUMNS
from fedsgd.sizes import compression_ratios
from fedsgd.target import crossing
from fedsgd.wire import Frame, Header, Kind, encode_frame


@dataclass(frozen=True)
class Round:
    """One round, finished. lr: the clients' step size, None with a schedule over steps. cohort: who was sent a message;
    accepted: whose reply is in the model; failures: what went wrong at those that broke down. metrics: "loss", the task's own,
    and what `[evaluation]` adds; None where it was not evaluated.

    Bytes are cumulative: of frames that were sent, up and down, to each client by itself; received: of updates that arrived and
    were taken; broadcast: of the downlink, if all who are sent the same frame heard it at once; dense: what as many dense
    float32 frames would weigh. residual_norm: of what a client of the cohort holds back after the round, in the mean;
    rounds_missed: since it last took part, in the mean over those that had before; None where there is nothing of the kind.
    """

    round: int
    lr: float | None
    cohort: tuple[int, ...]
    accepted: tuple[int, ...]
    uplink_bytes: int
    uplink_received_bytes: int
    downlink_bytes: int
    downlink_broadcast_bytes: int
    dense_uplink_bytes: int
    dense_downlink_bytes: int
    residual_norm: float | None
    rounds_missed: float | None
    metrics: Mapping[str, float] | None
    seconds: float
    failures: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the test examples after this round, if it was measured."""
        return None if self.metrics is None else self.metrics.get("accuracy")

    @property
    def compression_ratios(self) -> dict[str, float | None]:
        """Compression ratios of the bytes so far: of the uplink, of the downlink, and of both directions together."""
        return compression_ratios(self.uplink_bytes, self.downlink_bytes, self.dense_uplink_bytes, self.dense_downlink_bytes)


@dataclass
class Residuals:
    """What clients hold back, and how stale it gets. norms: of each client's, after its last reply; missed: the rounds that
    clients missed between two in which they took part, all of them."""

    norms: dict[int, float] = field(default_factory=dict)
    missed: list[int] = field(default_factory=list)

    def add(self, replies: Sequence[Reply], accepted: Collection[int]) -> tuple[float | None, float | None]:
        """(mean norm, mean rounds missed) of a round's replies; None where there is none. accepted: whose were."""
        taken = set(accepted)
        held = {reply.client: reply.withheld if reply.client in taken else reply.withheld_if_lost for reply in replies}
        norms = {client: norm for client, norm in held.items() if not math.isnan(norm)}
        missed = [reply.missed for reply in replies if reply.missed >= 0]
        self.norms.update(norms)
        self.missed += missed
        return _mean(list(norms.values())), _mean(missed)

    def report(self) -> dict[str, float | int | None] | None:
        """Figures over all clients that hold anything back; None if there are none."""
        if not self.norms:
            return None
        norms = list(self.norms.values())
        return {
            "clients": len(norms),
            "norm_median": statistics.median(norms),
            "norm_max": max(norms),
            "rounds_missed_median": statistics.median(self.missed) if self.missed else None,
            "rounds_missed_max": max(self.missed, default=None),
        }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def dense_frame_bytes(plan: Plan) -> int:
    """The length of a frame, up or down, that carries every coordinate as float32, by encoding one: the base of all ratios."""
    zeros = np.zeros(plan.layout.size, dtype=np.float32)
    sections, _ = DenseOperator().encode(zeros, Context(plan.seed, 1, 0, plan.layout))
    return len(encode_frame(Frame(Header(Kind.UPDATE, 1, DenseOperator.codec), sections)))


def summarised(
    experiment: Experiment, history: Sequence[Round], ledger: Ledger, residuals: Residuals, parameters: F32, seconds: float
) -> dict[str, Any]:
    """The figures of a finished run, as summary.json has them. parameters: the server's final model [P]."""
    scenario, last = experiment.scenario, history[-1]
    policy = scenario.model.batch_norm
    target = experiment.target_accuracy
    failures = [failure for record in history for failure in record.failures]
    up, down, folder = ledger.totals["up"], ledger.totals["down"], experiment.states.folder
    summary = {
        "name": scenario.name,
        "seed": scenario.seed,
        "rounds": last.round,
        "parameters": experiment.plan.layout.size,
        "clients": experiment.plan.clients,
        "cohort": experiment.plan.cohort,
        "engine": asdict(experiment.chosen),
        **_measured(history, initial_metrics(experiment)),
        "target_accuracy": target,
        "stopped_by": "rounds" if last.round == scenario.rounds else "target_accuracy",
        **_to_target(history, target),
        "failures": len(failures),
        "first_failure": next(iter(failures), None),
        "timeouts": sum("TimeoutError: " in failure for failure in failures),
        "batch_norm": policy if experiment.plan.buffers is not None and policy in ("mean", "local") else None,
        "buffers": _buffers(experiment),
        "uplink_bytes": up.n_bytes,
        "uplink_received_bytes": up.received,
        "downlink_bytes": down.n_bytes,
        "downlink_broadcast_bytes": down.broadcast,
        "dense_uplink_bytes": last.dense_uplink_bytes,
        "dense_downlink_bytes": last.dense_downlink_bytes,
        **last.compression_ratios,
        "states": {**asdict(experiment.states), "folder": folder and str(folder), "text": str(experiment.states)},
        "residuals": residuals.report(),
        "uplink": asdict(up),
        "downlink": asdict(down),
        "params_sha256": hashlib.sha256(parameters.astype("<f4").tobytes()).hexdigest(),
        "ledger_sha256": ledger.sha256,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
        "work": work_of(experiment),
        "versions": _versions(),
    }
    return _nulled(summary)


def _buffers(experiment: Experiment) -> dict[str, int] | None:
    """Return how many numbers beside the model's parameters each message carries ("sent"), and how many numbers of a model stay
    at its client ("local"); None if there are none of either."""
    carried = experiment.plan.buffers
    if carried is None:
        return None
    local = 0 if carried.local is None else len(carried.local)
    return {"sent": carried.n_sent, "local": local + len(carried.parameters)}


def initial_metrics(experiment: Experiment) -> dict[str, float] | None:
    """Evaluate the initial model on the test examples, once the run is over.

    Returns:
        The metrics by name; None where clients' own models are evaluated, or where the user's module, loss or metrics fail.
    """
    evaluator, server = experiment.evaluator, experiment.server
    if evaluator.own is not None:
        return None
    evaluator = replace(evaluator, engine=experiment.engine, held_out=None, train=None)  # workers are gone by now
    try:
        return evaluator(server.public.model, server.statistics)[0]
    except Exception:  # code of the user: the results of a finished run are worth more than this comparison
        return None


def _measured(history: Sequence[Round], initial: Mapping[str, float] | None) -> dict[str, Any]:
    """Return accuracy, metrics and divergence of a run. initial: metrics of the initial model, None if not known."""
    last = history[-1]
    evaluations = [(record.round, record.metrics) for record in history if record.metrics is not None]
    norms = [record.residual_norm for record in history if record.residual_norm is not None]
    return {
        "final_accuracy": last.accuracy,
        "best_accuracy": _best_accuracy(history),
        "initial_metrics": initial and _nulled(initial),
        "final_metrics": _nulled(last.metrics or {}),
        "never_finite_metrics": [
            name for name in last.metrics or () if not any(math.isfinite(metrics[name]) for _, metrics in evaluations)
        ],
        "diverged": divergence(evaluations, norms, initial),
    }


def _best_accuracy(history: Sequence[Round]) -> float | None:
    """Return the largest finite accuracy, None if there is none."""
    return max((r.accuracy for r in history if r.accuracy is not None and math.isfinite(r.accuracy)), default=None)


def _to_target(history: Sequence[Round], target: float | None) -> dict[str, float | None]:
    """Rounds and bytes until the target was reached, by the rule of `fedsgd.target`; None: it was not, or there is none."""
    measured = [(r.round, r.accuracy) for r in history if r.accuracy is not None]
    found = None if target is None else crossing(measured, target)
    axes = {
        "rounds_to_target": range(len(history) + 1),
        "uplink_bytes_to_target": [0, *(r.uplink_bytes for r in history)],
        "downlink_bytes_to_target": [0, *(r.downlink_bytes for r in history)],
    }
    return {name: None if found is None else found.on(axis) for name, axis in axes.items()}


def work_of(experiment: Experiment) -> dict[str, float | str]:
    """The units of what the ledger has of a run's work, which is what a price of computing and coding rests on.
    flops_per_example: of training on one, forward and backward, and by which rule it was found; copy_seconds: what copying the
    P float32 numbers took on this machine, for which encode_seconds and decode_seconds stand beside them."""
    flops = training_flops(experiment.task, experiment.dataset.train)
    copying = copy_seconds(experiment.plan.layout.size)
    return {"flops_per_example": flops.per_example, "flops_rule": flops.rule, "copy_seconds": copying}


def _nulled(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not finite as None: JSON knows neither infinities nor NaN."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}


def _versions() -> dict[str, str]:
    """What the digests hold for: the same build on the same processor type."""
    import torch

    from fedsgd import __version__

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


def table_row(record: Round) -> dict[str, Any]:
    """Return a round as the row of rounds.parquet."""
    row = {name: getattr(record, name, None) for name in ROUND_COLUMNS}
    return {
        **row,
        "clients": len(record.cohort),
        "accepted": len(record.accepted),
        "failures": len(record.failures),
        **(record.metrics or {}),
    }
