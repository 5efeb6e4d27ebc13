"""Checkpoints of a run: what a run stores between two rounds, and how another process continues from it."""

from __future__ import annotations

import time
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsgd.config.user_classes import IMPORTS_SUFFIX, list_module_folders
from fedsgd.errors import CheckpointError, OutputError
from fedsgd.experiment.builder import Experiment
from fedsgd.experiment.checkpoints import (
    Checkpointer,
    CheckpointInterval,
    ClientFiles,
    Manifest,
    find_usable_manifests,
    list_manifests,
    read_manifest,
    remove_other_files,
    restore,
)
from fedsgd.experiment.execution import Execution
from fedsgd.experiment.federation import Federation
from fedsgd.experiment.run_identity import (
    describe_environment,
    describe_identity,
    list_differences,
    list_scenario_differences,
)
from fedsgd.experiment.run_tables import RunTables
from fedsgd.federation import ServerState
from fedsgd.federation.round_record import ResidualStatistics, RoundRecord
from fedsgd.scenario.scenario import Scenario, parse_scenario
from fedsgd.storage.durable import sync_path
from fedsgd.storage.run_directory import CHECKPOINT_FOLDER, remove_results, write_atomically
from fedsgd.system.torch_determinism import use_caller_state
from fedsgd.system.user_files import search_folders
from fedsgd.trackers import TrackerGroup, TrackerRecord
from fedsgd.training.selection import EngineChoice


@dataclass(frozen=True, eq=False)
class ResumePoint:
    """Checkpoint from which a run continues.

    Attributes:
        folder: run directory.
        manifests: checkpoints that can be used, the latest last.
        damages: reason for each later checkpoint why it cannot be used.
    """

    folder: Path
    manifests: tuple[Manifest, ...]
    damages: tuple[str, ...] = ()

    @property
    def manifest(self) -> Manifest:
        """The latest checkpoint that can be used."""
        return self.manifests[-1]

    @property
    def run(self) -> Mapping[str, Any]:
        """Values of the run at the checkpoint."""
        return self.manifest.run

    @property
    def deployment(self) -> Mapping[str, Any] | None:
        """Settings with which a deployment is launched again; None for a simulation."""
        settings: Mapping[str, Any] | None = self.run.get("deployment")
        return settings

    @cached_property
    def scenario(self) -> Scenario:
        """Scenario of the run at the checkpoint. ScenarioError if it cannot be read, as without a plugin."""
        return parse_scenario(tomllib.loads(self.run["scenario"]))

    @property
    def engine(self) -> EngineChoice:
        """Engine that the run selected at its start."""
        return EngineChoice(**self.run["engine"])

    @property
    def trackers(self) -> list[TrackerRecord]:
        """Trackers of the run; without positions if this run directory is a copy, so that the original's records stay."""
        entries = self.run.get("trackers", [])
        records = [TrackerRecord(**{**entry, "networks": tuple(entry["networks"])}) for entry in entries]
        original = Path(self.run.get("folder", self.folder))
        is_copy = original.is_dir() and not original.samefile(self.folder)
        return [replace(record, position=None) for record in records] if is_copy else records

    def check_identity(self, experiment: Experiment) -> list[str]:
        """Return lines about what may change the rounding of results.

        Args:
            experiment: the run as this process has built it.

        Raises:
            CheckpointError: the run would not give the results of a run that was never interrupted; a note for each difference.
        """
        # an object that only the resumption got replaces a component, so that the scenario differs
        differences = list_scenario_differences(self.scenario.to_toml(), experiment.scenario.to_toml())
        recorded, present = self.run["identity"], describe_identity(experiment)
        later_keys = {key for key in present if key.endswith(IMPORTS_SUFFIX) and key not in recorded}
        differences += list_differences(recorded, {key: present[key] for key in present if key not in later_keys})
        raise_for_differences(self.folder, differences)
        return list_differences(self.run["environment"], describe_environment())


def raise_for_differences(folder: Path, differences: Sequence[str]) -> None:
    """Raise a CheckpointError if there is a difference, with a note for each further difference."""
    if differences:
        first, *others = differences
        error = CheckpointError(f"{folder}: cannot be resumed, because its results would change: {first}")
        for difference in others:
            error.add_note(difference)
        raise error


def find_resume_point(folder: Path) -> ResumePoint:
    """Return the latest checkpoint of a run directory that can be used.

    Args:
        folder: run directory.

    Raises:
        CheckpointError: there is none; the message says why.
    """
    checkpoints = folder / CHECKPOINT_FOLDER
    if not list_manifests(checkpoints):
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: there is no such run directory")
        raise CheckpointError(
            f"{folder}: cannot be resumed: it has no checkpoint, which only [checkpoint] every or Ctrl-C writes"
        )
    manifests, damages = list[Manifest](), list[str]()
    for _, result in find_usable_manifests(checkpoints):
        if isinstance(result, Manifest):
            manifests.append(result)
        else:
            damages.append(result)
    if not manifests:
        raise CheckpointError(f"{folder}: cannot be resumed: {damages[0]}")
    return ResumePoint(folder, tuple(reversed(manifests)), tuple(damages))


def search_modules_of_run(folder: Path) -> AbstractContextManager[None]:
    """Return a context in which modules are also imported from the folders of the run's own modules, if there are any.

    Args:
        folder: run directory.
    """
    for path in list_manifests(folder / CHECKPOINT_FOLDER):
        with suppress(OutputError):
            return search_folders(read_manifest(path).run.get("module_folders", ()))
    return nullcontext()


def read_trackers(folder: Path) -> list[TrackerRecord]:
    """Return the trackers in the latest readable manifest of a run directory; nothing if there is none.

    Args:
        folder: run directory.
    """
    for path in list_manifests(folder / CHECKPOINT_FOLDER):
        with suppress(OutputError):
            return ResumePoint(folder, (read_manifest(path),)).trackers
    return []


def read_deployment(folder: Path) -> Mapping[str, Any] | None:
    """Return the settings of the deployment that wrote a run directory; None for a simulation, or without any checkpoint.

    Args:
        folder: run directory.
    """
    for path in list_manifests(folder / CHECKPOINT_FOLDER):
        with suppress(OutputError):
            settings: Mapping[str, Any] | None = read_manifest(path).run.get("deployment")
            return settings
    return None


class RunCheckpoints:
    """Checkpoints of one run with a run directory.

    Attributes:
        are_wanted: True if the scenario asks for checkpoints, or if the run continues from one.

    Args:
        folder: run directory.
        execution: open execution of the run.
        tables: tables of the run.
        call: values of the arguments of `run` that `resume` needs: data folder, names of objects in Python.
        trackers: trackers of the run.
        point: checkpoint from which the run continues; None for a new run.
    """

    def __init__(
        self,
        folder: Path,
        execution: Execution,
        tables: RunTables,
        call: Mapping[str, Any],
        trackers: TrackerGroup,
        point: ResumePoint | None,
    ) -> None:
        experiment, config = execution.experiment, execution.experiment.scenario.checkpoint
        self._experiment = experiment
        self._tables = tables
        self._call = call
        self._trackers = trackers
        self._point = point
        self._run_folder, self._folder = folder, folder / CHECKPOINT_FOLDER
        self._client_files = ClientFiles(self._folder, experiment.plan.n_clients, execution.storage)
        interval = CheckpointInterval(config.every_rounds, config.every_seconds)
        manifests = () if point is None else point.manifests
        self._checkpointer = Checkpointer(self._folder, self._client_files, interval, config.keep, manifests)
        is_wanted = config.every is not None
        # nodes store the states of one round back, so the file of a resumed deployment cannot turn checkpoints off
        self._is_each_round = execution.needs_checkpoint_each_round and (is_wanted or point is not None)
        self.are_wanted = is_wanted or point is not None
        self._deployment = execution.deployment
        self._identity: Mapping[str, Any] | None = None
        self._changed_record: RoundRecord | None = None
        self._start = time.perf_counter()

    def restore(self, federation: Federation) -> tuple[list[RoundRecord], ServerState] | None:
        """Return the records of the checkpoint's rounds, and the server's state; fill the clients' storage. None for a new run.

        Args:
            federation: federation that has not run a round, which continues after the checkpoint.

        Raises:
            CheckpointError: the ledger is not the ledger of the checkpoint.
        """
        if self._point is None:
            return None
        manifest, run = self._point.manifest, self._point.run
        history = self._tables.replay(run["totals"])
        for name, digest, recorded in (
            ("ledger.parquet", self._tables.ledger.sha256, run["ledger_sha256"]),
            ("rounds.parquet or failures.parquet", self._tables.rounds_sha256, run["rounds_sha256"]),
        ):
            if digest != recorded:
                raise CheckpointError(f"{self._point.folder}: {name} was changed after the checkpoint: its digest differs")
        server, norms = restore(self._client_files, self._folder, manifest)
        missed = Counter({int(rounds): count for rounds, count in run["rounds_missed"]})
        if history[-1].metrics is not None and not federation.evaluates_in(manifest.round):
            # the last round of a shorter run is always evaluated, but not the same round of the longer run
            history[-1] = self._changed_record = replace(history[-1], metrics=None)
        federation.restore(server, history, ResidualStatistics(norms, missed))
        if federation.is_over and manifest.round < self._experiment.scenario.rounds > self._point.scenario.rounds:
            raise CheckpointError(
                f"{self._point.folder}: the run ended after round {manifest.round}, because it reached the target of [stop]"
            )
        remove_other_files(self._folder, list(self._point.manifests))
        return history, server

    def start(self) -> None:
        """Remove what only the shorter run has, after `restore` has succeeded: its results, and the evaluation at its end."""
        if self._point is None:
            return
        write_atomically(self._run_folder / "scenario.toml", self._experiment.scenario.to_toml().encode())
        if self._changed_record is not None:
            self._tables.replace_last_round(self._changed_record)
        remove_results(self._run_folder)

    def add_round(self, federation: Federation, server: ServerState, record: RoundRecord) -> None:
        """Record a finished round, and write a checkpoint if the interval asks for one and the run goes on."""
        self._checkpointer.add_cohort(record.cohort)
        if not federation.is_over and (self._is_each_round or self._checkpointer.is_due(record.round)):
            self.write(federation, server)

    def write(self, federation: Federation, server: ServerState) -> None:
        """Write a checkpoint, unless the latest has this round already.

        Args:
            federation: federation between two rounds.
            server: state of its server before the next round.
        """
        if self.last_round == server.round - 1:  # a second client file of the round would lack the states that did not change
            return
        if self._identity is None:
            self._identity = describe_identity(self._experiment)
        tables = self._tables.sync()
        if not self.last_round:
            sync_path(self._run_folder)  # the names of the tables
        with use_caller_state():
            trackers = self._trackers.describe()
        run = {
            "folder": str(self._run_folder.absolute()),
            "trackers": [asdict(record) for record in trackers],
            "scenario": self._experiment.scenario.to_toml(),
            "identity": self._identity,
            "environment": describe_environment(),
            "engine": asdict(self._experiment.engine_choice),
            "is_over": federation.is_over,
            "totals": {direction: asdict(total) for direction, total in federation.ledger.totals.items()},
            "ledger_sha256": federation.ledger.sha256,
            "rounds_sha256": self._tables.rounds_sha256,
            "rounds_missed": sorted(federation.residuals.rounds_missed.items()),
            "module_folders": list_module_folders(self._experiment.scenario),
            "seconds": time.perf_counter() - self._start + (0.0 if self._point is None else self._point.run["seconds"]),
            "deployment": self._deployment,
            **self._call,
        }
        self._checkpointer.write(server, federation.residuals.norms, tables, run)

    @property
    def last_round(self) -> int:
        """Last round of the latest checkpoint; 0 without one."""
        return self._checkpointer.last_round
