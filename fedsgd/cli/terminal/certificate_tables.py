"""Tables of certificates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fedsgd.certification import Certificate


def print_certificate(certificate: Certificate) -> None:
    """Print the tables of a certificate, and a line for each law that is broken or was not tried."""
    from fedsgd.certification import report

    console = Console(highlight=False)
    console.print(report.format_title(certificate), style="bold", soft_wrap=True, markup=False)
    console.print(f"{certificate.compressor}\n{report.describe_measurement(certificate)}", soft_wrap=True, markup=False)
    for heading, rows in report.list_sections(certificate):
        table = Table(title=escape(heading), title_justify="left", title_style="bold", box=None, show_header=False)
        table.add_column(no_wrap=True)
        for name, value, remark in rows:
            table.add_row(escape(name), escape(value), escape(remark))
        console.print("", table)
    console.print()
    for name, sha256 in report.list_digests(certificate):
        console.print(f"{name} {sha256}", soft_wrap=True, markup=False)
    law_names = ", ".join(result.law for result in certificate.laws if result.passed)
    console.print(f"laws that hold: {law_names}", soft_wrap=True, markup=False)
    for result in certificate.laws:
        if not result.passed:
            outcome = "BROKEN" if result.passed is False else "not tried"
            console.print(f"{outcome} {result.law}: {result.detail}", soft_wrap=True, markup=False)


def print_certificates(certificates: Sequence[Certificate]) -> None:
    """Print a comparison table of compressors with a legend."""
    from fedsgd.certification import report

    console = Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in report.COLUMNS:
        table.add_column(heading.replace(" ", "\n"), justify="left" if heading in report.COLUMNS[:2] else "right")
    for row in report.build_comparison_rows(certificates):
        table.add_row(*map(escape, row))
    console.print(report.describe_vectors(certificates[0].vectors), style="bold", soft_wrap=True, markup=False)
    console.print(table, report.LEGEND)
