"""Texts and tables of a comparison, and its files in CSV, JSON, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsgd.analysis.comparison import Comparison, ComparisonRow, NetworkCost
from fedsgd.analysis.pricing import BreakEven
from fedsgd.config.quantities import format_bytes, format_rate, format_seconds, format_significant
from fedsgd.errors import OutputError, suggest_name
from fedsgd.experiment.time_to_target import SeedSummary
from fedsgd.network import PricingModel
from fedsgd.storage.run_directory import write_atomically
from fedsgd.sweeps.labels import format_value, shorten_keys

NOT_REACHED = "not reached"
NOT_MEASURED = "not measured"
NOTABLE_CODING_SHARE = 0.1
"""Share of coding in a method's time above which a note names the share."""
JSON_KEYS: Mapping[str, str] = {
    "grid_edge_keys": "at_edge",
    "n_failed": "failed",
    "best_accuracy": "best",
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
ValueFormatter = Callable[[float], str]


def format_cell(seed_summary: SeedSummary, formatter: ValueFormatter, separator: str = " ") -> str:
    """Return the median over seeds, with minimum and maximum in parentheses.

    >>> from fedsgd.experiment.time_to_target import summarize_seeds
    >>> format_cell(summarize_seeds([3, None, 5]), format_rounds)
    '5 (3 to ∞)'
    >>> format_cell(summarize_seeds([3, None]), format_rounds)
    'not reached (1 of 2 do)'
    """
    if not seed_summary.reached:
        return NOT_REACHED
    if math.isinf(seed_summary.median):
        return f"{NOT_REACHED}{separator}({seed_summary.reached} of {seed_summary.n} do)"
    high = formatter(seed_summary.high) if math.isfinite(seed_summary.high) else "∞"
    low, middle = formatter(seed_summary.low), formatter(seed_summary.median)
    if seed_summary.n == 1 or (low, high) == (middle, middle):
        return middle
    number, _, unit = low.partition(" ")
    if unit and high.partition(" ")[2] == unit:  # write a common unit once
        low = number
    return f"{middle}{separator}({low} to {high})"


def format_seconds_cell(network_cost: NetworkCost, separator: str = " ") -> str:
    """Return the time, and in brackets the times at the first and ninth decile of measured coding times."""
    text = format_cell(network_cost.seconds, format_seconds, separator)
    summaries = (network_cost.coding_low, network_cost.coding_high)
    medians = [s.median for s in summaries if s is not None and math.isfinite(s.median)]
    return f"{text}{separator}[{format_seconds(medians[0])} to {format_seconds(medians[1])}]" if len(medians) == 2 else text


def format_accuracy(value: float) -> str:
    """Return an accuracy with four decimals."""
    return f"{value:.4f}"


def format_rounded_bytes(value: float) -> str:
    """Return a number of bytes, rounded to whole bytes, in decimal units."""
    return format_bytes(round(value))


def format_rounds(value: float) -> str:
    """Return a number of rounds, with one decimal unless it is whole."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def build_headings(comparison: Comparison) -> list[str]:
    """Return the headings of the table of methods."""
    end = _describe_end(comparison)
    headings = ["method", "best accuracy", f"rounds {end}", f"up {end}", f"down {end}"]
    for network in comparison.pricing_models:
        headings += [f"time {end}, {network}", *([f"cost, {network}"] if comparison.price_per_gigabyte is not None else [])]
    return headings


def _describe_end(comparison: Comparison) -> str:
    return "in all" if comparison.target is None else f"to {comparison.target:g}"


def format_row(comparison: Comparison, row: ComparisonRow, separator: str = " ") -> list[str]:
    """Return the cells of a row; `separator` is between a median and its range."""
    cells = [
        format_label(row),
        NOT_MEASURED if row.best_accuracy is None else format_cell(row.best_accuracy, format_accuracy, separator),
        format_cell(row.rounds, format_rounds, separator),
        format_cell(row.up_bytes, format_rounded_bytes, separator),
        format_cell(row.down_bytes, format_rounded_bytes, separator),
    ]
    for network in comparison.pricing_models:
        cost = row.network_costs.get(network)
        cells.append("not priced" if cost is None else format_seconds_cell(cost, separator))
        if comparison.price_per_gigabyte is not None:
            cells.append("" if cost is None or cost.cost is None else format_cell(cost.cost, format_significant, separator))
    return cells


def format_label(row: ComparisonRow) -> str:
    """Return the label of a method with its tuned values; "*" marks values at the edge of the grid."""
    names = shorten_keys(list(row.tuned))
    tuned = ", ".join(
        f"{names[key]} {format_value(value)}{'*' * (key in row.grid_edge_keys)}" for key, value in row.tuned.items()
    )
    return f"{row.label} ({tuned})" if tuned else row.label


def collect_notes(comparison: Comparison) -> Iterator[str]:
    """Yield remarks on a comparison, each one line."""
    if comparison.other_differences is not None:
        yield comparison.other_differences
    if any(row.seeds + row.n_failed > 1 for row in comparison.rows):
        yield "medians over seeds, with minimum and maximum in parentheses"
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
    if any(row.tuned for row in comparison.rows):
        yield "tuned values were chosen by the reported accuracies, on the same seeds"
    if any(row.grid_edge_keys for row in comparison.rows):
        yield "* the best value is the smallest or largest value that was tried; a better value may exist beyond this edge"
    if len({row.seed_numbers for row in comparison.rows}) > 1:
        yield "the methods were not run with the same seeds"
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
    end = _describe_end(comparison)
    for name in comparison.pricing_models:
        for row in comparison.rows:
            if name in row.network_costs:
                seconds = format_seconds_cell(row.network_costs[name])
                yield f"{row.label}: {seconds} {end} on {name}, with measured coding times [first to ninth decile]"
        yield from (f"{name}: {text}" for text in describe_break_evens(comparison.break_evens.get(name, ())))


def _collect_network_notes(comparison: Comparison, name: str, pricing_model: PricingModel) -> Iterator[str]:
    deadline = pricing_model.deadline_seconds
    waits = "" if deadline is None else f", waits {format_seconds(deadline)} for a reply"
    devices = f"clients compute {pricing_model.device}; the server {pricing_model.server.copy_rate_text}"
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


def to_json(comparison: Comparison) -> str:
    """Return all figures as JSON, with null for a figure whose target is not reached."""
    content = {
        "target": comparison.target,
        "price_per_gigabyte": comparison.price_per_gigabyte,
        "terms": {name: _to_plain(model) for name, model in comparison.pricing_models.items()},
        "methods": [_to_plain(row) for row in comparison.rows],
        "break_evens": {name: [_to_plain(point) for point in points] for name, points in comparison.break_evens.items()},
        "mixture": comparison.other_differences,
        "measured_coding": comparison.measured_coding,
        "notes": list(collect_notes(comparison)),
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
    """Return a row for each method, with numbers in base units. A cell is empty if the target is not reached."""
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
    yield "target", "" if comparison.target is None else comparison.target
    figures: dict[str, SeedSummary | None] = {
        "best_accuracy": row.best_accuracy,
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
            for key in ("median", "low", "high"):
                value = getattr(summary, key)
                yield f"{name} {key}", value if math.isfinite(value) else ""
            yield f"{name} reached", summary.reached


def to_markdown(comparison: Comparison) -> str:
    """Return the table, the break-evens and the notes as Markdown."""
    rows = [build_headings(comparison), *(format_row(comparison, row) for row in comparison.rows)]
    lines = [f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    break_evens = (
        f"{name}: {text}" for name, points in comparison.break_evens.items() for text in describe_break_evens(points)
    )
    lines += ["", *(f"- {note}" for note in (*break_evens, *collect_notes(comparison)))]
    return "\n".join(lines) + "\n"


def to_latex(comparison: Comparison) -> str:
    """Return a LaTeX tabular for the package booktabs, with the notes as comments and without break-evens."""
    rows = [build_headings(comparison), *(format_row(comparison, row) for row in comparison.rows)]
    head, *body = (" & ".join(_escape_latex(text) for text in row) + r" \\" for row in rows)
    lines = [f"% {note}" for note in collect_notes(comparison)]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


_LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "∞": r"$\infty$",
    "×": r"$\times$",
    "µ": r"\textmu{}",
    **{c: "\\" + c for c in "&%$#_{}"},
}


def _escape_latex(text: str) -> str:
    return re.sub(r"[\\~^∞×µ&%$#_{}]", lambda match: _LATEX_ESCAPES[match[0]], text)


FORMATTERS: Mapping[str, Callable[[Comparison], str]] = {".csv": to_csv, ".json": to_json, ".md": to_markdown, ".tex": to_latex}


def check_table_path(path: Path) -> None:
    """Raise OutputError unless a table can be written to a path."""
    if path.suffix.lower() not in FORMATTERS:
        raise OutputError(f'{path}: got a table "{path.suffix}"{suggest_name(path.suffix, FORMATTERS)}')
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}")


def save_table(comparison: Comparison, path: Path) -> None:
    """Write the table in the format of the path's suffix."""
    check_table_path(path)
    write_atomically(path, FORMATTERS[path.suffix.lower()](comparison).encode())
