"""Tables of compared methods, and of their times and costs on networks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fedsgd.cli.terminal.column_table import CHOOSE, ColumnTable, create_console, print_lines, print_tables
from fedsgd.config.quantities import format_seconds, format_significant
from fedsgd.config.text_columns import TextColumn, check_column_names, select_columns

if TYPE_CHECKING:
    from fedsgd.analysis.columns import Statistic, TableConfig
    from fedsgd.analysis.comparison import Comparison, ComparisonRow, NetworkCost
    from fedsgd.experiment.time_to_target import SeedSummary

MAX_METHODS_FOR_ALL_PAIRS = 5
"""Maximum number of methods for which all break-evens are printed; for more methods, only break-evens with the baseline."""
PRICE_COLUMNS = {
    "method": ("method", 0),
    "time": ("time {end}", 0),
    "ratio": ("×", 3),
    "round": ("a round", 4),
    "bytes": ("bytes {end}", 2),
    "cost": ("cost {end}", 1),
}
"""Heading and importance of the columns of a network's table by name; "cost" needs a price."""


def print_comparison(comparison: Comparison, config: TableConfig) -> None:
    """Print a table of methods, their break-evens and notes."""
    from fedsgd.analysis import columns, tables

    console = create_console()
    methods = ColumnTable(columns.build_text_columns(comparison, config, "\n"), hint=CHOOSE)
    print_tables(console, [methods, *build_ratio_tables(comparison, config)])
    print_lines(console, _describe_break_evens(comparison))
    print_lines(console, tables.collect_notes(comparison, config.statistic))


def build_ratio_tables(comparison: Comparison, config: TableConfig) -> Iterator[ColumnTable]:
    """Yield the table of ratios to the baseline, if there are enough seeds for intervals."""
    from fedsgd.analysis import ratio_columns

    if ratio_columns.has_intervals(comparison):
        columns = ratio_columns.build_ratio_columns(comparison, config.columns, "\n")
        yield ColumnTable(columns, ratio_columns.describe_ratios(comparison), hint=CHOOSE)


def check_price_columns(names: Sequence[str], price_per_gigabyte: float | None) -> None:
    """Raise ScenarioError unless all names are columns of the tables of networks; "cost" needs a price."""
    check_column_names(names, _list_price_columns(price_per_gigabyte))


def _list_price_columns(price_per_gigabyte: float | None) -> list[str]:
    return [name for name in PRICE_COLUMNS if name != "cost" or price_per_gigabyte is not None]


def print_price(comparison: Comparison, config: TableConfig) -> None:
    """Print a table for each network, the fastest method first, then break-evens and notes."""
    from fedsgd.analysis import tables
    from fedsgd.analysis.ratio_columns import show_intervals

    console = create_console()
    comparison = show_intervals(comparison) if config.statistic == "interval" else comparison
    print_tables(console, [_build_price_table(comparison, name, config) for name in comparison.pricing_models])
    print_lines(console, _describe_break_evens(comparison))
    if len(comparison.rows) > 1 and comparison.pricing_models:
        costs = comparison.baseline.network_costs.values()
        empty = "" if all(cost.seconds.reached for cost in costs) else ", which does not reach the target"
        print_lines(console, [f"×: time divided by that of {comparison.baseline.label}{empty}"])
    print_lines(console, tables.collect_notes(comparison, config.statistic))


def _build_price_table(comparison: Comparison, name: str, config: TableConfig) -> ColumnTable:
    """Return the table of one network."""
    from fedsgd.analysis.columns import describe_end, get_center

    network, end = comparison.pricing_models[name].network, describe_end(comparison)
    costs = [(row, row.network_costs[name]) for row in comparison.rows if name in row.network_costs]
    costs.sort(key=lambda pair: get_center(pair[1].seconds, config.statistic))
    baseline_cost = comparison.baseline.network_costs.get(name)
    rows = [tuple(_format_price_row(row, cost, baseline_cost, config.statistic)) for row, cost in costs]
    columns = []
    for index, column_name in enumerate(_list_price_columns(comparison.price_per_gigabyte)):
        heading, rank = PRICE_COLUMNS[column_name]
        columns.append(TextColumn(column_name, heading.format(end=end), tuple(row[index] for row in rows), rank))
    columns[0] = replace(columns[0], align="left", shorten="distinct")
    title = f"{name}: {network.title or network}" if name != str(network) else name
    return ColumnTable(select_columns(columns, config.columns), title, hint=CHOOSE)


def _format_price_row(
    row: ComparisonRow, network_cost: NetworkCost, baseline_cost: NetworkCost | None, statistic: Statistic
) -> Iterator[str]:
    from fedsgd.analysis import columns

    def get_center(seed_summary: SeedSummary) -> float:
        return columns.get_center(seed_summary, statistic)

    yield columns.format_label(row)
    yield columns.format_seconds_cell(network_cost, "\n", statistic)
    baseline_seconds = math.nan if baseline_cost is None else get_center(baseline_cost.seconds)
    is_divisor = math.isfinite(baseline_seconds) and baseline_seconds > 0  # rounds without clients take no time
    ratio = get_center(network_cost.seconds) / baseline_seconds if is_divisor else math.nan
    yield f"{format_significant(ratio)}×" if math.isfinite(ratio) else ""
    yield format_seconds(get_center(network_cost.mean_round_seconds))
    yield columns.format_cell(network_cost.n_bytes, columns.format_rounded_bytes, "\n", statistic)
    cost = network_cost.cost
    yield "" if cost is None else columns.format_cell(cost, format_significant, "\n", statistic)


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
