"""`fedsgd run`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.app import main
from fedsgd.cli.option_groups import checkpoint_option, engine_device_option, workers_option
from fedsgd.cli.options import (
    ScenarioOptions,
    UserPath,
    scenario_options,
)
from fedsgd.cli.ranks import find_ranks, run_as_rank
from fedsgd.cli.run_folders import claim_numbered_folder, mention_partial_ledger, mention_shared_cores
from fedsgd.cli.streams import echo, echo_json
from fedsgd.cli.targets import report_target_option
from fedsgd.cli.tracking import print_warnings, tracker_options, trackers_from_options
from fedsgd.errors import ScenarioError

if TYPE_CHECKING:
    from fedsgd.experiment.result import Result
    from fedsgd.runtime.ranks.group import RankGroup
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
@engine_device_option
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

    In processes that torchrun starts, on one machine or several, all ranks train the clients.
    """
    from fedsgd.scenario.scenario import errors_in_file
    from fedsgd.system.forkserver import preload_workers

    environment = find_ranks(workers, profile)
    if environment is not None:
        run_as_server = partial(_run_as_server, options, out, overwrite, tracking)
        with errors_in_file(options.scenario):
            run_as_rank(environment, lambda: (options.load(target), options.data), run_as_server)
        return
    scenario = options.load(target)
    preload_workers(workers)  # before torch is imported here, so that workers import it in parallel
    trackers = trackers_from_options(**tracking)
    mention_shared_cores(workers, "workers", options.quiet)
    with errors_in_file(options.scenario), claim_numbered_folder(scenario.name) if out is None else nullcontext(out) as folder:
        _run(scenario, options, folder, overwrite, trackers, workers=workers, profile=profile)


def _run_as_server(
    options: ScenarioOptions,
    out: Path | None,
    overwrite: bool,
    tracking: dict[str, Any],
    scenario: Scenario,
    group: RankGroup,
) -> None:
    """Run the scenario as rank 0."""
    from fedsgd.cli import terminal

    trackers, may_restart = trackers_from_options(**tracking), group.rendezvous.environment.max_restarts > 0
    if out is None and may_restart:
        raise ScenarioError("--out: not set, expected the run folder: torchrun --max-restarts continues the run there")
    show_progress = terminal.show_progress(scenario, options.quiet)
    with (
        claim_numbered_folder(scenario.name) if out is None else nullcontext(out) as folder,
        mention_partial_ledger(folder),
        print_warnings(options.quiet),
        show_progress as progress,
    ):
        from fedsgd.experiment.options import RunCallbacks
        from fedsgd.experiment.rank_execution import run_on_ranks

        callbacks = RunCallbacks(progress.on_engine, progress.on_state_budget, trackers)
        needs_shared_folder = out is not None and (scenario.checkpoint.every is not None or may_restart)
        result = run_on_ranks(
            scenario, options.data, folder, overwrite, progress.on_round, callbacks, group, needs_shared_folder
        )
    if result is None:
        echo(f"fedsgd: {out} is finished", err=True)
    else:
        _print_result(result, options)


def _print_result(result: Result, options: ScenarioOptions) -> None:
    from fedsgd.cli import terminal

    if options.as_json:
        echo_json(json.dumps(result.summary, indent=2))
    else:
        terminal.print_result(result)


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
    _print_result(result, options)
