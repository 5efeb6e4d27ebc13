"""`fedsgd compare`."""

from __future__ import annotations

from pathlib import Path

import click

from fedsgd.cli.app import main
from fedsgd.cli.options import LINK_OPTIONS, OTHER_OPTIONS, PRICE_OPTIONS, AnalysisOptions, UserPath, analysis_options
from fedsgd.cli.streams import echo, echo_json


@main.command("compare")
@analysis_options
@click.option(
    "--out",
    "outs",
    multiple=True,
    metavar="FILE",
    type=UserPath(),
    help="Also write the table to this file, .csv, .json, .md or .tex. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
def compare_command(options: AnalysisOptions, outs: tuple[Path, ...], as_json: bool) -> None:
    """Compare methods by the rounds and bytes to a target, and by time and cost on networks.

    Times need --network, --trace, or --up and --down. RUN is a run folder, a folder of run folders, a sweep, or LABEL=RUN.
    LABEL may contain "=": the longest label for which RUN exists is used. Runs that differ only in their seed are one method,
    reported by the median. Without --target, all figures are for whole runs. A method with tuned settings (of a sweep, or by
    --tune) is reported at the value that reaches the target in the fewest rounds; without --target, at the value with the best
    accuracy.
    """
    from fedsgd.analysis import tables
    from fedsgd.cli import terminal

    for out in outs:
        tables.check_table_path(out)
    explicit_options = [name for name in (*LINK_OPTIONS, *OTHER_OPTIONS, *PRICE_OPTIONS) if _is_explicit(name)]
    if not options.has_link and explicit_options:
        option = f"--{explicit_options[0].removesuffix('_name').replace('_', '-')}"
        raise click.UsageError(f"{option} needs a network: give --network, --up and --down, or --trace")
    pricing_models = options.build_pricing_models() if options.has_link else {}
    comparison = options.compare(options.load_methods(), pricing_models)
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
