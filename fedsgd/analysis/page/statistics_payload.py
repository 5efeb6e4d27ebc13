"""Payload of the page's statistics: texts of medians with intervals and of ratios, at the report's target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsgd.analysis.columns import TableConfig, build_text_columns
from fedsgd.analysis.comparison import Comparison
from fedsgd.analysis.ratio_columns import build_ratio_columns, collect_statistics_notes, describe_ratios, has_intervals
from fedsgd.config.text_columns import TextColumn

COLUMNS = ("method", "rounds", "up", "down", "both")
"""Columns of the table of medians."""


def build_statistics_payload(comparison: Comparison) -> dict[str, Any]:
    """Return the tables of statistics, empty where there are too few seeds, and notes. Cells are lists of lines."""
    tables = []
    if any(row.statistics is not None and row.statistics.medians for row in comparison.rows):
        columns = build_text_columns(comparison, TableConfig("interval", COLUMNS), "\n")
        tables.append(_table_to_json("Kaplan–Meier medians, with their intervals", columns))
    if has_intervals(comparison):
        tables.append(_table_to_json(describe_ratios(comparison), build_ratio_columns(comparison, separator="\n")))
    return {"tables": tables, "notes": list(collect_statistics_notes(comparison, "interval"))}


def _table_to_json(title: str, columns: Sequence[TextColumn]) -> dict[str, Any]:
    rows = zip(*(column.cells for column in columns), strict=True)
    return {
        "title": title,
        "headings": [column.heading for column in columns],
        "rows": [[cell.split("\n") for cell in row] for row in rows],
    }
