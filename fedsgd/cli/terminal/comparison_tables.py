"""Methods side by side, and what they take on other networks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsgd.config.quantities import format_seconds, format_significant

if TYPE_CHECKING:
    from fedsgd.analysis.comparison import Comparison, ComparisonRow, NetworkCost

MAX_METHODS_FOR_ALL_PAIRS = 5
"""Up to so many methods, all break-evens are listed; of more those with the baseline."""


def print_comparison(comparison: Comparison) -> None:
    """A table of methods, on standard output."""
    from fedsgd.analysis import tables

    console = _create_console()
    table = Table(box=SIMPLE_HEAD)
    for i, heading in enumerate(tables.build_headings(comparison)):
        _add_column(table, heading, is_first=not i)
    for row in comparison.rows:
        table.add_row(*(_format_cell(text) for text in tables.format_row(comparison, row, "\n")))
    console.print(table)
    _print_lines(console, _describe_break_evens(comparison))
    _print_lines(console, tables.collect_notes(comparison))


def print_price(comparison: Comparison) -> None:
    """A table for each network, the soonest first, and where the order changes."""
    from fedsgd.analysis import tables

    console = _create_console()
    to = "in all" if comparison.target is None else f"to {comparison.target:g}"
    for name, terms in comparison.pricing_models.items():
        title = f"{name}: {terms.network.title or terms.network}" if name != str(terms.network) else name
        table = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        cost = [f"cost {to}"] if comparison.price_per_gigabyte is not None else []
        for i, heading in enumerate(("method", f"time {to}", "×", "a round", f"bytes {to}", *cost)):
            _add_column(table, heading, is_first=not i)
        known = [(row, row.network_costs[name]) for row in comparison.rows if name in row.network_costs]
        base = comparison.baseline.network_costs.get(name)
        for row, on in sorted(known, key=lambda pair: pair[1].seconds.median):
            table.add_row(*(_format_cell(text) for text in _format_price_row(row, on, base)))
        console.print(table)
    _print_lines(console, _describe_break_evens(comparison))
    if len(comparison.rows) > 1:
        console.print(f"×: of the time of {comparison.baseline.label}", soft_wrap=True, markup=False)
    _print_lines(console, tables.collect_notes(comparison))


def _format_price_row(row: ComparisonRow, network_cost: NetworkCost, baseline_cost: NetworkCost | None) -> Iterator[str]:
    from fedsgd.analysis import tables

    yield tables.format_label(row)
    yield tables.format_seconds_cell(network_cost, "\n")
    ratio = (
        math.nan
        if baseline_cost is None or not baseline_cost.seconds.median
        else network_cost.seconds.median / baseline_cost.seconds.median
    )
    yield f"{format_significant(ratio)}×" if math.isfinite(ratio) else ""
    yield format_seconds(network_cost.mean_round_seconds.median)
    yield tables.format_cell(network_cost.n_bytes, tables.format_rounded_bytes, "\n")
    if network_cost.cost is not None:
        yield tables.format_cell(network_cost.cost, format_significant, "\n")


def _describe_break_evens(comparison: Comparison) -> Iterator[str]:
    """Where one stops being sooner than the other."""
    from fedsgd.analysis.comparison import break_evens_of
    from fedsgd.analysis.tables import describe_break_evens

    if len(comparison.rows) == 1:
        return
    many = len(comparison.rows) > MAX_METHODS_FOR_ALL_PAIRS
    for name, evens in comparison.break_evens.items():
        link = comparison.pricing_models[name].network.link
        times = format_significant(link.down_bits_per_second / link.up_bits_per_second)
        ratio = f"downlinks {'as fast as' if times == '1' else f'{times} times as fast as'} uplinks"
        shown = list(break_evens_of(comparison, name, comparison.baseline.label)) if many else list(evens)
        of = f" with {comparison.baseline.label} (all are in --json)" if many else ""
        if not shown:
            yield f"no break-even{of} between 100 bit/s and 1 Tbit/s up, with {ratio} as on {name}"
            continue
        yield f"break-even{of}, with {ratio} and the latency of {name}:"
        yield from (f"  {text}" for text in describe_break_evens(shown))


def _add_column(table: Table, heading: str, is_first: bool) -> None:
    """A method's name and its figures may take several lines."""
    table.add_column(Text(heading), justify="left" if is_first else "right", overflow="fold")


def _format_cell(text: str) -> Text:
    """What stands on a second line is less important."""
    first, break_, second = text.partition("\n")
    return Text.assemble(first, break_, (second, "dim"))


def _print_lines(console: Console, lines: Iterator[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _create_console() -> Console:
    return Console(highlight=False)
