"""Runs on a network that they never saw: the ledger is replayed, nothing is trained again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fedsgd.arrays import F64
from fedsgd.errors import ReportError
from fedsgd.network import Network, Stack, Terms, Timeline, Work, timelines
from fedsgd.report.facts import Facts, read_facts, read_trips
from fedsgd.report.runs import Run
from fedsgd.report.work import clock_work, coding_work
from fedsgd.target import Crossing, crossing, over_seeds

SLOWEST_EXPONENT, FASTEST_EXPONENT, STEPS_A_DECADE = 2, 12, 8
SPEEDS: tuple[float, ...] = tuple(
    10.0 ** (SLOWEST_EXPONENT + i / STEPS_A_DECADE) for i in range((FASTEST_EXPONENT - SLOWEST_EXPONENT) * STEPS_A_DECADE + 1)
)
"""Uplink speeds, bits per second, between which break-evens are looked for: 100 bit/s to 1 Tbit/s."""
BISECTIONS = 50
EQUAL = 1e-12


@dataclass(frozen=True, eq=False)
class Priced:
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
    terms: Terms
    facts: Facts
    work: Work
    timeline: Timeline
    extremes: tuple[Priced, Priced] | None = None

    @cached_property
    def seconds(self) -> F64:
        """After each round, 0 before the first [R + 1]."""
        link = self.terms.network.link
        return self.timeline.cumulative(link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds)

    @property
    def stack(self) -> Stack:
        """Where the time of each round goes."""
        link = self.terms.network.link
        return self.timeline.stack(link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds)

    @cached_property
    def paid_bytes(self) -> F64:
        """What went over the network up to each round, 0 before the first [R + 1]: up and down, as it is broadcast or not, and
        what the transport adds to each message."""
        network, facts = self.terms.network, self.facts
        down = "downlink_broadcast_bytes" if network.downlink == "broadcast" else "downlink_bytes"
        added = facts.up_messages * network.up_overhead_bytes + facts.down_messages * network.down_overhead_bytes
        return self.run.cumulative("uplink_bytes") + self.run.cumulative(down) + np.cumsum(added)


def price(run: Run, terms: Sequence[Terms], measured_coding: bool = False) -> list[Priced]:
    """Price a run; equal digests give equal prices, unless coding is by the clock.

    Args:
        run: the run.
        terms: the terms, for each of which a price is returned.
        measured_coding: whether coding takes as long as the clock of the machine that made the run measured, in the median,
            instead of what the table of codec costs has.

    Raises:
        ReportError: participation depended on time, or the folder lacks what a price needs.
    """
    check_time(run)
    facts = read_facts(run, measured_coding)
    if not measured_coding:
        return _on_terms(run, terms, facts, coding_work(run, facts))
    low, middle, high = (_on_terms(run, terms, facts, work) for work in clock_work(run, facts))
    return [replace(each, extremes=(least, most)) for each, least, most in zip(middle, low, high, strict=True)]


def _on_terms(run: Run, terms: Sequence[Terms], facts: Facts, work: Work, uncounted: tuple[str, ...] = ()) -> list[Priced]:
    try:
        lines = timelines(read_trips(run), work, run.seed, terms)
    except ReportError as error:
        raise ReportError(f"{run.folder}: {error}") from None
    return [Priced(run, each, facts, work, line) for each, line in zip(terms, lines, strict=True)]


def check_time(run: Run) -> None:
    """ReportError if a run cannot be priced, since who took part depended on time."""
    if run.time_dependent is not None:
        raise ReportError(f"{run.folder}: cannot be priced on another network: {run.time_dependent}")


@dataclass(frozen=True, eq=False)
class Reach:
    """How long a run takes to its target, as a function of the speed of its links. None of it is computed on rounds after."""

    timeline: Timeline
    crossing: Crossing

    def seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> float:
        """To the target; infinite where a reply that was taken would come after the deadline."""
        spent = self.timeline.cumulative(up_bps, down_bps, latency_seconds)
        return self.crossing.on(spent) if math.isfinite(spent[-1]) else math.inf


def reach(priced: Priced, target: float) -> Reach | None:
    """To `target`; None: not reached."""
    found = crossing(priced.run.measured, target)
    return None if found is None else Reach(priced.timeline.until(found.after), found)


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

    below: str
    above: str
    up_bits_per_second: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class Racer:
    """A method on its way to the target.

    Attributes:
        label: its label.
        reaches: one for each seed, None where the target is not reached.
        extremes: the method with the first and with the ninth decile of coding by the clock; None where coding is by the table.
    """

    label: str
    reaches: Sequence[Reach | None]
    extremes: tuple[Racer, Racer] | None = None

    def seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> float:
        """To the target, the median over seeds; infinite: not reached by half of them."""
        times = (None if one is None else one.seconds(up_bps, down_bps, latency_seconds) for one in self.reaches)
        return over_seeds(list(times)).median

    def curve(self, network: Network) -> list[float]:
        """Seconds to the target at each of SPEEDS, the network's ratio of down to up and its latency kept."""
        at = _at(network)
        return [self.seconds(*at(speed)) for speed in SPEEDS]


def race(label: str, runs: Sequence[Priced], target: float, failed: int) -> Racer:
    """Return a method on its way to the target. failed: the number of seeds whose run ended in an error."""
    reaches = [*(reach(one, target) for one in runs), *[None] * failed]
    known = [one.extremes for one in runs if one.extremes is not None]
    if not known:
        return Racer(label, reaches)
    low, high = (race(label, side, target, failed) for side in zip(*known, strict=True))
    return Racer(label, reaches, (low, high))


def _at(network: Network) -> Callable[[float], tuple[float, float, float]]:
    link = network.link
    ratio = link.down_bits_per_second / link.up_bits_per_second
    return lambda speed: (speed, speed * ratio, link.latency_seconds)


def break_evens(first: Racer, second: Racer, network: Network) -> list[BreakEven]:
    """Where the order of two changes as links get faster, ascending; usually once or never. Found between two neighbours of
    SPEEDS, and then by bisection."""
    return all_break_evens([first, second], network)


def all_break_evens(racers: Sequence[Racer], network: Network) -> list[BreakEven]:
    """Of every two of them, in their order."""
    curves = [racer.curve(network) for racer in racers]
    pairs = itertools.combinations(range(len(racers)), 2)
    evens = []
    for i, j in pairs:
        found = list(_between(racers[i], racers[j], _at(network), curves[i], curves[j]))
        evens += _with_ranges(found, racers[i], racers[j], network) if found else []
    return evens


def _with_ranges(evens: Sequence[BreakEven], first: Racer, second: Racer, network: Network) -> list[BreakEven]:
    """Add the ranges that coding by the clock gives: one method at its quickest against the other one at its slowest."""
    if first.extremes is None or second.extremes is None:
        return list(evens)
    corners = list(zip(first.extremes, reversed(second.extremes), strict=True))
    others = [list(_between(*pair, _at(network), *(racer.curve(network) for racer in pair))) for pair in corners]
    ranged = []
    for even in evens:
        ends = [_end_of_range(even, pair, found, network) for pair, found in zip(corners, others, strict=True)]
        ranged.append(replace(even, low=min(even.up_bits_per_second, *ends), high=max(even.up_bits_per_second, *ends)))
    return ranged


def _end_of_range(even: BreakEven, pair: tuple[Racer, Racer], found: Sequence[BreakEven], network: Network) -> float:
    """Return where the order of `even` changes between two extremes: the nearest of `found`; 0 or infinite if it does not."""
    same = [one.up_bits_per_second for one in found if one.below == even.below]
    if same:
        return min(same, key=lambda speed: abs(math.log(speed / even.up_bits_per_second)))
    times = {racer.label: racer.seconds(*_at(network)(even.up_bits_per_second)) for racer in pair}
    return math.inf if times[even.below] < times[even.above] else 0.0


def _between(
    first: Racer, second: Racer, at: Callable[[float], tuple[float, float, float]], a: Sequence[float], b: Sequence[float]
) -> Iterator[BreakEven]:
    previous: tuple[int, bool] | None = None
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        if not (math.isfinite(x) and math.isfinite(y)) or abs(x - y) <= EQUAL * max(x, y):
            continue
        sooner = x < y
        if previous is not None and previous[1] != sooner:
            low, high = math.log10(SPEEDS[previous[0]]), math.log10(SPEEDS[i])
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                speed = at(10.0**middle)
                same = (first.seconds(*speed) < second.seconds(*speed)) == previous[1]
                low, high = (middle, high) if same else (low, middle)
            below, above = (first, second) if previous[1] else (second, first)
            yield BreakEven(below.label, above.label, 10.0**high)
        previous = i, sooner
