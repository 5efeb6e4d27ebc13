"""Command `fedsgd report`: write a page or figures of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from fedsgd.cli.app import main
from fedsgd.cli.fleet_options import FLEET_OPTIONS, build_fleet, fleet_options
from fedsgd.cli.option_groups import GroupedCommand, output_option
from fedsgd.cli.options import AnalysisOptions, UserPath, analysis_options
from fedsgd.cli.streams import echo, print_note
from fedsgd.errors import OutputError

EXAMPLES = """Examples:

\b
    fedsgd report runs/my-sweep --network 4g --out report.html
    fedsgd report runs/my-sweep --network 4g --format pdf --out figures
"""


@main.command("report", cls=GroupedCommand, epilog=EXAMPLES, short_help="Write a page, or figures, about finished runs.")
@analysis_options
@fleet_options
@output_option(
    "--out",
    type=UserPath(),
    help="File for the page, or folder for the figures of --format pdf, svg or png.  [default: report.html, or figures]",
)
@output_option(
    "--format",
    "file_format",
    type=click.Choice(("html", "pdf", "svg", "png")),
    default="html",
    show_default=True,
    help="An interactive page, or figures for a paper, each in a file.",
)
@output_option("--title", help="Title of the page.  [default: the scenarios' names]")
def report_command(
    options: AnalysisOptions,
    fleet_settings: dict[str, Any],
    out: Path | None,
    file_format: Literal["html", "pdf", "svg", "png"],
    title: str | None,
) -> None:
    """Write a page, or figures, about the cost of finished runs.

    The page is one file that works offline. Its sliders for uplink, downlink and latency reprice the runs. Its fleet has
    controls whose initial values are --rounds-per-month, --clients, --price-per-gigabyte and --cap.

    RUN is a run folder, a folder of run folders, a sweep, or LABEL=RUN. LABEL may contain "=": the longest label for which
    RUN exists is used. Figures are for the network of the options (default: 4g) and for --target, with which the page starts.
    Without --target, the target of the runs' scenarios is used if they agree, else the highest percent of accuracy (without
    accuracy, the lowest loss) that all methods reach.
    """
    from fedsgd.analysis.report import write_report
    from fedsgd.cli import terminal

    source_of, default = click.get_current_context().get_parameter_source, click.core.ParameterSource.DEFAULT
    fleet_option = next((name for name in FLEET_OPTIONS if source_of(name) is not default), None)
    if file_format != "html" and fleet_option is not None:
        raise click.UsageError(f"--{fleet_option.replace('_', '-')} needs --format html: only the page has a fleet")
    if out is None:
        out = Path("report.html" if file_format == "html" else "figures")
    if file_format == "html" and out.is_dir():
        raise OutputError(f"{out}: is a folder, expected a file for the page")
    figure_format = out.suffix.lower().removeprefix(".")
    if file_format == "html" and figure_format in ("pdf", "svg", "png"):
        raise OutputError(f"{out}: is the name of a figure, expected a page such as r.html, or --format {figure_format}")
    (name, pricing_model), *further_networks = options.build_pricing_models(None if options.has_link else "4g").items()
    if further_networks:
        raise click.BadParameter(
            f"got {options.networks}, expected one network; the page starts with this network and offers all others",
            param_hint="--network",
        )
    with terminal.spinner("reading runs and replaying ledgers", options.quiet):
        paths = write_report(
            options.runs,
            out,
            file_format,
            target=options.target,
            tuned=options.tuned,
            network_name=name,
            pricing_model=pricing_model,
            price_per_gigabyte=options.price_per_gigabyte,
            title=title,
            measured_coding=options.measured_coding,
            fleet=build_fleet(options, fleet_settings),
            baseline=options.baseline,
            on_notice=print_note,
        )
    for path in paths:
        echo(f"written to {path}")
