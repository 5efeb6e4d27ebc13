"""Runner of a scenario: rounds, evaluation, stopping rule, ledger and run directory."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsgd.config.argument_checks import check_flag, resolve_config
from fedsgd.config.user_classes import digest_user_code
from fedsgd.data import Dataset
from fedsgd.errors import CheckpointError, ModelWarning, OutputError, ResumeWarning, RunInterrupted, ScenarioWarning, warn_once
from fedsgd.experiment.builder import Experiment, build_experiment
from fedsgd.experiment.execution import Execution, ExecutionFactory, make_execution
from fedsgd.experiment.federation import Federation
from fedsgd.experiment.final_model import FinalModel, build_final_model
from fedsgd.experiment.options import (
    CustomModel,
    ExecutionConfig,
    RunCallbacks,
    collect_objects,
    resolve_callbacks,
    resolve_data,
)
from fedsgd.experiment.result import Result
from fedsgd.experiment.run_checkpoints import ResumePoint, RunCheckpoints
from fedsgd.experiment.run_tables import RunTables
from fedsgd.experiment.summary import build_summary, save_clients
from fedsgd.federation import ServerState
from fedsgd.federation.round_record import RoundRecord
from fedsgd.scenario.scenario import PythonObjects, Scenario, open_scenario
from fedsgd.storage.run_directory import clear_run_directory, is_complete, lock_run_directory, write_all, write_atomically
from fedsgd.system.forkserver import preload_workers
from fedsgd.system.interrupts import InterruptRequest, defer_interrupt
from fedsgd.system.notebook import NotebookLine
from fedsgd.system.profiling import PhaseTimer, RoundProfile, profiling_into
from fedsgd.system.torch_determinism import isolate_global_state, use_caller_state
from fedsgd.system.user_files import check_paths, expand_user_path, search_scenario_folder
from fedsgd.trackers import RunFinished, RunStarted, TrackerGroup, check_callbacks
from fedsgd.training import explain_restart

if TYPE_CHECKING:
    from torch import nn

    from fedsgd.trackers import Tracker


def run(
    scenario: Scenario | str | Path,
    *,
    data: str | Path | Dataset | None = None,
    model: nn.Module | CustomModel | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    on_round: Callable[[RoundRecord], None] | None = None,
    callbacks: RunCallbacks | Sequence[Tracker] | None = None,
    execution: ExecutionConfig | None = None,
) -> Result:
    """Run a scenario to its end.

    Python objects take the place of the components that the scenario names. scenario.toml has an importable object as
    `module:name`, any other object as a marker; a scenario with a marker runs only if the object is passed again. Modules next
    to a scenario file can be imported.

    In a notebook, a run of more than two seconds shows a line of progress, unless `on_round` is set.

    >>> import fedsgd
    >>> from fedsgd.scenario.scenario import parse_scenario
    >>> scenario = parse_scenario({"name": "digits", "rounds": 2, "data": {"partition": {"name": "iid", "clients": 4}}})
    >>> result = fedsgd.run(scenario)
    >>> len(result.history), result.parameters.dtype, result.summary["uplink_bytes"] > 0
    (2, dtype('float32'), True)

    Args:
        scenario: scenario, or the path of its TOML file.
        data: folder of the data files, None for the folder that FEDSGD_DATA names; or a dataset in place of the scenario's.
        model: torch module in place of the one that the scenario names; or a `CustomModel` with module, loss and metrics.
        out: run directory, which must be new or empty unless `overwrite`; None writes nothing.
        overwrite: replace an earlier run in `out`.
        on_round: called after each round.
        callbacks: receivers of other events; a list of trackers stands for `RunCallbacks(trackers=...)`.
        execution: worker processes and measurements, which do not change results; None for one process.

    With a run directory, the first Ctrl-C ends the run after the current round, with a checkpoint from which `resume`
    continues; the second stops at once.

    Raises:
        ScenarioError: a setting or an argument is wrong, or does not fit the data or the model.
        DataError: the data cannot be read or partitioned.
        ModelError: the model, its loss or a metric cannot be used.
        OutputError: the run directory cannot be written.
        RunError: the server or a client failed; a client's failure only with `[participation] on_failure = "stop"`.

    Warns:
        ScenarioWarning: a component is not made for a setting; the summary has the same lines.
        ModelWarning: without `on_engine`, the module has state that clients do not carry from round to round.
    """
    execution = resolve_config("execution", execution, ExecutionConfig)
    check_flag("overwrite", overwrite)
    preload_workers(execution.workers)
    callbacks = resolve_callbacks(callbacks)
    functions = {"on_engine": callbacks.on_engine, "on_state_budget": callbacks.on_state_budget, "on_round": on_round}
    check_callbacks(callbacks.trackers, functions)
    folder, dataset = resolve_data(data)
    objects = collect_objects(dataset, model)
    with search_scenario_folder(scenario), isolate_global_state():
        return execute_run(
            scenario,
            data=folder,
            objects=objects,
            out=out,
            overwrite=overwrite,
            on_round=on_round,
            callbacks=callbacks,
            config=execution,
        )


def execute_run(
    scenario: Scenario | str | Path,
    *,
    data: str | Path | None = None,
    objects: PythonObjects = PythonObjects(),
    out: str | Path | None = None,
    overwrite: bool = False,
    on_round: Callable[[RoundRecord], None] | None = None,
    callbacks: RunCallbacks = RunCallbacks(),
    config: ExecutionConfig = ExecutionConfig(),
    execution_factory: ExecutionFactory | None = None,
    point: ResumePoint | None = None,
) -> Result:
    """Run a scenario; arguments as for `run`, with `data` a folder. The caller has isolated the global state.

    `execution_factory` makes the execution of the experiment, in place of this process or workers. `point` is a checkpoint in
    the run directory `out`, from which the run continues.
    """
    python_objects = objects.as_arguments()
    located_errors, scenario = open_scenario(scenario)
    check_paths(out=out)
    start = time.perf_counter()
    data = data or os.environ.get("FEDSGD_DATA") or None
    tracker_records = [] if point is None else point.trackers
    with TrackerGroup(callbacks.trackers, tracker_records) as tracker_group, ExitStack() as files:
        with located_errors:
            experiment = build_experiment(scenario, data, **python_objects, workers=config.workers)
        experiment = experiment if point is None else _check_resumed_experiment(experiment, point)
        user_code = digest_user_code(experiment.scenario, as_loaded=True)
        _notify_start(experiment, callbacks)
        round_profile = RoundProfile() if config.profile else None
        call = _describe_call(data, python_objects)
        with (
            profiling_into(None if round_profile is None else round_profile.profile),
            _make_execution(experiment, config, execution_factory) as execution,
        ):
            run = files.enter_context(_open_run(execution, out, overwrite, call, tracker_group, point))
            history, server = _restore_rounds(run)
            with use_caller_state():
                tracker_group.begin(RunStarted(experiment.scenario, run.folder, tuple(history)))
            observers = (on_round, tracker_group.round)
            server = _run_rounds(run, history, server, observers, round_profile, can_defer=execution_factory is None)
            model = build_final_model(execution, server)
            seconds = time.perf_counter() - start + (0.0 if point is None else point.run["seconds"])
            metadata = _call_metadata(config, round_profile, call, execution) | ({"user_code": user_code} if user_code else {})
            result = _build_result(run, history, server, model, (seconds, metadata))
            _save(result, run, server, model)  # the last checkpoint reads the states of the clients
        with use_caller_state():
            tracker_group.end(RunFinished(result.summary))
    return result


@dataclass(eq=False)
class _OpenRun:
    """A run whose outputs are open.

    Attributes:
        folder: run directory, None without one.
        tables: tables of the run.
        federation: server and clients.
        checkpoints: checkpoints in the run directory, None without one.
    """

    folder: Path | None
    tables: RunTables
    federation: Federation
    checkpoints: RunCheckpoints | None

    @property
    def experiment(self) -> Experiment:
        """Description of the run."""
        return self.federation.experiment


def _make_execution(experiment: Experiment, config: ExecutionConfig, factory: ExecutionFactory | None) -> Execution:
    """Return the execution that the arguments of `run` ask for, which is not open yet."""
    return make_execution(experiment, config.workers, config.profile) if factory is None else factory(experiment)


def _notify_start(experiment: Experiment, callbacks: RunCallbacks) -> None:
    with use_caller_state():
        if callbacks.on_engine is not None:
            callbacks.on_engine(experiment.engine_choice)
        elif experiment.task.reset_attribute is not None:
            warn_once(explain_restart(experiment.task.reset_attribute), ModelWarning, stacklevel=4)
        for text in experiment.warnings:
            warn_once(text, ScenarioWarning, stacklevel=4)
        if callbacks.on_state_budget is not None:
            callbacks.on_state_budget(experiment.state_budget)


def _check_resumed_experiment(experiment: Experiment, point: ResumePoint) -> Experiment:
    """Return the experiment with the engine choice of the run's start, or raise a CheckpointError if results would change."""
    experiment = replace(experiment, engine_choice=point.engine)
    for difference in point.check_identity(experiment):
        warnings.warn(f"{difference}: roundings may differ from those before", ResumeWarning, stacklevel=5)
    return experiment


def _describe_call(data: str | Path | None, python_objects: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments of `run` that `resume` needs: the data folder, and the names of objects given in Python."""
    return {
        "data": None if data is None else str(expand_user_path(data).absolute()),
        "given_in_python": [name for name, value in python_objects.items() if value is not None],
    }


def _call_metadata(
    config: ExecutionConfig, round_profile: RoundProfile | None, call: Mapping[str, Any], execution: Execution
) -> dict[str, Any]:
    """Return the entries of the summary about the arguments of `run` that are not part of the scenario."""
    profile = {} if round_profile is None else {"profile": round_profile.average_per_round()}
    return {"workers": config.workers, **execution.processes, **profile, "given_in_python": call["given_in_python"]}


def _build_result(
    run: _OpenRun,
    history: list[RoundRecord],
    server: ServerState,
    model: FinalModel,
    seconds_and_metadata: tuple[float, Mapping[str, Any]],
) -> Result:
    experiment, state = run.experiment, model.evaluated_model or model.server_model
    seconds, metadata = seconds_and_metadata
    summary = {**build_summary(run.federation, history, server.weights, seconds), **metadata}
    summary |= {"reported_model": model.reported_file, "warnings": [*experiment.warnings]}
    accuracy, ledger = run.federation.client_accuracy, run.tables.ledger
    return Result(
        experiment.scenario, history, ledger, server.weights, experiment.plan.layout, accuracy, summary, run.folder, state
    )


def _save(result: Result, run: _OpenRun, server: ServerState, model: FinalModel) -> None:
    """Write the files of a finished run: first the parameters and the summary, which only another run could produce.

    The execution must be open. The tables come last: their rows are already in segments, and merging the segments needs the
    same disk space again.
    """
    folder, checkpoints = result.out, run.checkpoints
    if folder is None or checkpoints is None:
        return
    summary = json.dumps(result.summary, indent=2, allow_nan=False).encode() + b"\n"
    steps: dict[str, Callable[[], None]] = {
        **model.make_file_writers(folder),
        "summary.json": lambda: write_atomically(folder / "summary.json", summary),
    }
    accuracy, train, held_out = result.client_accuracy, run.experiment.train, run.experiment.held_out
    if accuracy is not None and held_out is not None:
        path = folder / "clients.parquet"
        steps["clients.parquet"] = lambda: save_clients(path, train, held_out, accuracy)
    if checkpoints.are_wanted:  # so that the finished run can be continued
        steps["checkpoints"] = lambda: checkpoints.write(run.federation, server)
    write_all(folder, {**steps, "ledger.parquet": run.tables.close_ledger, "rounds.parquet": run.tables.close_rounds})


@contextmanager
def _open_run(
    execution: Execution,
    out: str | Path | None,
    overwrite: bool,
    call: Mapping[str, Any],
    trackers: TrackerGroup,
    point: ResumePoint | None,
) -> Iterator[_OpenRun]:
    """Yield a run with its outputs, which `_save` completes if the run succeeds.

    If the run fails, this context completes the tables, and adds an error of the completion to the run's error as a note. After
    an OutputError the segments stay unchanged, except that a finished run whose continuation is refused stays finished. A run
    that does not continue from `point` locks its directory.
    """
    scenario, metric_names = execution.experiment.scenario, execution.experiment.evaluation.metric_names
    folder = None if out is None else expand_user_path(out)
    with nullcontext() if folder is None or point is not None else lock_run_directory(folder):
        if folder is not None and point is None:
            clear_run_directory(folder, overwrite)
            write_atomically(folder / "scenario.toml", scenario.to_toml().encode())
        earlier_results = point.folder / "summary.json" if point is not None and is_complete(point.folder) else None
        n_kept_rows = None if point is None else point.manifest.tables
        tables = RunTables(folder, metric_names, scenario.evaluation.every, n_kept_rows)
        federation = Federation(execution, tables.ledger)
        checkpoints = None if folder is None else RunCheckpoints(folder, execution, tables, call, trackers, point)
        execution.begin(folder)
        try:
            yield _OpenRun(folder, tables, federation, checkpoints)
        except BaseException as error:
            if not isinstance(error, OutputError) or (earlier_results is not None and earlier_results.is_file()):
                tables.close_after(error)
            if checkpoints is not None and checkpoints.last_round and not isinstance(error, RunInterrupted | CheckpointError):
                error.add_note(f"last checkpoint: after round {checkpoints.last_round}; to continue: fedsgd resume {folder}")
            raise


def _restore_rounds(run: _OpenRun) -> tuple[list[RoundRecord], ServerState]:
    """Return the records of earlier rounds, and the server's state before the next round."""
    restored = None if run.checkpoints is None else run.checkpoints.restore(run.federation)
    if restored is None or run.checkpoints is None:
        return [], run.federation.initial_state()
    run.checkpoints.start()
    return restored


def _run_rounds(
    run: _OpenRun,
    history: list[RoundRecord],
    server: ServerState,
    observers: tuple[Callable[[RoundRecord], None] | None, ...],
    round_profile: RoundProfile | None,
    can_defer: bool,
) -> ServerState:
    """Run all rounds that are left, append their records to `history`, and return the last state of the server.

    The first Ctrl-C ends the run after its round, with a checkpoint, if there is a run directory and `can_defer`.
    """
    federation, line = run.federation, NotebookLine()
    message = "fedsgd: the run ends after this round; press Ctrl-C again to stop now"
    with defer_interrupt(message, is_wanted=can_defer and run.checkpoints is not None) as interrupt:
        while not federation.is_over:
            server, record = federation.step(server)
            history.append(record)
            with PhaseTimer("ledger"):
                _record_round(run, server, record)
                with use_caller_state():
                    for observer in observers:
                        if observer is not None:
                            observer(record)
                if observers[0] is None:
                    _show_round(line, federation, record)
            if round_profile is not None:
                round_profile.record_round(federation.execution.worker_phase_seconds)
            _stop_if_requested(run, server, interrupt)
    return server


def _record_round(run: _OpenRun, server: ServerState, record: RoundRecord) -> None:
    """Write the rows of a round, and a checkpoint if one is due."""
    run.tables.append(record)
    if not run.federation.is_over:  # after the last round, the parameters are written first
        run.tables.flush()
    if run.checkpoints is not None:
        run.checkpoints.add_round(run.federation, server, record)


def _stop_if_requested(run: _OpenRun, server: ServerState, interrupt: InterruptRequest) -> None:
    """Write a checkpoint and raise RunInterrupted if Ctrl-C was pressed and the run has a further round."""
    if interrupt.is_made and not run.federation.is_over and run.checkpoints is not None:
        run.checkpoints.write(run.federation, server)
        raise RunInterrupted(f"stopped after round {server.round - 1}", f"fedsgd resume {run.folder}")


def _show_round(line: NotebookLine, federation: Federation, record: RoundRecord) -> None:
    """Show the progress of the run, and after its last round the result."""
    scenario = federation.execution.experiment.scenario
    if federation.is_over:
        line.finish(f"{scenario.name}: {record.round} rounds in {line.seconds:.1f} s, {record.describe()}")
    else:
        line.show(f"{scenario.name}: round {record.round}/{scenario.rounds}, {record.describe()}")
