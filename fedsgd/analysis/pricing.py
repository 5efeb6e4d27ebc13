"""Prices: times of finished runs on any network, computed from their ledgers without training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fedsgd.analysis.compute_profile import build_profile_from_cost_table, build_profiles_from_clock
from fedsgd.analysis.ledger_stats import LedgerStats, read_client_traffic, read_ledger_stats
from fedsgd.analysis.runs import Run, check_target
from fedsgd.config.quantities import format_seconds
from fedsgd.errors import ReportError
from fedsgd.experiment.time_to_target import TargetReached, summarize_seeds
from fedsgd.network import ComputeProfile, Network, PricingModel, RoundTimeBreakdown, RoundTimeModel, round_time_models
from fedsgd.numerics.arrays import F64
from fedsgd.scenario.target import Target, TargetLike, parse_target

SLOWEST_EXPONENT, FASTEST_EXPONENT, STEPS_PER_DECADE = 2, 12, 8
SPEEDS: tuple[float, ...] = tuple(
    10.0 ** (SLOWEST_EXPONENT + i / STEPS_PER_DECADE)
    for i in range((FASTEST_EXPONENT - SLOWEST_EXPONENT) * STEPS_PER_DECADE + 1)
)
"""Uplink speeds in bits per second, 100 bit/s to 1 Tbit/s. Break-evens are searched between neighboring speeds."""
BISECTIONS = 50
RELATIVE_TOLERANCE = 1e-12
"""Relative difference up to which two times are equal."""


@dataclass(frozen=True, eq=False)
class PricedRun:
    """A run with its times under a pricing model.

    Attributes:
        pricing_model: network, devices and deadline.
        compute_profile: the run's computation, independent of a machine.
        round_time_model: durations of the rounds as a function of the link speed.
        coding_deciles: run priced at the first and ninth decile of measured coding times; None for times of the cost table.
    """

    run: Run
    pricing_model: PricingModel
    ledger_stats: LedgerStats
    compute_profile: ComputeProfile
    round_time_model: RoundTimeModel
    coding_deciles: tuple[PricedRun, PricedRun] | None = None

    def __repr__(self) -> str:
        duration = format_seconds(float(self.cumulative_seconds[-1]))
        return f'PricedRun("{self.run.folder}": {self.run.n_rounds} rounds in {duration} on {self.pricing_model.network})'

    @cached_property
    def cumulative_seconds(self) -> F64:
        """[R + 1] seconds after each round; entry 0 is 0."""
        link = self.pricing_model.network.link
        return self.round_time_model.cumulative_seconds(
            link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds
        )

    @property
    def breakdown(self) -> RoundTimeBreakdown:
        """[R] seconds of each phase of each round."""
        link = self.pricing_model.network.link
        return self.round_time_model.breakdown(link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds)

    @cached_property
    def transferred_bytes(self) -> F64:
        """[R + 1] bytes over the network up to each round, in both directions and with each message's overhead; entry 0 is 0.

        On a broadcast downlink, each distinct frame counts once.
        """
        network, stats = self.pricing_model.network, self.ledger_stats
        column = "downlink_broadcast_bytes" if network.downlink == "broadcast" else "downlink_bytes"
        overhead = stats.up_messages * network.up_overhead_bytes + stats.down_messages * network.down_overhead_bytes
        return self.run.get_cumulative("uplink_bytes") + self.run.get_cumulative(column) + np.cumsum(overhead)

    def find_seconds(self, target: TargetLike) -> float | None:
        """Return the seconds to a target, as for `parse_target`; None if the target is not reached.

        Args:
            target: test accuracy, text such as "loss<0.3", or `Target`.

        Raises:
            ReportError: the run does not measure the target's metric.
        """
        checked_target = parse_target(target)
        check_target(checked_target, [self.run])
        reached = self.run.find_reached(checked_target)
        return None if reached is None else reached.interpolate_on(self.cumulative_seconds)


def price(run: Run, pricing_models: Sequence[PricingModel], measured_coding: bool = False) -> list[PricedRun]:
    """Price a run by each pricing model. Runs of equal digests have equal prices, unless coding times were measured.

    Args:
        run: finished run.
        pricing_models: networks, devices and deadlines.
        measured_coding: True for coding times that the run's machine measured, False for those of the cost table.

    Raises:
        ReportError: participation depended on time, or a file of the run is incomplete.
    """
    require_time_independent(run)
    stats = read_ledger_stats(run, measured_coding)
    if not measured_coding:
        return _price_with_profile(run, pricing_models, stats, build_profile_from_cost_table(run, stats))
    low, middle, high = (
        _price_with_profile(run, pricing_models, stats, profile) for profile in build_profiles_from_clock(run, stats)
    )
    return [replace(run, coding_deciles=deciles) for run, deciles in zip(middle, zip(low, high, strict=True), strict=True)]


def _price_with_profile(
    run: Run, pricing_models: Sequence[PricingModel], ledger_stats: LedgerStats, compute_profile: ComputeProfile
) -> list[PricedRun]:
    try:
        time_models = round_time_models(read_client_traffic(run), compute_profile, run.seed, pricing_models)
    except ReportError as error:
        raise ReportError(f"{run.folder}: {error}") from None
    return [
        PricedRun(run, pricing_model, ledger_stats, compute_profile, time_model)
        for pricing_model, time_model in zip(pricing_models, time_models, strict=True)
    ]


def require_time_independent(run: Run) -> None:
    """Raise ReportError if a run cannot be priced, because participation depended on time."""
    if run.why_not_repriceable is not None:
        raise ReportError(f"{run.folder}: cannot be priced on another network: {run.why_not_repriceable}")


@dataclass(frozen=True, eq=False)
class TimeToTarget:
    """Time of a run to its target, as a function of the link speed. `round_time_model` ends with the target's round."""

    round_time_model: RoundTimeModel
    target_reached: TargetReached

    def compute_seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> float:
        """Return the seconds to the target; infinite if an accepted reply would arrive after the deadline."""
        seconds = self.round_time_model.cumulative_seconds(up_bps, down_bps, latency_seconds)
        return self.target_reached.interpolate_on(seconds) if math.isfinite(seconds[-1]) else math.inf


def time_to_target(priced_run: PricedRun, target: Target) -> TimeToTarget | None:
    """Return the time of a run to a target; None if the target is not reached."""
    target_reached = priced_run.run.find_reached(target)
    if target_reached is None:
        return None
    return TimeToTarget(priced_run.round_time_model.first_rounds(target_reached.after), target_reached)


@dataclass(frozen=True)
class BreakEven:
    """Uplink speed at which the order of two methods changes.

    Attributes:
        faster_below, faster_above: labels of the methods that reach the target first on slower and on faster uplinks.
        up_bits_per_second: uplink speed at the break-even.
        low, high: range of this speed if one method's measured coding times are at the first decile, and the other method's at
            the ninth. 0 or infinite if the range has no end; None if coding times are from the cost table.
    """

    faster_below: str
    faster_above: str
    up_bits_per_second: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class MethodTiming:
    """Times of a method to the target, as a function of the link speed.

    Attributes:
        times_to_target: time of each seed; None if the seed does not reach the target.
        coding_deciles: times at the first and ninth decile of measured coding times; None for times of the cost table.
    """

    label: str
    times_to_target: Sequence[TimeToTarget | None]
    coding_deciles: tuple[MethodTiming, MethodTiming] | None = None

    def compute_median_seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> float:
        """Return the median over seeds of the seconds to the target; infinite if at least half do not reach it."""
        seconds = (
            None if time is None else time.compute_seconds(up_bps, down_bps, latency_seconds) for time in self.times_to_target
        )
        return summarize_seeds(list(seconds)).median

    def compute_curve(self, network: Network) -> list[float]:
        """Return the seconds to the target at each of SPEEDS, with the network's latency and ratio of downlink to uplink."""
        link_at_speed = make_link_scaler(network)
        return [self.compute_median_seconds(*link_at_speed(speed)) for speed in SPEEDS]


def build_method_timing(label: str, priced_runs: Sequence[PricedRun], target: Target, n_failed: int) -> MethodTiming:
    """Return the times of a method to the target; failed seeds do not reach the target."""
    times = [*(time_to_target(run, target) for run in priced_runs), *[None] * n_failed]
    deciles = [run.coding_deciles for run in priced_runs if run.coding_deciles is not None]
    if not deciles:
        return MethodTiming(label, times)
    low, high = (build_method_timing(label, runs, target, n_failed) for runs in zip(*deciles, strict=True))
    return MethodTiming(label, times, (low, high))


def make_link_scaler(network: Network) -> Callable[[float], tuple[float, float, float]]:
    """Return a function from an uplink speed to (uplink, downlink, latency), with the network's latency and ratio of speeds."""
    link = network.link
    ratio = link.down_bits_per_second / link.up_bits_per_second
    return lambda speed: (speed, speed * ratio, link.latency_seconds)


def break_evens(first: MethodTiming, second: MethodTiming, network: Network) -> list[BreakEven]:
    """Return the uplink speeds at which the order of two methods changes, ascending; usually one or none.

    A break-even lies between two neighboring SPEEDS; bisection finds the value.
    """
    return pairwise_break_evens([first, second], network)


def pairwise_break_evens(timings: Sequence[MethodTiming], network: Network) -> list[BreakEven]:
    """Return the break-evens of all pairs of methods, in the order of the methods."""
    curves = [timing.compute_curve(network) for timing in timings]
    pairs = itertools.combinations(range(len(timings)), 2)
    break_evens = []
    for i, j in pairs:
        points = list(_search_break_evens(timings[i], timings[j], make_link_scaler(network), curves[i], curves[j]))
        break_evens += _add_speed_ranges(points, timings[i], timings[j], network) if points else []
    return break_evens


def _add_speed_ranges(
    break_even_points: Sequence[BreakEven], first: MethodTiming, second: MethodTiming, network: Network
) -> list[BreakEven]:
    """Add the ranges of measured coding times: one method at its first decile, the other method at its ninth."""
    if first.coding_deciles is None or second.coding_deciles is None:
        return list(break_even_points)
    corners = list(zip(first.coding_deciles, reversed(second.coding_deciles), strict=True))
    corner_points = [
        list(_search_break_evens(*pair, make_link_scaler(network), *(timing.compute_curve(network) for timing in pair)))
        for pair in corners
    ]
    points_with_ranges = []
    for point in break_even_points:
        ends = [
            _find_range_end(point, pair, candidates, network) for pair, candidates in zip(corners, corner_points, strict=True)
        ]
        low, high = min(point.up_bits_per_second, *ends), max(point.up_bits_per_second, *ends)
        points_with_ranges.append(replace(point, low=low, high=high))
    return points_with_ranges


def _find_range_end(
    break_even: BreakEven, timings: tuple[MethodTiming, MethodTiming], candidates: Sequence[BreakEven], network: Network
) -> float:
    """Return the speed of the candidate nearest to a break-even, with the same order of methods; 0 or infinite if none."""
    speeds = [point.up_bits_per_second for point in candidates if point.faster_below == break_even.faster_below]
    if speeds:
        return min(speeds, key=lambda speed: abs(math.log(speed / break_even.up_bits_per_second)))
    times = {
        timing.label: timing.compute_median_seconds(*make_link_scaler(network)(break_even.up_bits_per_second))
        for timing in timings
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
        first_is_faster = x < y
        if previous is not None and previous[1] != first_is_faster:
            low, high = math.log10(SPEEDS[previous[0]]), math.log10(SPEEDS[i])
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                link = link_at_speed(10.0**middle)
                is_same = (first.compute_median_seconds(*link) < second.compute_median_seconds(*link)) == previous[1]
                low, high = (middle, high) if is_same else (low, middle)
            below, above = (first, second) if previous[1] else (second, first)
            yield BreakEven(below.label, above.label, 10.0**high)
        previous = i, first_is_faster
