"""Methods side by side: what each takes to a target, in rounds, bytes, seconds and money."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsgd.analysis.compute_profile import find_uncosted_codecs
from fedsgd.analysis.differences import describe_other_differences
from fedsgd.analysis.methods import Method
from fedsgd.analysis.pricing import BreakEven, PricedRun, build_method_timing, pairwise_break_evens, price
from fedsgd.analysis.runs import Run
from fedsgd.experiment.time_to_target import SeedSummary, TargetReached, find_first_reached, summarize_seeds
from fedsgd.network import PricingModel

GIGABYTE = 1e9


@dataclass(frozen=True)
class NetworkCost:
    """A method on a network, over its seeds.

    Attributes:
        seconds: to the target, or to the end of the run if there is none.
        a_round: seconds of a round, in the mean over all rounds.
        n_bytes: bytes over the network until then, with what the transport adds.
        cost: cost of these bytes, None if no price was given.
        coding: share of coding in the time of all rounds, the largest of any seed.
        coding_low, coding_high: `seconds` with the first and with the ninth decile of coding by the clock; None where coding is
            by the table.
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
    """A method. best: the largest accuracy of each run that finished, None if none was measured; rounds and bytes: to the
    target, or to the end of the run if there is none; on: by the name of the network; not_priced: why there is none;
    seed_numbers: of the runs that finished; silent: the most messages of a run after which nothing was heard; diverged: the
    evidence by seed; warnings: lines about settings that a component is not made for; uncounted: compressors whose coding
    counts as nothing. All over the seeds; a failed seed, whose run ended in an error, does not reach anything."""

    label: str
    tuned: Mapping[str, Any]
    grid_edge_keys: tuple[str, ...]
    uncompressed: bool
    seeds: int
    n_failed: int
    best_accuracy: SeedSummary | None
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


@dataclass(frozen=True)
class Comparison:
    """Methods side by side.

    Attributes:
        target: accuracy to be reached; None for the end of each run.
        terms: terms of the prices, by the name of the network.
        price_per_gigabyte: cost of 10⁹ bytes, None if it was not given.
        rows: one for each method, in their order.
        break_evens: of every two methods that have one, by the name of the network.
        mixture: a sentence that names in what the runs differ beside their method, None if in nothing.
        measured_coding: whether coding is by the clock of the machine that made each run.
    """

    target: float | None
    pricing_models: Mapping[str, PricingModel]
    price_per_gigabyte: float | None
    rows: tuple[ComparisonRow, ...]
    break_evens: Mapping[str, tuple[BreakEven, ...]]
    other_differences: str | None = None
    measured_coding: bool = False

    @property
    def baseline(self) -> ComparisonRow:
        """What others are measured by: the first that sends its updates as they are, or else the first."""
        return next((row for row in self.rows if row.uncompressed), self.rows[0])


def compare(
    methods: Sequence[Method],
    target: float | None = None,
    pricing_models: Mapping[str, PricingModel] | None = None,
    price_per_gigabyte: float | None = None,
    measured_coding: bool = False,
) -> Comparison:
    """Compare methods; runs whose participation depended on time are not priced.

    Args:
        methods: the methods.
        target: accuracy to be reached; None for the end of each run.
        terms: terms of the prices, by the name of the network.
        price_per_gigabyte: cost of 10⁹ bytes, in any currency.
        measured_coding: whether coding is by the clock of the machine that made each run.
    """
    pricing_models = pricing_models or {}
    priced = {method.label: _price_runs(method, pricing_models, measured_coding) for method in methods}
    rows = tuple(_build_row(method, target, priced[method.label], price_per_gigabyte, measured_coding) for method in methods)
    evens: dict[str, tuple[BreakEven, ...]] = {}
    if target is not None:
        for name, each in pricing_models.items():
            racing = [method for method in methods if priced[method.label]]
            racers = [
                build_method_timing(one.label, priced[one.label][name], target, one.best_variant.n_failed) for one in racing
            ]
            evens[name] = tuple(pairwise_break_evens(racers, each.network))
    return Comparison(
        target, pricing_models, price_per_gigabyte, rows, evens, describe_other_differences(methods), measured_coding
    )


def _price_runs(
    method: Method, pricing_models: Mapping[str, PricingModel], measured_coding: bool
) -> dict[str, list[PricedRun]]:
    """Its runs by network; nothing where one of them cannot be priced."""
    if not pricing_models or any(run.why_not_repriceable for run in method.runs):
        return {}
    by_run = [price(run, list(pricing_models.values()), measured_coding) for run in method.runs]
    return {name: [runs[i] for runs in by_run] for i, name in enumerate(pricing_models)}


def _build_row(
    method: Method,
    target: float | None,
    priced_runs: Mapping[str, Sequence[PricedRun]],
    price_per_gigabyte: float | None,
    measured_coding: bool,
) -> ComparisonRow:
    chosen, ends = method.best_variant, {run.folder: _find_endpoint(run, target) for run in method.runs}

    def total_at_end(run: Run, *columns: str) -> float | None:
        end = ends[run.folder]
        return None if end is None else sum(end.interpolate_on(run.get_cumulative(column)) for column in columns)

    rounds = chosen.summarize_over_seeds(lambda run: None if (end := ends[run.folder]) is None else end.rounds)
    return ComparisonRow(
        label=method.label,
        tuned=chosen.tuned,
        grid_edge_keys=method.grid_edge_keys,
        uncompressed=method.uncompressed,
        seeds=len(method.runs),
        n_failed=chosen.n_failed,
        best_accuracy=chosen.summarize_best_accuracy(),
        rounds=rounds,
        up_bytes=chosen.summarize_over_seeds(lambda run: total_at_end(run, "uplink_bytes")),
        down_bytes=chosen.summarize_over_seeds(lambda run: total_at_end(run, "downlink_bytes")),
        all_bytes=chosen.summarize_over_seeds(lambda run: total_at_end(run, "uplink_bytes", "downlink_bytes")),
        network_costs={
            name: _summarize_network_cost(runs, ends, chosen.n_failed, price_per_gigabyte) for name, runs in priced_runs.items()
        },
        unpriced_reason=next((run.why_not_repriceable for run in method.runs if run.why_not_repriceable), None),
        seed_numbers=tuple(run.seed for run in method.runs),
        unanswered_messages=max(
            (one.ledger_stats.unanswered_messages for runs in priced_runs.values() for one in runs), default=0
        ),
        divergence_by_seed=method.divergence_by_seed,
        uncosted_codecs=find_uncosted_codecs(method.runs[0]) if priced_runs and not measured_coding else (),
        warnings=method.warnings,
    )


def _find_endpoint(run: Run, target: float | None) -> TargetReached | None:
    """Where the run meets the target, or where it ends."""
    return (
        TargetReached(run.n_rounds, run.n_rounds, 0.0)
        if target is None
        else find_first_reached(run.measured_accuracies, target)
    )


def _summarize_network_cost(
    priced_runs: Sequence[PricedRun],
    endpoints: Mapping[Any, TargetReached | None],
    n_failed: int,
    price_per_gigabyte: float | None,
) -> NetworkCost:
    none = [None] * n_failed
    found = [(one, endpoints[one.run.folder]) for one in priced_runs]

    def summarize_seconds(priced_runs: Sequence[PricedRun]) -> SeedSummary:
        known = ((one, endpoints[one.run.folder]) for one in priced_runs)
        return summarize_seeds(
            [*(None if end is None else end.interpolate_on(one.cumulative_seconds) for one, end in known), *none]
        )

    n_bytes = [None if end is None else end.interpolate_on(one.transferred_bytes) for one, end in found]
    cost = None
    if price_per_gigabyte is not None:
        spent = (None if each is None else each / GIGABYTE * price_per_gigabyte for each in n_bytes)
        cost = summarize_seeds([*spent, *none])
    means = [float(one.cumulative_seconds[-1]) / one.run.n_rounds for one in priced_runs]
    coding = max((_compute_coding_share(one) for one in priced_runs), default=0.0)
    extremes = [one.coding_deciles for one in priced_runs if one.coding_deciles is not None]
    clock = [summarize_seconds(side) for side in zip(*extremes, strict=True)] if extremes else [None, None]
    return NetworkCost(
        summarize_seconds(priced_runs), summarize_seeds(means), summarize_seeds([*n_bytes, *none]), cost, coding, *clock
    )


def _compute_coding_share(priced_run: PricedRun) -> float:
    """The share of encoding and decoding, at the client that is the last and at the server; 0 where nobody ever came."""
    stack, all_of_it = priced_run.breakdown, float(priced_run.cumulative_seconds[-1])
    return float((stack.coding + stack.server_seconds).sum()) / all_of_it if all_of_it else 0.0


def break_evens_of(comparison: Comparison, network_name: str, label: str) -> Iterator[BreakEven]:
    """The break-evens that one method has with others."""
    return (even for even in comparison.break_evens[network_name] if label in (even.faster_below, even.faster_above))
