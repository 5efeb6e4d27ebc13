"""Runs on a network that they never saw: the ledger is replayed, nothing is trained again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsgd.arrays import F64
from fedsgd.errors import ReportError
from fedsgd.network import Network, Stack, Terms, Timeline, Work, timelines
from fedsgd.report.facts import Facts, read_facts, read_trips, work_of
from fedsgd.report.runs import Run
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
    """A run on the terms of a price. facts: what its ledger says; work: in units that are no machine's."""

    run: Run
    terms: Terms
    facts: Facts
    work: Work
    timeline: Timeline

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


def price(run: Run, terms: Sequence[Terms]) -> list[Priced]:
    """The run on each of these terms, in two passes over its ledger. ReportError if who took part depended on time."""
    check_time(run)
    facts = read_facts(run)
    work = work_of(run, facts)
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
    """Below `up_bits_per_second` of uplink, `below` is the sooner one at its target, above it the other one."""

    below: str
    above: str
    up_bits_per_second: float


@dataclass(frozen=True, eq=False)
class Racer:
    """label: what it is called; reaches: of its runs, one a seed, None where the target is not reached."""

    label: str
    reaches: Sequence[Reach | None]

    def seconds(self, up_bps: float, down_bps: float, latency_seconds: float) -> float:
        """To the target, the median over seeds; infinite: not reached by half of them."""
        times = (None if one is None else one.seconds(up_bps, down_bps, latency_seconds) for one in self.reaches)
        return over_seeds(list(times)).median

    def curve(self, network: Network) -> list[float]:
        """Seconds to the target at each of SPEEDS, the network's ratio of down to up and its latency kept."""
        at = _at(network)
        return [self.seconds(*at(speed)) for speed in SPEEDS]


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
    return [even for i, j in pairs for even in _between(racers[i], racers[j], _at(network), curves[i], curves[j])]


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
