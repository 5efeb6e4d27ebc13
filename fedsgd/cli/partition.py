"""`fedsgd partition`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fedsgd.cli.app import main
from fedsgd.cli.options import ScenarioOptions, UserPath, scenario_options
from fedsgd.cli.streams import echo, echo_json

EXAMPLES = """Examples:

\b
    fedsgd partition scenarios/skewed.toml
    fedsgd partition scenarios/skewed.toml --picture split.png
"""


@main.command("partition", epilog=EXAMPLES, short_help="Show the partition of the data over clients.")
@scenario_options
@click.option("--picture", type=UserPath(), help="Also draw the partition to this file, .png or .svg.")
def partition_command(options: ScenarioOptions, picture: Path | None) -> None:
    """Show the partition of SCENARIO: each client's training examples by class.

    The table has a row for each of up to 20 clients, and quantiles for more. The picture has a bar for each of up to 40
    clients, and a map for more. "distance" is the total variation between a client's class distribution and the distribution
    over all clients: 0 for equal distributions, 1 for no class in common.
    """
    from fedsgd.cli import terminal
    from fedsgd.experiment.partition_summary import summarize_partition
    from fedsgd.scenario.scenario import errors_in_file

    scenario = options.load()
    if picture is not None:
        from fedsgd.analysis.figures.partition import check_picture_path, draw_partition

        check_picture_path(picture)
    with errors_in_file(options.scenario), terminal.spinner(f"reading {scenario.data.source.name}", options.quiet):
        summary = summarize_partition(scenario, options.data)
        if picture is not None:
            draw_partition(summary, picture)
    if options.as_json:
        echo_json(json.dumps(summary.to_json()))
    else:
        terminal.print_partition(summary)
    if picture is not None:
        echo(f"drawn to {picture}", err=True)
