"""`fedsgd run` and `fedsgd partition`."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.base import Given, UserPath, ledger_is_told_of, main, numbered_folder, of_a_scenario
from fedsgd.cli.streams import echo, echo_json
from fedsgd.cli.tracking import asked, print_warnings, tracked

if TYPE_CHECKING:
    from fedsgd.scenario import Scenario


@main.command()
@of_a_scenario
@click.option("--out", type=UserPath(), help="Run folder to write. [default: runs/NAME-N, the next free N]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in the run folder.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="K",
    help="Train clients in K processes, one a core. Results do not depend on it.",
)
@tracked
@click.option("--profile", is_flag=True, help="Also print where the time of a round went.")
def run(given: Given, out: Path | None, overwrite: bool, workers: int, profile: bool, **tracking: Any) -> None:
    """Run the experiment that SCENARIO (a TOML file) describes.

    The run folder gets scenario.toml (resolved), rounds.parquet, ledger.parquet, params.safetensors and summary.json; and
    clients.parquet with [evaluation] clients = true.
    Progress goes to standard error, results to standard output.
    """
    from fedsgd.forking import begin
    from fedsgd.scenario import in_file

    scenario = given.load()
    begin(workers)  # before torch is imported here, so that it is imported there at the same time
    trackers = asked(**tracking)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers > cores and not given.quiet:
        echo(f"fedsgd: {workers} workers share {cores} core{'s' * (cores > 1)}: no faster than {cores} would be", err=True)
    with in_file(given.scenario), numbered_folder(scenario.name) if out is None else nullcontext(out) as folder:
        _run(scenario, given, folder, overwrite=overwrite, workers=workers, trackers=trackers, profile=profile)


def _run(scenario: Scenario, given: Given, out: Path, **options: Any) -> None:
    from fedsgd import console

    with ledger_is_told_of(out), print_warnings(given.quiet), console.progress(scenario, given.quiet) as shown:
        from fedsgd.experiment import run as run_scenario

        result = run_scenario(
            scenario,
            out=out,
            data=given.data,
            on_engine=shown.on_engine,
            on_states=shown.on_states,
            on_round=shown.on_round,
            **options,
        )
    if given.as_json:
        echo_json(json.dumps(result.summary, indent=2))
    else:
        console.show_result(result)


@main.command()
@of_a_scenario
@click.option("--picture", type=UserPath(), help="Also draw it: a file that ends in .png or .svg.")
def partition(given: Given, picture: Path | None) -> None:
    """Show how SCENARIO splits its data over clients: how many examples of which class each trains on.

    Up to 20 clients have a row each, more are summarised; a picture has a bar for each of up to 40, or a map. "distance" is the
    total variation between a client's class distribution and that of all clients: 0 the same, 1 nothing in common.
    """
    from fedsgd import console
    from fedsgd.scenario import in_file
    from fedsgd.splits import split_of

    scenario = given.load()
    if picture is not None:
        from fedsgd.pictures import check_format, draw_split

        check_format(picture)
    with in_file(given.scenario), console.waiting(f"reading {scenario.data.source.name}", given.quiet):
        split = split_of(scenario, given.data)
        if picture is not None:
            draw_split(split, picture)
    if given.as_json:
        echo_json(json.dumps(split.to_json()))
    else:
        console.show_split(split)
    if picture is not None:
        echo(f"drawn to {picture}", err=True)
