"""Choice of the best value of tuned settings: its figures, on validation examples where the runs have them, and its edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedsgd.analysis.runs import Run
from fedsgd.models.set_metrics import VALIDATION_PREFIX, name_validation_metric
from fedsgd.scenario.target import Criterion, Target


def select_tuning_figures(runs: Sequence[Run], target: Target | None, criterion: Criterion) -> tuple[Target | None, Criterion]:
    """Return target and criterion by which a tuned value is selected, on the metric's validation figures if possible.

    The metric on the test examples decides where a run has no such figures. It also decides where `[stop]` ended a run before
    the validation figure reached the target, because the rounds that this figure needs are then unknown.

    Args:
        runs: finished runs of a method, at all values that were tried.
        target: target of the reported figures; None without one.
        criterion: criterion of the reported figures.
    """
    metric = criterion.metric
    name = metric if metric.startswith(VALIDATION_PREFIX) else name_validation_metric(metric)
    if not all(name in run.metrics for run in runs):
        return target, criterion
    validation_target = None if target is None else replace(target, metric=name)
    if validation_target is not None and any(_is_stopped_before(run, validation_target) for run in runs):
        return target, criterion
    return validation_target, replace(criterion, metric=name)


def _is_stopped_before(run: Run, target: Target) -> bool:
    """Return True if `[stop]` ended a run that had not reached a target."""
    return run.summary.get("stopped_by", "rounds") != "rounds" and run.find_reached(target) is None


def uses_validation(metric: str) -> bool:
    """Return True if a metric is measured on validation examples.

    >>> uses_validation("validation_loss"), uses_validation("loss")
    (True, False)
    """
    return metric.startswith(VALIDATION_PREFIX)


def find_grid_edge_keys(best: Mapping[str, Any], all_tuned: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the settings whose best value is the smallest or the largest of several numbers that were tried.

    >>> find_grid_edge_keys({"lr": 0.1}, [{"lr": 0.1}, {"lr": 0.2}])
    ('lr',)

    Args:
        best: best values by dotted key.
        all_tuned: values of each combination that was tried.
    """
    edge_keys = []
    for key, value in best.items():
        values = [tuned[key] for tuned in all_tuned if key in tuned]
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == len(values) and len(set(values)) > 1 and value in (min(values), max(values)):
            edge_keys.append(key)
    return tuple(edge_keys)
