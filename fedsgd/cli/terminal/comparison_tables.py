"""Tables of compared methods, and of their times and costs on networks."""

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
"""Maximum number of methods for which all break-evens are printed; for more methods, only break-evens with the baseline."""


def print_comparison(comparison: Comparison) -> None:
    """Print a table of methods, their break-evens and notes."""
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
    """Print a table for each network, the fastest method first, then break-evens and notes."""
    from fedsgd.analysis import tables

    console = _create_console()
    end = "in all" if comparison.target is None else f"to {comparison.target:g}"
    for name, pricing_model in comparison.pricing_models.items():
        network = pricing_model.network
        title = f"{name}: {network.title or network}" if name != str(network) else name
        table = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        cost_headings = [f"cost {end}"] if comparison.price_per_gigabyte is not None else []
        for i, heading in enumerate(("method", f"time {end}", "×", "a round", f"bytes {end}", *cost_headings)):
            _add_column(table, heading, is_first=not i)
        costs = [(row, row.network_costs[name]) for row in comparison.rows if name in row.network_costs]
        baseline_cost = comparison.baseline.network_costs.get(name)
        for row, cost in sorted(costs, key=lambda pair: pair[1].seconds.median):
            table.add_row(*(_format_cell(text) for text in _format_price_row(row, cost, baseline_cost)))
        console.print(table)
    _print_lines(console, _describe_break_evens(comparison))
    if len(comparison.rows) > 1:
        console.print(f"×: time divided by that of {comparison.baseline.label}", soft_wrap=True, markup=False)
    _print_lines(console, tables.collect_notes(comparison))


def _format_price_row(row: ComparisonRow, network_cost: NetworkCost, baseline_cost: NetworkCost | None) -> Iterator[str]:
    from fedsgd.analysis import tables

    yield tables.format_label(row)
    yield tables.format_seconds_cell(network_cost, "\n")
    baseline_seconds = 0.0 if baseline_cost is None else baseline_cost.seconds.median
    ratio = network_cost.seconds.median / baseline_seconds if baseline_seconds else math.nan
    yield f"{format_significant(ratio)}×" if math.isfinite(ratio) else ""
    yield format_seconds(network_cost.mean_round_seconds.median)
    yield tables.format_cell(network_cost.n_bytes, tables.format_rounded_bytes, "\n")
    if network_cost.cost is not None:
        yield tables.format_cell(network_cost.cost, format_significant, "\n")


def _describe_break_evens(comparison: Comparison) -> Iterator[str]:
    """Yield lines about the link speeds at which the order of two methods changes."""
    from fedsgd.analysis.comparison import break_evens_of
    from fedsgd.analysis.tables import describe_break_evens

    if len(comparison.rows) == 1:
        return
    baseline_only = len(comparison.rows) > MAX_METHODS_FOR_ALL_PAIRS
    for name, break_evens in comparison.break_evens.items():
        link = comparison.pricing_models[name].network.link
        factor = format_significant(link.down_bits_per_second / link.up_bits_per_second)
        ratio = f"downlinks {'as fast as' if factor == '1' else f'{factor} times as fast as'} uplinks"
        pairs = list(break_evens_of(comparison, name, comparison.baseline.label) if baseline_only else break_evens)
        scope = f" with {comparison.baseline.label} (--json lists all)" if baseline_only else ""
        if not pairs:
            yield f"no break-even{scope} between 100 bit/s and 1 Tbit/s up, with {ratio} as on {name}"
            continue
        yield f"break-even{scope}, with {ratio} and the latency of {name}:"
        yield from (f"  {text}" for text in describe_break_evens(pairs))


def _add_column(table: Table, heading: str, is_first: bool) -> None:
    """Add a column whose cells may take several lines."""
    table.add_column(Text(heading), justify="left" if is_first else "right", overflow="fold")


def _format_cell(text: str) -> Text:
    """Return a cell with a dim second line."""
    first_line, line_break, second_line = text.partition("\n")
    return Text.assemble(first_line, line_break, (second_line, "dim"))


def _print_lines(console: Console, lines: Iterator[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _create_console() -> Console:
    return Console(highlight=False)
