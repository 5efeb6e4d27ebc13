"""Statistics of a method over its seeds, ratios to the baseline over paired seeds, and the cost of tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsgd.analysis.differences import find_unpaired_topics, have_equal_cohorts
from fedsgd.analysis.methods import Method
from fedsgd.analysis.pricing import PricedRun
from fedsgd.analysis.runs import Run
from fedsgd.analysis.seed_statistics import (
    MIN_SEEDS,
    MedianEstimate,
    RatioEstimate,
    SeedFigure,
    compute_logrank_p,
    estimate_median,
    estimate_ratio,
)
from fedsgd.experiment.time_to_target import TargetReached
from fedsgd.numerics.arrays import F64
from fedsgd.scenario.target import Criterion, Target

BYTE_COLUMNS = {
    "up_bytes": ("uplink_bytes",),
    "down_bytes": ("downlink_bytes",),
    "all_bytes": ("uplink_bytes", "downlink_bytes"),
}
"""Columns of rounds.parquet by the name of their sum."""
FigureTable = Mapping[str, Mapping[int, SeedFigure]]
"""Figures by name and seed."""


@dataclass(frozen=True)
class BaselineRatios:
    """Ratios of the baseline's medians to those of a method.

    Attributes:
        baseline: label of the baseline.
        ratios: by name of the figure, as in `SeedStatistics`; without figures that nothing bounds.
        seeds: seeds of the pairs, ascending.
        unpaired_seeds: seeds that only one of the two methods has.
        unpaired_reason: difference because of which seeds are not paired and there are no ratios; None if seeds are paired.
        has_equal_cohorts: True if the pairs have equal cohorts, too.
        logrank_p: p of a log-rank test of the rounds to the target, over all seeds of both methods; None without a target.
    """

    baseline: str
    ratios: Mapping[str, RatioEstimate]
    seeds: tuple[int, ...]
    unpaired_seeds: tuple[int, ...]
    unpaired_reason: str | None
    has_equal_cohorts: bool
    logrank_p: float | None


@dataclass(frozen=True)
class SeedStatistics:
    """Statistics of a method over its seeds.

    Attributes:
        medians: by name of the figure: "best_value", "final_value", "rounds", "up_bytes", "down_bytes", "all_bytes", and
            "seconds NETWORK" and "bytes NETWORK" for each network; empty below `MIN_SEEDS` seeds.
        to_baseline: ratios to the baseline; None for the baseline.
    """

    medians: Mapping[str, MedianEstimate]
    to_baseline: BaselineRatios | None


@dataclass(frozen=True)
class TuningCost:
    """Cost of a method's runs at other tuned values than the reported ones.

    Attributes:
        runs: finished runs.
        n_failed: runs that ended in an error; their bytes and seconds are not known and do not count.
        n_bytes: bytes of these runs, in both directions.
        seconds: sum of the runs' wall-clock seconds.
    """

    runs: int
    n_failed: int
    n_bytes: int
    seconds: float


def compute_tuning_cost(method: Method) -> TuningCost | None:
    """Return the cost of the variants that are not reported; None for a method with a single variant."""
    others = [variant for variant in method.variants if variant.tuned != method.best_variant.tuned]
    if not others:
        return None
    runs = [run for variant in others for run in variant.runs]
    n_bytes = sum(int(run.rounds[column][-1]) for run in runs for column in BYTE_COLUMNS["all_bytes"])
    return TuningCost(len(runs), sum(variant.n_failed for variant in others), n_bytes, sum(map(_get_seconds, runs)))


def _get_seconds(run: Run) -> float:
    """Return the wall-clock seconds of a run; for an earlier release without them, those of its rounds."""
    seconds = run.summary.get("seconds")
    return float(run.rounds["seconds"].sum() if seconds is None else seconds)


def collect_seed_figures(
    method: Method,
    target: Target | None,
    endpoints: Mapping[Run, TargetReached | None],
    priced_runs: Mapping[str, Sequence[PricedRun]],
) -> dict[str, dict[int, SeedFigure]]:
    """Return the rounds, bytes and seconds to the target, by name and seed.

    Args:
        method: method; a failed seed never reaches the target.
        target: target; None for the end of each run.
        endpoints: point of each run at which it reaches the target.
        priced_runs: by network, priced runs in the order of the method's runs.
    """
    axes: dict[str, list[F64]] = {"rounds": [run.get_cumulative("round") for run in method.runs]}
    for name, columns in BYTE_COLUMNS.items():
        axes[name] = [sum(map(run.get_cumulative, columns[1:]), run.get_cumulative(columns[0])) for run in method.runs]
    for network, runs in priced_runs.items():
        axes[f"seconds {network}"] = [run.cumulative_seconds for run in runs]
        axes[f"bytes {network}"] = [run.transferred_bytes for run in runs]
    figures: dict[str, dict[int, SeedFigure]] = {}
    for name, values in axes.items():
        by_seed = {run.seed: _read_figure(run, axis, endpoints[run]) for run, axis in zip(method.runs, values, strict=True)}
        never = {seed: SeedFigure(None) for seed in _list_failed_seeds(method)}
        figures[name] = by_seed | never
    return figures


def _read_figure(run: Run, axis: F64, endpoint: TargetReached | None) -> SeedFigure:
    """Return the figure of a run: censored at its end, or infinite if the run diverged."""
    if endpoint is not None:
        return SeedFigure(endpoint.interpolate_on(axis))
    return SeedFigure(None, math.inf if run.summary.get("diverged") else float(axis[-1]))


def _list_failed_seeds(method: Method) -> list[int]:
    """Return the seeds that ended in an error; a negative number for a seed whose number is not known."""
    variant = method.best_variant
    n_unknown = variant.n_failed - len(variant.failed_seeds)
    return [*variant.failed_seeds, *(-1 - i for i in range(n_unknown))]


def estimate_medians(method: Method, criterion: Criterion, figures: FigureTable) -> dict[str, MedianEstimate]:
    """Return the medians of the figures, and of the best and the final value of the criterion's metric."""
    bests = [run.find_best(criterion) for run in method.runs]
    measurements = [run.get_measurements(criterion.metric) for run in method.runs]
    tables = {
        "best_value": [SeedFigure(value) for value in bests if value is not None],
        "final_value": [SeedFigure(pairs[-1][1]) for pairs in measurements if pairs],
        **{name: list(by_seed.values()) for name, by_seed in figures.items()},
    }
    return {name: estimate_median(values) for name, values in tables.items() if len(values) >= MIN_SEEDS}


def compare_with_baseline(
    baseline: Method, method: Method, baseline_figures: FigureTable, figures: FigureTable, has_target: bool
) -> BaselineRatios:
    """Return the ratios of a method to the baseline over paired seeds.

    Seeds are paired if they are equal, and if the runs have equal splits and initial models.
    """
    runs = [{run.seed: run for run in m.runs} for m in (baseline, method)]
    seeds = [{*m.best_variant.failed_seeds, *by_seed} for m, by_seed in zip((baseline, method), runs, strict=True)]
    common = sorted(seeds[0] & seeds[1])
    pairs = [(runs[0][seed], runs[1][seed]) for seed in common if seed in runs[0] and seed in runs[1]]
    topics = next((topics for first, second in pairs if (topics := find_unpaired_topics(first, second))), [])
    reason = f"they differ in {' and '.join(topics)}" if topics else None if common else "they have no seed in common"
    if reason is not None:
        common = []
    ratios = {
        name: ratio
        for name in figures
        if name in baseline_figures
        and (ratio := estimate_ratio(*([table[name][seed] for seed in common] for table in (baseline_figures, figures))))
    }
    rounds = (list(table["rounds"].values()) for table in (baseline_figures, figures))
    return BaselineRatios(
        baseline=baseline.label,
        ratios=ratios,
        seeds=tuple(common),
        unpaired_seeds=tuple(sorted((seeds[0] | seeds[1]) - set(common))),
        unpaired_reason=reason,
        has_equal_cohorts=all(have_equal_cohorts(*pair) for pair in pairs),
        logrank_p=compute_logrank_p(*rounds) if has_target else None,
    )
