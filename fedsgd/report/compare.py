"""Methods side by side: what each takes to a target, in rounds, bytes, seconds and money."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsgd.network import Terms
from fedsgd.report.methods import Method
from fedsgd.report.mixture import mixture
from fedsgd.report.price import BreakEven, Priced, all_break_evens, price, race
from fedsgd.report.runs import Run
from fedsgd.report.work import uncounted_codecs
from fedsgd.target import Crossing, Seeds, crossing, over_seeds

GIGABYTE = 1e9


@dataclass(frozen=True)
class OnNetwork:
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

    seconds: Seeds
    a_round: Seeds
    n_bytes: Seeds
    cost: Seeds | None
    coding: float
    coding_low: Seeds | None = None
    coding_high: Seeds | None = None


@dataclass(frozen=True)
class Row:
    """A method. best: the largest accuracy of each run that finished, None if none was measured; rounds and bytes: to the
    target, or to the end of the run if there is none; on: by the name of the network; not_priced: why there is none;
    seed_numbers: of the runs that finished; silent: the most messages of a run after which nothing was heard; diverged: the
    evidence by seed; warnings: lines about settings that a component is not made for; uncounted: compressors whose coding
    counts as nothing. All over the seeds; a failed seed, whose run ended in an error, does not reach anything."""

    label: str
    tuned: Mapping[str, Any]
    at_edge: tuple[str, ...]
    uncompressed: bool
    seeds: int
    failed: int
    best: Seeds | None
    rounds: Seeds
    up_bytes: Seeds
    down_bytes: Seeds
    all_bytes: Seeds
    on: Mapping[str, OnNetwork]
    not_priced: str | None
    seed_numbers: tuple[int, ...]
    silent: int
    diverged: Mapping[int, str]
    uncounted: tuple[str, ...] = ()
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
    terms: Mapping[str, Terms]
    price_per_gigabyte: float | None
    rows: tuple[Row, ...]
    break_evens: Mapping[str, tuple[BreakEven, ...]]
    mixture: str | None = None
    measured_coding: bool = False

    @property
    def baseline(self) -> Row:
        """What others are measured by: the first that sends its updates as they are, or else the first."""
        return next((row for row in self.rows if row.uncompressed), self.rows[0])


def compare(
    methods: Sequence[Method],
    target: float | None = None,
    terms: Mapping[str, Terms] | None = None,
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
    terms = terms or {}
    priced = {method.label: _priced(method, terms, measured_coding) for method in methods}
    rows = tuple(_row(method, target, priced[method.label], price_per_gigabyte, measured_coding) for method in methods)
    evens: dict[str, tuple[BreakEven, ...]] = {}
    if target is not None:
        for name, each in terms.items():
            racing = [method for method in methods if priced[method.label]]
            racers = [race(one.label, priced[one.label][name], target, one.chosen.failed) for one in racing]
            evens[name] = tuple(all_break_evens(racers, each.network))
    return Comparison(target, terms, price_per_gigabyte, rows, evens, mixture(methods), measured_coding)


def _priced(method: Method, terms: Mapping[str, Terms], measured_coding: bool) -> dict[str, list[Priced]]:
    """Its runs by network; nothing where one of them cannot be priced."""
    if not terms or any(run.time_dependent for run in method.runs):
        return {}
    by_run = [price(run, list(terms.values()), measured_coding) for run in method.runs]
    return {name: [runs[i] for runs in by_run] for i, name in enumerate(terms)}


def _row(
    method: Method,
    target: float | None,
    priced: Mapping[str, Sequence[Priced]],
    per_gigabyte: float | None,
    measured_coding: bool,
) -> Row:
    chosen, ends = method.chosen, {run.folder: _end(run, target) for run in method.runs}

    def at(run: Run, *columns: str) -> float | None:
        end = ends[run.folder]
        return None if end is None else sum(end.on(run.cumulative(column)) for column in columns)

    rounds = chosen.figures(lambda run: None if (end := ends[run.folder]) is None else end.rounds)
    return Row(
        label=method.label,
        tuned=chosen.tuned,
        at_edge=method.at_edge,
        uncompressed=method.uncompressed,
        seeds=len(method.runs),
        failed=chosen.failed,
        best=chosen.best_accuracy(),
        rounds=rounds,
        up_bytes=chosen.figures(lambda run: at(run, "uplink_bytes")),
        down_bytes=chosen.figures(lambda run: at(run, "downlink_bytes")),
        all_bytes=chosen.figures(lambda run: at(run, "uplink_bytes", "downlink_bytes")),
        on={name: _on(runs, ends, chosen.failed, per_gigabyte) for name, runs in priced.items()},
        not_priced=next((run.time_dependent for run in method.runs if run.time_dependent), None),
        seed_numbers=tuple(run.seed for run in method.runs),
        silent=max((one.facts.silent for runs in priced.values() for one in runs), default=0),
        diverged=method.diverged,
        uncounted=uncounted_codecs(method.runs[0]) if priced and not measured_coding else (),
        warnings=method.warnings,
    )


def _end(run: Run, target: float | None) -> Crossing | None:
    """Where the run meets the target, or where it ends."""
    return Crossing(run.n_rounds, run.n_rounds, 0.0) if target is None else crossing(run.measured, target)


def _on(runs: Sequence[Priced], ends: Mapping[Any, Crossing | None], failed: int, per_gigabyte: float | None) -> OnNetwork:
    none = [None] * failed
    found = [(one, ends[one.run.folder]) for one in runs]

    def seconds(priced: Sequence[Priced]) -> Seeds:
        known = ((one, ends[one.run.folder]) for one in priced)
        return over_seeds([*(None if end is None else end.on(one.seconds) for one, end in known), *none])

    n_bytes = [None if end is None else end.on(one.paid_bytes) for one, end in found]
    cost = None
    if per_gigabyte is not None:
        spent = (None if each is None else each / GIGABYTE * per_gigabyte for each in n_bytes)
        cost = over_seeds([*spent, *none])
    means = [float(one.seconds[-1]) / one.run.n_rounds for one in runs]
    coding = max((_coding(one) for one in runs), default=0.0)
    extremes = [one.extremes for one in runs if one.extremes is not None]
    clock = [seconds(side) for side in zip(*extremes, strict=True)] if extremes else [None, None]
    return OnNetwork(seconds(runs), over_seeds(means), over_seeds([*n_bytes, *none]), cost, coding, *clock)


def _coding(one: Priced) -> float:
    """The share of encoding and decoding, at the client that is the last and at the server; 0 where nobody ever came."""
    stack, all_of_it = one.stack, float(one.seconds[-1])
    return float((stack.coding + stack.serving).sum()) / all_of_it if all_of_it else 0.0


def evens_with(comparison: Comparison, network: str, label: str) -> Iterator[BreakEven]:
    """The break-evens that one method has with others."""
    return (even for even in comparison.break_evens[network] if label in (even.below, even.above))
