"""Table of a comparison in LaTeX, for the package booktabs: common units in the headings, figures aligned at their points."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedsgd.analysis.columns import (
    NOT_REACHED,
    FigureColumn,
    Statistic,
    TableConfig,
    build_figure_columns,
    build_text_columns,
    collect_tuning_notes,
    describe_end,
    get_center,
)
from fedsgd.analysis.comparison import Comparison
from fedsgd.analysis.ratio_columns import build_ratio_columns, describe_ratios, has_intervals, show_intervals
from fedsgd.config.quantities import DECIMAL_BYTE_UNITS
from fedsgd.experiment.time_to_target import SeedSummary

SECOND_UNITS = (("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86400.0))
BYTE_UNITS = tuple((unit, 1000.0**power) for power, unit in enumerate(DECIMAL_BYTE_UNITS))
UNITS = {"up": BYTE_UNITS, "down": BYTE_UNITS, "both": BYTE_UNITS, "time": SECOND_UNITS}
"""Units of a column, each with its size, in ascending order."""
STATISTIC_CAPTIONS: Mapping[Statistic, str] = {
    "median": "Median (minimum to maximum)",
    "mean": "Mean ± sample standard deviation",
    "interval": "Kaplan–Meier median (confidence interval)",
}
METRIC_DECIMALS = 4
"""Number of decimals of a metric from 0.001 to 1000; all other figures have at least three significant figures."""
LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "∞": r"$\infty$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "µ": r"\textmu{}",
    "[": "{[}",  # after a line's end, a bracket would begin an optional argument
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{c: "\\" + c for c in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    r"""Return a text for LaTeX.

    >>> print(escape_latex("50 % of_it"))
    50 \% of\_it
    """
    return "".join(LATEX_ESCAPES.get(character, character) for character in text)


@dataclass(frozen=True)
class _LatexColumn:
    """Column of a LaTeX table.

    Attributes:
        heading: escaped heading, with the unit.
        cells: escaped cells; a pair (figure, spread) for a cell in two columns of the table.
        has_spread: True if the column takes two columns of the table.
    """

    heading: str
    cells: tuple[str | tuple[str, str], ...]
    has_spread: bool = False

    @property
    def specification(self) -> str:
        """Argument of the environment tabular."""
        return r"r@{\,}l" if self.has_spread else "r"

    def format_cells(self) -> list[str]:
        """Return the heading and the cells."""
        if not self.has_spread:
            return [self.heading, *(cell if isinstance(cell, str) else cell[0] for cell in self.cells)]
        texts = [f"{cell[0]} & {cell[1]}" if isinstance(cell, tuple) else _join_columns(cell, "r") for cell in self.cells]
        return [_join_columns(self.heading, "r"), *texts]


def _join_columns(text: str, align: str) -> str:
    return rf"\multicolumn{{2}}{{{align}}}{{{text}}}"


def format_latex_table(comparison: Comparison, config: TableConfig, label: str) -> Iterator[str]:
    """Yield the lines of the environment table, with a comment about the package."""
    caption = _describe_table(comparison, config) if config.caption is None else config.caption
    yield r"% \usepackage{booktabs}"
    yield from _begin_table(list(_build_columns(comparison, config)), caption, label)
    notes = [_describe_table(comparison, config)] if config.caption is not None else []
    notes += [f"{note[:1].upper()}{note[1:]}." for note in collect_tuning_notes(comparison)]
    if notes:
        yield rf"  \par\smallskip{{\footnotesize {escape_latex(' '.join(notes))}\par}}"
    yield r"\end{table}"
    if has_intervals(comparison):
        texts = build_ratio_columns(comparison, config.columns)
        columns = [_LatexColumn(escape_latex(c.heading), tuple(map(escape_latex, c.cells))) for c in texts]
        yield from (*_begin_table(columns, f"{describe_ratios(comparison)}.", f"{label}-ratios"), r"\end{table}")


def _begin_table(columns: Sequence[_LatexColumn], caption: str, label: str) -> Iterator[str]:
    """Yield the lines of a table up to the end of the environment tabular."""
    rows = list(zip(*(_pad(column.format_cells()) for column in columns), strict=True))
    head, *body = (" & ".join(row).rstrip() + r" \\" for row in rows)
    yield from (r"\begin{table}", r"  \centering", rf"  \caption{{{escape_latex(caption)}}}")
    yield rf"  \label{{tab:{_make_label(label)}}}"
    yield rf"  \begin{{tabular}}{{l{''.join(column.specification for column in columns[1:])}}}"
    yield from (f"    {line}" for line in (r"\toprule", head, r"\midrule", *body, r"\bottomrule"))
    yield r"  \end{tabular}"


def _make_label(name: str) -> str:
    """Return a name with a hyphen in place of characters that LaTeX does not accept in labels."""
    return re.sub(r"[^\w.:-]", "-", name, flags=re.ASCII)


def _pad(texts: Sequence[str]) -> list[str]:
    """Return texts of equal length."""
    length = max(map(len, texts))
    return [text.ljust(length) for text in texts]


def _describe_table(comparison: Comparison, config: TableConfig) -> str:
    """Return a caption with the statistic, the number of seeds, the target and the networks."""
    numbers = sorted({row.seeds + row.n_failed for row in comparison.rows})
    seeds = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
    figures = "Figures of a run"
    if numbers[-1] > 1:
        figures = f"{STATISTIC_CAPTIONS[config.statistic]} over {seeds} seeds"
    target = comparison.target
    unit = "" if target is None or target.accuracy is None else " test accuracy"
    end = "of whole runs" if target is None else f"{describe_end(comparison)}{unit}"
    networks = "; ".join(f"{name}: {model.network}" for name, model in comparison.pricing_models.items())
    return f"{figures}, {end}." + (f" Networks: {networks}." if networks else "")


def _build_columns(comparison: Comparison, config: TableConfig) -> Iterator[_LatexColumn]:
    comparison = show_intervals(comparison) if config.statistic == "interval" else comparison
    figures = {column.heading: column for column in build_figure_columns(comparison)}
    for column in build_text_columns(comparison, config):
        if column.heading in figures:
            yield _build_figure_column(figures[column.heading], config)
        else:
            yield _LatexColumn(escape_latex(column.heading), tuple(map(escape_latex, column.cells)))


def _build_figure_column(column: FigureColumn, config: TableConfig) -> _LatexColumn:
    """Return a column in a common unit: the largest one in which no figure is below 1."""
    centers = [get_center(s, config.statistic) for s in column.summaries if s is not None]
    smallest = min((value for value in centers if math.isfinite(value) and value > 0), default=1.0)
    units = [(unit, size) for unit, size in UNITS.get(column.name, ()) if size <= smallest] or UNITS.get(column.name, ())[:1]
    unit, size = units[-1] if units else ("", 1.0)
    decimals = max(0, 2 - math.floor(math.log10(smallest / size)))
    if column.name in ("best", "final") and 1e-3 <= smallest < 1e3:
        decimals = METRIC_DECIMALS
    if column.name == "rounds":
        decimals = 0 if all(_is_whole(s) for s in column.summaries) and config.statistic != "mean" else 1
    best = column.find_best(config.statistic) if config.mark_best else frozenset()
    cells = tuple(
        _format_summary(summary, column.missing, size, decimals, config, index in best)
        for index, summary in enumerate(column.summaries)
    )
    heading = escape_latex(column.heading + (f" ({unit})" if unit else ""))
    return _LatexColumn(heading, cells, any(isinstance(cell, tuple) and cell[1] for cell in cells))


def _is_whole(seed_summary: SeedSummary | None) -> bool:
    values = () if seed_summary is None else (seed_summary.median, seed_summary.low, seed_summary.high)
    return all(math.isinf(value) or value == round(value) for value in values)


def _format_summary(
    seed_summary: SeedSummary | None, missing: str, size: float, decimals: int, config: TableConfig, is_best: bool
) -> str | tuple[str, str]:
    """Return (figure, spread), or a text without a figure."""

    def format_number(value: float) -> str:
        return f"{value / size:,.{decimals}f}" if math.isfinite(value) else r"$\infty$"

    if seed_summary is None:
        return escape_latex(missing)
    center = get_center(seed_summary, config.statistic)
    if math.isinf(center):
        count = f" ({seed_summary.reached} of {seed_summary.n} do)" if seed_summary.reached else ""
        return NOT_REACHED + count
    number = format_number(center)
    figure = rf"\textbf{{{number}}}" if is_best else number
    if seed_summary.n == 1 or (config.statistic == "interval" and seed_summary.low == seed_summary.high):
        return figure, ""
    if config.statistic == "mean":
        return figure, rf"$\pm$ {format_number(seed_summary.std)}"
    return figure, f"({format_number(seed_summary.low)} to {format_number(seed_summary.high)})"
