"""`fedsgd price`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsgd.cli.app import main
from fedsgd.cli.option_groups import GroupedCommand, table_options
from fedsgd.cli.options import AnalysisOptions, analysis_options
from fedsgd.cli.streams import echo_json

if TYPE_CHECKING:
    from fedsgd.analysis.columns import Statistic


@main.command("price", cls=GroupedCommand, short_help="Compute time and cost of finished runs on networks.")
@analysis_options
@table_options
def price_command(options: AnalysisOptions, statistic: Statistic, columns: tuple[str, ...], as_json: bool) -> None:
    """Compute the time and cost of finished runs on other networks, without training.

    RUN is a run folder, a folder of run folders, a sweep, or LABEL=RUN. LABEL may contain "=": the longest label for which
    RUN exists is used. Runs that differ only in their seed are one method. A round ends when its slowest client has downloaded,
    trained, encoded and uploaded, and the server has decoded. Without --measured-coding, coding times follow a table of codec
    costs, so that runs with equal digests have equal prices.

    A break-even is an uplink speed at which the faster of two methods changes. The ratio of downlink to uplink speed and the
    latency are constant.

    Runs whose participation depended on time (by a deadline, over-selection or a timeout) are refused: on another network,
    other clients would have taken part.
    """
    from fedsgd.analysis import tables
    from fedsgd.analysis.columns import TableConfig
    from fedsgd.analysis.pricing import require_time_independent
    from fedsgd.cli import terminal

    pricing_models = options.build_pricing_models()
    methods = options.load_methods()
    for method in methods:
        for run in method.runs:
            require_time_independent(run)
    comparison = options.compare(methods, pricing_models)
    if as_json:
        echo_json(tables.to_json(comparison))
    else:
        terminal.print_price(comparison, TableConfig(statistic, columns))
