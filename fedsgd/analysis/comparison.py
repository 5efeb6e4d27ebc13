"""Comparison of methods by the rounds, bytes, seconds and money that each needs to reach a target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedsgd.analysis.compute_profile import find_uncosted_codecs
from fedsgd.analysis.differences import describe_other_differences
from fedsgd.analysis.methods import Method
from fedsgd.analysis.pricing import BreakEven, PricedRun, build_method_timing, pairwise_break_evens, price
from fedsgd.analysis.row_statistics import (
    SeedStatistics,
    TuningCost,
    collect_seed_figures,
    compare_with_baseline,
    compute_tuning_cost,
    estimate_medians,
)
from fedsgd.analysis.runs import Run, check_target, choose_criterion
from fedsgd.config.quantities import format_bytes
from fedsgd.errors import ReportError, suggest_name
from fedsgd.experiment.time_to_target import SeedSummary, TargetReached, summarize_seeds
from fedsgd.network import PricingModel
from fedsgd.scenario.target import Criterion, Target, TargetLike, resolve_target

GIGABYTE = 1e9
MAX_ROWS = 4
"""Maximum number of lines for rows in the `repr` of a comparison."""


@dataclass(frozen=True)
class NetworkCost:
    """Time and cost of a method on a network, over its seeds.

    Attributes:
        seconds: time to the target; without a target, to the end of the run.
        mean_round_seconds: mean time of all rounds of a finished run.
        n_bytes: bytes over the network in `seconds`, with the overhead of the transport.
        cost: price of these bytes; None without a price per gigabyte.
        coding_share: share of encoding and decoding in the time of all rounds, maximum over seeds.
        coding_low, coding_high: `seconds` at the first and ninth decile of measured coding times; None with the cost table.
    """

    seconds: SeedSummary
    mean_round_seconds: SeedSummary
    n_bytes: SeedSummary
    cost: SeedSummary | None
    coding_share: float
    coding_low: SeedSummary | None = None
    coding_high: SeedSummary | None = None


@dataclass(frozen=True)
class ComparisonRow:
    """Figures of a method over its seeds. A failed seed, whose run ended in an error, does not reach the target.

    Attributes:
        tuned: tuned settings and their best values.
        grid_edge_keys: tuned settings whose best value is at the edge of the grid.
        tuned_on: metric by which the best values were selected, such as "validation_accuracy"; None without tuned settings.
        seeds, n_failed: number of finished runs, and of failed seeds.
        best_value: best value of each finished run by the criterion of the comparison; None if the metric was not measured.
        final_value: value of the same metric in the last evaluation of each finished run; None if it was not measured.
        rounds: rounds to the target; without a target, to the end of the run.
        up_bytes, down_bytes, all_bytes: bytes in these rounds, of the uplink, of the downlink and in both directions.
        network_costs: times and costs by the name of the network.
        unpriced_reason: reason why the method cannot be priced; None if it can be priced.
        seed_numbers: seeds of the finished runs and failed seeds, ascending.
        unanswered_messages: messages without a reply, maximum over priced runs.
        uncosted_codecs: compressors whose coding is priced as zero.
        warnings: lines about settings that a component does not suit.
        tuning_cost: cost of the runs at other tuned values; None without such runs.
        statistics: Kaplan–Meier medians, intervals, and ratios to the baseline.
    """

    label: str
    tuned: Mapping[str, Any]
    grid_edge_keys: tuple[str, ...]
    uncompressed: bool
    seeds: int
    n_failed: int
    best_value: SeedSummary | None
    final_value: SeedSummary | None
    rounds: SeedSummary
    up_bytes: SeedSummary
    down_bytes: SeedSummary
    all_bytes: SeedSummary
    network_costs: Mapping[str, NetworkCost]
    unpriced_reason: str | None
    seed_numbers: tuple[int, ...]
    unanswered_messages: int
    divergence_by_seed: Mapping[int, str]
    uncosted_codecs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    tuned_on: str | None = None
    tuning_cost: TuningCost | None = None
    statistics: SeedStatistics | None = None

    def __repr__(self) -> str:
        up, down = (
            format_bytes(round(summary.median)) if math.isfinite(summary.median) else "target not reached"
            for summary in (self.up_bytes, self.down_bytes)
        )
        n_bytes = up if up == "target not reached" else f"{up} up, {down} down"
        return f'ComparisonRow("{self.label}": {self.seeds} seed{"s" * (self.seeds != 1)}, {n_bytes})'


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        target: target of the rounds, bytes and times; None for the end of each run.
        criterion: metric and direction of the best values, those of the target if there is one.
        pricing_models, price_per_gigabyte, measured_coding: arguments of `compare`.
        rows: one row for each method, in the order of the methods.
        break_evens: break-evens of all pairs of methods, by the name of the network.
        other_differences: sentence about differences between the runs other than their method; None if there are none.
        baseline_label: label of the method that ratios refer to; None for the first uncompressed method, or the first method.
    """

    target: Target | None
    criterion: Criterion
    pricing_models: Mapping[str, PricingModel]
    price_per_gigabyte: float | None
    rows: tuple[ComparisonRow, ...]
    break_evens: Mapping[str, tuple[BreakEven, ...]]
    other_differences: str | None = None
    measured_coding: bool = False
    baseline_label: str | None = None

    def __repr__(self) -> str:
        end = "whole runs" if self.target is None else f"target {self.target}"
        networks = f", networks {', '.join(self.pricing_models)}" if self.pricing_models else ""
        n_methods = len(self.rows)
        lines = [f"Comparison({n_methods} method{'s' * (n_methods != 1)}, {end}{networks})", *map(repr, self.rows[:MAX_ROWS])]
        if n_methods > MAX_ROWS:
            lines[-1] = f"... and {n_methods - MAX_ROWS + 1} more rows"
        return "\n  ".join(lines)

    @property
    def baseline(self) -> ComparisonRow:
        """Row that ratios refer to: that of `baseline_label`, or the first uncompressed method, otherwise the first method."""
        if self.baseline_label is not None:
            return next(row for row in self.rows if row.label == self.baseline_label)
        return next((row for row in self.rows if row.uncompressed), self.rows[0])


def compare(
    methods: Sequence[Method],
    target: TargetLike | None = None,
    pricing_models: Mapping[str, PricingModel] | None = None,
    price_per_gigabyte: float | None = None,
    measured_coding: bool = False,
    baseline: str | None = None,
) -> Comparison:
    """Compare methods. Methods whose participation depended on time have no times.

    Args:
        methods: methods, as from `load_methods`.
        target: target accuracy, text such as "loss<0.3", or `Target`; None for the end of each run.
        pricing_models: pricing models by the name of the network.
        price_per_gigabyte: price of 10⁹ bytes, in any currency.
        measured_coding: True for coding times that each run's machine measured, False for those of the cost table.
        baseline: label of the method that ratios refer to; None for the first uncompressed method, otherwise the first method.

    Raises:
        ReportError: a run does not measure the target's metric, or no method has the baseline's label.
        ScenarioError: the target has no such form.
    """
    target, runs = resolve_target(target), [run for method in methods for run in method.runs]
    if target is not None:
        check_target(target, runs)
    labels = [method.label for method in methods]
    if baseline is not None and baseline not in labels:
        raise ReportError(f'baseline: there is no method "{baseline}"{suggest_name(baseline, labels)}')
    criterion = choose_criterion(runs, target)
    pricing_models = pricing_models or {}
    priced_runs = {method.label: _price_runs(method, pricing_models, measured_coding) for method in methods}
    rows = tuple(
        _build_row(method, target, criterion, priced_runs[method.label], price_per_gigabyte, measured_coding)
        for method in methods
    )
    break_evens: dict[str, tuple[BreakEven, ...]] = {}
    if target is not None:
        for name, pricing_model in pricing_models.items():
            timings = [
                build_method_timing(method.label, priced_runs[method.label][name], target, method.best_variant.n_failed)
                for method in methods
                if priced_runs[method.label]
            ]
            break_evens[name] = tuple(pairwise_break_evens(timings, pricing_model.network))
    differences = describe_other_differences(methods)
    comparison = Comparison(
        target, criterion, pricing_models, price_per_gigabyte, rows, break_evens, differences, measured_coding, baseline
    )
    return _add_statistics(comparison, methods, priced_runs)


def _add_statistics(
    comparison: Comparison, methods: Sequence[Method], priced_runs: Mapping[str, Mapping[str, Sequence[PricedRun]]]
) -> Comparison:
    """Return the comparison with statistics over seeds in its rows."""
    target, rows = comparison.target, comparison.rows
    figures = [
        collect_seed_figures(
            method, target, {run: _find_endpoint(run, target) for run in method.runs}, priced_runs[method.label]
        )
        for method in methods
    ]
    index = rows.index(comparison.baseline)
    new_rows = []
    for i, (row, method) in enumerate(zip(rows, methods, strict=True)):
        to_baseline = None
        if i != index:
            to_baseline = compare_with_baseline(methods[index], method, figures[index], figures[i], target is not None)
        statistics = SeedStatistics(estimate_medians(method, comparison.criterion, figures[i]), to_baseline)
        new_rows.append(replace(row, statistics=statistics))
    return replace(comparison, rows=tuple(new_rows))


def _price_runs(
    method: Method, pricing_models: Mapping[str, PricingModel], measured_coding: bool
) -> dict[str, list[PricedRun]]:
    """Return the priced runs of a method by network; empty if one of the runs cannot be priced."""
    if not pricing_models or any(run.why_not_repriceable for run in method.runs):
        return {}
    by_run = [price(run, list(pricing_models.values()), measured_coding) for run in method.runs]
    return {name: [runs[i] for runs in by_run] for i, name in enumerate(pricing_models)}


def _build_row(
    method: Method,
    target: Target | None,
    criterion: Criterion,
    priced_runs: Mapping[str, Sequence[PricedRun]],
    price_per_gigabyte: float | None,
    measured_coding: bool,
) -> ComparisonRow:
    variant, endpoints = method.best_variant, {run.folder: _find_endpoint(run, target) for run in method.runs}

    def total_at_end(run: Run, *columns: str) -> float | None:
        endpoint = endpoints[run.folder]
        return None if endpoint is None else sum(endpoint.interpolate_on(run.get_cumulative(column)) for column in columns)

    rounds = variant.summarize_over_seeds(lambda run: None if (end := endpoints[run.folder]) is None else end.rounds)
    return ComparisonRow(
        label=method.label,
        tuned=variant.tuned,
        grid_edge_keys=method.grid_edge_keys,
        uncompressed=method.uncompressed,
        seeds=len(method.runs),
        n_failed=variant.n_failed,
        best_value=variant.summarize_best(criterion),
        final_value=variant.summarize_final(criterion.metric),
        rounds=rounds,
        up_bytes=variant.summarize_over_seeds(lambda run: total_at_end(run, "uplink_bytes")),
        down_bytes=variant.summarize_over_seeds(lambda run: total_at_end(run, "downlink_bytes")),
        all_bytes=variant.summarize_over_seeds(lambda run: total_at_end(run, "uplink_bytes", "downlink_bytes")),
        network_costs={
            name: _summarize_network_cost(runs, endpoints, variant.n_failed, price_per_gigabyte)
            for name, runs in priced_runs.items()
        },
        unpriced_reason=next((run.why_not_repriceable for run in method.runs if run.why_not_repriceable), None),
        seed_numbers=tuple(sorted((*(run.seed for run in method.runs), *variant.failed_seeds))),
        unanswered_messages=max(
            (run.ledger_stats.unanswered_messages for runs in priced_runs.values() for run in runs), default=0
        ),
        divergence_by_seed=method.divergence_by_seed,
        uncosted_codecs=find_uncosted_codecs(method.runs[0]) if priced_runs and not measured_coding else (),
        warnings=method.warnings,
        tuned_on=method.tuned_on,
        tuning_cost=compute_tuning_cost(method),
    )


def _find_endpoint(run: Run, target: Target | None) -> TargetReached | None:
    """Return the point at which a run reaches the target; without a target, the run's end."""
    if target is None:
        return TargetReached(run.n_rounds, run.n_rounds, 0.0)
    return run.find_reached(target)


def _summarize_network_cost(
    priced_runs: Sequence[PricedRun],
    endpoints: Mapping[Any, TargetReached | None],
    n_failed: int,
    price_per_gigabyte: float | None,
) -> NetworkCost:
    failures = [None] * n_failed

    def summarize_seconds(priced_runs: Sequence[PricedRun]) -> SeedSummary:
        pairs = ((run, endpoints[run.run.folder]) for run in priced_runs)
        return summarize_seeds(
            [*(None if end is None else end.interpolate_on(run.cumulative_seconds) for run, end in pairs), *failures]
        )

    pairs = [(run, endpoints[run.run.folder]) for run in priced_runs]
    n_bytes = [None if end is None else end.interpolate_on(run.transferred_bytes) for run, end in pairs]
    cost = None
    if price_per_gigabyte is not None:
        costs = (None if n is None else n / GIGABYTE * price_per_gigabyte for n in n_bytes)
        cost = summarize_seeds([*costs, *failures])
    means = [float(run.cumulative_seconds[-1]) / run.run.n_rounds for run in priced_runs]
    coding_share = max((_compute_coding_share(run) for run in priced_runs), default=0.0)
    deciles = [run.coding_deciles for run in priced_runs if run.coding_deciles is not None]
    decile_seconds = [summarize_seconds(runs) for runs in zip(*deciles, strict=True)] if deciles else [None, None]
    return NetworkCost(
        seconds=summarize_seconds(priced_runs),
        mean_round_seconds=summarize_seeds(means),
        n_bytes=summarize_seeds([*n_bytes, *failures]),
        cost=cost,
        coding_share=coding_share,
        coding_low=decile_seconds[0],
        coding_high=decile_seconds[1],
    )


def _compute_coding_share(priced_run: PricedRun) -> float:
    """Return the share of coding, at the slowest client and at the server, in the time of all rounds; 0 without clients."""
    breakdown, total = priced_run.breakdown, float(priced_run.cumulative_seconds[-1])
    return float((breakdown.coding + breakdown.server_seconds).sum()) / total if total else 0.0


def break_evens_of(comparison: Comparison, network_name: str, label: str) -> Iterator[BreakEven]:
    """Yield the break-evens of one method with the other methods."""
    return (point for point in comparison.break_evens[network_name] if label in (point.faster_below, point.faster_above))
