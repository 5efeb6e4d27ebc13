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

from fedsgd.arrays import F32, F64
from fedsgd.build import Experiment, build, with_workers
from fedsgd.data import Dataset
from fedsgd.engine import Chosen, explain_restart
from fedsgd.errors import ModelWarning, OutputError, RunError, ScenarioError, ScenarioWarning, warn_once
from fedsgd.final_model import FinalModel, final_model
from fedsgd.forking import begin
from fedsgd.layout import Layout
from fedsgd.ledger import Ledger
from fedsgd.loop import Runtime, as_error
from fedsgd.loop import run as run_rounds
from fedsgd.models import Loss, Metric
from fedsgd.parquet import TableWriter
from fedsgd.profiling import Account, Within, measured, phased
from fedsgd.record import Residuals, Round, dense_frame_bytes, save_clients, summarised, table_row
from fedsgd.rounds import Server
from fedsgd.run_folder import ROUND_COLUMNS, prepare, write, write_all
from fedsgd.scenario import Scenario, open_scenario
from fedsgd.state_plan import StatePlan
from fedsgd.track import Begun, Ended, Followed, Tracker, check_calls
from fedsgd.user_files import check_paths, user_path

if TYPE_CHECKING:
    from torch import Tensor, nn

CarriedBy = Callable[[Experiment], Runtime]


@dataclass(frozen=True, eq=False)
class Result:
    """A finished run. parameters: the server's final model, flat float32 [P], in the order of `layout`; client_accuracy: of
    that model on each client's own test examples [N], NaN for a client without any, None if it was not asked for; summary: as
    in summary.json (its peak_memory_bytes is that of this process, the server's where there are workers, None where the system
    does not say); out: the run folder, if there is one; state_dict: complete, of the model that was evaluated last, for
    `module.load_state_dict(..., strict=True)`; what clients keep for themselves is in it as it was made."""

    scenario: Scenario
    history: list[Round]
    ledger: Ledger
    parameters: F32
    layout: Layout
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
    on_engine: Callable[[Chosen], None] | None = None,
    on_states: Callable[[StatePlan], None] | None = None,
    on_round: Callable[[Round], None] | None = None,
    trackers: Sequence[Tracker] = (),
    workers: int = 1,
    profile: bool = False,
    carried_by: CarriedBy | None = None,
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
    begin(workers)
    from fedsgd.torch_scope import isolated

    given = {"dataset": dataset, "module": module, "loss": loss, "metrics": metrics}
    calls = on_engine, on_states, on_round
    with isolated():
        return _execute(scenario, out, overwrite, data, given, calls, trackers, workers, profile, carried_by)


def _execute(
    scenario: Scenario | str | Path,
    out: str | Path | None,
    overwrite: bool,
    data: str | Path | None,
    given: Mapping[str, Any],
    calls: tuple[Callable[[Chosen], None] | None, Callable[[StatePlan], None] | None, Callable[[Round], None] | None],
    trackers: Sequence[Tracker],
    workers: int,
    profile: bool,
    carried_by: CarriedBy | None,
) -> Result:
    """Run a scenario with torch as in a fresh process; arguments as those of `run`, grouped."""
    from fedsgd.torch_scope import outside

    where, scenario = open_scenario(scenario)
    check_paths(out=out, data=data)
    check_calls(trackers, dict(zip(("on_engine", "on_states", "on_round"), calls, strict=True)))
    begun = time.perf_counter()
    with where:
        experiment = build(scenario, data or os.environ.get("FEDSGD_DATA") or None, **given, share=workers > 1)
    scenario = experiment.scenario
    _announce(experiment, *calls[:2])
    account = Account() if profile else None
    with Followed(trackers) as followed, ExitStack() as files:
        with (
            measured(None if account is None else account.profile),
            _reaching(experiment, workers, profile, carried_by) as experiment,
        ):
            folder, ledger, rounds = files.enter_context(_recording(experiment, out, overwrite))
            with outside():
                followed.begin(Begun(scenario, folder))
            residuals = Residuals()
            history, server, accuracy = _run(experiment, ledger, rounds, residuals, (calls[2], followed.round), account)
            model = final_model(experiment, server)
        summary = summarised(experiment, history, ledger, residuals, server.weights, time.perf_counter() - begun)
        summary |= _of_the_call(workers, account, given)
        summary |= {"reported_model": model.reported, "warnings": [*experiment.warnings]}
        layout, state = experiment.plan.layout, model.evaluated or model.server
        result = Result(scenario, history, ledger, server.weights, layout, accuracy, summary, folder, state)
        _save(result, experiment, model, rounds)
        with outside():
            followed.end(Ended(summary))
    return result


def _reaching(
    experiment: Experiment, workers: int, profile: bool, carried_by: CarriedBy | None
) -> AbstractContextManager[Experiment]:
    """The experiment with its clients where they are."""
    if carried_by is None:
        return with_workers(experiment, workers, profile)
    if experiment.evaluator.own is not None:
        key = "batch_norm" if experiment.scenario.model.batch_norm == "local" else "buffers"
        raise ScenarioError(f'model.{key}: got "local", but a client\'s own model is nowhere but at that client')
    return nullcontext(replace(experiment, runtime=carried_by(experiment), states=replace(experiment.states, place="nodes")))


def _announce(
    experiment: Experiment,
    on_engine: Callable[[Chosen], None] | None,
    on_states: Callable[[StatePlan], None] | None,
) -> None:
    from fedsgd.torch_scope import outside

    with outside():
        if on_engine is not None:
            on_engine(experiment.chosen)
        elif experiment.task.restarts is not None:
            warn_once(explain_restart(experiment.task.restarts), ModelWarning, stacklevel=4)
        for text in experiment.warnings:
            warn_once(text, ScenarioWarning, stacklevel=4)
        if on_states is not None:
            on_states(experiment.states)


def _of_the_call(workers: int, account: Account | None, given: Mapping[str, object]) -> dict[str, Any]:
    """What the summary says of how `run` was called, and of what no scenario names."""
    profile = {} if account is None else {"profile": account.per_round()}
    return {"workers": workers, **profile, "given_in_python": [name for name, value in given.items() if value is not None]}


def _save(result: Result, experiment: Experiment, model: FinalModel, rounds: TableWriter) -> None:
    """Write the files of a finished run: first the parameters and the summary, which only a new run could give again.

    The tables come last: their rows are in segments already, and merging them needs as much room again.
    """
    folder = result.out
    if folder is None:
        return
    summary = json.dumps(result.summary, indent=2, allow_nan=False).encode() + b"\n"
    steps: dict[str, Callable[[], None]] = {
        **model.files(folder),
        "summary.json": lambda: write(folder / "summary.json", summary),
    }
    accuracy, held_out = result.client_accuracy, experiment.held_out
    if accuracy is not None and held_out is not None:
        path = folder / "clients.parquet"
        steps["clients.parquet"] = lambda: save_clients(path, experiment.train, held_out, accuracy)
    write_all(folder, {**steps, "ledger.parquet": result.ledger.close, "rounds.parquet": rounds.close})


@contextmanager
def _recording(
    experiment: Experiment, out: str | Path | None, overwrite: bool
) -> Iterator[tuple[Path | None, Ledger, TableWriter]]:
    """Yield (the run folder, the ledger, the table of rounds).

    `_save` finishes the tables of a run that succeeds. If the run fails they are finished here; an error of finishing them is
    added to the run's own as a note. Where the files themselves are the problem the segments stay as they are.
    """
    folder = None if out is None else prepare(user_path(out), overwrite)
    if folder is not None:
        write(folder / "scenario.toml", experiment.scenario.to_toml().encode())
    columns = {**ROUND_COLUMNS, **dict.fromkeys(experiment.evaluator.names, float)}
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


def _run(
    experiment: Experiment,
    ledger: Ledger,
    rounds: TableWriter,
    residuals: Residuals,
    on_round: Sequence[Callable[[Round], None] | None],
    account: Account | None,
) -> tuple[list[Round], Server, F64 | None]:
    """(all rounds, the server after them, accuracy by client if it was measured)."""
    from fedsgd.torch_scope import outside

    history: list[Round] = []
    for server, record, accuracy in _simulate(experiment, ledger, residuals):
        last = server, accuracy
        history.append(record)
        with Within("ledger"):
            rounds.append(table_row(record))
            if not _is_last(experiment.scenario, record) and ledger.flush():  # after the last one the parameters come first
                rounds.flush(force=True)
            with outside():
                for call in on_round:
                    if call is not None:
                        call(record)
        if account is not None:
            account.after_round(experiment.spent)
    return history, *last


def _simulate(experiment: Experiment, ledger: Ledger, residuals: Residuals) -> Iterator[tuple[Server, Round, F64 | None]]:
    """(the server, the round, accuracy by client if it was measured) until the last round, or the accuracy that `[stop]` asks
    for."""
    scenario, plan = experiment.scenario, experiment.plan
    dense, sent, asked = dense_frame_bytes(plan), 0, 0
    begun = time.perf_counter()
    on_failure = scenario.participation.on_failure
    rounds = run_rounds(plan, experiment.server, experiment.runtime, experiment.attendance, ledger, on_failure=on_failure)
    for server, attended in rounds:
        done = server.round - 1
        last = done == scenario.rounds
        metrics, accuracy = None, None
        if last or done % scenario.evaluation.every == 0:
            metrics, accuracy = _evaluate(experiment, server)
        up, down = ledger.totals["up"], ledger.totals["down"]
        seconds = time.perf_counter() - begun
        client = plan.recipe.optimizer
        lr = client.rate(done) if client.schedule_over == "rounds" else None
        sent, asked = sent + len(attended.replies), asked + len(attended.cohort)
        held_back, missed = residuals.add(attended.replies, attended.accepted)
        record = Round(
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
            failures=tuple(str(as_error(done, failure)) for failure in attended.failures),
        )
        begun = time.perf_counter()
        yield server, record, accuracy
        if _is_last(scenario, record):
            return


def _is_last(scenario: Scenario, record: Round) -> bool:
    """Return whether a run ends with this round: all rounds are done, or `[stop] target_accuracy` is reached."""
    stop = scenario.stop.target_accuracy
    reached = stop is not None and record.accuracy is not None and record.accuracy >= stop
    return record.round == scenario.rounds or reached


@phased("evaluate")
def _evaluate(experiment: Experiment, server: Server) -> tuple[Mapping[str, float], F64 | None]:
    """The metrics, and accuracy by client, of the model that the clients of the coming round decode."""
    try:
        return experiment.evaluator(server.public.model, server.statistics)
    except Exception as error:  # the user's module, loss or metrics
        raise RunError(server.round - 1, None, f"evaluation: {type(error).__name__}: {error}") from error
