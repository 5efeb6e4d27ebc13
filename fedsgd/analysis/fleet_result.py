"""Prices of methods in a fleet, and texts about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedsgd.analysis.cap_limits import CapLimit, collect_setting_values, find_cap_limit
from fedsgd.analysis.differences import describe_other_differences
from fedsgd.analysis.fleet import (
    FleetConfig,
    FleetRow,
    MeasuredTraffic,
    build_fleet_row,
    compute_client_bytes,
    get_whole_model_bytes,
    measure_traffic,
)
from fedsgd.analysis.methods import Method, RunSpec, load_methods
from fedsgd.analysis.runs import Run
from fedsgd.config.component import describe_value
from fedsgd.config.quantities import DAYS_PER_MONTH, format_bytes, format_significant
from fedsgd.errors import ScenarioError
from fedsgd.sweeps.labels import format_value


@dataclass(frozen=True)
class FleetResult:
    """Prices of methods in a fleet.

    Attributes:
        fleet: fleet that runs the methods.
        rows: figures of each method.
        cap_limits: limits of compressor settings under the fleet's cap, for settings with runs at several values.
        lower_bounds: methods whose bytes are lower bounds, with the largest download and the remedies, each one line.
        notes: further remarks on the figures and their assumptions, each one line.
    """

    fleet: FleetConfig
    rows: tuple[FleetRow, ...]
    cap_limits: tuple[CapLimit, ...]
    lower_bounds: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all figures; the keys name their units."""
        return {
            **asdict(self.fleet),
            "cap_bytes_per_month": self.fleet.cap_bytes,
            "methods": [asdict(row) for row in self.rows],
            "cap_limits": [asdict(limit) for limit in self.cap_limits],
            "lower_bounds": list(self.lower_bounds),
            "notes": list(self.notes),
        }


def price_fleet(runs: Sequence[RunSpec], fleet: FleetConfig, *, tuned: Sequence[str] = ()) -> FleetResult:
    """Compute the bytes and the money a month of a fleet and of one client, from the ledgers of finished runs.

    >>> import tempfile
    >>> import fedsgd as fs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = fs.run(fs.Scenario(name="digits", rounds=2), out=folder)
    ...     phones = fs.price_fleet([folder], fs.FleetConfig(rounds_per_month=30, clients=1_000_000, cap="200MB/month"))
    >>> phones.rows[0].share_of_clients_within_cap.median
    1.0

    Args:
        runs: run directories, folders of run directories and sweeps, each a path or a pair (label, path).
        fleet: clients, rounds, price and cap of the fleet.
        tuned: settings of which each method is reported at its best value, as dotted keys.

    Raises:
        ScenarioError: an argument is wrong.
        ReportError: a path has no run, runs of one label have different settings, or no run is finished.
    """
    if not isinstance(fleet, FleetConfig):
        raise ScenarioError(f"fleet: got {describe_value(fleet)}, expected fedsgd.FleetConfig(...)")
    if not isinstance(runs, list | tuple):
        raise ScenarioError(f"runs: got {describe_value(runs)}, expected a list of run directories")
    return price_methods_in_fleet(load_methods(runs, None, tuned), fleet)


def price_methods_in_fleet(methods: Sequence[Method], fleet: FleetConfig) -> FleetResult:
    """Compute the figures of methods in a fleet.

    Args:
        methods: methods, as from `load_methods`.
        fleet: clients, rounds, price and cap of the fleet.
    """
    traffic_by_run: dict[Any, MeasuredTraffic] = {}

    def read_traffic(runs: Sequence[Run]) -> list[MeasuredTraffic]:
        for run in runs:
            if run.folder not in traffic_by_run:
                traffic_by_run[run.folder] = measure_traffic(run, fleet.overhead_up_bytes, fleet.overhead_down_bytes)
        return [traffic_by_run[run.folder] for run in runs]

    rows = tuple(build_fleet_row(method.label, read_traffic(method.runs), fleet) for method in methods)
    limits = []
    for setting_values in collect_setting_values(methods) if fleet.cap_bytes is not None else ():
        client_bytes = [compute_client_bytes(read_traffic(runs), fleet) for runs in setting_values.runs]
        limits.append(find_cap_limit(setting_values, client_bytes, fleet.cap_bytes or 0.0))
    notes = tuple(dict.fromkeys([*_collect_method_notes(methods), *_collect_notes(methods, rows, fleet)]))
    return FleetResult(fleet, rows, tuple(limits), tuple(_describe_lower_bounds(methods, rows)), notes)


def describe_cap_limit(limit: CapLimit, fleet: FleetConfig) -> str:
    """Return a line about the largest or smallest value of a setting with which the clients stay within the cap.

    Args:
        limit: limit of the setting.
        fleet: fleet with the cap and the share of clients that must stay within it.
    """
    share, name = f"{format_share(fleet.share)} of the clients", limit.setting
    if limit.value is None:
        return f"{limit.label}: the bytes do not change in one direction with {name}, so {fleet.cap} gives no limit"
    value = format_limit(limit.value)
    if limit.outcome == "within":
        bound = f"up to {value}" if limit.is_largest else f"from {value} up"
        return f"{limit.label}: with {name} {bound}, {share} stay within {fleet.cap} ({_describe_source(limit)})"
    n_bytes = format_bytes(round(limit.client_bytes_per_month[limit.tried_values.index(limit.value)]))
    edge = "largest" if limit.is_largest is (limit.outcome == "all") else "smallest"
    if limit.outcome == "all":
        edge_text = f"{value}, the {edge} value that was run, needs {n_bytes}"
        return f"{limit.label}: {share} stay within {fleet.cap} with every {name} that was run; {edge_text}"
    return f"{limit.label}: no {name} that was run keeps {share} within {fleet.cap}; {value}, the {edge}, needs {n_bytes}"


def _describe_source(limit: CapLimit) -> str:
    if limit.scale is None or limit.value is None:
        return "a value that was run"
    below = max(value for value in limit.tried_values if value <= limit.value)
    above = min(value for value in limit.tried_values if value >= limit.value)
    scales = "linear" if limit.scale == "linear" else "log-log"
    return f"{scales} interpolation between {format_value(below)} and {format_value(above)}"


def format_limit(value: float) -> str:
    """Return the value of a setting: a whole number in full, any other number with three significant figures.

    >>> format_limit(5000), format_limit(0.012345)
    ('5000', '0.0123')
    """
    return str(value) if isinstance(value, int) else format_significant(value)


def format_share(share: float) -> str:
    """Return a share of clients in percent with at most two decimals.

    >>> [format_share(share) for share in (0.95, 0.99999, 1.0, 0.00001, 0.123456)]
    ['95 %', '>99.99 %', '100 %', '<0.01 %', '12.35 %']
    """
    hundredths = round(1e4 * share)
    if share > 0 and not hundredths:
        return "<0.01 %"
    return ">99.99 %" if share < 1 and hundredths == 10_000 else f"{hundredths / 100:g} %"


def _collect_method_notes(methods: Sequence[Method]) -> Iterator[str]:
    """Yield remarks on the runs."""
    if any(len(method.runs) > 1 for method in methods):
        yield "medians over seeds"
    differences = describe_other_differences(methods)
    if differences is not None:
        yield differences
    for method in methods:
        n_failed = method.best_variant.n_failed
        if n_failed:
            yield f"{method.label}: {n_failed} of {n_failed + len(method.runs)} seeds ended in an error and are left out"


def _collect_notes(methods: Sequence[Method], rows: Sequence[FleetRow], fleet: FleetConfig) -> Iterator[str]:
    """Yield the assumptions of the figures, and the methods to which they apply."""
    yield from _join_labels({row.label: _describe_sampled_share(row, fleet) for row in rows}, len(rows))
    yield from _join_labels({row.label: _describe_sampler(row, fleet) for row in rows}, len(rows))
    yield "a participation has the mean bytes of the run's ledger, first downloads of the whole model included"
    ends = "of the participations ended after the download and count with the download alone"
    unanswered = {row.label: row.unanswered_share.median for row in rows}
    yield from _join_labels({k: f"{format_share(share)} {ends}" for k, share in unanswered.items() if share}, len(rows))
    ends = "of the replies were sent but not used (lost, late or refused) and count fully"
    unused = {row.label: row.unused_share.median for row in rows}
    yield from _join_labels({k: f"{format_share(share)} {ends}" for k, share in unused.items() if share}, len(rows))
    if fleet.cap is not None and not fleet.cap.endswith("month"):
        yield f"a month has {DAYS_PER_MONTH} days: {fleet.cap} is {format_bytes(round(fleet.cap_bytes or 0))}/month"


def _describe_lower_bounds(methods: Sequence[Method], rows: Sequence[FleetRow]) -> Iterator[str]:
    """Yield lines about methods whose clients miss more rounds in the fleet than in the run: the bounds, then the remedies."""
    labels_by_text: dict[str, list[str]] = {}
    fractions: dict[str, None] = {}
    for method, row in zip(methods, rows, strict=True):
        measured, sampled, model_bytes = (
            row.measured_share.median,
            row.sampled_share.median,
            get_whole_model_bytes(method.runs[0]),
        )
        if sampled < measured and model_bytes is not None:
            shares = f"a round samples {format_share(sampled)} of the clients, in the run {format_share(measured)}"
            text = f"{shares}; a download may have up to {format_bytes(model_bytes)}, the whole model"
            labels_by_text.setdefault(text, []).append(row.label)
            fractions[f"{sampled:.3g}"] = None
    for text, labels in labels_by_text.items():
        yield f"lower bound for {', '.join(labels)}: {text}"
    if fractions:
        fraction = " or ".join(fractions)
        yield f"for an upper bound, price runs with downlink.policy=model; for an estimate, with server.fraction={fraction}"


def _join_labels(text_by_label: Mapping[str, str], n_methods: int) -> Iterator[str]:
    """Yield each text once, after the labels of its methods unless it applies to all methods."""
    labels_by_text: dict[str, list[str]] = {}
    for label, text in text_by_label.items():
        labels_by_text.setdefault(text, []).append(label)
    for text, labels in labels_by_text.items():
        yield text if len(labels) == n_methods else f"{', '.join(labels)}: {text}"


def _describe_sampled_share(row: FleetRow, fleet: FleetConfig) -> str:
    measured, sampled = format_share(row.measured_share.median), format_share(row.sampled_share.median)
    if fleet.cohort is None:
        return f"each round samples {sampled} of the clients, as in the run"
    return f"each round samples {fleet.cohort:,} clients ({sampled}); the run sampled {measured} of its clients"


def _describe_sampler(row: FleetRow, fleet: FleetConfig) -> str:
    rounds = f"{fleet.rounds_per_month:,} rounds"
    if row.sampler == "uniform":
        return f"sampler uniform: a client's participations in {rounds} are binomial"
    if row.sampler == "cyclic":
        return f"sampler cyclic: clients take part in turn, so their participations in {rounds} differ by at most one"
    return f"sampler {row.sampler}: the clients' shares of the bytes are those of the run's clients"
