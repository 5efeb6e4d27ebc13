"""`fedsgd run`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
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
from fedsgd.cli.ranks import find_ranks, run_as_rank, silence_rank
from fedsgd.cli.run_folders import claim_numbered_folder, mention_partial_ledger, mention_shared_cores
from fedsgd.cli.streams import echo_json
from fedsgd.cli.targets import report_target_option
from fedsgd.cli.tracking import print_warnings, tracker_options, trackers_from_options
from fedsgd.errors import ScenarioError

if TYPE_CHECKING:
    from fedsgd.experiment.execution import ExecutionFactory
    from fedsgd.experiment.result import Result
    from fedsgd.scenario.scenario import Scenario
    from fedsgd.scenario.target import Target
    from fedsgd.system.rank_environment import RankEnvironment
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

    In processes that torchrun starts, on one machine or several, all ranks train the clients.
    """
    from fedsgd.scenario.scenario import errors_in_file
    from fedsgd.system.forkserver import preload_workers

    environment = find_ranks(workers)
    with silence_rank(environment):
        scenario = options.load(target)
        trackers = trackers_from_options(**tracking)
        if environment is not None and profile:
            raise click.BadParameter(
                "the phases of the ranks are not measured; profile a run with --workers", param_hint="--profile"
            )
    if environment is not None:
        with errors_in_file(options.scenario):
            _run_on_ranks(environment, scenario, options, out, partial(_run_as_server, scenario, options, trackers, overwrite))
        return
    preload_workers(workers)  # before torch is imported here, so that workers import it in parallel
    mention_shared_cores(workers, "workers", options.quiet)
    with errors_in_file(options.scenario), claim_numbered_folder(scenario.name) if out is None else nullcontext(out) as folder:
        _run(scenario, options, folder, overwrite, trackers, workers=workers, profile=profile)


def _run_on_ranks(
    environment: RankEnvironment,
    scenario: Scenario,
    options: ScenarioOptions,
    out: Path | None,
    run: Callable[[bool, Path, ExecutionFactory], None],
) -> None:
    """Run the scenario on all ranks; `run` is a function of (whether a restart continues the run, run folder, factory)."""
    if out is None and environment.max_restarts:
        with silence_rank(environment):
            raise ScenarioError("--out: not set, expected the run folder: torchrun --max-restarts continues the run there")
    needs_checkpoints = scenario.checkpoint.every is not None or environment.max_restarts > 0
    folder_to_share = out.absolute().parent if out is not None and needs_checkpoints else None
    claimed = claim_numbered_folder(scenario.name) if out is None and not environment.rank else nullcontext(out or Path())
    with claimed as folder:
        run_as_rank(environment, scenario, options.data, partial(run, environment.n_restarts > 0, folder), folder_to_share)


def _run_as_server(
    scenario: Scenario,
    options: ScenarioOptions,
    trackers: Sequence[Tracker],
    overwrite: bool,
    continues: bool,
    out: Path,
    factory: ExecutionFactory,
) -> None:
    """Run the scenario as rank 0, or after a restart of the ranks continue from the latest checkpoint, if there is one."""
    from fedsgd.cli import terminal

    show_progress = terminal.show_progress(scenario, options.quiet)
    with mention_partial_ledger(out), print_warnings(options.quiet), show_progress as progress:
        from fedsgd.experiment.options import ExecutionConfig, RunCallbacks
        from fedsgd.experiment.rank_execution import run_on_ranks

        result = run_on_ranks(
            scenario,
            options.data,
            out,
            overwrite,
            progress.on_round,
            RunCallbacks(progress.on_engine, progress.on_state_budget, trackers),
            ExecutionConfig(),
            factory,
            continues,
        )
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
