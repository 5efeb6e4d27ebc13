"""Running an experiment: rounds, evaluation, stopping, the ledger, and the run folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsgd.arrays import F32, F64
from fedsgd.build import Experiment, build, with_workers
from fedsgd.compress import Context
from fedsgd.compress.dense import DenseOperator
from fedsgd.data import ClientData, Dataset
from fedsgd.engine import Chosen
from fedsgd.errors import RunError
from fedsgd.forking import begin
from fedsgd.layout import Layout
from fedsgd.ledger import Ledger
from fedsgd.loop import run as run_rounds
from fedsgd.models import Loss, Metric
from fedsgd.parquet import TableWriter
from fedsgd.profiling import Account, Within, measured, phased
from fedsgd.rounds import Plan, Server, decoded_model
from fedsgd.run_folder import CLIENT_COLUMNS, ROUND_COLUMNS, prepare, save_parameters, write
from fedsgd.scenario import Scenario, in_file, load
from fedsgd.wire import Frame, Header, Kind, encode_frame

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Round:
    """One round, finished. lr: the clients' step size, None with a schedule over steps. Bytes are cumulative. metrics:
    "loss", the task's own, and what `[evaluation]` adds; None where it was not evaluated."""

    round: int
    lr: float | None
    cohort: tuple[int, ...]
    uplink_bytes: int
    downlink_bytes: int
    dense_uplink_bytes: int
    metrics: Mapping[str, float] | None
    seconds: float

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the test examples after this round, if it was measured."""
        return None if self.metrics is None else self.metrics.get("accuracy")


@dataclass(frozen=True, eq=False)
class Result:
    """A finished run. parameters: the server's final model, flat float32 [P], in the order of `layout`; client_accuracy: of
    that model on each client's own test examples [N], NaN for a client without any, None if it was not asked for; summary: as
    in summary.json; out: the run folder, if there is one."""

    scenario: Scenario
    history: list[Round]
    ledger: Ledger
    parameters: F32
    layout: Layout
    client_accuracy: F64 | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None


def run(
    scenario: Scenario | str | Path,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    data: str | Path | None = None,
    dataset: Dataset | None = None,
    module: nn.Module | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    on_engine: Callable[[Chosen], None] | None = None,
    on_round: Callable[[Round], None] | None = None,
    workers: int = 1,
    profile: bool = False,
) -> Result:
    """Run a scenario (or the file that holds one) to its end.

    out: the run folder to write, which must be new or empty unless `overwrite`; None writes nothing. data: the folder of the
    data files, by default what FEDSGD_DATA names. dataset, module, loss, metrics: Python objects in place of what the scenario
    names. on_engine: called with the engine that was chosen, before the first round; on_round: after each round. workers:
    processes that clients train in, one thread each; results do not depend on it. With several, a script must start its run
    under `if __name__ == "__main__":`. profile: whether the summary says where the time of a round went.
    """
    begin(workers)
    where: AbstractContextManager[None] = nullcontext()
    if not isinstance(scenario, Scenario):
        where, scenario = in_file(Path(scenario)), load(scenario)
    begun = time.perf_counter()
    given = {"dataset": dataset, "module": module, "loss": loss, "metrics": metrics}
    with where:
        folder_of_data = data or os.environ.get("FEDSGD_DATA") or None
        experiment = build(scenario, folder_of_data, dataset, module, loss, metrics, share=workers > 1)
    scenario = experiment.scenario
    if on_engine is not None:
        on_engine(experiment.chosen)
    account = Account() if profile else None
    with (
        measured(None if account is None else account.profile),
        with_workers(experiment, workers, profile) as experiment,
        _recording(experiment, out, overwrite) as (folder, ledger, rounds),
    ):
        history, server, accuracy = _run(experiment, ledger, rounds, on_round, account)
    summary = _summary(experiment, history, ledger, server.weights, time.perf_counter() - begun)
    summary["workers"] = workers
    if account is not None:
        summary["profile"] = account.per_round()
    summary["given_in_python"] = [name for name, value in given.items() if value is not None]
    result = Result(scenario, history, ledger, server.weights, experiment.plan.layout, accuracy, summary, folder)
    if folder is not None:
        _save(folder, result, experiment)
    return result


def _save(folder: Path, result: Result, experiment: Experiment) -> None:
    """What is known when a run is over."""
    if result.client_accuracy is not None and experiment.held_out is not None:
        _save_clients(folder / "clients.parquet", experiment.train, experiment.held_out, result.client_accuracy)
    save_parameters(folder / "params.safetensors", result.layout, result.parameters)
    write(folder / "summary.json", json.dumps(result.summary, indent=2, allow_nan=False).encode() + b"\n")


@contextmanager
def _recording(
    experiment: Experiment, out: str | Path | None, overwrite: bool
) -> Iterator[tuple[Path | None, Ledger, TableWriter]]:
    """(the run folder, the ledger, the table of rounds); files are finished however the run ends, short of a kill."""
    folder = None if out is None else prepare(Path(out), overwrite)
    if folder is not None:
        write(folder / "scenario.toml", experiment.scenario.to_toml().encode())
    columns = {**ROUND_COLUMNS, **dict.fromkeys(experiment.evaluator.names, float)}
    ledger = Ledger(folder and folder / "ledger.parquet")
    rounds = TableWriter(folder and folder / "rounds.parquet", columns)
    try:
        yield folder, ledger, rounds
    finally:
        ledger.close()
        rounds.close()


def _run(
    experiment: Experiment,
    ledger: Ledger,
    rounds: TableWriter,
    on_round: Callable[[Round], None] | None,
    account: Account | None,
) -> tuple[list[Round], Server, F64 | None]:
    """(all rounds, the server after them, accuracy by client if it was measured)."""
    history: list[Round] = []
    for server, record, accuracy in _simulate(experiment, ledger):
        last = server, accuracy
        history.append(record)
        with Within("ledger"):
            rounds.append(_row(record))
            if ledger.flush():
                rounds.flush(force=True)
            if on_round is not None:
                on_round(record)
        if account is not None:
            account.after_round(experiment.spent)
    return history, *last


def _row(record: Round) -> dict[str, Any]:
    row = {name: getattr(record, name, None) for name in ROUND_COLUMNS}
    return {**row, "clients": len(record.cohort), **(record.metrics or {})}


def _simulate(experiment: Experiment, ledger: Ledger) -> Iterator[tuple[Server, Round, F64 | None]]:
    """(the server, the round, accuracy by client if it was measured) until the last round, or the accuracy that `[stop]` asks
    for."""
    scenario, plan = experiment.scenario, experiment.plan
    dense = _dense_update_bytes(plan)
    begun = time.perf_counter()
    for server, cohort in run_rounds(plan, experiment.server, experiment.runtime, ledger):
        done = server.round - 1
        last = done == scenario.rounds
        metrics, accuracy = None, None
        if last or done % scenario.evaluation.every == 0:
            metrics, accuracy = _evaluate(experiment, server)
        up, down = ledger.totals["up"], ledger.totals["down"]
        seconds = time.perf_counter() - begun
        client = plan.recipe.optimizer
        lr = client.rate(done) if client.schedule_over == "rounds" else None
        record = Round(done, lr, tuple(cohort), up.n_bytes, down.n_bytes, dense * up.frames, metrics, seconds)
        begun = time.perf_counter()
        yield server, record, accuracy
        stop = scenario.stop.target_accuracy
        if last or (stop is not None and record.accuracy is not None and record.accuracy >= stop):
            return


@phased("evaluate")
def _evaluate(experiment: Experiment, server: Server) -> tuple[Mapping[str, float], F64 | None]:
    """The metrics, and accuracy by client, of the model that the clients of the coming round decode."""
    try:
        return experiment.evaluator(decoded_model(experiment.plan, server))
    except Exception as error:  # the user's module, loss or metrics
        raise RunError(server.round - 1, None, f"evaluation: {type(error).__name__}: {error}") from error


def _save_clients(path: Path, train: ClientData, held_out: ClientData, accuracy: F64) -> None:
    table = TableWriter(path, CLIENT_COLUMNS)
    sizes = (data.sizes().tolist() for data in (train, held_out))
    known = (value if math.isfinite(value) else None for value in accuracy.tolist())
    for row in zip(range(len(train)), *sizes, known, strict=True):
        table.append(dict(zip(CLIENT_COLUMNS, row, strict=True)))
    table.close()


def _dense_update_bytes(plan: Plan) -> int:
    """The length of an UPDATE frame that carries every coordinate as float32, by encoding one: the base of all ratios."""
    zeros = np.zeros(plan.layout.size, dtype=np.float32)
    sections, _ = DenseOperator().encode(zeros, Context(plan.seed, 1, 0, plan.layout))
    return len(encode_frame(Frame(Header(Kind.UPDATE, 1, DenseOperator.codec), sections)))


def _summary(experiment: Experiment, history: list[Round], ledger: Ledger, parameters: F32, seconds: float) -> dict[str, Any]:
    scenario, last = experiment.scenario, history[-1]
    reached = [(r.round, r.accuracy) for r in history if r.accuracy is not None]
    target = experiment.target_accuracy
    up, down = ledger.totals["up"], ledger.totals["down"]
    summary = {
        "name": scenario.name,
        "seed": scenario.seed,
        "rounds": last.round,
        "parameters": experiment.plan.layout.size,
        "clients": experiment.plan.clients,
        "cohort": experiment.plan.cohort,
        "engine": asdict(experiment.chosen),
        "final_accuracy": last.accuracy,
        "best_accuracy": max((accuracy for _, accuracy in reached), default=None),
        "final_metrics": _nulled(last.metrics or {}),
        "target_accuracy": target,
        "stopped_by": "rounds" if last.round == scenario.rounds else "target_accuracy",
        "rounds_to_target": next((r for r, accuracy in reached if target is not None and accuracy >= target), None),
        "uplink_bytes": up.n_bytes,
        "downlink_bytes": down.n_bytes,
        "dense_uplink_bytes": last.dense_uplink_bytes,
        "uplink_ratio": last.dense_uplink_bytes / up.n_bytes,
        "uplink": asdict(up),
        "downlink": asdict(down),
        "params_sha256": hashlib.sha256(parameters.astype("<f4").tobytes()).hexdigest(),
        "ledger_sha256": ledger.sha256,
        "seconds": seconds,
        "versions": _versions(),
    }
    return _nulled(summary)


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
