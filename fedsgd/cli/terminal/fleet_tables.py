"""Tables of bytes and money a month in a fleet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedsgd.cli.terminal.column_table import ColumnTable, create_console, print_lines, print_tables
from fedsgd.config.quantities import format_bytes, format_significant
from fedsgd.config.text_columns import TextColumn

if TYPE_CHECKING:
    from fedsgd.analysis.fleet_result import FleetResult
    from fedsgd.experiment.time_to_target import SeedSummary

SMALL_COST = 1e-3
"""Cost below which `format_significant` writes an exponent."""


def print_fleet(result: FleetResult) -> None:
    """Print lower bounds, tables of all clients, of one client and of costs, limits of settings, and notes."""
    from fedsgd.analysis.fleet_result import describe_cap_limit

    rows, fleet, tables = result.rows, result.fleet, list[ColumnTable]()
    labels, rounds = [row.label for row in rows], f"{fleet.rounds_per_month:,} rounds a month"
    fleet_columns = {
        "up": [_format_bytes(row.fleet_uplink_bytes_per_month) for row in rows],
        "down": [_format_bytes(row.fleet_downlink_bytes_per_month) for row in rows],
        "both ways": [_format_bytes(row.fleet_bytes_per_month) for row in rows],
    }
    client_columns = {
        "participation": [_format_bytes(r.uplink_bytes_per_participation, r.downlink_bytes_per_participation) for r in rows],
        "median": [_format_bytes(row.client_median_bytes_per_month) for row in rows],
        "95 %": [_format_bytes(row.client_95th_percentile_bytes_per_month) for row in rows],
    }
    cost_columns = {
        "all clients": [_format_cost(row.fleet_cost_per_month) for row in rows],
        "a client, median": [_format_cost(row.client_median_cost_per_month) for row in rows],
        "95 %": [_format_cost(row.client_95th_percentile_cost_per_month) for row in rows],
    }
    if fleet.cap is not None:
        client_columns[f"within {fleet.cap}"] = [_format_share(row.share_of_clients_within_cap) for row in rows]
    if fleet.clients is None:
        del cost_columns["all clients"]
    else:
        tables.append(_make_table(f"{fleet.clients:,} clients, {rounds}", labels, fleet_columns))
    tables.append(_make_table(f"a client, {rounds}, up and down", labels, client_columns))
    if fleet.price_per_gigabyte is not None:
        title = f"cost a month, at {format_significant(fleet.price_per_gigabyte)} per gigabyte"
        tables.append(_make_table(title, labels, cost_columns))
    console = create_console()
    if result.lower_bounds:
        print_lines(console, result.lower_bounds, "yellow")
        console.print()
    print_tables(console, tables)
    limits = (describe_cap_limit(limit, fleet) for limit in result.cap_limits)
    print_lines(console, (*limits, "95 %: not exceeded by 95 % of the clients (95th percentile)", *result.notes))


def _make_table(title: str, labels: Sequence[str], columns: Mapping[str, Sequence[str]]) -> ColumnTable:
    """Return a table of methods."""
    first = TextColumn("method", "method", tuple(labels), align="left", shorten="distinct")
    return ColumnTable([first, *(TextColumn(heading, heading, tuple(cells)) for heading, cells in columns.items())], title)


def _format_bytes(*summaries: SeedSummary | None) -> str:
    """Return the sum of the medians over seeds in decimal units."""
    return format_bytes(round(sum(summary.median for summary in summaries if summary is not None)))


def _format_cost(summary: SeedSummary | None) -> str:
    """Return the median over seeds with three significant figures, without an exponent."""
    if summary is None:
        return ""
    cost = summary.median
    return format_significant(cost) if cost >= SMALL_COST or cost == 0 else f"{cost:.{2 - math.floor(math.log10(cost))}f}"


def _format_share(summary: SeedSummary | None) -> str:
    from fedsgd.analysis.fleet_result import format_share

    return "" if summary is None else format_share(summary.median)
