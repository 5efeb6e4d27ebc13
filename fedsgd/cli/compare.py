"""`fedsgd compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsgd.cli.app import main
from fedsgd.cli.option_groups import GroupedCommand, output_option, refuse_options_without_network, table_options
from fedsgd.cli.options import (
    LINK_OPTIONS,
    OTHER_OPTIONS,
    PRICE_OPTIONS,
    AnalysisOptions,
    UserPath,
    analysis_options,
)
from fedsgd.cli.streams import echo, echo_json

if TYPE_CHECKING:
    from fedsgd.analysis.columns import Statistic

EXAMPLES = """Examples:

\b
    fedsgd compare runs/dense-1 runs/quickstart-1 --target 0.9
    fedsgd compare runs/my-sweep --target 0.9 --network 3g --out table.tex
"""


@main.command("compare", cls=GroupedCommand, epilog=EXAMPLES, short_help="Compare methods by bytes, time and cost to a target.")
@analysis_options
@table_options
@output_option(
    "--out",
    "outs",
    multiple=True,
    metavar="FILE",
    type=UserPath(),
    help="Also write the table to this file, .csv, .json, .md or .tex. Repeatable.",
)
@output_option("--caption", help="Caption of the table in .tex.  [default: statistic, seeds, target and networks]")
@output_option("--mark-best", is_flag=True, help="Set the best value of each column in bold, in .tex and .md.")
def compare_command(
    options: AnalysisOptions,
    statistic: Statistic,
    columns: tuple[str, ...],
    as_json: bool,
    outs: tuple[Path, ...],
    caption: str | None,
    mark_best: bool,
) -> None:
    """Compare methods by the rounds and bytes to a target, and by time and cost on networks.

    Times need --network, --trace, or --up and --down. RUN is a run folder, a folder of run folders, a sweep, or LABEL=RUN.
    LABEL may contain "=": the longest label for which RUN exists is used. Runs that differ only in their seed are one method,
    reported by the median. Without --target, all figures are for whole runs. A method with tuned settings (of a sweep, or by
    --tune) is reported at the value that reaches the target in the fewest rounds; without --target, at the value with the best
    accuracy or, if accuracy was not measured, the lowest loss. These are figures on validation examples if all of the method's
    runs have some, else on the test examples; a note says which.
    """
    from fedsgd.analysis import tables
    from fedsgd.analysis.columns import TableConfig, build_text_columns
    from fedsgd.cli import terminal

    for out in outs:
        tables.check_table_path(out)
    if caption is not None and not any(out.suffix.lower() == ".tex" for out in outs):
        raise click.UsageError("--caption needs --out with a file .tex")
    if mark_best and not any(out.suffix.lower() in (".tex", ".md") for out in outs):
        raise click.UsageError("--mark-best needs --out with a file .tex or .md")
    refuse_options_without_network(options.has_link, (*LINK_OPTIONS, *OTHER_OPTIONS, *PRICE_OPTIONS))
    pricing_models = options.build_pricing_models() if options.has_link else {}
    comparison = options.compare(options.load_methods(), pricing_models)
    config = TableConfig(statistic, columns, caption, mark_best)
    build_text_columns(comparison, config)  # checks the names before a file is written
    for out in outs:
        tables.save_table(comparison, out, config)
    if as_json:
        echo_json(tables.to_json(comparison, statistic))
    else:
        terminal.print_comparison(comparison, config)
    for out in outs:
        echo(f"written to {out}", err=True)
