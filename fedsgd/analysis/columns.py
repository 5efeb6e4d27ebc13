"""Columns of a comparison: their figures, the texts of these figures, their names and their importance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsgd.analysis.comparison import Comparison, ComparisonRow, NetworkCost
from fedsgd.analysis.ratio_columns import show_intervals
from fedsgd.analysis.row_statistics import TuningCost
from fedsgd.analysis.tuning import uses_validation
from fedsgd.config.quantities import format_bytes, format_metric, format_seconds, format_significant
from fedsgd.config.text_columns import TextColumn, select_columns
from fedsgd.experiment.time_to_target import SeedSummary
from fedsgd.sweeps.labels import format_value, shorten_keys

NOT_REACHED = "not reached"
NOT_MEASURED = "not measured"
NOT_PRICED = "not priced"
EDGE_NOTE = "* the best value is the smallest or largest value that was tried; a better value may exist beyond this edge"
ValueFormatter = Callable[[float], str]
Statistic = Literal["median", "mean", "interval"]
"""Figure over seeds: the median with minimum and maximum, the mean with the sample standard deviation, or the Kaplan–Meier
median with its confidence interval."""


@dataclass(frozen=True)
class TableConfig:
    """Settings of a table of methods.

    Attributes:
        statistic: figure over seeds.
        columns: names of the columns, in order; empty for all columns except "final" and "both".
        caption: caption in LaTeX; None for a caption that names statistic, target and networks.
        mark_best: True to set the best value of each column in bold, in LaTeX and Markdown.
    """

    statistic: Statistic = "median"
    columns: tuple[str, ...] = ()
    caption: str | None = None
    mark_best: bool = False


@dataclass(frozen=True, eq=False)
class FigureColumn:
    """Figures of all methods in one quantity.

    Attributes:
        name, heading: as in `TextColumn`.
        formatter: function from a figure to its text.
        summaries: summary over seeds for each method, None where there is no figure.
        missing: text for None.
        network: name of the network of times and costs.
        has_best_maximum: True if a larger figure is better.
        is_optional: True for a column that is shown only if it is selected.
    """

    name: str
    heading: str
    formatter: ValueFormatter
    summaries: tuple[SeedSummary | None, ...]
    missing: str = ""
    network: str | None = None
    has_best_maximum: bool = False
    is_optional: bool = False

    def find_best(self, statistic: Statistic) -> frozenset[int]:
        """Return the indices of the methods with the best figure; none for a single method or if no figure is finite."""
        figures = {i: value for i, s in enumerate(self.summaries) if s and math.isfinite(value := get_center(s, statistic))}
        if len(self.summaries) < 2 or not figures:
            return frozenset()
        best = max(figures.values()) if self.has_best_maximum else min(figures.values())
        return frozenset(i for i, value in figures.items() if value == best)


def get_center(seed_summary: SeedSummary, statistic: Statistic) -> float:
    """Return the median, or the mean."""
    return seed_summary.mean if statistic == "mean" else seed_summary.median


def format_cell(
    seed_summary: SeedSummary, formatter: ValueFormatter, separator: str = " ", statistic: Statistic = "median"
) -> str:
    """Return the median over seeds with minimum and maximum, or the mean with the sample standard deviation.

    A line break as separator puts the spread in a second line, without a common unit.

    >>> from fedsgd.experiment.time_to_target import summarize_seeds
    >>> format_cell(summarize_seeds([3, None, 5]), format_rounds)
    '5 (3 to ∞)'
    >>> format_cell(summarize_seeds([3, None]), format_rounds)
    'not reached (1 of 2 do)'
    >>> format_cell(summarize_seeds([3, 5]), format_rounds, statistic="mean")
    '4 ± 1.4'
    """
    if not seed_summary.reached:
        return NOT_REACHED
    center = get_center(seed_summary, statistic)
    if math.isinf(center):
        return f"{NOT_REACHED}{separator}({seed_summary.reached} of {seed_summary.n} do)"
    middle = formatter(center)
    number, unit = _split_unit(middle)
    if statistic == "mean":
        if math.isnan(seed_summary.std):
            return middle
        spread = formatter(seed_summary.std)
        spread_number, spread_unit = _split_unit(spread)
        has_same_unit = spread_unit == unit
        if has_same_unit and separator == "\n":
            return f"{middle}\n± {spread_number}"
        return f"{number if has_same_unit else middle}{separator}± {spread}"
    high = formatter(seed_summary.high) if math.isfinite(seed_summary.high) else "∞"
    low = formatter(seed_summary.low)
    if seed_summary.n == 1 or (low, high) == (middle, middle):
        return middle
    (low_number, low_unit), (high_number, high_unit) = _split_unit(low), _split_unit(high)
    if separator == "\n":
        has_same_unit = low_unit == unit and high_unit in (unit, "")
        return f"{middle}\n{low_number}–{high_number}" if has_same_unit else f"{middle}\n{low}–{high}"
    return f"{middle}{separator}({low_number if low_unit == high_unit else low} to {high})"


def _split_unit(text: str) -> tuple[str, str]:
    """Return number and unit of a text such as "2.1 kB"; the whole text and "" for "4 min 10 s", which has two units."""
    number, _, unit = text.partition(" ")
    return (text, "") if " " in unit else (number, unit)


def format_seconds_cell(network_cost: NetworkCost, separator: str = " ", statistic: Statistic = "median") -> str:
    """Return the time, and in brackets the times at the first and ninth decile of measured coding times."""
    text = format_cell(network_cost.seconds, format_seconds, separator, statistic)
    summaries = (network_cost.coding_low, network_cost.coding_high)
    values = [get_center(s, statistic) for s in summaries if s is not None]
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return text
    return f"{text}{separator}[{format_seconds(values[0])} to {format_seconds(values[1])}]"


def format_rounded_bytes(value: float) -> str:
    """Return a number of bytes, rounded to whole bytes, in decimal units."""
    return format_bytes(round(value))


def format_rounds(value: float) -> str:
    """Return a number of rounds, with one decimal unless it is whole."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def describe_end(comparison: Comparison) -> str:
    """Return the point up to which figures count: "to 0.9", "to loss<0.3", "in all"."""
    return "in all" if comparison.target is None else f"to {comparison.target}"


def format_label(row: ComparisonRow) -> str:
    """Return the label of a method with its tuned values; "*" marks values at the edge of the grid."""
    names = shorten_keys(list(row.tuned))
    tuned = ", ".join(
        f"{names[key]} {format_value(value)}{'*' * (key in row.grid_edge_keys)}" for key, value in row.tuned.items()
    )
    return f"{row.label} ({tuned})" if tuned else row.label


def collect_tuning_notes(comparison: Comparison, has_stars: bool = True) -> Iterator[str]:
    """Yield remarks on the choice of tuned values, each one line; without stars in labels, a line for each value at an edge."""
    metric = comparison.criterion.metric
    tuned_on = {row.label: row.tuned_on or metric for row in comparison.rows if row.tuned}
    by_test = [label for label, name in tuned_on.items() if not uses_validation(name)]
    by_validation = [label for label, name in tuned_on.items() if uses_validation(name)]
    subjects = [f"{', '.join(labels)}: " * bool(by_test and by_validation) for labels in (by_test, by_validation)]
    if by_test:
        reason = f"on the test examples ({metric}) and the seeds reported here, so the figures are optimistic"
        yield f"{subjects[0]}tuned values were chosen {reason}"
    if by_validation:
        name = tuned_on[by_validation[0]]
        is_same = uses_validation(metric)
        figures = "figures are of them, too, so they are optimistic" if is_same else "figures are of the test examples"
        yield f"{subjects[1]}tuned values were chosen on validation examples ({name}); {figures}"
    yield from describe_tuning_costs(comparison)
    if has_stars and any(row.grid_edge_keys for row in comparison.rows):
        yield EDGE_NOTE
    if not has_stars:
        yield from describe_grid_edges(comparison)


def describe_grid_edges(comparison: Comparison) -> Iterator[str]:
    """Yield a line for each best tuned value at the edge of its grid, where no label shows a star."""
    for row in comparison.rows:
        for key in row.grid_edge_keys:
            value = f"the best {key}, {format_value(row.tuned[key])}, is at the edge of the values that were tried"
            yield f"{row.label}: {value}; a better value may exist beyond this edge"


def describe_tuning_costs(comparison: Comparison) -> Iterator[str]:
    """Yield a line with the runs, bytes and seconds of each method at other tuned values than its best, if there are any."""
    costs = [f"{row.label} {_format_tuning_cost(row.tuning_cost)}" for row in comparison.rows if row.tuning_cost is not None]
    if costs:
        yield f"cost of runs at other tuned values: {'; '.join(costs)}"


def _format_tuning_cost(cost: TuningCost) -> str:
    failed = f", {cost.n_failed} failed and not counted" if cost.n_failed else ""
    text = f"{cost.runs} run{'s' * (cost.runs != 1)}, {format_bytes(cost.n_bytes)} both ways, {format_seconds(cost.seconds)}"
    return f"{text}{failed}"


def build_figure_columns(comparison: Comparison) -> Iterator[FigureColumn]:
    """Yield the columns of figures."""
    end, rows, criterion = describe_end(comparison), comparison.rows, comparison.criterion
    best, is_maximum = tuple(row.best_value for row in rows), criterion.direction == "above"
    yield FigureColumn("best", criterion.best_name, format_metric, best, NOT_MEASURED, has_best_maximum=is_maximum)
    final, heading = tuple(row.final_value for row in rows), f"final {criterion.metric}"
    yield FigureColumn("final", heading, format_metric, final, NOT_MEASURED, None, is_maximum, is_optional=True)
    yield FigureColumn("rounds", f"rounds {end}", format_rounds, tuple(row.rounds for row in rows))
    yield FigureColumn("up", f"uplink {end}", format_rounded_bytes, tuple(row.up_bytes for row in rows))
    yield FigureColumn("down", f"downlink {end}", format_rounded_bytes, tuple(row.down_bytes for row in rows))
    both = tuple(row.all_bytes for row in rows)
    yield FigureColumn("both", f"both ways {end}", format_rounded_bytes, both, is_optional=True)
    for network in comparison.pricing_models:
        costs = [row.network_costs.get(network) for row in rows]
        seconds = tuple(None if cost is None else cost.seconds for cost in costs)
        yield FigureColumn("time", f"time {end}, {network}", format_seconds, seconds, NOT_PRICED, network)
        if comparison.price_per_gigabyte is not None:
            prices = tuple(None if cost is None else cost.cost for cost in costs)
            yield FigureColumn("cost", f"cost, {network}", format_significant, prices, network=network)


def build_text_columns(comparison: Comparison, config: TableConfig = TableConfig(), separator: str = " ") -> list[TextColumn]:
    """Return the selected columns as texts; `separator` is between a figure and its spread.

    Raises:
        ScenarioError: no column has a selected name.
    """
    comparison = show_intervals(comparison) if config.statistic == "interval" else comparison
    figures = [column for column in build_figure_columns(comparison) if config.columns or not column.is_optional]
    by_importance = _sort_by_importance(comparison, figures)
    columns = [_build_label_column(comparison), *_build_seeds_column(comparison, rank=len(figures))]
    for column in figures:
        cells = _format_figures(comparison, column, config, separator)
        columns.append(TextColumn(column.name, column.heading, cells, by_importance.index(column)))
    return select_columns(columns, config.columns)


def _build_label_column(comparison: Comparison) -> TextColumn:
    labels = tuple(map(format_label, comparison.rows))
    return TextColumn("method", "method", labels, align="left", shorten="distinct")


def _build_seeds_column(comparison: Comparison, rank: int) -> Iterator[TextColumn]:
    """Yield the column of the numbers of finished seeds, if a method has several seeds."""
    numbers = [(row.seeds, row.seeds + row.n_failed) for row in comparison.rows]
    if max(total for _, total in numbers) > 1:
        counts = tuple(f"{finished}" if finished == total else f"{finished} of {total}" for finished, total in numbers)
        yield TextColumn("seeds", "seeds", counts, rank)


def _sort_by_importance(comparison: Comparison, columns: Sequence[FigureColumn]) -> list[FigureColumn]:
    """Return the columns, the most important first: a figure of the target, then the bytes, then times and costs."""
    first_time = next((column for column in columns if column.name == "time"), None)
    order = {"best": 4, "rounds": 5, "up": 1, "down": 2}
    if comparison.target is None:
        order["best"] = -1
    return sorted(columns, key=lambda column: 0 if column is first_time else order.get(column.name, 3))


def _format_figures(comparison: Comparison, column: FigureColumn, config: TableConfig, separator: str) -> tuple[str, ...]:
    """Return the cells of a column; times with their ranges by measured coding times."""
    cells = []
    for row, summary in zip(comparison.rows, column.summaries, strict=True):
        if summary is None:
            cells.append(column.missing)
        elif column.name == "time" and column.network is not None:
            cells.append(format_seconds_cell(row.network_costs[column.network], separator, config.statistic))
        else:
            cells.append(format_cell(summary, column.formatter, separator, config.statistic))
    return tuple(cells)
