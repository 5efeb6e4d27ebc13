"""`fedsgd partition`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fedsgd.cli.app import main
from fedsgd.cli.options import ScenarioOptions, UserPath, scenario_options
from fedsgd.cli.streams import echo, echo_json


@main.command()
@scenario_options
@click.option("--picture", type=UserPath(), help="Also draw it: a file that ends in .png or .svg.")
def partition(options: ScenarioOptions, picture: Path | None) -> None:
    """Show how SCENARIO splits its data over clients: how many examples of which class each trains on.

    Up to 20 clients have a row each, more are summarised; a picture has a bar for each of up to 40, or a map. "distance" is the
    total variation between a client's class distribution and that of all clients: 0 the same, 1 nothing in common.
    """
    from fedsgd.cli import terminal
    from fedsgd.experiment.partition_summary import summarize_partition
    from fedsgd.scenario.scenario import errors_in_file

    scenario = options.load()
    if picture is not None:
        from fedsgd.analysis.figures.partition import check_picture_path, draw_partition

        check_picture_path(picture)
    with errors_in_file(options.scenario), terminal.spinner(f"reading {scenario.data.source.name}", options.quiet):
        split = summarize_partition(scenario, options.data)
        if picture is not None:
            draw_partition(split, picture)
    if options.as_json:
        echo_json(json.dumps(split.to_json()))
    else:
        terminal.print_partition(split)
    if picture is not None:
        echo(f"drawn to {picture}", err=True)
