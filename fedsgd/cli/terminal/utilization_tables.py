"""Tables of compute utilization against the link speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedsgd.cli.terminal.column_table import ColumnTable, create_console, print_lines, print_tables
from fedsgd.config.quantities import format_rate, format_seconds, format_significant
from fedsgd.config.text_columns import TextColumn

if TYPE_CHECKING:
    from fedsgd.analysis.columns import Statistic
    from fedsgd.analysis.utilization import MethodUtilization
    from fedsgd.network import PricingModel


def print_utilizations(
    utilizations: Mapping[str, Sequence[MethodUtilization]], pricing_models: Mapping[str, PricingModel], statistic: Statistic
) -> None:
    """Print a table for each network, the methods in their order, and a line about the columns."""
    console = create_console()
    console.print()
    print_tables(console, [_build_table(name, rows, statistic) for name, rows in utilizations.items() if rows])
    for name, rows in utilizations.items():
        link = pricing_models[name].network.link
        factor = format_significant(link.down_bits_per_second / link.up_bits_per_second)
        ratio = f"downlinks {'as fast as' if factor == '1' else f'{factor} times as fast as'} uplinks"
        if rows:
            print_lines(console, [f"{name}: uplink speed from which training takes 50, 80 or 95 % of the time, with {ratio}"])


def _build_table(name: str, rows: Sequence[MethodUtilization], statistic: Statistic) -> ColumnTable:
    from fedsgd.analysis.columns import get_center
    from fedsgd.analysis.fleet_result import format_share
    from fedsgd.analysis.utilization import UTILIZATION_LEVELS

    columns = {
        "training a round": [format_seconds(get_center(row.training_seconds, statistic)) for row in rows],
        "utilization": [format_share(get_center(row.utilization, statistic)) for row in rows],
        **{
            f"{level:.0%}".replace("%", " %"): [_format_speed(row, level, statistic) for row in rows]
            for level in UTILIZATION_LEVELS
        },
    }
    labels = TextColumn("method", "method", tuple(row.label for row in rows), align="left", shorten="distinct")
    texts = [TextColumn(heading, heading, tuple(cells)) for heading, cells in columns.items()]
    return ColumnTable([labels, *texts], f"compute utilization on {name}")


def _format_speed(row: MethodUtilization, level: float, statistic: Statistic) -> str:
    """Return the speed of a level; without one, the number of seeds that reach the level, or the limit of the utilization."""
    from fedsgd.analysis.columns import get_center
    from fedsgd.analysis.fleet_result import format_share
    from fedsgd.analysis.pricing import SPEEDS

    seeds = row.speeds[level]
    speed = get_center(seeds, statistic)
    if speed < float("inf"):
        return f"{'≤ ' if speed <= SPEEDS[0] else ''}{format_rate(speed)}"
    if seeds.reached:
        return f"{seeds.reached} of {seeds.n} seeds"
    return f"at most {format_share(get_center(row.limit, statistic))}"
