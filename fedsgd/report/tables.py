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

from fedsgd.errors import OutputError, did_you_mean
from fedsgd.network import Terms
from fedsgd.report.compare import Comparison, OnNetwork, Row
from fedsgd.report.price import BreakEven
from fedsgd.run_folder import write
from fedsgd.sizes import size_text
from fedsgd.sweeps.naming import short_names, shown
from fedsgd.target import Seeds
from fedsgd.units import rate_text, seconds_text, three_figures

NOT_REACHED = "not reached"
NOT_MEASURED = "not measured"
MUCH = 0.1
Texts = Callable[[float], str]


def cell(figures: Seeds, text: Texts, between: str = " ") -> str:
    """The median over seeds and, of several, the least and the largest; how many reached it where not all did."""
    if not figures.reached:
        return NOT_REACHED
    if math.isinf(figures.median):
        return f"{NOT_REACHED}{between}({figures.reached} of {figures.n} do)"
    high = text(figures.high) if math.isfinite(figures.high) else "∞"
    low, middle = text(figures.low), text(figures.median)
    if figures.n == 1 or (low, high) == (middle, middle):
        return middle
    number, _, unit = low.partition(" ")
    least = number if unit and high.partition(" ")[2] == unit else low  # the unit once, where it is the same
    return f"{middle}{between}({least} to {high})"


def seconds_cell(on: OnNetwork, between: str = " ") -> str:
    """Return the time in a cell; in brackets with the first and the ninth decile of coding by the clock."""
    text = cell(on.seconds, seconds_text, between)
    ends = [each.median for each in (on.coding_low, on.coding_high) if each is not None and math.isfinite(each.median)]
    return f"{text}{between}[{seconds_text(ends[0])} to {seconds_text(ends[1])}]" if len(ends) == 2 else text


def accuracy_text(value: float) -> str:
    """Four decimals."""
    return f"{value:.4f}"


def bytes_text(value: float) -> str:
    """Three figures."""
    return size_text(round(value))


def rounds_text(value: float) -> str:
    """A decimal where it is not whole."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def headings(comparison: Comparison) -> list[str]:
    """Of the table that people read."""
    to = "in all" if comparison.target is None else f"to {comparison.target:g}"
    names = ["method", "best accuracy", f"rounds {to}", f"up {to}", f"down {to}"]
    for network in comparison.terms:
        names += [f"time {to}, {network}", *([f"cost, {network}"] if comparison.price_per_gigabyte is not None else [])]
    return names


def cells(comparison: Comparison, row: Row, between: str = " ") -> list[str]:
    """A row of it. between: the median and the spread."""
    shown = [
        label_of(row),
        NOT_MEASURED if row.best is None else cell(row.best, accuracy_text, between),
        cell(row.rounds, rounds_text, between),
        cell(row.up_bytes, bytes_text, between),
        cell(row.down_bytes, bytes_text, between),
    ]
    for network in comparison.terms:
        on = row.on.get(network)
        shown.append("not priced" if on is None else seconds_cell(on, between))
        if comparison.price_per_gigabyte is not None:
            shown.append("" if on is None or on.cost is None else cell(on.cost, three_figures, between))
    return shown


def label_of(row: Row) -> str:
    """With what was tuned."""
    names = short_names(list(row.tuned))
    tuned = ", ".join(f"{names[key]} {shown(value)}{'*' * (key in row.at_edge)}" for key, value in row.tuned.items())
    return f"{row.label} ({tuned})" if tuned else row.label


def notes(comparison: Comparison) -> Iterator[str]:
    """What has to be said beside the table."""
    if comparison.mixture is not None:
        yield comparison.mixture
    if any(row.seeds + row.failed > 1 for row in comparison.rows):
        yield "medians over seeds, with the least and the largest"
    for row in comparison.rows:
        if row.failed:
            yield f"{row.label}: {row.failed} of {row.seeds + row.failed} seeds ended in an error, and count as not reached"
        for seed, evidence in row.diverged.items():
            yield f"{row.label}: the run with seed {seed} diverged: {evidence}"
        for text in row.warnings:
            yield f"{row.label}: warning: {text}"
        if row.silent and any(terms.deadline_seconds is None for terms in comparison.terms.values()):
            yield f"{row.label}: of {row.silent} messages nothing was heard; such a client counts with its download alone"
        if row.not_priced and comparison.terms:
            yield f"{row.label} is not priced: {row.not_priced}"
        yield from uncounted_notes(row.label, row.uncounted)
    if any(row.tuned for row in comparison.rows):
        yield "tuned values are the best by the same accuracy and seeds that are shown"
    if any(row.at_edge for row in comparison.rows):
        yield "* the best value is the least or the largest that was tried: a better one may lie beyond"
    if len({row.seed_numbers for row in comparison.rows}) > 1:
        yield "the methods were not run with the same seeds"
    if comparison.measured_coding and comparison.terms:
        yield "encoding and decoding are by the clock of the machine that made each run: median [first to ninth decile]"
    for name, terms in comparison.terms.items():
        yield from _of_network(comparison, name, terms)


def uncounted_notes(label: str, uncounted: Iterable[str]) -> Iterator[str]:
    """Name the compressors whose coding counts as nothing."""
    for name in uncounted:
        problem = f"{name} is not in the table of codec costs, so its encoding and decoding count as nothing"
        yield f"{label}: {problem}; --measured-coding takes them from the run's clock"


def clock_notes(comparison: Comparison) -> Iterator[str]:
    """Describe, for a page and for figures, what coding by the clock makes of the times and of the break-evens."""
    to = "in all" if comparison.target is None else f"to {comparison.target:g}"
    for name in comparison.terms:
        for row in comparison.rows:
            if name in row.on:
                yield f"{row.label}: {seconds_cell(row.on[name])} {to} on {name}, coding by the clock [first to ninth decile]"
        yield from (f"{name}: {text}" for text in evens_text(comparison.break_evens.get(name, ())))


def _of_network(comparison: Comparison, name: str, terms: Terms) -> Iterator[str]:
    waits = "" if terms.deadline_seconds is None else f", waits {seconds_text(terms.deadline_seconds)} for a reply"
    yield f"{name}: {terms.network}; clients compute {terms.device}; the server {terms.server.copies_text}{waits}"
    coding = [(row.on[name].coding, row.label) for row in comparison.rows if name in row.on]
    most, label = max(coding, default=(0.0, ""))
    if most > MUCH:
        source = "by the clock of the machine that made it" if comparison.measured_coding else "by the table of codec costs"
        others = "; of others less" if len(coding) > 1 else ""
        yield f"{name}: encoding and decoding are {100 * most:.0f} % of the time of {label}, {source}{others}"


def evens_text(evens: Iterable[BreakEven]) -> Iterator[str]:
    """Break-evens in words, a line for each two methods: where the one that is sooner on the slowest links is so."""
    pairs: dict[frozenset[str], list[BreakEven]] = {}
    for even in evens:
        pairs.setdefault(frozenset((even.below, even.above)), []).append(even)
    for found in pairs.values():
        rates = [_rate(even) for even in found]
        ranges = [f"below {rates[0]}"]
        for i in range(1, len(rates), 2):
            ranges.append(f"between {rates[i]} and {rates[i + 1]}" if i + 1 < len(rates) else f"above {rates[i]}")
        yield f"{found[0].below} is sooner than {found[0].above} {' and '.join(ranges)} up"


def _rate(even: BreakEven) -> str:
    """Return the speed of a break-even; in brackets its range where coding is by the clock."""
    rate = rate_text(even.up_bits_per_second)
    if even.low is None or even.high is None:
        return rate
    if not even.low:
        return f"{rate} [{rate_text(even.high)} or less]" if math.isfinite(even.high) else f"{rate} [any]"
    return f"{rate} [{rate_text(even.low)} {f'to {rate_text(even.high)}' if math.isfinite(even.high) else 'or more'}]"


def to_json(comparison: Comparison) -> str:
    """All that is known, seeds' figures by median, low, high, reached and n; null for what is not reached."""
    plain = {
        "target": comparison.target,
        "price_per_gigabyte": comparison.price_per_gigabyte,
        "terms": {name: asdict(terms) for name, terms in comparison.terms.items()},
        "methods": [asdict(row) for row in comparison.rows],
        "break_evens": {name: [asdict(even) for even in evens] for name, evens in comparison.break_evens.items()},
        "mixture": comparison.mixture,
        "measured_coding": comparison.measured_coding,
        "notes": list(notes(comparison)),
    }
    return json.dumps(_finite(plain), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_csv(comparison: Comparison) -> str:
    """A row a method, plain numbers in base units; empty for what is not reached."""
    out = io.StringIO()
    rows = [dict(_flat(comparison, row)) for row in comparison.rows]
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _flat(comparison: Comparison, row: Row) -> Iterator[tuple[str, Any]]:
    yield from (("method", row.label), ("seeds", row.seeds), ("failed", row.failed), ("diverged", len(row.diverged)))
    yield from ((f"tuned {key}", value) for key, value in row.tuned.items())
    yield "target", "" if comparison.target is None else comparison.target
    figures: dict[str, Seeds | None] = {
        "best_accuracy": row.best,
        "rounds": row.rounds,
        "uplink_bytes": row.up_bytes,
        "downlink_bytes": row.down_bytes,
        "all_bytes": row.all_bytes,
    }
    for network, on in row.on.items():
        figures |= {f"seconds {network}": on.seconds, f"seconds_a_round {network}": on.a_round}
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
    rows = [headings(comparison), *(cells(comparison, row) for row in comparison.rows)]
    lines = [f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    evens = (f"{name}: {text}" for name, found in comparison.break_evens.items() for text in evens_text(found))
    lines += ["", *(f"- {note}" for note in (*evens, *notes(comparison)))]
    return "\n".join(lines) + "\n"


def to_latex(comparison: Comparison) -> str:
    """A tabular for booktabs, and its notes as comments."""
    rows = [headings(comparison), *(cells(comparison, row) for row in comparison.rows)]
    head, *body = (" & ".join(_escaped(text) for text in row) + r" \\" for row in rows)
    lines = [f"% {note}" for note in notes(comparison)]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "∞": r"$\infty$",
    "×": r"$\times$",
    "µ": r"\textmu{}",
    **{c: "\\" + c for c in "&%$#_{}"},
}


def _escaped(text: str) -> str:
    return re.sub(r"[\\~^∞×µ&%$#_{}]", lambda found: _LATEX[found[0]], text)


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    ".csv": to_csv,
    ".json": to_json,
    ".md": to_markdown,
    ".tex": to_latex,
}


def check(path: Path) -> None:
    """OutputError unless a table can be written there."""
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f'{path}: got a table "{path.suffix}"{did_you_mean(path.suffix, FORMATS)}')
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}")


def save(comparison: Comparison, path: Path) -> None:
    """In the format that the suffix says."""
    check(path)
    write(path, FORMATS[path.suffix.lower()](comparison).encode())
