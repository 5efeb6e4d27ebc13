"""`fedsgd report`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from fedsgd.cli.app import main
from fedsgd.cli.options import AnalysisOptions, UserPath, analysis_options, print_note
from fedsgd.cli.streams import echo
from fedsgd.errors import OutputError


@main.command()
@analysis_options
@click.option(
    "--out",
    type=UserPath(),
    help="The page, or with --format a folder for figures.  [default: report.html, or figures]",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(("html", "pdf", "svg", "png")),
    default="html",
    show_default=True,
    help="One page to be used, or figures for a paper, a file each.",
)
@click.option("--title", help="[default: the scenario's name]")
def report(
    options: AnalysisOptions,
    out: Path | None,
    file_format: Literal["html", "pdf", "svg", "png"],
    title: str | None,
) -> None:
    """A page that answers what a federation costs, from finished runs: one file that works offline, with sliders for uplink,
    downlink and latency that price the runs anew.

    RUN is a run folder, a folder of them, or a sweep; or LABEL=RUN, where LABEL may hold "=": it is the longest with a
    RUN that exists. The page begins with the network that is asked for, by default 4g, and with the target that is given,
    or the runs' own, or the highest that all methods reach.
    """
    from fedsgd.analysis.report import write_report
    from fedsgd.cli import terminal

    if out is None:
        out = Path("report.html" if file_format == "html" else "figures")
    if file_format == "html" and out.is_dir():
        raise OutputError(f"{out}: is a folder, expected a file for the page")
    (name, terms), *more = options.build_pricing_models(None if options.has_link else "4g").items()
    if more:
        raise click.BadParameter(
            f"got {options.networks}, expected one: the page begins with it, and has all others to choose",
            param_hint="--network",
        )
    with terminal.spinner("reading runs and replaying ledgers", options.quiet):
        written = write_report(
            options.runs,
            out,
            file_format,
            target=options.target,
            tuned=options.tuned,
            network_name=name,
            pricing_model=terms,
            price_per_gigabyte=options.price_per_gigabyte,
            title=title,
            measured_coding=options.measured_coding,
            on_notice=print_note,
        )
    for path in written:
        echo(f"written to {path}")
