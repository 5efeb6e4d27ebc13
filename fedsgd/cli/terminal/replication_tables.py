"""Tables of a replication, and of all studies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedsgd.cli.streams import echo_json
from fedsgd.cli.terminal.column_table import ColumnTable, create_console, print_lines, print_tables
from fedsgd.config.text_columns import TextColumn

if TYPE_CHECKING:
    from fedsgd.analysis.replication.study import Study
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
STUDY_HEADINGS = ("reproduced", "differs", "not run", "no published figure")
"""First words of the verdicts on cells, which the table of studies counts."""


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
    """Print the studies with the counted verdicts of their results, as a table or as JSON."""
    from fedsgd.analysis.replication.pages import count_verdicts
    from fedsgd.analysis.replication.replicate import list_results

    studies = list_results()
    counts = [(count_verdicts(result.cells), count_verdicts(result.claims)) for result in studies]
    if as_json:
        pairs = zip(studies, counts, strict=True)
        echo_json(json.dumps([_describe_study(result.study, *both) for result, both in pairs], indent=2))
        return
    console = create_console()
    if not studies:
        print_lines(console, ["no studies here: they are in `scenarios` of a checkout"])
        return
    columns = [
        TextColumn("study", "study", tuple(result.study.name for result in studies), 0, "left", "distinct"),
        TextColumn("title", "title", tuple(result.study.title for result in studies), 1, "left"),
    ]
    for heading in STUDY_HEADINGS:
        cells = [sum(n for verdict, n in verdicts.items() if verdict.startswith(heading)) for verdicts, _ in counts]
        columns.append(TextColumn(heading, heading, tuple(f"{n}" if n else "" for n in cells), 0))
    columns.append(TextColumn("claims hold", "claims hold", tuple(_format_claims(claims) for _, claims in counts), 0))
    print_tables(console, [ColumnTable(columns, "studies")])
    print_lines(console, ["to run a study: fedsgd replicate STUDY"])


def _describe_study(study: Study, verdicts: Mapping[str, int], claims: Mapping[str, int]) -> dict[str, Any]:
    return {"study": study.name, "title": study.title, "verdicts": verdicts, "claims": claims}


def _format_claims(claims: Mapping[str, int]) -> str:
    """Return how many of a study's claims that were run hold; "" if none was run."""
    from fedsgd.analysis.replication.study import NOT_RUN
    from fedsgd.analysis.replication.verdicts import HOLDS

    n_run = sum(n for verdict, n in claims.items() if verdict != NOT_RUN)
    return f"{claims.get(HOLDS, 0)} of {n_run}" if n_run else ""
