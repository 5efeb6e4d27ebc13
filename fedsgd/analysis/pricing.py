"""Runs on a network that they never saw: the ledger is replayed, nothing is trained again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fedsgd.analysis.compute_profile import build_profile_from_cost_table, build_profiles_from_clock
from fedsgd.analysis.ledger_stats import LedgerStats, read_client_traffic, read_ledger_stats
from fedsgd.analysis.runs import Run
from fedsgd.errors import ReportError
from fedsgd.experiment.time_to_target import TargetReached, find_first_reached, summarize_seeds
from fedsgd.network import ComputeProfile, Network, PricingModel, RoundTimeBreakdown, RoundTimeModel, round_time_models
from fedsgd.numerics.arrays import F64

SLOWEST_EXPONENT, FASTEST_EXPONENT, STEPS_PER_DECADE = 2, 12, 8
SPEEDS: tuple[float, ...] = tuple(
    10.0 ** (SLOWEST_EXPONENT + i / STEPS_PER_DECADE)
    for i in range((FASTEST_EXPONENT - SLOWEST_EXPONENT) * STEPS_PER_DECADE + 1)
)
"""Uplink speeds, bits per second, between which break-evens are looked for: 100 bit/s to 1 Tbit/s."""
BISECTIONS = 50
RELATIVE_TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class PricedRun:
    """A run on the terms of a price.

    Attributes:
        run: the run.
        terms: the terms.
        facts: what its ledger says.
        work: its work, in units of no machine.
        timeline: what the durations of its rounds depend on.
        extremes: the price with the first and with the ninth decile of the coding that the run's clock measured; None where
            coding is counted by the table.
    """

    run: Run
    pricing_model: PricingModel
    ledger_stats: LedgerStats
    compute_profile: ComputeProfile
    round_time_model: RoundTimeModel
    coding_deciles: tuple[PricedRun, PricedRun] | None = None

    @cached_property
    def cumulative_seconds(self) -> F64:
        """After each round, 0 before the first [R + 1]."""
        link = self.pricing_model.network.link
        return self.round_time_model.cumulative_seconds(
            link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds
        )

    @property
    def breakdown(self) -> RoundTimeBreakdown:
        """Where the time of each round goes."""
        link = self.pricing_model.network.link
        return self.round_time_model.breakdown(link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds)

    @cached_property
    def transferred_bytes(self) -> F64:
        """What went over the network up to each round, 0 before the first [R + 1]: up and down, as it is broadcast or not, and
        what the transport adds to each message."""
        network, facts = self.pricing_model.network, self.ledger_stats
        down = "downlink_broadcast_bytes" if network.downlink == "broadcast" else "downlink_bytes"
        added = facts.up_messages * network.up_overhead_bytes + facts.down_messages * network.down_overhead_bytes
        return self.run.get_cumulative("uplink_bytes") + self.run.get_cumulative(down) + np.cumsum(added)


def price(run: Run, pricing_models: Sequence[PricingModel], measured_coding: bool = False) -> list[PricedRun]:
    """Price a run; equal digests give equal prices, unless coding is by the clock.

    Args:
        run: the run.
        terms: the terms, for each of which a price is returned.
        measured_coding: whether coding takes as long as the clock of the machine that made the run measured, in the median,
            instead of what the table of codec costs has.

    Raises:
        ReportError: participation depended on time, or the folder lacks what a price needs.
    """
    require_time_independent(run)
    facts = read_ledger_stats(run, measured_coding)
    if not measured_coding:
        return _price_with_profile(run, pricing_models, facts, build_profile_from_cost_table(run, facts))
    low, middle, high = (
        _price_with_profile(run, pricing_models, facts, work) for work in build_profiles_from_clock(run, facts)
    )
    return [replace(each, coding_deciles=(least, most)) for each, least, most in zip(middle, low, high, strict=True)]


def _price_with_profile(
    run: Run,
    pricing_models: Sequence[PricingModel],
    ledger_stats: LedgerStats,
    compute_profile: ComputeProfile,
    uncosted_codecs: tuple[str, ...] = (),
) -> list[PricedRun]:
    try:
        lines = round_time_models(read_client_traffic(run), compute_profile, run.seed, pricing_models)
    except ReportError as error:
        raise ReportError(f"{run.folder}: {error}") from None
    return [PricedRun(run, each, ledger_stats, compute_profile, line) for each, line in zip(pricing_models, lines, strict=True)]


def require_time_independent(run: Run) -> None:
    """ReportError if a run cannot be priced, since who took part depended on time."""
    if run.why_not_repriceable is not None:
        raise ReportError(f"{run.folder}: cannot be priced on another network: {run.why_not_repriceable}")


@dataclass(frozen=True, eq=False)
class TimeToTarget:
    """How long a run takes to its target, as a function of the speed of its links. None of it is computed on rounds after."""

    round_time_model: RoundTimeModel
    target_reached: TargetReached

    def compute_seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> float:
        """To the target; infinite where a reply that was taken would come after the deadline."""
        spent = self.round_time_model.cumulative_seconds(up_bps, down_bps, latency_seconds)
        return self.target_reached.interpolate_on(spent) if math.isfinite(spent[-1]) else math.inf


def time_to_target(priced_run: PricedRun, target: float) -> TimeToTarget | None:
    """To `target`; None: not reached."""
    found = find_first_reached(priced_run.run.measured_accuracies, target)
    return None if found is None else TimeToTarget(priced_run.round_time_model.first_rounds(found.after), found)


@dataclass(frozen=True)
class BreakEven:
    """Uplink speed at which the order of two methods changes.

    Attributes:
        below: label of the method that is sooner at its target on slower uplinks.
        above: label of the method that is sooner on faster ones.
        up_bits_per_second: the speed.
        low, high: range of the speed, the coding of one method being at its first decile by the clock and that of the other
            method at its ninth; 0 and infinite where the range has no end. None where coding is by the table.
    """

    faster_below: str
    faster_above: str
    up_bits_per_second: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class MethodTiming:
    """A method on its way to the target.

    Attributes:
        label: its label.
        reaches: one for each seed, None where the target is not reached.
        extremes: the method with the first and with the ninth decile of coding by the clock; None where coding is by the table.
    """

    label: str
    times_to_target: Sequence[TimeToTarget | None]
    coding_deciles: tuple[MethodTiming, MethodTiming] | None = None

    def compute_median_seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> float:
        """To the target, the median over seeds; infinite: not reached by half of them."""
        times = (
            None if one is None else one.compute_seconds(up_bps, down_bps, latency_seconds) for one in self.times_to_target
        )
        return summarize_seeds(list(times)).median

    def compute_curve(self, network: Network) -> list[float]:
        """Seconds to the target at each of SPEEDS, the network's ratio of down to up and its latency kept."""
        at = _make_link_scaler(network)
        return [self.compute_median_seconds(*at(speed)) for speed in SPEEDS]


def build_method_timing(label: str, priced_runs: Sequence[PricedRun], target: float, n_failed: int) -> MethodTiming:
    """Return a method on its way to the target. failed: the number of seeds whose run ended in an error."""
    reaches = [*(time_to_target(one, target) for one in priced_runs), *[None] * n_failed]
    known = [one.coding_deciles for one in priced_runs if one.coding_deciles is not None]
    if not known:
        return MethodTiming(label, reaches)
    low, high = (build_method_timing(label, side, target, n_failed) for side in zip(*known, strict=True))
    return MethodTiming(label, reaches, (low, high))


def _make_link_scaler(network: Network) -> Callable[[float], tuple[float, float, float]]:
    link = network.link
    ratio = link.down_bits_per_second / link.up_bits_per_second
    return lambda speed: (speed, speed * ratio, link.latency_seconds)


def break_evens(first: MethodTiming, second: MethodTiming, network: Network) -> list[BreakEven]:
    """Where the order of two changes as links get faster, ascending; usually once or never. Found between two neighbours of
    SPEEDS, and then by bisection."""
    return pairwise_break_evens([first, second], network)


def pairwise_break_evens(timings: Sequence[MethodTiming], network: Network) -> list[BreakEven]:
    """Of every two of them, in their order."""
    curves = [racer.compute_curve(network) for racer in timings]
    pairs = itertools.combinations(range(len(timings)), 2)
    evens = []
    for i, j in pairs:
        found = list(_search_break_evens(timings[i], timings[j], _make_link_scaler(network), curves[i], curves[j]))
        evens += _add_speed_ranges(found, timings[i], timings[j], network) if found else []
    return evens


def _add_speed_ranges(
    break_even_points: Sequence[BreakEven], first: MethodTiming, second: MethodTiming, network: Network
) -> list[BreakEven]:
    """Add the ranges that coding by the clock gives: one method at its quickest against the other one at its slowest."""
    if first.coding_deciles is None or second.coding_deciles is None:
        return list(break_even_points)
    corners = list(zip(first.coding_deciles, reversed(second.coding_deciles), strict=True))
    others = [
        list(_search_break_evens(*pair, _make_link_scaler(network), *(racer.compute_curve(network) for racer in pair)))
        for pair in corners
    ]
    ranged = []
    for even in break_even_points:
        ends = [_find_range_end(even, pair, found, network) for pair, found in zip(corners, others, strict=True)]
        ranged.append(replace(even, low=min(even.up_bits_per_second, *ends), high=max(even.up_bits_per_second, *ends)))
    return ranged


def _find_range_end(
    break_even: BreakEven, timings: tuple[MethodTiming, MethodTiming], candidates: Sequence[BreakEven], network: Network
) -> float:
    """Return where the order of `break_even` changes between two extremes: the nearest of `candidates`; 0 or infinite if it
    does not."""
    same = [one.up_bits_per_second for one in candidates if one.faster_below == break_even.faster_below]
    if same:
        return min(same, key=lambda speed: abs(math.log(speed / break_even.up_bits_per_second)))
    times = {
        racer.label: racer.compute_median_seconds(*_make_link_scaler(network)(break_even.up_bits_per_second))
        for racer in timings
    }
    return math.inf if times[break_even.faster_below] < times[break_even.faster_above] else 0.0


def _search_break_evens(
    first: MethodTiming,
    second: MethodTiming,
    link_at_speed: Callable[[float], tuple[float, float, float]],
    first_curve: Sequence[float],
    second_curve: Sequence[float],
) -> Iterator[BreakEven]:
    previous: tuple[int, bool] | None = None
    for i, (x, y) in enumerate(zip(first_curve, second_curve, strict=True)):
        if not (math.isfinite(x) and math.isfinite(y)) or abs(x - y) <= RELATIVE_TOLERANCE * max(x, y):
            continue
        sooner = x < y
        if previous is not None and previous[1] != sooner:
            low, high = math.log10(SPEEDS[previous[0]]), math.log10(SPEEDS[i])
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                speed = link_at_speed(10.0**middle)
                same = (first.compute_median_seconds(*speed) < second.compute_median_seconds(*speed)) == previous[1]
                low, high = (middle, high) if same else (low, middle)
            below, above = (first, second) if previous[1] else (second, first)
            yield BreakEven(below.label, above.label, 10.0**high)
        previous = i, sooner
