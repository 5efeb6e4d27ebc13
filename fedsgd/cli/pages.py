"""`fedsgd report`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from fedsgd.cli.base import UserPath, main
from fedsgd.cli.reports import Question, note, of_runs
from fedsgd.cli.streams import echo
from fedsgd.errors import OutputError


@main.command()
@of_runs
@click.option(
    "--out",
    type=UserPath(),
    help="The page, or with --format a folder for figures.  [default: report.html, or figures]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("html", "pdf", "svg", "png")),
    default="html",
    show_default=True,
    help="One page to be used, or figures for a paper, a file each.",
)
@click.option("--title", help="[default: the scenario's name]")
def report(
    question: Question,
    out: Path | None,
    form: Literal["html", "pdf", "svg", "png"],
    title: str | None,
) -> None:
    """A page that answers what a federation costs, from finished runs: one file that works offline, with sliders for uplink,
    downlink and latency that price the runs anew.

    RUN is a run folder, a folder of them, or a sweep; or LABEL=RUN, where LABEL may hold "=": it is the longest with a
    RUN that exists. The page begins with the network that is asked for, by default 4g, and with the target that is given,
    or the runs' own, or the highest that all methods reach.
    """
    from fedsgd import console
    from fedsgd.report.make import make

    if out is None:
        out = Path("report.html" if form == "html" else "figures")
    if form == "html" and out.is_dir():
        raise OutputError(f"{out}: is a folder, expected a file for the page")
    (name, terms), *more = question.terms(None if question.names_a_link else "4g").items()
    if more:
        raise click.BadParameter(
            f"got {question.networks}, expected one: the page begins with it, and has all others to choose",
            param_hint="--network",
        )
    with console.waiting("reading runs and replaying ledgers", question.quiet):
        written = make(
            question.runs,
            out,
            form,
            target=question.target,
            tuned=question.tuned,
            network=name,
            terms=terms,
            price_per_gigabyte=question.price_per_gigabyte,
            title=title,
            measured_coding=question.measured_coding,
            say=note,
        )
    for path in written:
        echo(f"written to {path}")
