"""`fedsgd price`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedsgd.cli.app import main
from fedsgd.cli.fleet_options import build_fleet, fleet_options
from fedsgd.cli.option_groups import GroupedCommand, device_option, refuse_options_without_network, table_options
from fedsgd.cli.options import LINK_OPTIONS, OTHER_OPTIONS, AnalysisOptions, analysis_options
from fedsgd.cli.streams import echo_json
from fedsgd.errors import ScenarioError

if TYPE_CHECKING:
    from fedsgd.analysis.columns import Statistic

NETWORK_OPTIONS = (
    *(name for name in (*LINK_OPTIONS, *OTHER_OPTIONS) if not name.startswith("overhead")),
    *("measured_coding", "utilization", "statistic", "columns"),
)
"""Options that a fleet without a network does not use."""

EXAMPLES = """Examples:

\b
    fedsgd price dense=runs/dense-1 runs/quickstart-1 --network 4g,lora
    fedsgd price runs/quickstart-1 --up 2Mbit/s --down 10Mbit/s --spread 0.5
    fedsgd price runs/quickstart-1 --network broadband --training 20min --utilization
    fedsgd price runs/my-sweep --clients 1000000 --rounds-per-month 30
"""


@main.command("price", cls=GroupedCommand, epilog=EXAMPLES, short_help="Compute time and cost of finished runs on networks.")
@analysis_options
@fleet_options
@device_option(
    "--utilization",
    is_flag=True,
    help="Print the share of training in the time, and the uplink speeds from which the share is 50, 80 and 95 %.",
)
@table_options
def price_command(
    options: AnalysisOptions,
    fleet_settings: dict[str, Any],
    utilization: bool,
    statistic: Statistic,
    columns: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compute the time and cost of finished runs on other networks, or bytes and cost a month in a fleet, without training.

    RUN is a run folder, a folder of run folders, a sweep, or LABEL=RUN. LABEL may contain "=": the longest label for which
    RUN exists is used. Runs that differ only in their seed are one method. A round ends when its slowest client has downloaded,
    trained, encoded and uploaded, and the server has decoded. Without --measured-coding, coding times follow a table of codec
    costs, so that runs with equal digests have equal prices.

    A break-even is an uplink speed at which the faster of two methods changes. The ratio of downlink to uplink speed and the
    latency are constant.

    The compute utilization is the training time of each round's slowest client, divided by the duration of all rounds. It is
    at most 100 %: latency, coding and the server take time at any link speed. Training and transfers do not overlap.

    Runs whose participation depended on time (by a deadline, over-selection or a timeout) are refused on a network, because
    other clients would have taken part.

    With --rounds-per-month, the bytes and the cost a month of a fleet are printed. They need no network. Each round samples the
    same share of the clients as in the run, or --cohort clients. A participation has the mean bytes of the run's ledger, plus
    --overhead-up and --overhead-down for each message. With --cap, runs at several values of a compressor's setting give the
    value at which --share of the clients reach the cap, interpolated between the values that were run.

    A client that drops out before its download has no bytes. After the download (an error, a timeout), its download counts.
    After the upload ([participation] dropout, a deadline), both count: the reply was sent, and the server did not use it.
    """
    from fedsgd.analysis import tables
    from fedsgd.analysis.columns import TableConfig
    from fedsgd.analysis.fleet_result import price_methods_in_fleet
    from fedsgd.analysis.pricing import require_time_independent
    from fedsgd.analysis.utilization import compute_utilizations
    from fedsgd.cli import terminal

    fleet = build_fleet(options, fleet_settings)
    if fleet is not None and statistic == "mean":
        problem = "figures of a fleet are medians over seeds; leave out --statistic or --rounds-per-month"
        raise ScenarioError(f"--statistic mean: {problem}")
    terminal.check_price_columns(columns, options.price_per_gigabyte)
    if fleet is not None:
        refuse_options_without_network(options.has_link, NETWORK_OPTIONS)
    pricing_models = options.build_pricing_models() if options.has_link or fleet is None else {}
    methods = options.load_methods()
    for method in methods if pricing_models else ():
        for run in method.runs:
            require_time_independent(run)
    comparison = options.compare(methods, pricing_models)
    with terminal.spinner("reading ledgers", options.quiet):
        fleet_result = None if fleet is None else price_methods_in_fleet(methods, fleet)
    with terminal.spinner("searching link speeds", options.quiet):
        utilizations = compute_utilizations(methods, pricing_models, options.measured_coding) if utilization else {}
    if as_json:
        further_figures = {} if fleet_result is None else {"fleet": fleet_result.to_json()}
        if utilization:
            further_figures["utilization"] = {name: [row.to_json() for row in rows] for name, rows in utilizations.items()}
        echo_json(tables.to_json(comparison, statistic, **further_figures))
        return
    if fleet_result is None or pricing_models:
        terminal.print_price(comparison, TableConfig(statistic, columns))
    if utilizations:
        terminal.print_utilizations(utilizations, pricing_models, statistic)
    if fleet_result is not None:
        terminal.print_fleet(fleet_result)
