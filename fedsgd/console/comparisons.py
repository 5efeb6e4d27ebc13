"""Methods side by side, and what they take on other networks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsgd.units import seconds_text, three_figures

if TYPE_CHECKING:
    from fedsgd.report.compare import Comparison, OnNetwork, Row

FEW = 5
"""Up to so many methods, all break-evens are listed; of more those with the baseline."""


def show_comparison_of_runs(comparison: Comparison) -> None:
    """A table of methods, on standard output."""
    from fedsgd.report import tables

    console = _console()
    table = Table(box=SIMPLE_HEAD)
    for i, heading in enumerate(tables.headings(comparison)):
        _add_column(table, heading, first=not i)
    for row in comparison.rows:
        table.add_row(*(_cell(text) for text in tables.cells(comparison, row, "\n")))
    console.print(table)
    _say(console, _evens(comparison))
    _say(console, tables.notes(comparison))


def show_price(comparison: Comparison) -> None:
    """A table for each network, the soonest first, and where the order changes."""
    from fedsgd.report import tables

    console = _console()
    to = "in all" if comparison.target is None else f"to {comparison.target:g}"
    for name, terms in comparison.terms.items():
        title = f"{name}: {terms.network.title or terms.network}" if name != str(terms.network) else name
        table = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        cost = [f"cost {to}"] if comparison.price_per_gigabyte is not None else []
        for i, heading in enumerate(("method", f"time {to}", "×", "a round", f"bytes {to}", *cost)):
            _add_column(table, heading, first=not i)
        known = [(row, row.on[name]) for row in comparison.rows if name in row.on]
        base = comparison.baseline.on.get(name)
        for row, on in sorted(known, key=lambda pair: pair[1].seconds.median):
            table.add_row(*(_cell(text) for text in _priced(row, on, base)))
        console.print(table)
    _say(console, _evens(comparison))
    if len(comparison.rows) > 1:
        console.print(f"×: of the time of {comparison.baseline.label}", soft_wrap=True, markup=False)
    _say(console, tables.notes(comparison))


def _priced(row: Row, on: OnNetwork, base: OnNetwork | None) -> Iterator[str]:
    from fedsgd.report import tables

    yield tables.label_of(row)
    yield tables.seconds_cell(on, "\n")
    ratio = math.nan if base is None or not base.seconds.median else on.seconds.median / base.seconds.median
    yield f"{three_figures(ratio)}×" if math.isfinite(ratio) else ""
    yield seconds_text(on.a_round.median)
    yield tables.cell(on.n_bytes, tables.bytes_text, "\n")
    if on.cost is not None:
        yield tables.cell(on.cost, three_figures, "\n")


def _evens(comparison: Comparison) -> Iterator[str]:
    """Where one stops being sooner than the other."""
    from fedsgd.report.compare import evens_with
    from fedsgd.report.tables import evens_text

    if len(comparison.rows) == 1:
        return
    many = len(comparison.rows) > FEW
    for name, evens in comparison.break_evens.items():
        link = comparison.terms[name].network.link
        times = three_figures(link.down_bits_per_second / link.up_bits_per_second)
        ratio = f"downlinks {'as fast as' if times == '1' else f'{times} times as fast as'} uplinks"
        shown = list(evens_with(comparison, name, comparison.baseline.label)) if many else list(evens)
        of = f" with {comparison.baseline.label} (all are in --json)" if many else ""
        if not shown:
            yield f"no break-even{of} between 100 bit/s and 1 Tbit/s up, with {ratio} as on {name}"
            continue
        yield f"break-even{of}, with {ratio} and the latency of {name}:"
        yield from (f"  {text}" for text in evens_text(shown))


def _add_column(table: Table, heading: str, first: bool) -> None:
    """A method's name and its figures may take several lines."""
    table.add_column(Text(heading), justify="left" if first else "right", overflow="fold")


def _cell(text: str) -> Text:
    """What stands on a second line is less important."""
    first, break_, second = text.partition("\n")
    return Text.assemble(first, break_, (second, "dim"))


def _say(console: Console, lines: Iterator[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _console() -> Console:
    return Console(highlight=False)
