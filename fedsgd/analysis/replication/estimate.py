"""Time that the remaining runs of a study need at most."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsgd.analysis.replication.plan import StudyPlan
from fedsgd.experiment.planning.run_plan import RunPlan
from fedsgd.experiment.planning.run_plan import plan as plan_run
from fedsgd.scenario.parsing import dump_table
from fedsgd.scenario.scenario import Scenario

COST_KEYS = ("epochs", "steps", "batch_size")
"""Keys of [client] on which the time of a client in a round depends most."""


def estimate_seconds(study_plan: StudyPlan) -> float:
    """Return the wall-clock seconds of all remaining runs, if each ran all its rounds.

    A cell that has a record takes as long a round as there. Of the other cells, one of each kind of model and local steps is
    calibrated for some seconds, as `fedsgd.plan` does; cohorts of other sizes count in proportion. The final runs of a cell
    whose tuned values are not known yet count with those of its first tuning run.

    Args:
        study_plan: study, chosen cells and records.
    """
    waiting = study_plan.find_waiting([*study_plan.plan_tuning(), *study_plan.plan_final()])
    if not waiting:
        return 0.0
    recorded = _collect_round_seconds(study_plan)
    calibrated: dict[str, tuple[int, float]] = {}
    total = 0.0
    for run in waiting:
        scenario = run.planned_cell.scenario
        round_seconds = recorded.get(run.cell)
        if round_seconds is None:
            kind = _describe_kind(scenario)
            if kind not in calibrated:
                run_plan = _calibrate(scenario, study_plan.config.execution.data)
                calibrated[kind] = run_plan.cohort, run_plan.time.round
            cohort, seconds = calibrated[kind]
            round_seconds = seconds * _get_cohort(scenario, cohort) / cohort
        total += study_plan.limit_run(run).scenario.rounds * round_seconds
    for label in study_plan.list_untuned():
        scenario = study_plan.get_scenario(label)
        cohort, seconds = calibrated.get(_describe_kind(scenario), (1, 0.0))
        per_round = recorded.get(label, seconds * _get_cohort(scenario, cohort) / cohort)
        total += study_plan.count_seeds(label) * scenario.rounds * per_round
    return total / study_plan.config.execution.jobs


def _collect_round_seconds(study_plan: StudyPlan) -> Mapping[str, float]:
    """Return the seconds of a round of each cell that has a record of a finished run."""
    return {r.cell: r.seconds / r.rounds for r in study_plan.results.runs.values() if r.error is None and r.rounds}


def _describe_kind(scenario: Scenario) -> str:
    table: dict[str, Any] = dump_table(scenario)
    steps = {key: table["client"].get(key) for key in COST_KEYS}
    return json.dumps({"model": table["model"], "data": scenario.data.source.name, **steps}, sort_keys=True)


def _get_cohort(scenario: Scenario, default: int) -> int:
    n_clients = scenario.data.n_clients
    return default if n_clients is None else scenario.compute_cohort_size(n_clients)


def _calibrate(scenario: Scenario, data: str | Path | None) -> RunPlan:
    return plan_run(scenario, data=data)
