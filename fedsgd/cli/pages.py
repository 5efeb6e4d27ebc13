"""`fedsgd report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from fedsgd.cli.base import main
from fedsgd.cli.reports import names_a_link, note, of_runs, of_terms, terms_of
from fedsgd.errors import OutputError

if TYPE_CHECKING:
    from fedsgd.report.methods import Given


@main.command()
@of_runs
@of_terms
@click.option(
    "--out",
    type=click.Path(path_type=Path),
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
    runs: list[Given],
    target: float | None,
    tuned: tuple[str, ...],
    quiet: bool,
    networks: str | None,
    asked: dict[str, Any],
    price_per_gigabyte: float | None,
    out: Path | None,
    form: Literal["html", "pdf", "svg", "png"],
    title: str | None,
) -> None:
    """A page that answers what a federation costs, from finished runs: one file that works offline, with sliders for uplink,
    downlink and latency that price the runs anew.

    RUN is a run folder, a folder of them, or a sweep; or LABEL=RUN. It begins with the network that is asked for, by default
    4g, and with the target that is given, or the runs' own, or the highest that all methods reach.
    """
    from fedsgd import console
    from fedsgd.report.make import make

    if out is None:
        out = Path("report.html" if form == "html" else "figures")
    if form == "html" and out.is_dir():
        raise OutputError(f"{out}: is a folder, expected a file for the page")
    (name, terms), *more = terms_of(networks if names_a_link(networks, asked) else "4g", asked).items()
    if more:
        raise click.BadParameter(
            f"got {networks}, expected one: the page begins with it, and has all others to choose", param_hint="--network"
        )
    with console.waiting("reading runs and replaying ledgers", quiet):
        written = make(
            runs,
            out,
            form,
            target=target,
            tuned=tuned,
            network=name,
            terms=terms,
            price_per_gigabyte=price_per_gigabyte,
            title=title,
            say=note,
        )
    for path in written:
        click.echo(f"written to {path}")
