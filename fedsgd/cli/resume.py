"""`fedsgd resume`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.app import main
from fedsgd.cli.completers import complete_run
from fedsgd.cli.option_groups import workers_option
from fedsgd.cli.options import UserPath, plugin_option
from fedsgd.cli.ranks import find_ranks, refuse_ranks, run_as_rank
from fedsgd.cli.run_folders import mention_partial_ledger, mention_resumption, mention_shared_cores
from fedsgd.cli.streams import echo_json
from fedsgd.cli.tracking import print_warnings, restore_trackers, tracker_options, with_trackers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedsgd.experiment.execution import ExecutionFactory
    from fedsgd.runtime.ranks.group import RankGroup
    from fedsgd.scenario.scenario import Scenario
    from fedsgd.trackers import Tracker

EXAMPLES = """Examples:

\b
    fedsgd run scenarios/quickstart.toml --checkpoint-every 5 --out runs/a
    fedsgd resume runs/a
    fedsgd resume runs/a --rounds 40
"""


@main.command("resume", epilog=EXAMPLES, short_help="Continue a run from its latest checkpoint.")
@click.argument("run_dir", type=UserPath(), shell_complete=complete_run)
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", help="Continue a finished run to N rounds in all.")
@workers_option
@click.option("--data", type=UserPath(), help="Folder of data files.  [default: the folder of the run]")
@tracker_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@plugin_option
def resume_command(
    run_dir: Path, rounds: int | None, workers: int, data: Path | None, as_json: bool, quiet: bool, **tracking: Any
) -> None:
    """Continue the run in RUN_DIR from its latest checkpoint, as if it had never stopped.

    Checkpoints are written with [checkpoint] every, with --checkpoint-every of `fedsgd run`, and when Ctrl-C ends a run.
    Parameters, ledger and summary are those of a run that was never interrupted, times apart. A run of `fedsgd flower`
    continues as a deployment with its nodes and options. In processes that torchrun starts, all ranks continue the run.

    The trackers of the run are used again, and their records continue; --track adds a tracker, --network replaces the networks.
    """
    from fedsgd.system.forkserver import preload_workers

    environment = find_ranks(workers)
    preload_workers(workers)  # before torch is imported here, so that workers import it in parallel
    from fedsgd.experiment.run_checkpoints import read_deployment, search_modules_of_run

    click.get_current_context().with_resource(search_modules_of_run(run_dir))
    is_deployment = read_deployment(run_dir) is not None
    if environment is not None and not is_deployment:
        resume_as_server = partial(_resume_as_server, run_dir, rounds, data, tracking, as_json, quiet)
        run_as_rank(environment, partial(_load_on_rank, run_dir, rounds, data), resume_as_server)
        return
    trackers = restore_trackers(run_dir, **tracking)
    if is_deployment:
        refuse_ranks("resume")
        if workers != 1:
            problem = f"got {workers}, expected no such option: the nodes of the deployment in {run_dir} train the clients"
            raise click.BadParameter(problem, param_hint="--workers")
        _resume_deployment(run_dir, rounds, data, trackers, as_json, quiet)
        return
    mention_shared_cores(workers, "workers", quiet)
    _resume(run_dir, rounds, data, workers, trackers, as_json, quiet)


def _load_on_rank(run_dir: Path, rounds: int | None, data: Path | None) -> tuple[Scenario, Path | None]:
    """Return the scenario of the rest of the run, and the folder of its data."""
    from fedsgd.experiment.resume import plan_resumption

    point, scenario = plan_resumption(run_dir, rounds)
    return scenario, data or (None if point.run["data"] is None else Path(point.run["data"]))


def _resume_as_server(
    run_dir: Path,
    rounds: int | None,
    data: Path | None,
    tracking: dict[str, Any],
    as_json: bool,
    quiet: bool,
    _scenario: Scenario,
    group: RankGroup,
) -> None:
    """Continue the run as rank 0."""
    from fedsgd.experiment.rank_execution import RankExecution

    trackers = restore_trackers(run_dir, **tracking)
    factory = partial(RankExecution, group=group, shared_folder=run_dir.absolute())
    _resume(run_dir, rounds, data, 1, trackers, as_json, quiet, factory)


def _resume(
    run_dir: Path,
    rounds: int | None,
    data: Path | None,
    workers: int,
    trackers: Sequence[Tracker],
    as_json: bool,
    quiet: bool,
    factory: ExecutionFactory | None = None,
) -> None:
    from fedsgd.cli import terminal
    from fedsgd.experiment.options import ExecutionConfig, RunCallbacks
    from fedsgd.experiment.resume import continue_run, read_scenario
    from fedsgd.scenario.scenario import PythonObjects

    show_progress = terminal.show_progress(read_scenario(run_dir, rounds), quiet)
    with mention_partial_ledger(run_dir), print_warnings(quiet), show_progress as progress:
        callbacks = RunCallbacks(progress.on_engine, progress.on_state_budget, trackers)
        config = ExecutionConfig(workers=workers)
        result = continue_run(run_dir, rounds, data, PythonObjects(), progress.on_round, callbacks, config, factory)
    if as_json:
        echo_json(json.dumps(result.summary, indent=2))
    else:
        terminal.print_result(result)


def _resume_deployment(
    run_dir: Path, rounds: int | None, data: Path | None, trackers: Sequence[Tracker], as_json: bool, quiet: bool
) -> None:
    from fedsgd.cli import terminal
    from fedsgd.experiment.resume import read_scenario
    from fedsgd.flower.deployment import resume_deployment
    from fedsgd.trackers import RunFinished

    scenario = read_scenario(run_dir, rounds)
    with (
        mention_partial_ledger(run_dir),
        mention_resumption(run_dir),
        print_warnings(quiet),
        terminal.show_deployment_progress(scenario, quiet) as progress,
        with_trackers(trackers, scenario, run_dir, progress) as (callbacks, tracker_group),
    ):
        result = resume_deployment(run_dir, rounds=rounds, data=data, callbacks=callbacks)
        tracker_group.end(RunFinished(result.summary))
    if as_json:
        echo_json(json.dumps(result.summary, indent=2))
    else:
        terminal.print_result(result)
