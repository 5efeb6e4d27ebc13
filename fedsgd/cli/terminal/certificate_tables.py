"""Tables of certificates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedsgd.cli.terminal.column_table import ColumnTable, create_console, print_lines, print_tables
from fedsgd.config.text_columns import TextColumn

if TYPE_CHECKING:
    from fedsgd.certification import Certificate

COMPARISON_RANKS = (0, 6, 0, 1, 2, 4, 5, 3)
"""Rank of each column of `report.COLUMNS`."""


def print_certificate(certificate: Certificate) -> None:
    """Print the tables of a certificate, and a line for each law that is broken or was not tried."""
    from fedsgd.certification import report

    console = create_console()
    print_lines(console, [report.format_title(certificate)], "bold")
    print_lines(console, [str(certificate.compressor), report.describe_measurement(certificate), ""])
    for heading, rows in report.list_sections(certificate):
        names, values, remarks = zip(*rows, strict=True)
        columns = [
            TextColumn("quantity", "", names, align="left"),
            TextColumn("measured", "", tuple(map(_break_lines, values)), align="left"),
            TextColumn("compared with", "", tuple(map(_break_lines, remarks)), align="left", shorten="end"),
        ]
        print_tables(console, [ColumnTable(columns, heading, hint="--markdown, --json or a wider terminal shows all")])
    print_lines(console, (f"{name} {sha256}" for name, sha256 in report.list_digests(certificate)))
    law_names = ", ".join(result.law for result in certificate.laws if result.passed)
    print_lines(console, [f"laws that hold: {law_names}"])
    for result in certificate.laws:
        if not result.passed:
            outcome = "BROKEN" if result.passed is False else "not tried"
            print_lines(console, [f"{outcome} {result.law}: {result.detail}"])


def _break_lines(text: str) -> str:
    """Return a text with each of its parts on a line. Commas in parentheses separate no parts."""
    return re.sub(r"; |, (?![^(]*\))", "\n", text)


def print_certificates(certificates: Sequence[Certificate]) -> None:
    """Print a comparison table of compressors with a legend."""
    from fedsgd.certification import report

    console = create_console()
    print_lines(console, [report.describe_vectors(certificates[0].vectors)], "bold")
    rows = report.build_comparison_rows(certificates)
    columns = [
        TextColumn(name, name, cells, rank, "left" if index < 2 else "right", None if index else "distinct")
        for index, (name, rank, cells) in enumerate(zip(report.COLUMNS, COMPARISON_RANKS, zip(*rows, strict=True), strict=True))
    ]
    print_tables(console, [ColumnTable(columns, hint="--markdown, --json or a wider terminal shows all")])
    console.print(report.LEGEND)
