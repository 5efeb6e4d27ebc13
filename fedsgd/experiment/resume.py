"""Resumption of a run from the latest checkpoint of its directory."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedsgd.config.argument_checks import resolve_config, resolve_whole_number
from fedsgd.data import Dataset
from fedsgd.errors import CheckpointError, OutputError, ResumeWarning, ScenarioError
from fedsgd.experiment.checkpoints import list_manifests
from fedsgd.experiment.execution import ExecutionFactory
from fedsgd.experiment.options import (
    CustomModel,
    ExecutionConfig,
    RunCallbacks,
    collect_objects,
    resolve_callbacks,
    resolve_data,
)
from fedsgd.experiment.result import Result
from fedsgd.experiment.run_checkpoints import (
    ResumePoint,
    find_resume_point,
    raise_for_differences,
    search_modules_of_run,
)
from fedsgd.experiment.run_identity import list_scenario_differences
from fedsgd.experiment.runner import execute_run, run
from fedsgd.federation.round_record import RoundRecord
from fedsgd.scenario.scenario import PythonObjects, Scenario, load, parse_scenario
from fedsgd.storage.run_directory import CHECKPOINT_FOLDER, is_complete, lock_run_directory, write_atomically
from fedsgd.system.forkserver import preload_workers
from fedsgd.system.torch_determinism import isolate_global_state
from fedsgd.system.user_files import expand_user_path, read_text
from fedsgd.trackers import check_callbacks

if TYPE_CHECKING:
    from torch import nn

    from fedsgd.trackers import Tracker


def resume(
    run_dir: str | Path,
    *,
    rounds: int | None = None,
    data: str | Path | Dataset | None = None,
    model: nn.Module | CustomModel | None = None,
    on_round: Callable[[RoundRecord], None] | None = None,
    callbacks: RunCallbacks | Sequence[Tracker] | None = None,
    execution: ExecutionConfig | None = None,
) -> Result:
    """Continue a run from the latest checkpoint of its directory, and run it to its end.

    The results are those of a run that was never interrupted, bit for bit, on any number of workers: the parameters, the ledger
    and the summary, except for times. Rounds after the checkpoint are run again.

    >>> from tempfile import TemporaryDirectory
    >>> import fedsgd
    >>> from fedsgd.scenario.scenario import parse_scenario
    >>> scenario = parse_scenario({"name": "digits", "rounds": 2, "checkpoint": {"every": 1}})
    >>> with TemporaryDirectory() as folder:
    ...     first = fedsgd.run(scenario, out=f"{folder}/run")
    ...     result = fedsgd.resume(f"{folder}/run", rounds=4)
    >>> len(first.history), len(result.history)
    (2, 4)

    Args:
        run_dir: run directory.
        rounds: maximum number of rounds in place of the scenario's, to continue a finished run.
        data: folder of the data files, None for the folder of the run; or the dataset that was passed to `run`.
        model: torch module or `CustomModel` that was passed to `run`.
        on_round: called after each further round.
        callbacks: receivers of other events, as for `run`. A tracker continues the record of the run's tracker of its class.
        execution: worker processes and measurements, which do not change results; None for one process.

    Raises:
        CheckpointError: the directory has no checkpoint that can be used; or the scenario, the data, the user's code, or the
            version of fedsgd, torch or the wire format has changed.
        OutputError: another run is writing to the directory, it cannot be written, or it is of a deployment.
        ScenarioError: `rounds` does not continue the run, or an argument is wrong.
        DataError, ModelError, RunError: as for `run`.

    Warns:
        ResumeWarning: a later checkpoint is damaged, or Python, numpy or the processor differs, which may change roundings.
    """
    execution = resolve_config("execution", execution, ExecutionConfig)
    preload_workers(execution.workers)
    callbacks = resolve_callbacks(callbacks)
    functions = {"on_engine": callbacks.on_engine, "on_state_budget": callbacks.on_state_budget, "on_round": on_round}
    check_callbacks(callbacks.trackers, functions)
    folder, (data_folder, dataset) = expand_user_path(run_dir, "run_dir"), resolve_data(data)
    return continue_run(folder, rounds, data_folder, collect_objects(dataset, model), on_round, callbacks, execution)


def continue_run(
    folder: Path,
    rounds: int | None,
    data: str | Path | None,
    objects: PythonObjects,
    on_round: Callable[[RoundRecord], None] | None,
    callbacks: RunCallbacks,
    config: ExecutionConfig,
    execution_factory: ExecutionFactory | None = None,
) -> Result:
    """Continue a run from the latest checkpoint of its directory; arguments and errors as for `resume`, and `execute_run`."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such run directory")
    with lock_run_directory(folder), search_modules_of_run(folder), isolate_global_state():
        point, scenario = plan_resumption(folder, rounds)
        if point.deployment is not None:
            function = "fedsgd.flower.deployment.resume_deployment"
            problem = f"is the run of a deployment; continue it with `fedsgd resume`, in Python {function}"
            raise OutputError(f"{folder}: {problem}")
        for damage in point.damages:
            text = f"{damage}: the run continues from the checkpoint after round {point.manifest.round}"
            warnings.warn(text, ResumeWarning, stacklevel=4)
        return execute_run(
            scenario,
            data=data or point.run["data"],
            objects=objects,
            out=folder,
            on_round=on_round,
            callbacks=callbacks,
            config=config,
            execution_factory=execution_factory,
            point=point,
        )


def run_or_resume(
    scenario: Scenario, out: Path, data: str | Path | None, on_round: Callable[[RoundRecord], None] | None
) -> Result:
    """Continue a run of the scenario from its latest checkpoint if that is possible, otherwise run it from the start.

    Args:
        scenario: scenario, equal to that of the run directory but for settings without effect on results.
        out: run directory, whose files are replaced by a run from the start.
        data: folder of the data files, None for the folder that FEDSGD_DATA names.
        on_round: called after each further round.

    Raises:
        Errors of `run`.

    Warns:
        ResumeWarning: there is a checkpoint, but it cannot be used.
    """
    if list_manifests(out / CHECKPOINT_FOLDER):
        try:
            stored = load(out / "scenario.toml")  # resume reads [checkpoint] from this file
            write_atomically(out / "scenario.toml", replace(stored, checkpoint=scenario.checkpoint).to_toml().encode())
            return resume(out, data=data, on_round=on_round)
        except CheckpointError as error:
            warnings.warn(f"{error}: the run begins again", ResumeWarning, stacklevel=2)
    return run(scenario, out=out, overwrite=True, data=data, on_round=on_round)


def read_scenario(run_dir: Path, rounds: int | None) -> Scenario:
    """Return the scenario of a run directory, for its name and number of rounds.

    Args:
        run_dir: run directory.
        rounds: number of rounds in place of the scenario's; None for the scenario's.

    Raises:
        CheckpointError: there is no such run directory.
        ScenarioError: the scenario cannot be read.
    """
    if not run_dir.is_dir():
        raise CheckpointError(f"{run_dir}: there is no such run directory")
    scenario = load(run_dir / "scenario.toml")
    return scenario if rounds is None else replace(scenario, rounds=rounds)


def plan_resumption(folder: Path, rounds: int | None) -> tuple[ResumePoint, Scenario]:
    """Return the checkpoint from which a run continues, and the scenario of the rest of the run.

    Args:
        folder: run directory.
        rounds: maximum number of rounds in place of the scenario's; None for the scenario's.

    Raises:
        CheckpointError: there is no checkpoint that can be used, the run is finished, or its scenario has changed.
        ScenarioError: `rounds` does not continue the run.
    """
    point = find_resume_point(folder)
    scenario = _plan_scenario(point, rounds)
    if rounds is None and point.run["is_over"] and scenario.rounds == point.scenario.rounds and is_complete(folder):
        hint = "pass --rounds (in Python: rounds=...) to continue it"
        raise CheckpointError(f"{folder}: the run is finished, after {point.manifest.round} rounds; {hint}")
    return point, scenario


def _plan_scenario(point: ResumePoint, rounds: int | None) -> Scenario:
    """Return the scenario of the rest of a run, after a check of the scenario file and of the number of rounds."""
    scenario, present = point.scenario, _read_present_scenario(point.folder / "scenario.toml")
    if present is not None:
        # both are written again, so that keys which a checkpoint of an earlier release lacks are no differences
        raise_for_differences(point.folder, list_scenario_differences(scenario.to_toml(), present.to_toml()))
        if rounds is None and present.rounds != scenario.rounds:
            rounds = present.rounds  # edited, or written by a continuation that was stopped before its first checkpoint
        scenario = replace(scenario, checkpoint=present.checkpoint)  # has no effect on results, so the file may change it
    return scenario if rounds is None else _change_rounds(scenario, point, rounds)


def _read_present_scenario(path: Path) -> Scenario | None:
    """Return the scenario of a run directory's file, None without a readable file. CheckpointError for a wrong scenario."""
    try:
        text = read_text(path)
    except OSError:
        return None
    try:
        return parse_scenario(tomllib.loads(text))
    except ScenarioError as error:  # a ValueError, too
        raise CheckpointError(f"{path}: {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid TOML: {error}") from None


def _change_rounds(scenario: Scenario, point: ResumePoint, rounds: int) -> Scenario:
    """Return the scenario with another number of rounds. ScenarioError if these rounds do not continue the run."""
    done = point.manifest.round
    n_least = done + is_complete(point.folder)
    rounds = resolve_whole_number("rounds", rounds, n_least, 2**31 - 1, f"{done} rounds are done")
    if point.run["is_over"] and done < scenario.rounds and rounds > done:
        raise ScenarioError(f"rounds: the run ended after round {done}, because it reached the target of [stop]")
    for key, optimizer, n_steps in (
        ("client.optimizer", scenario.client.optimizer, scenario.client.steps),
        ("server.optimizer", scenario.server.optimizer, 1),
    ):
        time_per_round = {"rounds": 1, "steps": n_steps or 0, "local-steps": 0}[optimizer.schedule_over]
        if optimizer.schedule.end == time_per_round * scenario.rounds and rounds > scenario.rounds:
            problem = (
                f"it ends with the {scenario.rounds} rounds of the run, and further rounds would train with its last factor"
            )
            raise ScenarioError(f"rounds: {key}.schedule depends on the number of rounds: {problem}; start a new run")
    return replace(scenario, rounds=rounds)
