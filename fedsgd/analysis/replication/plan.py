"""Plan of a study: the runs of each cell, tuning and final, and those of them that have no record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsgd.analysis.replication.records import Phase, Results, RunRecord, digest_settings
from fedsgd.analysis.replication.study import SCRIPT_MEASURES, TO_TARGET, Study
from fedsgd.errors import ScenarioError
from fedsgd.models.set_metrics import name_validation_metric
from fedsgd.scenario.scenario import Scenario, load
from fedsgd.scenario.target import Criterion, Target
from fedsgd.sweeps.cells import PlannedCell, plan_cells
from fedsgd.sweeps.labels import assign_unique_slugs
from fedsgd.sweeps.options import SweepConfig
from fedsgd.sweeps.settings import check_grids, flatten_table
from fedsgd.system.user_files import search_folders

ROUNDS_OF_BEST = {"rounds": 1.0, "speedup": 1.0, "uplink-bytes": 1.25}
"""Rounds of a tuning run, relative to those of the best value so far, after which it is not selected, by measure. A quarter
more are allowed for bytes, because the bytes of a round depend a little on the optimizers."""
OPTIMIZERS = ("client.optimizer.", "server.optimizer.")
"""Prefixes of the settings that hardly change the bytes of a round."""


@dataclass(frozen=True)
class StudyRun:
    """A planned run of a study: its cell in the sweep engine, and its record's key.

    Attributes:
        planned_cell: folder, settings and scenario for the sweep engine.
        cell, phase: label of the study's cell, "tuning" or "final".
    """

    planned_cell: PlannedCell
    cell: str
    phase: Phase

    @property
    def key(self) -> tuple[str, str, int, str]:
        """Key of the run's record."""
        return self.cell, self.phase, self.planned_cell.cell.seed, digest_settings(self.planned_cell.scenario)


@dataclass(frozen=True)
class ReplicationConfig:
    """Cells and processes of a replication.

    Attributes:
        cells: labels of cells; empty for all. The cells to which relative measures refer are added.
        quick: run the quick form: cells with a table `quick`, one seed, without tuning.
        execution: processes, data folder and time limit of the runs.
    """

    cells: tuple[str, ...] = ()
    quick: bool = False
    execution: SweepConfig = field(default_factory=SweepConfig)


class StudyPlan:
    """Runs of a study, and those of them that have no record.

    Attributes:
        study: the study.
        config: cells and processes.
        results: records, which `run_study` completes.
        errors: run and message of each failure that is not a result, such as missing data.
    """

    def __init__(self, study: Study, config: ReplicationConfig, results: Results) -> None:
        self.study = study
        self.config = config
        self.results = results
        self.errors: list[tuple[str, str]] = []
        for label in config.cells:
            study.get_cell(label)
        self._slugs = assign_unique_slugs(study.cells)
        self._tuning_runs: dict[str, list[StudyRun]] = {}
        self._base = None if study.scenario is None else load(Path(study.folder) / study.scenario)
        self._check_measure()
        if not self.labels:
            raise ScenarioError(f"{study.name}: no cell has a quick form, expected a key `quick` in one of its cells")

    def _check_measure(self) -> None:
        """Raise ScenarioError for a measure that the scenario or the script cannot have."""
        measure, target = self.study.measure, self.target
        if (measure in SCRIPT_MEASURES) != (self._base is None):
            expected = f"{' or '.join(SCRIPT_MEASURES)} with a script" if self._base is None else "another one with a scenario"
            raise ScenarioError(f"{self.study.name}: measure: got {measure!r}, expected {expected}")
        if target is None and (measure in TO_TARGET or measure == "speedup"):
            raise ScenarioError(f"{self.study.name}: measure: {measure!r} needs a target in [report] of the scenario")
        metric = Criterion().metric if target is None else target.metric
        if self._base is not None and (measure == "loss") != (metric == "loss") and measure not in (*TO_TARGET, "speedup"):
            expected = "loss" if measure == "loss" else "accuracy"
            raise ScenarioError(f"{self.study.name}: measure: {measure!r} needs a target of the {expected} in [report]")

    @property
    def target(self) -> Target | None:
        """Target of the study's scenario."""
        return None if self._base is None else self._base.report.resolved_target

    @property
    def labels(self) -> list[str]:
        """Labels of the chosen cells and of those to which they refer, in the order of the study."""
        chosen = {
            label
            for label in self.study.cells
            if (not self.config.cells or label in self.config.cells)
            and not (self.config.quick and self._base is not None and self.study.get_cell(label).quick is None)
        }
        chosen |= {baseline for label in chosen if (baseline := self.study.get_baseline(label)) is not None}
        return [label for label in self.study.cells if label in chosen]

    def plan_tuning(self, labels: Sequence[str] | None = None) -> list[StudyRun]:
        """Return the runs that select the tuned values of the chosen cells or of `labels`; empty in the quick form."""
        return [run for label in (self.labels if labels is None else labels) for run in self._plan_tuning_of(label)]

    def _plan_tuning_of(self, label: str) -> list[StudyRun]:
        tune = self.study.get_tune(label)
        if self._base is None or self.config.quick or not tune:
            return []
        if label not in self._tuning_runs:
            check_grids({}, tune)
            settings = self._get_settings(label)
            stop = self._plan_cells(label, settings, {}, 1)[0].scenario.stop.resolved_target
            if stop is not None:  # the run ends when the validation examples reach the target
                target = Target(name_validation_metric(stop.metric), **{stop.direction: stop.threshold})
                settings = {**settings, "stop.target": str(target)}
            cells = self._plan_cells(label, settings, tune, 1)
            self._tuning_runs[label] = [StudyRun(cell, label, "tuning") for cell in cells]
        return self._tuning_runs[label]

    def plan_final(self, labels: Sequence[str] | None = None) -> list[StudyRun]:
        """Return the runs of all seeds of the chosen cells or of `labels`, for cells whose tuned values are known."""
        runs: list[StudyRun] = []
        if self._base is None:
            return runs
        for label in self.labels if labels is None else labels:
            tuned = self.select_tuned(label)
            if tuned is not None:
                settings = {**self._get_settings(label), **tuned}
                cells = self._plan_cells(label, settings, {}, self.count_seeds(label), self._base.seed + 1)
                runs += [StudyRun(replace(c, cell=replace(c.cell, tuned=tuned)), label, "final") for c in cells]
        return runs

    def count_seeds(self, label: str) -> int:
        """Return the number of final runs of a cell."""
        return 1 if self.config.quick else self.study.get_cell(label).seeds or self.study.seeds

    def _plan_cells(
        self, label: str, settings: dict[str, Any], tune: dict[str, Any], seeds: int, first_seed: int | None = None
    ) -> list[PlannedCell]:
        """Return the cells of the sweep engine, with a folder that no other cell of the study has."""
        assert self._base is not None
        base = self._base if first_seed is None else self._base.with_settings({"seed": first_seed})
        with search_folders([self.study.folder]):
            cells = plan_cells(base, {label: settings}, {}, tune, seeds, f"{self.study.name}: ")
        folders = ("/".join([self._slugs[label], *cell.cell.folder.split("/")[1:]]) for cell in cells)
        return [replace(c, cell=replace(c.cell, folder=folder)) for c, folder in zip(cells, folders, strict=True)]

    def select_tuned(self, label: str) -> dict[str, Any] | None:
        """Return the tuned values of a cell that are best by the study's measure; None if a tuning run is missing.

        For rounds and bytes the value that needs the fewest is selected or, if none reaches the target, the value with the best
        result; for other measures the value with the best result. If all tuning runs diverged, the first value is returned.
        """
        planned_runs = self._plan_tuning_of(label)
        records = [self.find_record(run) for run in planned_runs]
        found = [record for record in records if record is not None]
        if len(found) < len(records):
            return None
        if not found:
            return {}
        target = planned_runs[0].planned_cell.scenario.report.resolved_target
        sign = (Criterion() if target is None else target.criterion).sign
        key = "uplink_bytes" if self.study.measure == "uplink-bytes" else "rounds"
        is_to_target = self.study.measure in (*TO_TARGET, "speedup")

        def rank(record: RunRecord) -> tuple[bool, float, float]:
            best, cost = record.selection.get("best"), record.selection.get(key) if is_to_target else None
            costs = math.inf if cost is None else cost
            return record.error is not None, costs, math.inf if best is None else -sign * best

        return dict(min(found, key=rank).tuned)

    def find_waiting(self, runs: Sequence[StudyRun]) -> list[StudyRun]:
        """Return the runs without a record."""
        return [run for run in runs if self.find_record(run) is None]

    def find_record(self, run: StudyRun) -> RunRecord | None:
        """Return the record of a run; None without one, or if its limit of rounds is below the present limit."""
        record = self.results.runs.get(run.key)
        if record is None or record.round_limit is None:
            return record
        if self.study.measure in ROUNDS_OF_BEST and record.selection.get("rounds") is not None:
            return record
        return record if record.round_limit >= self.limit_run(run).scenario.rounds else None

    def limit_run(self, run: StudyRun) -> PlannedCell:
        """Return the cell of a run, with fewer rounds if a tuning run would not be selected after them.

        The last round is one that is evaluated anyway, because the rounds to the target are interpolated.
        """
        planned_cell, share = run.planned_cell, ROUNDS_OF_BEST.get(self.study.measure)
        if run.phase == "final" or share is None:
            return planned_cell
        if self.study.measure == "uplink-bytes" and not all(key.startswith(OPTIMIZERS) for key in planned_cell.cell.tuned):
            return planned_cell
        records = [self.results.runs.get(other.key) for other in self._plan_tuning_of(run.cell)]
        reached = [n for record in records if record is not None and (n := record.selection.get("rounds")) is not None]
        every = planned_cell.scenario.evaluation.every
        limit = min((every * math.ceil(share * n / every) for n in reached), default=planned_cell.scenario.rounds)
        if limit >= planned_cell.scenario.rounds:
            return planned_cell
        return replace(planned_cell, scenario=planned_cell.scenario.with_settings({"rounds": limit}))

    def list_untuned(self) -> list[str]:
        """Return the labels of chosen cells whose tuned values are not known yet."""
        return [label for label in self.labels if self._base is not None and self.select_tuned(label) is None]

    def get_scenario(self, label: str) -> Scenario:
        """Return the scenario of a cell's first tuning run or, without any, of its first final run."""
        runs = self._plan_tuning_of(label) or self.plan_final([label])
        return runs[0].planned_cell.scenario

    def _get_settings(self, label: str) -> dict[str, Any]:
        cell = self.study.get_cell(label)
        settings = flatten_table(cell.settings)
        return {**settings, **flatten_table(cell.quick or {})} if self.config.quick else settings
