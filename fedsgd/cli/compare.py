"""`fedsgd compare`."""

from __future__ import annotations

from pathlib import Path

import click

from fedsgd.cli.app import main
from fedsgd.cli.options import LINK_OPTIONS, OTHER_OPTIONS, PRICE_OPTIONS, AnalysisOptions, UserPath, analysis_options
from fedsgd.cli.streams import echo, echo_json


@main.command()
@analysis_options
@click.option(
    "--out",
    "outs",
    multiple=True,
    metavar="FILE",
    type=UserPath(),
    help="Also write the table: a file that ends in .csv, .json, .md or .tex. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
def compare(options: AnalysisOptions, outs: tuple[Path, ...], as_json: bool) -> None:
    """Methods side by side: rounds and bytes to a target, and time and money on networks where --network (or --up and --down)
    asks for them.

    RUN is a run folder, a folder of them, or a sweep; or LABEL=RUN, where LABEL may hold "=": it is the longest with a
    RUN that exists. Runs that differ by their seed alone are one method, shown by its median.
    Without --target figures are those of whole runs. A setting that was tuned (in a sweep, or by --tune) is shown at the value
    that gets to the target in the fewest rounds, or without one to the best accuracy.
    """
    from fedsgd.analysis import tables
    from fedsgd.cli import terminal

    for out in outs:
        tables.check_table_path(out)
    priced = options.has_link
    given = [name for name in (*LINK_OPTIONS, *OTHER_OPTIONS, *PRICE_OPTIONS) if _is_explicit(name)]
    if not priced and given:
        option = f"--{given[0].removesuffix('_name').replace('_', '-')}"
        raise click.UsageError(f"{option} needs a network: give --network, --up and --down, or --trace")
    terms = options.build_pricing_models() if priced else {}
    comparison = options.compare(options.load_methods(), terms)
    for out in outs:
        tables.save_table(comparison, out)
    if as_json:
        echo_json(tables.to_json(comparison))
    else:
        terminal.print_comparison(comparison)
    for out in outs:
        echo(f"written to {out}", err=True)


def _is_explicit(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT
