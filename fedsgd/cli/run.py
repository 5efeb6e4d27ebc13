"""`fedsgd run`."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.app import main
from fedsgd.cli.options import ScenarioOptions, UserPath, claim_numbered_folder, mention_partial_ledger, scenario_options
from fedsgd.cli.streams import echo, echo_json
from fedsgd.cli.tracking import print_warnings, tracker_options, trackers_from_options

if TYPE_CHECKING:
    from fedsgd.scenario.scenario import Scenario


@main.command()
@scenario_options
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
@tracker_options
@click.option("--profile", is_flag=True, help="Also print where the time of a round went.")
def run(options: ScenarioOptions, out: Path | None, overwrite: bool, workers: int, profile: bool, **tracking: Any) -> None:
    """Run the experiment that SCENARIO (a TOML file) describes.

    The run folder gets scenario.toml (resolved), rounds.parquet, ledger.parquet, params.safetensors and summary.json; and
    clients.parquet with [evaluation] clients = true.
    Progress goes to standard error, results to standard output.
    """
    from fedsgd.scenario.scenario import errors_in_file
    from fedsgd.system.forkserver import preload_workers

    scenario = options.load()
    preload_workers(workers)  # before torch is imported here, so that it is imported there at the same time
    trackers = trackers_from_options(**tracking)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers > cores and not options.quiet:
        echo(f"fedsgd: {workers} workers share {cores} core{'s' * (cores > 1)}: no faster than {cores} would be", err=True)
    with errors_in_file(options.scenario), claim_numbered_folder(scenario.name) if out is None else nullcontext(out) as folder:
        _run(scenario, options, folder, overwrite=overwrite, workers=workers, trackers=trackers, profile=profile)


def _run(scenario: Scenario, options: ScenarioOptions, out: Path, **settings: Any) -> None:
    from fedsgd.cli import terminal

    with mention_partial_ledger(out), print_warnings(options.quiet), terminal.show_progress(scenario, options.quiet) as shown:
        from fedsgd.experiment.runner import run as run_scenario

        result = run_scenario(
            scenario,
            out=out,
            data=options.data,
            on_engine=shown.on_engine,
            on_state_budget=shown.on_state_budget,
            on_round=shown.on_round,
            **settings,
        )
    if options.as_json:
        echo_json(json.dumps(result.summary, indent=2))
    else:
        terminal.print_result(result)
