"""Running an experiment: rounds, evaluation, stopping, the ledger, and the run folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsgd.data import Dataset
from fedsgd.errors import ModelWarning, OutputError, RunError, ScenarioError, ScenarioWarning, warn_once
from fedsgd.experiment.builder import Experiment, build_experiment, with_worker_pool
from fedsgd.experiment.final_model import FinalModel, build_final_model
from fedsgd.experiment.ledger import Ledger
from fedsgd.experiment.state_budget import StateBudget
from fedsgd.experiment.summary import build_summary, build_table_row, dense_frame_bytes, save_clients
from fedsgd.federation import ServerState
from fedsgd.federation.round_loop import Runtime, as_run_error
from fedsgd.federation.round_loop import run_rounds as run_rounds
from fedsgd.federation.round_record import ResidualStatistics, RoundRecord
from fedsgd.models import Loss, Metric
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.scenario.scenario import Scenario, open_scenario
from fedsgd.storage.parquet import TableWriter
from fedsgd.storage.run_directory import ROUND_COLUMNS, clear_run_directory, write_all, write_atomically
from fedsgd.system.forkserver import preload_workers
from fedsgd.system.profiling import PhaseTimer, RoundProfile, profiling_into, timed
from fedsgd.system.torch_determinism import isolate_global_state, use_caller_state
from fedsgd.system.user_files import check_paths, expand_user_path
from fedsgd.trackers import RunFinished, RunStarted, Tracker, TrackerGroup, check_callbacks
from fedsgd.training import explain_restart
from fedsgd.training.selection import EngineChoice

if TYPE_CHECKING:
    from torch import Tensor, nn

RuntimeFactory = Callable[[Experiment], Runtime]


@dataclass(frozen=True, eq=False)
class Result:
    """A finished run. parameters: the server's final model, flat float32 [P], in the order of `layout`; client_accuracy: of
    that model on each client's own test examples [N], NaN for a client without any, None if it was not asked for; summary: as
    in summary.json (its peak_memory_bytes is that of this process, the server's where there are workers, None where the system
    does not say); out: the run folder, if there is one; state_dict: complete, of the model that was evaluated last, for
    `module.load_state_dict(..., strict=True)`; what clients keep for themselves is in it as it was made."""

    scenario: Scenario
    history: list[RoundRecord]
    ledger: Ledger
    parameters: F32
    layout: ParameterLayout
    client_accuracy: F64 | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None
    state_dict: Mapping[str, Tensor] = field(default_factory=dict)


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
    on_engine: Callable[[EngineChoice], None] | None = None,
    on_state_budget: Callable[[StateBudget], None] | None = None,
    on_round: Callable[[RoundRecord], None] | None = None,
    trackers: Sequence[Tracker] = (),
    workers: int = 1,
    profile: bool = False,
    runtime_factory: RuntimeFactory | None = None,
) -> Result:
    """Run a scenario (or the file that holds one) to its end.

    out: the run folder to write, which must be new or empty unless `overwrite`; None writes nothing. data: the folder of the
    data files, by default what FEDSGD_DATA names. dataset, module, loss, metrics: Python objects in place of what the scenario
    names; scenario.toml has them as `module:name` where they can be imported, else as markers that a rerun refuses without
    them. on_engine: called with the engine that was chosen, on_states: with where what clients remember will be, before the
    first round; on_round: after each round. trackers: told of the beginning, of each round and of the end, whatever it is; one
    that raises is reported by a TrackerWarning, and the run goes on without it. workers: processes that clients train in, one
    thread each; results do not depend on it. With several, a script must start its run under `if __name__ == "__main__":`.
    profile: whether the summary says where the time of a round went. carried_by: gives, for the built experiment, the runtime
    that reaches its clients, in place of this process or workers; then what clients remember is where they are.

    Settings that a component is not made for are issued as ScenarioWarning, and stand in the summary as "warnings".
    """
    preload_workers(workers)
    given = {"dataset": dataset, "module": module, "loss": loss, "metrics": metrics}
    calls = on_engine, on_state_budget, on_round
    with isolate_global_state():
        return _execute(scenario, out, overwrite, data, given, calls, trackers, workers, profile, runtime_factory)


def _execute(
    scenario: Scenario | str | Path,
    out: str | Path | None,
    overwrite: bool,
    data: str | Path | None,
    python_objects: Mapping[str, Any],
    callbacks: tuple[
        Callable[[EngineChoice], None] | None, Callable[[StateBudget], None] | None, Callable[[RoundRecord], None] | None
    ],
    trackers: Sequence[Tracker],
    workers: int,
    profile: bool,
    runtime_factory: RuntimeFactory | None,
) -> Result:
    """Run a scenario with torch as in a fresh process; arguments as those of `run_rounds`, grouped."""
    where, scenario = open_scenario(scenario)
    check_paths(out=out, data=data)
    check_callbacks(trackers, dict(zip(("on_engine", "on_states", "on_round"), callbacks, strict=True)))
    begun = time.perf_counter()
    with where:
        experiment = build_experiment(
            scenario, data or os.environ.get("FEDSGD_DATA") or None, **python_objects, share_data=workers > 1
        )
    scenario = experiment.scenario
    _notify_start(experiment, *callbacks[:2])
    account = RoundProfile() if profile else None
    with TrackerGroup(trackers) as followed, ExitStack() as files:
        with (
            profiling_into(None if account is None else account.profile),
            _with_runtime(experiment, workers, profile, runtime_factory) as experiment,
        ):
            folder, ledger, rounds = files.enter_context(_open_outputs(experiment, out, overwrite))
            with use_caller_state():
                followed.begin(RunStarted(scenario, folder))
            residuals = ResidualStatistics()
            history, server, accuracy = _record_rounds(
                experiment, ledger, rounds, residuals, (callbacks[2], followed.round), account
            )
            model = build_final_model(experiment, server)
        summary = build_summary(experiment, history, ledger, residuals, server.weights, time.perf_counter() - begun)
        summary |= _call_metadata(workers, account, python_objects)
        summary |= {"reported_model": model.reported_file, "warnings": [*experiment.warnings]}
        layout, state = experiment.plan.layout, model.evaluated_model or model.server_model
        result = Result(scenario, history, ledger, server.weights, layout, accuracy, summary, folder, state)
        _save(result, experiment, model, rounds)
        with use_caller_state():
            followed.end(RunFinished(summary))
    return result


def _with_runtime(
    experiment: Experiment, workers: int, profile: bool, runtime_factory: RuntimeFactory | None
) -> AbstractContextManager[Experiment]:
    """The experiment with its clients where they are."""
    if runtime_factory is None:
        return with_worker_pool(experiment, workers, profile)
    if experiment.evaluator.local_model_of is not None:
        key = "batch_norm" if experiment.scenario.model.batch_norm == "local" else "buffers"
        raise ScenarioError(f'model.{key}: got "local", but a client\'s own model is nowhere but at that client')
    return nullcontext(
        replace(
            experiment, runtime=runtime_factory(experiment), state_budget=replace(experiment.state_budget, location="nodes")
        )
    )


def _notify_start(
    experiment: Experiment,
    on_engine: Callable[[EngineChoice], None] | None,
    on_state_budget: Callable[[StateBudget], None] | None,
) -> None:
    with use_caller_state():
        if on_engine is not None:
            on_engine(experiment.engine_choice)
        elif experiment.task.reset_attribute is not None:
            warn_once(explain_restart(experiment.task.reset_attribute), ModelWarning, stacklevel=4)
        for text in experiment.warnings:
            warn_once(text, ScenarioWarning, stacklevel=4)
        if on_state_budget is not None:
            on_state_budget(experiment.state_budget)


def _call_metadata(workers: int, round_profile: RoundProfile | None, python_objects: Mapping[str, object]) -> dict[str, Any]:
    """What the summary says of how `run_rounds` was called, and of what no scenario names."""
    profile = {} if round_profile is None else {"profile": round_profile.average_per_round()}
    return {
        "workers": workers,
        **profile,
        "given_in_python": [name for name, value in python_objects.items() if value is not None],
    }


def _save(result: Result, experiment: Experiment, model: FinalModel, rounds_table: TableWriter) -> None:
    """Write the files of a finished run: first the parameters and the summary, which only a new run could give again.

    The tables come last: their rows are in segments already, and merging them needs as much room again.
    """
    folder = result.out
    if folder is None:
        return
    summary = json.dumps(result.summary, indent=2, allow_nan=False).encode() + b"\n"
    steps: dict[str, Callable[[], None]] = {
        **model.make_file_writers(folder),
        "summary.json": lambda: write_atomically(folder / "summary.json", summary),
    }
    accuracy, held_out = result.client_accuracy, experiment.held_out
    if accuracy is not None and held_out is not None:
        path = folder / "clients.parquet"
        steps["clients.parquet"] = lambda: save_clients(path, experiment.train, held_out, accuracy)
    write_all(folder, {**steps, "ledger.parquet": result.ledger.close, "rounds.parquet": rounds_table.close})


@contextmanager
def _open_outputs(
    experiment: Experiment, out: str | Path | None, overwrite: bool
) -> Iterator[tuple[Path | None, Ledger, TableWriter]]:
    """Yield (the run folder, the ledger, the table of rounds).

    `_save` finishes the tables of a run that succeeds. If the run fails they are finished here; an error of finishing them is
    added to the run's own as a note. Where the files themselves are the problem the segments stay as they are.
    """
    folder = None if out is None else clear_run_directory(expand_user_path(out), overwrite)
    if folder is not None:
        write_atomically(folder / "scenario.toml", experiment.scenario.to_toml().encode())
    columns = {**ROUND_COLUMNS, **dict.fromkeys(experiment.evaluator.metric_names, float)}
    ledger = Ledger(folder and folder / "ledger.parquet")
    rounds = TableWriter(folder and folder / "rounds.parquet", columns)
    try:
        yield folder, ledger, rounds
    except OutputError:
        raise
    except BaseException as error:
        for table in (ledger, rounds):
            try:
                table.close()
            except OutputError as problem:
                error.add_note(str(problem))
        raise


def _record_rounds(
    experiment: Experiment,
    ledger: Ledger,
    rounds_table: TableWriter,
    residuals: ResidualStatistics,
    round_callbacks: Sequence[Callable[[RoundRecord], None] | None],
    round_profile: RoundProfile | None,
) -> tuple[list[RoundRecord], ServerState, F64 | None]:
    """(all rounds, the server after them, accuracy by client if it was measured)."""
    history: list[RoundRecord] = []
    for server, record, accuracy in _iterate_rounds(experiment, ledger, residuals):
        last = server, accuracy
        history.append(record)
        with PhaseTimer("ledger"):
            rounds_table.append(build_table_row(record))
            if not _is_last(experiment.scenario, record) and ledger.flush():  # after the last one the parameters come first
                rounds_table.flush(force=True)
            with use_caller_state():
                for call in round_callbacks:
                    if call is not None:
                        call(record)
        if round_profile is not None:
            round_profile.record_round(experiment.worker_phase_seconds)
    return history, *last


def _iterate_rounds(
    experiment: Experiment, ledger: Ledger, residuals: ResidualStatistics
) -> Iterator[tuple[ServerState, RoundRecord, F64 | None]]:
    """(the server, the round, accuracy by client if it was measured) until the last round, or the accuracy that `[stop]` asks
    for."""
    scenario, plan = experiment.scenario, experiment.plan
    dense, sent, asked = dense_frame_bytes(plan), 0, 0
    begun = time.perf_counter()
    on_failure = scenario.participation.on_failure
    rounds = run_rounds(
        plan, experiment.initial_server_state, experiment.runtime, experiment.participation, ledger, on_failure=on_failure
    )
    for server, attended in rounds:
        done = server.round - 1
        last = done == scenario.rounds
        metrics, accuracy = None, None
        if last or done % scenario.evaluation.every == 0:
            metrics, accuracy = _evaluate(experiment, server)
        up, down = ledger.totals["up"], ledger.totals["down"]
        seconds = time.perf_counter() - begun
        client = plan.local_training.optimizer
        lr = client.learning_rate(done) if client.schedule_over == "rounds" else None
        sent, asked = sent + len(attended.replies), asked + len(attended.cohort)
        held_back, missed = residuals.add(attended.replies, attended.accepted)
        record = RoundRecord(
            round=done,
            lr=lr,
            cohort=attended.cohort,
            accepted=attended.accepted,
            uplink_bytes=up.n_bytes,
            uplink_received_bytes=up.received,
            downlink_bytes=down.n_bytes,
            downlink_broadcast_bytes=down.broadcast,
            dense_uplink_bytes=dense * sent,
            dense_downlink_bytes=dense * asked,
            residual_norm=held_back,
            rounds_missed=missed,
            metrics=metrics,
            seconds=seconds,
            failures=tuple(str(as_run_error(done, failure)) for failure in attended.failures),
        )
        begun = time.perf_counter()
        yield server, record, accuracy
        if _is_last(scenario, record):
            return


def _is_last(scenario: Scenario, record: RoundRecord) -> bool:
    """Return whether a run ends with this round: all rounds are done, or `[stop] target_accuracy` is reached."""
    stop = scenario.stop.target_accuracy
    reached = stop is not None and record.accuracy is not None and record.accuracy >= stop
    return record.round == scenario.rounds or reached


@timed("evaluate")
def _evaluate(experiment: Experiment, server: ServerState) -> tuple[Mapping[str, float], F64 | None]:
    """The metrics, and accuracy by client, of the model that the clients of the coming round decode."""
    try:
        return experiment.evaluator(server.public_model.weights, server.buffers)
    except Exception as error:  # the user's module, loss or metrics
        raise RunError(server.round - 1, None, f"evaluation: {type(error).__name__}: {error}") from error
