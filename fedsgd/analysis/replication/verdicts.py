"""Comparison of a study's figures with the published ones: a verdict for each cell and for each claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from fedsgd.analysis.replication.counting_rules import MessageCounts
from fedsgd.analysis.replication.plan import StudyPlan
from fedsgd.analysis.replication.records import RunRecord
from fedsgd.analysis.replication.study import (
    BY_DIFFERENCE,
    KNOWN,
    NOT_RUN,
    REPRODUCED,
    SMALLER_IS_BETTER,
    TO_TARGET,
    UNKNOWN,
    UNPUBLISHED,
    Claim,
    Study,
)
from fedsgd.analysis.seed_statistics import Interval, MedianEstimate, SeedFigure, estimate_median
from fedsgd.analysis.tuning import find_grid_edge_keys

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
"""Verdicts on a claim, in addition to NOT_RUN; "undecided" if neither cell reaches the target."""


@dataclass(frozen=True)
class CellResult:
    """Measured and published figure of a cell.

    Attributes:
        label, paper: label of the cell, and the published figure.
        seeds: number of seeds of the cell, run or not; 1 for a script.
        values: figure of each seed; infinite where a run ended before it reached the target.
        value: Kaplan–Meier median of the values; None if the cell was not run.
        interval: confidence interval of the median, with its confidence; None with too few seeds.
        ratio: value / paper, or value − paper for accuracies; None without one of them.
        verdict: verdict on the cell.
        cause: known cause of a difference.
        tuned: tuned values, as text.
        uplink_bytes, downlink_bytes: median bytes to the target, or of the whole run; None if not measured.
        rule_bytes: uplink bytes by the paper's counting rule; None without a rule.
        own_value: of a script, the figure with the bytes of fedsgd's frames.
        network_seconds: median seconds to the target by network; infinite where it is not reached.
    """

    label: str
    paper: float | None
    seeds: int
    values: tuple[float, ...]
    value: float | None
    interval: Interval | None
    ratio: float | None
    verdict: str
    cause: str
    tuned: str
    uplink_bytes: float | None
    downlink_bytes: float | None
    rule_bytes: float | None
    own_value: float | None
    network_seconds: dict[str, float]


@dataclass(frozen=True)
class ClaimResult:
    """Verdict on a claim, "holds", "does not hold", "undecided" or "not run", with the two values."""

    claim: Claim
    verdict: str
    better: float | None
    worse: float | None


@dataclass(frozen=True)
class Replication:
    """Result of a study.

    Attributes:
        study: the study.
        cells, claims: results of the chosen cells, and of the claims about them.
        made: dates, commits, releases and machines of the results, as text.
        seconds: wall-clock seconds of the cells' runs by phase, "tuning" and "final".
        has_target: True if the study's scenario has a target.
        changed: labels of cells, and texts of claims, whose verdict is not the expected one.
        diverged: run and error of each run that ended in a RunError, which is its result.
        errors: run and error of each failure that is not a result, such as missing data.
    """

    study: Study
    cells: tuple[CellResult, ...]
    claims: tuple[ClaimResult, ...]
    made: str
    seconds: dict[str, float]
    has_target: bool
    changed: tuple[str, ...]
    diverged: tuple[tuple[str, str], ...]
    errors: tuple[tuple[str, str], ...]


def build_replication(plan: StudyPlan) -> Replication:
    """Return the results of a plan's cells, as far as they have been run.

    Args:
        plan: study, chosen cells and records.
    """
    records = {label: _find_records(plan, label) for label in plan.labels}
    cells = tuple(_build_cell(plan, label, records) for label in plan.labels)
    values = {cell.label: cell.value for cell in cells}
    claims = tuple(
        _judge_claim(plan.study, claim, values)
        for claim in plan.study.claims
        if claim.better in values and claim.worse in values
    )
    used = [record for label in plan.labels for record in records[label]]
    made = [
        *(record.made for record in used),
        *(plan.results.computed[k].made for k in plan.labels if k in plan.results.computed),
    ]
    tuning = [record for run in plan.plan_tuning() if (record := plan.find_record(run)) is not None]
    seconds = {phase: sum(r.seconds for r in runs) for phase, runs in (("tuning", tuning), ("final", used))}
    expected = {label: plan.study.get_cell(label).expected for label in plan.labels}
    judged = [(cell.label, cell.verdict, expected[cell.label]) for cell in cells]
    judged += [(result.claim.text, result.verdict, result.claim.expected) for result in claims]
    changed = tuple(
        name
        for name, verdict, expectation in judged
        if verdict not in (NOT_RUN, UNDECIDED) and expectation not in (None, verdict)
    )
    failed = [record for record in (*tuning, *used) if record.error is not None]
    diverged = tuple((f"{r.cell}, {r.phase} run with seed {r.seed}", str(r.error)) for r in failed)
    return Replication(
        plan.study, cells, claims, _join_origins(made), seconds, plan.target is not None, changed, diverged, tuple(plan.errors)
    )


def _find_records(plan: StudyPlan, label: str) -> list[RunRecord]:
    keys = [run.key for run in plan.plan_final([label])]
    return [plan.results.runs[key] for key in keys if key in plan.results.runs]


def _build_cell(plan: StudyPlan, label: str, records: dict[str, list[RunRecord]]) -> CellResult:
    study, cell = plan.study, plan.study.get_cell(label)
    if study.script is not None:
        computed = plan.results.computed.get(label)
        value = None if computed is None else computed.value
        values: tuple[float, ...] = () if value is None else (value,)
        rule_bytes, own_value = (None, None) if computed is None else (computed.rule_bytes, computed.own_value)
        n_bytes = None if computed is None else computed.n_bytes
        verdict = judge(study, value, cell.paper, cell.cause)
        ratio = _compare(study, value, cell.paper)
        return CellResult(
            label, cell.paper, 1, values, value, None, ratio, verdict, cell.cause, "", n_bytes, None, rule_bytes, own_value, {}
        )
    own = records[label]
    baseline = {record.seed: record for record in records.get(study.get_baseline(label) or "", ())}
    values = tuple(v for record in own if (v := measure(study, record, baseline)) is not None)
    estimate = _estimate(study, own, values)
    value = None if estimate is None else estimate.median
    return CellResult(
        label,
        cell.paper,
        plan.count_seeds(label),
        values,
        value,
        None if estimate is None else estimate.interval,
        _compare(study, value, cell.paper),
        judge(study, value, cell.paper, cell.cause),
        cell.cause,
        _describe_tuned(study, own),
        _median_bytes(plan, own, "uplink_bytes"),
        _median_bytes(plan, own, "downlink_bytes"),
        _count_by_rule(plan, own),
        None,
        {name: seconds for name in study.networks if (seconds := _median_seconds(study, own, name)) is not None},
    )


def _estimate(study: Study, records: Sequence[RunRecord], values: Sequence[float]) -> MedianEstimate | None:
    """Return the median of a cell's figures; None without any. Runs that end before their target are censored at their end."""
    if not values:
        return None
    if study.measure not in TO_TARGET:
        return estimate_median([SeedFigure(value) for value in values])
    figures = []
    for record, value in zip(records, values, strict=True):
        end = float(record.rounds if study.measure == "rounds" else record.uplink_bytes)
        is_censored = math.isinf(value) and record.error is None and not record.diverged
        figures.append(SeedFigure(None if math.isinf(value) else value, end if is_censored else math.inf))
    return estimate_median(figures)


def measure(study: Study, record: RunRecord, baseline: dict[int, RunRecord]) -> float | None:
    """Return the study's figure of a run; infinite if the target was not reached, None if the baseline's run is missing.

    Args:
        study: study with the measure.
        record: record of the run.
        baseline: records of the baseline by seed.
    """
    if study.measure in TO_TARGET:
        key = "rounds" if study.measure == "rounds" else "uplink_bytes"
        return math.inf if record.error is not None or record.target is None else float(record.target[key])
    if study.measure == "loss":
        return math.inf if record.best is None else record.best
    if study.measure == "accuracy":
        return record.best or 0.0
    if study.measure == "final-accuracy":
        return record.final or 0.0
    other = baseline.get(record.seed)
    if other is None:
        return None
    if study.measure == "speedup":
        rounds, other_rounds = (math.inf if r.target is None else r.target["rounds"] for r in (record, other))
        return other_rounds / rounds if math.isfinite(rounds) else 0.0
    return (record.final or 0.0) - (other.final or 0.0)


def judge(study: Study, value: float | None, paper: float | None, cause: str) -> str:
    """Return the verdict on a figure.

    Args:
        study: study with measure and tolerance.
        value: measured figure, None if it was not measured.
        paper: published figure, None if there is none.
        cause: known cause of a difference, "" for none.
    """
    if value is None:
        return NOT_RUN
    if paper is None:
        return UNPUBLISHED
    if study.measure in BY_DIFFERENCE:
        is_near = abs(value - paper) <= study.tolerance * (1 + 1e-9)
    else:
        is_near = math.isfinite(value) and 1 / study.tolerance <= value / paper <= study.tolerance
    return REPRODUCED if is_near else KNOWN if cause else UNKNOWN


def _compare(study: Study, value: float | None, paper: float | None) -> float | None:
    if value is None or paper is None:
        return None
    return value - paper if study.measure in BY_DIFFERENCE else value / paper


def _judge_claim(study: Study, claim: Claim, values: dict[str, float | None]) -> ClaimResult:
    better, worse = values[claim.better], values[claim.worse]
    if better is None or worse is None:
        return ClaimResult(claim, NOT_RUN, better, worse)
    if math.isinf(better) and math.isinf(worse):
        return ClaimResult(claim, UNDECIDED, better, worse)
    sign = -1.0 if study.measure in SMALLER_IS_BETTER else 1.0
    margin = claim.margin if study.measure in BY_DIFFERENCE or math.isinf(worse) else claim.margin * abs(worse)
    is_true = sign * better >= sign * worse - margin
    return ClaimResult(claim, HOLDS if is_true else FAILS, better, worse)


def _describe_tuned(study: Study, records: Sequence[RunRecord]) -> str:
    """Return the tuned values of a cell as text, with a mark at values at the edge of their grid."""
    if not records or not records[0].tuned:
        return ""
    tuned, grid = records[0].tuned, study.get_tune(records[0].cell)
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    edges = find_grid_edge_keys(tuned, points)
    return ", ".join(f"{key} = {value}" + " (edge of the grid)" * (key in edges) for key, value in tuned.items())


def _median_seconds(study: Study, records: Sequence[RunRecord], network: str) -> float | None:
    """Return the median time on a network, infinite if not reached; None if it was not recorded for the study's device."""
    if not records or any(r.error is None and (r.device != study.device or network not in r.network_seconds) for r in records):
        return None
    seconds = (None if record.error is not None else record.network_seconds[network] for record in records)
    return statistics.median([math.inf if value is None else value for value in seconds])


def _median_bytes(plan: StudyPlan, records: Sequence[RunRecord], key: str) -> float | None:
    """Return the median of the bytes to the target, None if a run does not reach it; without a target, of the whole runs."""
    if not records or any(record.error is not None for record in records):
        return None
    if plan.target is None:
        return statistics.median([float(getattr(record, key)) for record in records])
    targets = [record.target for record in records if record.target is not None]
    return statistics.median([target[key] for target in targets]) if len(targets) == len(records) else None


def _count_by_rule(plan: StudyPlan, records: Sequence[RunRecord]) -> float | None:
    """Return the median uplink bytes by the cell's counting rule, for the same rounds as `_median_bytes`.

    The rounds to the target have their share of the run's coordinates, which is exact if all rounds send equally many.
    """
    rule = plan.study.get_counting_rule(records[0].cell) if records else None
    if rule is None or _median_bytes(plan, records, "uplink_bytes") is None:
        return None
    counts = []
    for record in records:
        share = 1.0 if record.target is None else record.target["rounds"] / record.rounds
        traffic = record.traffic
        counts.append(share * rule.count_bytes(MessageCounts(traffic["parameters"], traffic["kept"], traffic["frames"])))
    return statistics.median(counts)


def _join_origins(origins: Sequence[object]) -> str:
    """Return the distinct dates, commits, releases and machines as text."""
    parts = []
    for key, name in (("date", ""), ("commit", "commit "), ("fedsgd", "fedsgd "), ("machine", "")):
        values = sorted({origin[key] for origin in origins if isinstance(origin, dict) and key in origin})
        if values:
            parts.append(
                name + (values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}" if not name else ", ".join(values))
            )
    return "; ".join(parts)
