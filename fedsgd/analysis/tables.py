"""Notes on a comparison, and its tables in CSV, JSON, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsgd.analysis.columns import (
    Statistic,
    TableConfig,
    build_figure_columns,
    build_text_columns,
    collect_tuning_notes,
    describe_end,
    format_seconds_cell,
)
from fedsgd.analysis.comparison import Comparison, ComparisonRow
from fedsgd.analysis.latex import format_latex_table
from fedsgd.analysis.pricing import BreakEven
from fedsgd.analysis.ratio_columns import (
    build_ratio_columns,
    collect_statistics_notes,
    describe_ratios,
    has_intervals,
    show_intervals,
)
from fedsgd.analysis.seed_statistics import Interval
from fedsgd.config.quantities import format_rate, format_seconds
from fedsgd.config.text_columns import TextColumn
from fedsgd.errors import OutputError, suggest_name
from fedsgd.experiment.time_to_target import SeedSummary
from fedsgd.network import PricingModel
from fedsgd.storage.run_directory import write_atomically

NOTABLE_CODING_SHARE = 0.1
"""Share of coding in a method's time above which a note names the share."""
JSON_KEYS: Mapping[str, str] = {
    "grid_edge_keys": "at_edge",
    "n_failed": "failed",
    "best_value": "best",
    "final_value": "final",
    "network_costs": "on",
    "unpriced_reason": "not_priced",
    "unanswered_messages": "silent",
    "divergence_by_seed": "diverged",
    "uncosted_codecs": "uncounted",
    "mean_round_seconds": "a_round",
    "coding_share": "coding",
    "faster_below": "below",
    "faster_above": "above",
}
"""JSON keys of fields whose key differs from their name."""
_STATISTIC_NOTES: Mapping[Statistic, str] = {
    "median": "medians over seeds, with minimum and maximum",
    "interval": "Kaplan–Meier medians over seeds, with their confidence intervals",
    "mean": "means over seeds, ± the sample standard deviation (n − 1)",
}


def collect_notes(comparison: Comparison, statistic: Statistic = "median") -> Iterator[str]:
    """Yield remarks on a comparison, each one line."""
    if comparison.other_differences is not None:
        yield comparison.other_differences
    if any(row.seeds + row.n_failed > 1 for row in comparison.rows):
        yield _STATISTIC_NOTES[statistic]
    for row in comparison.rows:
        if row.n_failed:
            yield f"{row.label}: {row.n_failed} of {row.seeds + row.n_failed} seeds ended in an error and count as not reached"
        for seed, evidence in row.divergence_by_seed.items():
            yield f"{row.label}: the run with seed {seed} diverged: {evidence}"
        for text in row.warnings:
            yield f"{row.label}: warning: {text}"
        if row.unanswered_messages and any(model.deadline_seconds is None for model in comparison.pricing_models.values()):
            unanswered = f"{row.unanswered_messages} messages were not answered"
            yield f"{row.label}: {unanswered}; their clients count with download and decoding only"
        if row.unpriced_reason and comparison.pricing_models:
            yield f"{row.label} is not priced: {row.unpriced_reason}"
        yield from collect_uncosted_codec_notes(row.label, row.uncosted_codecs)
    yield from collect_tuning_notes(comparison)
    if len({row.seed_numbers for row in comparison.rows}) > 1:
        yield "the methods were not run with the same seeds"
    yield from collect_statistics_notes(comparison, statistic)
    if comparison.measured_coding and comparison.pricing_models:
        yield "coding times were measured by the machine of each run: median [first to ninth decile]"
    for name, pricing_model in comparison.pricing_models.items():
        yield from _collect_network_notes(comparison, name, pricing_model)


def collect_uncosted_codec_notes(label: str, uncosted_codecs: Iterable[str]) -> Iterator[str]:
    """Yield a line for each compressor whose coding is priced as zero."""
    for name in uncosted_codecs:
        problem = f"{name} is not in the table of codec costs, so its coding time counts as 0"
        yield f"{label}: {problem}; --measured-coding uses times that the run measured"


def collect_measured_coding_notes(comparison: Comparison) -> Iterator[str]:
    """Yield lines about the ranges of times and break-evens by measured coding times, for a page and for figures."""
    end = describe_end(comparison)
    for name in comparison.pricing_models:
        for row in comparison.rows:
            if name in row.network_costs:
                seconds = format_seconds_cell(row.network_costs[name])
                yield f"{row.label}: {seconds} {end} on {name}, with measured coding times [first to ninth decile]"
        yield from (f"{name}: {text}" for text in describe_break_evens(comparison.break_evens.get(name, ())))


def _collect_network_notes(comparison: Comparison, name: str, pricing_model: PricingModel) -> Iterator[str]:
    deadline = pricing_model.deadline_seconds
    waits = "" if deadline is None else f", waits {format_seconds(deadline)} for a reply"
    devices = f"clients {pricing_model.training_text}; the server {pricing_model.server.copy_rate_text}"
    yield f"{name}: {pricing_model.network}; {devices}{waits}"
    shares = [(row.network_costs[name].coding_share, row.label) for row in comparison.rows if name in row.network_costs]
    share, label = max(shares, default=(0.0, ""))
    if share > NOTABLE_CODING_SHARE:
        source = "as measured by its machine" if comparison.measured_coding else "by the table of codec costs"
        maximum = ", the maximum over methods" if len(shares) > 1 else ""
        yield f"{name}: coding is {100 * share:.0f} % of the time of {label}, {source}{maximum}"


def describe_break_evens(break_evens: Iterable[BreakEven]) -> Iterator[str]:
    """Yield a line for each pair of methods, about the uplink speeds at which one method is faster than the other.

    >>> points = [BreakEven("top-k", "dense", 1e6), BreakEven("dense", "top-k", 1e9)]
    >>> list(describe_break_evens(points))
    ['top-k is faster than dense below 1 Mbit/s and above 1 Gbit/s up']
    """
    pairs: dict[frozenset[str], list[BreakEven]] = {}
    for point in break_evens:
        pairs.setdefault(frozenset((point.faster_below, point.faster_above)), []).append(point)
    for points in pairs.values():
        rates = [_format_break_even_speed(point) for point in points]
        ranges = [f"below {rates[0]}"]
        for i in range(1, len(rates), 2):
            ranges.append(f"between {rates[i]} and {rates[i + 1]}" if i + 1 < len(rates) else f"above {rates[i]}")
        yield f"{points[0].faster_below} is faster than {points[0].faster_above} {' and '.join(ranges)} up"


def _format_break_even_speed(break_even: BreakEven) -> str:
    """Return the speed of a break-even, and in brackets its range by measured coding times."""
    rate = format_rate(break_even.up_bits_per_second)
    if break_even.low is None or break_even.high is None:
        return rate
    if not break_even.low:
        return f"{rate} [{format_rate(break_even.high)} or less]" if math.isfinite(break_even.high) else f"{rate} [any]"
    upper = f"to {format_rate(break_even.high)}" if math.isfinite(break_even.high) else "or more"
    return f"{rate} [{format_rate(break_even.low)} {upper}]"


def to_json(comparison: Comparison, statistic: Statistic = "median", **further_figures: Any) -> str:
    """Return all figures as JSON, with null for a figure whose target is not reached. `further_figures` are added by key."""
    content = {
        "target": None if comparison.target is None else comparison.target.short_form,
        "criterion": asdict(comparison.criterion),
        "baseline": comparison.baseline.label,
        "price_per_gigabyte": comparison.price_per_gigabyte,
        "terms": {name: _to_plain(model) for name, model in comparison.pricing_models.items()},
        "methods": [_to_plain(row) for row in comparison.rows],
        "break_evens": {name: [_to_plain(point) for point in points] for name, points in comparison.break_evens.items()},
        "mixture": comparison.other_differences,
        "measured_coding": comparison.measured_coding,
        "notes": list(collect_notes(comparison, statistic)),
        **further_figures,
    }
    return json.dumps(_replace_non_finite(content), indent=2, allow_nan=False) + "\n"


def _to_plain(instance: Any) -> dict[str, Any]:
    """Return a dataclass, and dataclasses in its fields, as dictionaries with JSON keys."""
    return asdict(instance, dict_factory=lambda pairs: {JSON_KEYS.get(name, name): value for name, value in pairs})


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_csv(comparison: Comparison) -> str:
    """Return a row for each method, with numbers in base units. A cell is empty if the target is not reached.

    Columns "interval" have the Kaplan–Meier median and its interval, columns "ratio" the ratio of the baseline to the method.
    """
    out = io.StringIO()
    rows = [dict(_flatten_row(comparison, row)) for row in comparison.rows]
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _flatten_row(comparison: Comparison, row: ComparisonRow) -> Iterator[tuple[str, Any]]:
    counts = {"seeds": row.seeds, "failed": row.n_failed, "diverged": len(row.divergence_by_seed)}
    yield from {"method": row.label, **counts}.items()
    yield from ((f"tuned {key}", value) for key, value in row.tuned.items())
    yield "target", "" if comparison.target is None else comparison.target.short_form
    figures: dict[str, SeedSummary | None] = {
        comparison.criterion.best_name.replace(" ", "_", 1): row.best_value,
        f"final_{comparison.criterion.metric}": row.final_value,
        "rounds": row.rounds,
        "uplink_bytes": row.up_bytes,
        "downlink_bytes": row.down_bytes,
        "all_bytes": row.all_bytes,
    }
    for network, cost in row.network_costs.items():
        figures |= {f"seconds {network}": cost.seconds, f"seconds_a_round {network}": cost.mean_round_seconds}
        figures |= {f"seconds_coding_low {network}": cost.coding_low, f"seconds_coding_high {network}": cost.coding_high}
        figures |= {f"bytes {network}": cost.n_bytes, f"cost {network}": cost.cost}
    for name, summary in figures.items():
        if summary is not None:
            for key in ("median", "low", "high", "mean", "std"):
                value = getattr(summary, key)
                yield f"{name} {key}", value if math.isfinite(value) else ""
            yield f"{name} reached", summary.reached
    yield from _flatten_statistics(row)


def _flatten_statistics(row: ComparisonRow) -> Iterator[tuple[str, Any]]:
    """Yield intervals, ratios to the baseline and the cost of tuning, by column."""
    if row.tuning_cost is not None:
        yield from ((f"tuning {key}", value) for key, value in _to_plain(row.tuning_cost).items())
    if row.statistics is None:
        return
    names = {"best_value": "best", "final_value": "final"} | {f"{link}_bytes": f"{link}link_bytes" for link in ("up", "down")}
    for name, estimate in row.statistics.medians.items():
        yield from _flatten_estimate(f"{names.get(name, name)} interval", estimate.median, estimate.interval)
    to_baseline = row.statistics.to_baseline
    if to_baseline is not None:
        yield from {
            "baseline": to_baseline.baseline,
            "pairs": len(to_baseline.seeds),
            "logrank_p": to_baseline.logrank_p,
        }.items()
        for name, ratio in to_baseline.ratios.items():
            yield f"{names.get(name, name)} ratio relation", ratio.relation
            yield from _flatten_estimate(f"{names.get(name, name)} ratio", ratio.ratio, ratio.interval)


def _flatten_estimate(name: str, value: float, interval: Interval | None) -> Iterator[tuple[str, Any]]:
    """Yield a median or a ratio and its interval; an infinite number is an empty text."""
    figures = {"value": value}
    if interval is not None:
        figures |= {"low": interval.low, "high": interval.high, "confidence": interval.confidence}
    yield from ((f"{name} {key}", number if math.isfinite(number) else "") for key, number in figures.items())


def to_markdown(comparison: Comparison, config: TableConfig = TableConfig()) -> str:
    """Return the table, the break-evens and the notes as Markdown."""
    lines = _format_markdown_table(build_text_columns(comparison, config), _find_best_cells(comparison, config))
    if has_intervals(comparison):
        ratios = build_ratio_columns(comparison, config.columns)
        lines += ["", f"{_escape_markdown(describe_ratios(comparison))}:", "", *_format_markdown_table(ratios)]
    break_evens = (
        f"{name}: {text}" for name, points in comparison.break_evens.items() for text in describe_break_evens(points)
    )
    notes = (*break_evens, *collect_notes(comparison, config.statistic))
    lines += ["", *(f"- {_escape_markdown(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def _format_markdown_table(columns: Sequence[TextColumn], best: Container[tuple[str, int]] = ()) -> list[str]:
    """Return the lines of a table; `best` has heading and row of each cell to set in bold."""
    rows = [[_escape_markdown(column.heading) for column in columns]]
    for index in range(len(columns[0].cells)):
        cells = [(c.heading, _escape_markdown(c.cells[index])) for c in columns]
        rows.append([f"**{text}**" if (heading, index) in best else text for heading, text in cells])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(columns), *lines[1:]]


def _escape_markdown(text: str) -> str:
    """Return a text in which a label's characters do not become markup."""
    return re.sub(r"[\\`*_|~\[]|<(?=[a-zA-Z/!?])|&(?=#|\w+;)", r"\\\g<0>", text)


def _find_best_cells(comparison: Comparison, config: TableConfig) -> set[tuple[str, int]]:
    """Return heading and row of each cell to set in bold."""
    if not config.mark_best:
        return set()
    comparison = show_intervals(comparison) if config.statistic == "interval" else comparison
    columns = build_figure_columns(comparison)
    return {(column.heading, index) for column in columns for index in column.find_best(config.statistic)}


def to_latex(comparison: Comparison, config: TableConfig = TableConfig(), label: str = "comparison") -> str:
    r"""Return a LaTeX table for the package booktabs, with the notes as comments and without break-evens.

    Notes on tuned values are also printed below the table. With a caption of the user, statistic, seeds and target are, too.

    Args:
        comparison: methods.
        config: statistic, columns, caption and best values.
        label: name of the table, for "\ref{tab:LABEL}".
    """
    notes = [f"% {note}" for note in collect_notes(comparison, config.statistic)]
    return "\n".join([*notes, *format_latex_table(comparison, config, label)]) + "\n"


FORMATTERS: Mapping[str, Callable[[Comparison, TableConfig, str], str]] = {
    ".csv": lambda comparison, config, label: to_csv(comparison),
    ".json": lambda comparison, config, label: to_json(comparison, config.statistic),
    ".md": lambda comparison, config, label: to_markdown(comparison, config),
    ".tex": to_latex,
}
"""Function from a comparison, the settings of its table and the name of its file to a text, by suffix."""


def check_table_path(path: Path) -> None:
    """Raise OutputError unless a table can be written to a path."""
    if path.suffix.lower() not in FORMATTERS:
        raise OutputError(f'{path}: got a table "{path.suffix}"{suggest_name(path.suffix, FORMATTERS)}')
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}")


def save_table(comparison: Comparison, path: Path, config: TableConfig = TableConfig()) -> None:
    """Write the table in the format of the path's suffix."""
    check_table_path(path)
    write_atomically(path, FORMATTERS[path.suffix.lower()](comparison, config, path.stem).encode())
