"""`fedsgd price`."""

from __future__ import annotations

import click

from fedsgd.cli.app import main
from fedsgd.cli.options import AnalysisOptions, analysis_options
from fedsgd.cli.streams import echo_json


@main.command()
@analysis_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
def price(options: AnalysisOptions, as_json: bool) -> None:
    """How long finished runs would take on other networks, and what they would cost. Nothing is trained again.

    RUN is a run folder, a folder of them, or a sweep; or LABEL=RUN, where LABEL may hold "=": it is the longest with a
    RUN that exists. Runs that differ by their seed alone are one method. A round lasts until its slowest client is
    done with download, computing, encoding and upload, and the server with decoding. Coding is counted by a table of codec
    costs, so that runs of equal digests have equal prices.
    Break-even: the uplink speed below which one method is sooner at the target than the other, the ratio of down to up and the
    latency kept.

    A run whose participation depended on time (a deadline, over-selection) is refused: on another network it would have been
    another run.
    """
    from fedsgd.analysis import tables
    from fedsgd.analysis.pricing import require_time_independent
    from fedsgd.cli import terminal

    terms = options.build_pricing_models()
    methods = options.load_methods()
    for method in methods:
        for run in method.runs:
            require_time_independent(run)
    comparison = options.compare(methods, terms)
    if as_json:
        echo_json(tables.to_json(comparison))
    else:
        terminal.print_price(comparison)
