"""Tables of a replication, and of all studies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedsgd.cli.streams import echo_json
from fedsgd.cli.terminal.column_table import ColumnTable, create_console, print_lines, print_tables
from fedsgd.config.text_columns import TextColumn

if TYPE_CHECKING:
    from fedsgd.analysis.replication.verdicts import Replication

RANKS = {
    "with real bytes": 1,
    "bytes up": 2,
    "fedsgd / paper": 3,
    "difference": 3,
    "by the paper's rule": 4,
    "interval": 5,
    "bytes down": 6,
    "tuned": 7,
}
"""Rank of a column, of which the highest is dropped first; 0 for a column that is always shown."""


def print_replication(replication: Replication) -> None:
    """Print the tables and the notes of a replication."""
    from fedsgd.analysis.replication import pages

    console = create_console()
    tables = [
        _build_table(title, headings, rows, pages.TEXT_HEADINGS) for title, headings, rows in pages.build_tables(replication)
    ]
    print_lines(console, [f"{replication.study.name}: {replication.study.title}"], "bold")
    print_tables(console, tables)
    print_lines(console, [pages.describe_verdicts(replication), *pages.list_notes(replication)])
    changed = [f"{label}: the verdict is not the expected one" for label in replication.changed]
    print_lines(console, [*changed, *(f"{run}: {error}" for run, error in (*replication.diverged, *replication.errors))])


def _build_table(title: str, headings: list[str], rows: list[list[str]], text_headings: Sequence[str]) -> ColumnTable:
    columns = [
        TextColumn(
            heading,
            heading,
            cells,
            RANKS.get(heading, 0),
            "left" if heading in text_headings else "right",
            "distinct" if heading == "cell" else "end" if heading in text_headings else None,
        )
        for heading, cells in zip(headings, zip(*rows, strict=True), strict=True)
    ]
    return ColumnTable(columns, title)


def print_studies(as_json: bool) -> None:
    """Print the studies with the verdicts of their results, as a table or as JSON."""
    from fedsgd.analysis.replication.replicate import list_results

    rows = list_results()
    if as_json:
        echo_json(json.dumps([dict(zip(("study", "title", "verdicts"), row, strict=True)) for row in rows], indent=2))
        return
    console = create_console()
    if not rows:
        print_lines(console, ["no studies here: they are in `scenarios` of a checkout"])
        return
    names, titles, verdicts = zip(*rows, strict=True)
    columns = [
        TextColumn("study", "study", names, 0, "left"),
        TextColumn("title", "title", titles, 1, "left", "end"),
        TextColumn("verdicts", "verdicts", verdicts, 0, "left", "end"),
    ]
    print_tables(console, [ColumnTable(columns, "studies")])
    print_lines(console, ["to run a study: fedsgd replicate STUDY"])
