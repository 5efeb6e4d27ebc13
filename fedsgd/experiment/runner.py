"""Runner of a scenario: rounds, evaluation, stopping rule, ledger and run directory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsgd.config.argument_checks import resolve_config
from fedsgd.config.user_classes import digest_user_code
from fedsgd.data import Dataset
from fedsgd.errors import ModelWarning, OutputError, ScenarioWarning, warn_once
from fedsgd.experiment.builder import Experiment, build_experiment
from fedsgd.experiment.execution import Execution, ExecutionFactory, make_execution
from fedsgd.experiment.federation import Federation
from fedsgd.experiment.final_model import FinalModel, build_final_model
from fedsgd.experiment.ledger import Ledger
from fedsgd.experiment.options import (
    CustomModel,
    ExecutionConfig,
    RunCallbacks,
    collect_objects,
    resolve_callbacks,
    resolve_data,
)
from fedsgd.experiment.summary import build_summary, build_table_row, save_clients
from fedsgd.experiment.trained_model import load_state
from fedsgd.federation import ServerState
from fedsgd.federation.round_record import RoundRecord
from fedsgd.models.argument_checks import check_module
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.scenario.scenario import PythonObjects, Scenario, open_scenario
from fedsgd.storage.parquet import TableWriter
from fedsgd.storage.run_directory import (
    ROUND_COLUMNS,
    build_round_frame,
    clear_run_directory,
    write_all,
    write_atomically,
)
from fedsgd.system.forkserver import preload_workers
from fedsgd.system.notebook import NotebookLine
from fedsgd.system.profiling import PhaseTimer, RoundProfile, profiling_into
from fedsgd.system.torch_determinism import isolate_global_state, use_caller_state
from fedsgd.system.user_files import check_paths, expand_user_path
from fedsgd.trackers import RunFinished, RunStarted, TrackerGroup, check_callbacks
from fedsgd.training import explain_restart

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from fedsgd.experiment.trained_model import Module
    from fedsgd.trackers import Tracker


@dataclass(frozen=True, eq=False)
class Result:
    """Result of a run.

    Attributes:
        scenario: scenario of the run, with the engine that was selected.
        history: one record for each round.
        ledger: table of all frames.
        parameters: [P] float32, the server's final model, in the order of `layout`.
        layout: names and shapes of the parameters.
        client_accuracy: [N] float64, accuracy of the final model (or of the client's own model) on each client's test examples.
            NaN for a client without test examples; None without `[evaluation] clients`.
        summary: contents of summary.json; peak_memory_bytes excludes workers, and is None where the system does not report it.
        out: run directory, None if nothing was written.
        state_dict: complete state of the model that was evaluated last, for `module.load_state_dict(..., strict=True)`;
            parameters and buffers that stay at the clients have their initial values.
    """

    scenario: Scenario
    history: list[RoundRecord]
    ledger: Ledger
    parameters: F32
    layout: ParameterLayout
    client_accuracy: F64 | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None
    state_dict: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        accuracy = self.history[-1].accuracy if self.history else None
        figures = [f"{len(self.history)} rounds", *([] if accuracy is None else [f"accuracy {accuracy:.4f}"])]
        up, down = (self.ledger.totals[direction].n_bytes for direction in ("up", "down"))
        return f'Result("{self.scenario.name}": {", ".join(figures)}, {up:,} bytes up, {down:,} bytes down)'

    def to_pandas(self) -> pd.DataFrame:
        """Return the rounds as a pandas table, indexed by round, with the columns of rounds.parquet.

        >>> import fedsgd
        >>> result = fedsgd.run(fedsgd.Scenario(name="digits", rounds=2))
        >>> table = result.to_pandas()
        >>> table.index.tolist(), bool((table.uplink_bytes > 0).all())
        ([1, 2], True)

        Raises:
            ReportError: pandas is not installed.
        """
        rows = [build_table_row(record) for record in self.history]
        names = dict.fromkeys(name for row in rows for name in row)  # a round without an evaluation has no metrics
        return build_round_frame({name: [row.get(name) for row in rows] for name in names})

    def load_into(self, module: Module) -> Module:
        """Load the trained parameters and buffers into a torch module, and return the module.

        >>> import fedsgd
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> result = fedsgd.run(fedsgd.Scenario(name="digits", rounds=1), model=network)
        >>> module = result.load_into(network)
        >>> bool((module[1].bias == result.state_dict["1.bias"]).all())
        True

        Args:
            module: module with the tensors of the run's model, whose values are replaced.

        Raises:
            ModelError: names or shapes of the tensors differ.
        """
        check_module(module, "module")
        load_state(module, self.state_dict)
        return module


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
    `module:name`, any other object as a marker; a scenario with a marker runs only if the object is passed again.

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
    preload_workers(execution.workers)
    callbacks = resolve_callbacks(callbacks)
    functions = {"on_engine": callbacks.on_engine, "on_state_budget": callbacks.on_state_budget, "on_round": on_round}
    check_callbacks(callbacks.trackers, functions)
    folder, dataset = resolve_data(data)
    objects = collect_objects(dataset, model)
    with isolate_global_state():
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
) -> Result:
    """Run a scenario; arguments as for `run`, with `data` a folder. The caller has isolated the global state.

    `execution_factory` makes the execution of the experiment, in place of this process or workers.
    """
    workers, profile = config.workers, config.profile
    python_objects = objects.as_arguments()
    located_errors, scenario = open_scenario(scenario)
    check_paths(out=out)
    start = time.perf_counter()
    data = data or os.environ.get("FEDSGD_DATA") or None
    with located_errors:
        experiment = build_experiment(scenario, data, **python_objects, share_data=workers > 1)
    scenario, user_code = experiment.scenario, digest_user_code(experiment.scenario, as_loaded=True)
    _notify_start(experiment, callbacks)
    round_profile = RoundProfile() if profile else None
    with TrackerGroup(callbacks.trackers) as tracker_group, ExitStack() as files:
        with (
            profiling_into(None if round_profile is None else round_profile.profile),
            _make_execution(experiment, workers, profile, execution_factory) as execution,
        ):
            folder, ledger, rounds_table = files.enter_context(_open_outputs(experiment, out, overwrite))
            with use_caller_state():
                tracker_group.begin(RunStarted(scenario, folder))
            federation = Federation(execution, ledger)
            history, server = _record_rounds(federation, rounds_table, (on_round, tracker_group.round), round_profile)
            model = build_final_model(execution, server)
        summary = build_summary(federation, history, server.weights, time.perf_counter() - start)
        summary |= _call_metadata(workers, round_profile, python_objects) | ({"user_code": user_code} if user_code else {})
        summary |= {"reported_model": model.reported_file, "warnings": [*experiment.warnings]}
        layout, state = experiment.plan.layout, model.evaluated_model or model.server_model
        result = Result(scenario, history, ledger, server.weights, layout, federation.client_accuracy, summary, folder, state)
        _save(result, experiment, model, rounds_table)
        with use_caller_state():
            tracker_group.end(RunFinished(summary))
    return result


def _make_execution(experiment: Experiment, workers: int, profile: bool, factory: ExecutionFactory | None) -> Execution:
    """Return the execution that the arguments of `run` ask for, which is not open yet."""
    return make_execution(experiment, workers, profile) if factory is None else factory(experiment)


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


def _call_metadata(workers: int, round_profile: RoundProfile | None, python_objects: Mapping[str, object]) -> dict[str, Any]:
    """Return the entries of the summary about the arguments of `run` that are not part of the scenario."""
    profile = {} if round_profile is None else {"profile": round_profile.average_per_round()}
    return {
        "workers": workers,
        **profile,
        "given_in_python": [name for name, value in python_objects.items() if value is not None],
    }


def _save(result: Result, experiment: Experiment, model: FinalModel, rounds_table: TableWriter) -> None:
    """Write the files of a finished run: first the parameters and the summary, which only another run could produce.

    The tables come last: their rows are already in segments, and merging the segments needs the same disk space again.
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
    """Yield (run directory, ledger, table of rounds).

    `_save` completes the tables of a run that succeeds. If the run fails, this context completes the tables, and adds an error
    of the completion to the run's error as a note. After an OutputError the segments stay unchanged.
    """
    folder = None if out is None else clear_run_directory(expand_user_path(out), overwrite)
    if folder is not None:
        write_atomically(folder / "scenario.toml", experiment.scenario.to_toml().encode())
    columns = {**ROUND_COLUMNS, **dict.fromkeys(experiment.evaluation.metric_names, float)}
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
            except OutputError as output_error:
                error.add_note(str(output_error))
        raise


def _record_rounds(
    federation: Federation,
    rounds_table: TableWriter,
    round_callbacks: Sequence[Callable[[RoundRecord], None] | None],
    round_profile: RoundProfile | None,
) -> tuple[list[RoundRecord], ServerState]:
    """Run all rounds, and return their records and the last state of the server."""
    history, server = list[RoundRecord](), federation.initial_state()
    on_round, line = round_callbacks[0], NotebookLine()
    while not federation.is_over:
        server, record = federation.step(server)
        history.append(record)
        with PhaseTimer("ledger"):
            rounds_table.append(build_table_row(record))
            # after the last round, the parameters are written first
            if not federation.is_over and federation.ledger.flush():
                rounds_table.flush(force=True)
            with use_caller_state():
                for callback in round_callbacks:
                    if callback is not None:
                        callback(record)
            if on_round is None:
                _show_round(line, federation, record)
        if round_profile is not None:
            round_profile.record_round(federation.execution.worker_phase_seconds)
    return history, server


def _show_round(line: NotebookLine, federation: Federation, record: RoundRecord) -> None:
    """Show the progress of the run, and after its last round the result."""
    scenario = federation.execution.experiment.scenario
    if federation.is_over:
        line.finish(f"{scenario.name}: {record.round} rounds in {line.seconds:.1f} s, {record.describe()}")
    else:
        line.show(f"{scenario.name}: round {record.round}/{scenario.rounds}, {record.describe()}")
