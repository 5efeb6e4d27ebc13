"""A comparison as CSV, JSON, Markdown and LaTeX."""

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
"""JSON keys of the fields of comparisons whose keys are not their names."""
ValueFormatter = Callable[[float], str]


def format_cell(seed_summary: SeedSummary, formatter: ValueFormatter, separator: str = " ") -> str:
    """The median over seeds and, of several, the least and the largest; how many reached it where not all did."""
    if not seed_summary.reached:
        return NOT_REACHED
    if math.isinf(seed_summary.median):
        return f"{NOT_REACHED}{separator}({seed_summary.reached} of {seed_summary.n} do)"
    high = formatter(seed_summary.high) if math.isfinite(seed_summary.high) else "∞"
    low, middle = formatter(seed_summary.low), formatter(seed_summary.median)
    if seed_summary.n == 1 or (low, high) == (middle, middle):
        return middle
    number, _, unit = low.partition(" ")
    least = number if unit and high.partition(" ")[2] == unit else low  # the unit once, where it is the same
    return f"{middle}{separator}({least} to {high})"


def format_seconds_cell(network_cost: NetworkCost, separator: str = " ") -> str:
    """Return the time in a cell; in brackets with the first and the ninth decile of coding by the clock."""
    text = format_cell(network_cost.seconds, format_seconds, separator)
    ends = [
        each.median
        for each in (network_cost.coding_low, network_cost.coding_high)
        if each is not None and math.isfinite(each.median)
    ]
    return f"{text}{separator}[{format_seconds(ends[0])} to {format_seconds(ends[1])}]" if len(ends) == 2 else text


def format_accuracy(value: float) -> str:
    """Four decimals."""
    return f"{value:.4f}"


def format_rounded_bytes(value: float) -> str:
    """Three figures."""
    return format_bytes(round(value))


def format_rounds(value: float) -> str:
    """A decimal where it is not whole."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def build_headings(comparison: Comparison) -> list[str]:
    """Of the table that people read."""
    to = "in all" if comparison.target is None else f"to {comparison.target:g}"
    names = ["method", "best accuracy", f"rounds {to}", f"up {to}", f"down {to}"]
    for network in comparison.pricing_models:
        names += [f"time {to}, {network}", *([f"cost, {network}"] if comparison.price_per_gigabyte is not None else [])]
    return names


def format_row(comparison: Comparison, row: ComparisonRow, separator: str = " ") -> list[str]:
    """A row of it. between: the median and the spread."""
    shown = [
        format_label(row),
        NOT_MEASURED if row.best_accuracy is None else format_cell(row.best_accuracy, format_accuracy, separator),
        format_cell(row.rounds, format_rounds, separator),
        format_cell(row.up_bytes, format_rounded_bytes, separator),
        format_cell(row.down_bytes, format_rounded_bytes, separator),
    ]
    for network in comparison.pricing_models:
        on = row.network_costs.get(network)
        shown.append("not priced" if on is None else format_seconds_cell(on, separator))
        if comparison.price_per_gigabyte is not None:
            shown.append("" if on is None or on.cost is None else format_cell(on.cost, format_significant, separator))
    return shown


def format_label(row: ComparisonRow) -> str:
    """With what was tuned."""
    names = shorten_keys(list(row.tuned))
    tuned = ", ".join(
        f"{names[key]} {format_value(value)}{'*' * (key in row.grid_edge_keys)}" for key, value in row.tuned.items()
    )
    return f"{row.label} ({tuned})" if tuned else row.label


def collect_notes(comparison: Comparison) -> Iterator[str]:
    """What has to be said beside the table."""
    if comparison.other_differences is not None:
        yield comparison.other_differences
    if any(row.seeds + row.n_failed > 1 for row in comparison.rows):
        yield "medians over seeds, with the least and the largest"
    for row in comparison.rows:
        if row.n_failed:
            yield f"{row.label}: {row.n_failed} of {row.seeds + row.n_failed} seeds ended in an error, and count as not reached"
        for seed, evidence in row.divergence_by_seed.items():
            yield f"{row.label}: the run with seed {seed} diverged: {evidence}"
        for text in row.warnings:
            yield f"{row.label}: warning: {text}"
        if row.unanswered_messages and any(terms.deadline_seconds is None for terms in comparison.pricing_models.values()):
            unanswered = f"of {row.unanswered_messages} messages nothing was heard"
            yield f"{row.label}: {unanswered}; such a client counts with its download alone"
        if row.unpriced_reason and comparison.pricing_models:
            yield f"{row.label} is not priced: {row.unpriced_reason}"
        yield from collect_uncosted_codec_notes(row.label, row.uncosted_codecs)
    if any(row.tuned for row in comparison.rows):
        yield "tuned values are the best by the same accuracy and seeds that are shown"
    if any(row.grid_edge_keys for row in comparison.rows):
        yield "* the best value is the least or the largest that was tried: a better one may lie beyond"
    if len({row.seed_numbers for row in comparison.rows}) > 1:
        yield "the methods were not run with the same seeds"
    if comparison.measured_coding and comparison.pricing_models:
        yield "encoding and decoding are by the clock of the machine that made each run: median [first to ninth decile]"
    for name, terms in comparison.pricing_models.items():
        yield from _collect_network_notes(comparison, name, terms)


def collect_uncosted_codec_notes(label: str, uncosted_codecs: Iterable[str]) -> Iterator[str]:
    """Name the compressors whose coding counts as nothing."""
    for name in uncosted_codecs:
        problem = f"{name} is not in the table of codec costs, so its encoding and decoding count as nothing"
        yield f"{label}: {problem}; --measured-coding takes them from the run's clock"


def collect_measured_coding_notes(comparison: Comparison) -> Iterator[str]:
    """Describe, for a page and for figures, what coding by the clock makes of the times and of the break-evens."""
    to = "in all" if comparison.target is None else f"to {comparison.target:g}"
    for name in comparison.pricing_models:
        for row in comparison.rows:
            if name in row.network_costs:
                seconds = format_seconds_cell(row.network_costs[name])
                yield f"{row.label}: {seconds} {to} on {name}, coding by the clock [first to ninth decile]"
        yield from (f"{name}: {text}" for text in describe_break_evens(comparison.break_evens.get(name, ())))


def _collect_network_notes(comparison: Comparison, network_name: str, pricing_model: PricingModel) -> Iterator[str]:
    waits = (
        ""
        if pricing_model.deadline_seconds is None
        else f", waits {format_seconds(pricing_model.deadline_seconds)} for a reply"
    )
    devices = f"clients compute {pricing_model.device}; the server {pricing_model.server.copy_rate_text}"
    yield f"{network_name}: {pricing_model.network}; {devices}{waits}"
    coding = [
        (row.network_costs[network_name].coding_share, row.label)
        for row in comparison.rows
        if network_name in row.network_costs
    ]
    most, label = max(coding, default=(0.0, ""))
    if most > NOTABLE_CODING_SHARE:
        source = "by the clock of the machine that made it" if comparison.measured_coding else "by the table of codec costs"
        others = "; of others less" if len(coding) > 1 else ""
        yield f"{network_name}: encoding and decoding are {100 * most:.0f} % of the time of {label}, {source}{others}"


def describe_break_evens(break_evens: Iterable[BreakEven]) -> Iterator[str]:
    """Break-evens in words, a line for each two methods: where the one that is sooner on the slowest links is so."""
    pairs: dict[frozenset[str], list[BreakEven]] = {}
    for even in break_evens:
        pairs.setdefault(frozenset((even.faster_below, even.faster_above)), []).append(even)
    for found in pairs.values():
        rates = [_format_break_even_speed(even) for even in found]
        ranges = [f"below {rates[0]}"]
        for i in range(1, len(rates), 2):
            ranges.append(f"between {rates[i]} and {rates[i + 1]}" if i + 1 < len(rates) else f"above {rates[i]}")
        yield f"{found[0].faster_below} is sooner than {found[0].faster_above} {' and '.join(ranges)} up"


def _format_break_even_speed(break_even: BreakEven) -> str:
    """Return the speed of a break-even; in brackets its range where coding is by the clock."""
    rate = format_rate(break_even.up_bits_per_second)
    if break_even.low is None or break_even.high is None:
        return rate
    if not break_even.low:
        return f"{rate} [{format_rate(break_even.high)} or less]" if math.isfinite(break_even.high) else f"{rate} [any]"
    upper = f"to {format_rate(break_even.high)}" if math.isfinite(break_even.high) else "or more"
    return f"{rate} [{format_rate(break_even.low)} {upper}]"


def to_json(comparison: Comparison) -> str:
    """All that is known, seeds' figures by median, low, high, reached and n; null for what is not reached."""
    plain = {
        "target": comparison.target,
        "price_per_gigabyte": comparison.price_per_gigabyte,
        "terms": {name: _to_plain(terms) for name, terms in comparison.pricing_models.items()},
        "methods": [_to_plain(row) for row in comparison.rows],
        "break_evens": {name: [_to_plain(even) for even in evens] for name, evens in comparison.break_evens.items()},
        "mixture": comparison.other_differences,
        "measured_coding": comparison.measured_coding,
        "notes": list(collect_notes(comparison)),
    }
    return json.dumps(_replace_non_finite(plain), indent=2, allow_nan=False) + "\n"


def _to_plain(instance: Any) -> dict[str, Any]:
    """Return a dataclass as a dictionary of its JSON keys, nested ones included."""
    return asdict(instance, dict_factory=lambda pairs: {JSON_KEYS.get(name, name): value for name, value in pairs})


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _replace_non_finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_csv(comparison: Comparison) -> str:
    """A row a method, plain numbers in base units; empty for what is not reached."""
    out = io.StringIO()
    rows = [dict(_flatten_row(comparison, row)) for row in comparison.rows]
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _flatten_row(comparison: Comparison, row: ComparisonRow) -> Iterator[tuple[str, Any]]:
    yield from (
        ("method", row.label),
        ("seeds", row.seeds),
        ("failed", row.n_failed),
        ("diverged", len(row.divergence_by_seed)),
    )
    yield from ((f"tuned {key}", value) for key, value in row.tuned.items())
    yield "target", "" if comparison.target is None else comparison.target
    figures: dict[str, SeedSummary | None] = {
        "best_accuracy": row.best_accuracy,
        "rounds": row.rounds,
        "uplink_bytes": row.up_bytes,
        "downlink_bytes": row.down_bytes,
        "all_bytes": row.all_bytes,
    }
    for network, on in row.network_costs.items():
        figures |= {f"seconds {network}": on.seconds, f"seconds_a_round {network}": on.mean_round_seconds}
        figures |= {f"seconds_coding_low {network}": on.coding_low, f"seconds_coding_high {network}": on.coding_high}
        figures |= {f"bytes {network}": on.n_bytes, f"cost {network}": on.cost}
    for name, seeds in figures.items():
        if seeds is not None:
            for key in ("median", "low", "high"):
                value = getattr(seeds, key)
                yield f"{name} {key}", value if math.isfinite(value) else ""
            yield f"{name} reached", seeds.reached


def to_markdown(comparison: Comparison) -> str:
    """The table and its notes."""
    rows = [build_headings(comparison), *(format_row(comparison, row) for row in comparison.rows)]
    lines = [f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    evens = (f"{name}: {text}" for name, found in comparison.break_evens.items() for text in describe_break_evens(found))
    lines += ["", *(f"- {note}" for note in (*evens, *collect_notes(comparison)))]
    return "\n".join(lines) + "\n"


def to_latex(comparison: Comparison) -> str:
    """A tabular for booktabs, and its notes as comments."""
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
    return re.sub(r"[\\~^∞×µ&%$#_{}]", lambda found: _LATEX_ESCAPES[found[0]], text)


FORMATTERS: Mapping[str, Callable[[Comparison], str]] = {
    ".csv": to_csv,
    ".json": to_json,
    ".md": to_markdown,
    ".tex": to_latex,
}


def check_table_path(path: Path) -> None:
    """OutputError unless a table can be written there."""
    if path.suffix.lower() not in FORMATTERS:
        raise OutputError(f'{path}: got a table "{path.suffix}"{suggest_name(path.suffix, FORMATTERS)}')
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}")


def save_table(comparison: Comparison, path: Path) -> None:
    """In the format that the suffix says."""
    check_table_path(path)
    write_atomically(path, FORMATTERS[path.suffix.lower()](comparison).encode())
