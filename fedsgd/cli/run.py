"""`fedsgd run`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.app import main
from fedsgd.cli.option_groups import checkpoint_option, workers_option
from fedsgd.cli.options import (
    ScenarioOptions,
    UserPath,
    scenario_options,
)
from fedsgd.cli.run_folders import claim_numbered_folder, mention_partial_ledger, mention_shared_cores
from fedsgd.cli.streams import echo_json
from fedsgd.cli.targets import report_target_option
from fedsgd.cli.tracking import print_warnings, tracker_options, trackers_from_options

if TYPE_CHECKING:
    from fedsgd.scenario.scenario import Scenario
    from fedsgd.scenario.target import Target
    from fedsgd.trackers import Tracker

EXAMPLES = """Examples:

\b
    fedsgd run scenarios/quickstart.toml
    fedsgd run scenarios/quickstart.toml --set uplink.compressor.density=0.001
    fedsgd run scenarios/mnist_fedavg.toml --data DIR --workers 2
"""


@main.command("run", epilog=EXAMPLES, short_help="Run a scenario, a TOML file.")
@scenario_options
@checkpoint_option
@click.option("--out", type=UserPath(), help="Run folder.  [default: runs/NAME-N, the next free N]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in the folder.")
@workers_option
@tracker_options
@report_target_option
@click.option("--profile", is_flag=True, help="Also print the mean time of each phase of a round.")
def run_command(
    options: ScenarioOptions,
    out: Path | None,
    overwrite: bool,
    workers: int,
    target: Target | None,
    profile: bool,
    **tracking: Any,
) -> None:
    """Run the experiment that SCENARIO (a TOML file) describes.

    The run folder receives scenario.toml (resolved), rounds.parquet, ledger.parquet, params.safetensors and summary.json, and
    with [evaluation] clients = true also clients.parquet. Progress is printed on standard error, results on standard output.
    """
    from fedsgd.scenario.scenario import errors_in_file
    from fedsgd.system.forkserver import preload_workers

    scenario = options.load(target)
    preload_workers(workers)  # before torch is imported here, so that workers import it in parallel
    trackers = trackers_from_options(**tracking)
    mention_shared_cores(workers, "workers", options.quiet)
    with errors_in_file(options.scenario), claim_numbered_folder(scenario.name) if out is None else nullcontext(out) as folder:
        _run(scenario, options, folder, overwrite, trackers, workers=workers, profile=profile)


def _run(
    scenario: Scenario, options: ScenarioOptions, out: Path, overwrite: bool, trackers: Sequence[Tracker], **execution: Any
) -> None:
    from fedsgd.cli import terminal

    show_progress = terminal.show_progress(scenario, options.quiet)
    with mention_partial_ledger(out), print_warnings(options.quiet), show_progress as progress:
        from fedsgd.experiment.options import ExecutionConfig, RunCallbacks
        from fedsgd.experiment.runner import run as run_scenario

        result = run_scenario(
            scenario,
            data=options.data,
            out=out,
            overwrite=overwrite,
            on_round=progress.on_round,
            callbacks=RunCallbacks(progress.on_engine, progress.on_state_budget, trackers),
            execution=ExecutionConfig(**execution),
        )
    if options.as_json:
        echo_json(json.dumps(result.summary, indent=2))
    else:
        terminal.print_result(result)
