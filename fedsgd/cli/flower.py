"""`fedsgd flower`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.app import main
from fedsgd.cli.option_groups import checkpoint_option
from fedsgd.cli.options import (
    FiniteFloat,
    ScenarioOptions,
    UserPath,
    scenario_options,
)
from fedsgd.cli.run_folders import claim_numbered_folder, mention_partial_ledger, mention_resumption
from fedsgd.cli.streams import echo_json
from fedsgd.cli.tracking import print_warnings, tracker_options, trackers_from_options, with_trackers

if TYPE_CHECKING:
    from fedsgd.scenario.scenario import Scenario
    from fedsgd.trackers import Tracker

EXAMPLES = """Examples:

\b
    fedsgd flower scenarios/quickstart.toml --nodes 4 --measure-socket
"""


@main.command("flower", epilog=EXAMPLES, short_help="Run a scenario as a deployment of Flower.")
@scenario_options
@checkpoint_option
@click.option(
    "--nodes", type=click.IntRange(min=1), required=True, metavar="N", help="Number of SuperNodes that share the clients."
)
@click.option("--tls", is_flag=True, help="Connect nodes and server by TLS, with new certificates for this run.")
@click.option("--measure-socket", is_flag=True, help="Count all bytes on each node's connections with a proxy.")
@click.option("--keep-logs", type=UserPath(), metavar="DIR", help="Folder for the logs of the processes.")
@click.option("--cold", is_flag=True, help="Start a new Python process for every app, as Flower does, instead of a fork.")
@click.option(
    "--start-seconds",
    type=FiniteFloat(min=1),
    default=120.0,
    show_default=True,
    help="Time limit for the start of the server, and again for the start of all nodes.",
)
@click.option("--round-seconds", type=FiniteFloat(min=1), default=600.0, show_default=True, help="Time limit of each reply.")
@click.option("--out", type=UserPath(), help="Run folder.  [default: runs/NAME-N, the next free N]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in the folder.")
@tracker_options
def flower_command(
    options: ScenarioOptions,
    nodes: int,
    keep_logs: Path | None,
    cold: bool,
    out: Path | None,
    overwrite: bool,
    track: tuple[str, ...],
    networks: str | None,
    **settings: Any,
) -> None:
    """Run SCENARIO (a TOML file) as a real deployment: Flower's SuperLink and N SuperNodes as processes of this machine.

    Node c mod N trains client c. Results, run folder and digests are the same as with `fedsgd run`. In addition,
    transport.parquet lists the bytes in frames, in Flower's messages and, with --measure-socket, on sockets.

    SCENARIO may name your own classes, "my_module:MyClass". A module next to SCENARIO or in the current folder is sent to the
    nodes in Flower's app; installed packages are not.

    If a node dies or does not reply in time, the run ends. With [participation] on_failure = "continue", the run continues and
    the node's clients count as dropouts. All processes are stopped at the end of the run, also after an error.

    With [checkpoint] every, a checkpoint is written after each round. `fedsgd resume` then continues a deployment that lost its
    server, its nodes or its launcher.
    """
    from fedsgd.scenario.scenario import errors_in_file

    scenario = options.load()
    trackers = trackers_from_options(track, networks)
    n_clients = scenario.data.n_clients
    if n_clients is not None and nodes > n_clients:
        raise click.BadParameter(f"got {nodes}, expected at most {n_clients}, the number of clients", param_hint="--nodes")
    settings |= {"use_fork_server": not cold, "logs": keep_logs}
    with errors_in_file(options.scenario), claim_numbered_folder(scenario.name) if out is None else nullcontext(out) as folder:
        _deploy(scenario, options, folder, nodes, trackers, overwrite, **settings)


def _deploy(
    scenario: Scenario,
    options: ScenarioOptions,
    out: Path,
    nodes: int,
    trackers: Sequence[Tracker],
    overwrite: bool,
    **execution: Any,
) -> None:
    from fedsgd.cli import terminal

    with (
        mention_partial_ledger(out),
        mention_resumption(out, time.time()),
        print_warnings(options.quiet),
        terminal.show_deployment_progress(scenario, options.quiet) as progress,
        with_trackers(trackers, scenario, out, progress) as (callbacks, tracker_group),
    ):
        from fedsgd.flower.deployment import DeploymentConfig, deploy
        from fedsgd.trackers import RunFinished

        result = deploy(
            scenario,
            out,
            nodes=nodes,
            data=options.data,
            overwrite=overwrite,
            execution=DeploymentConfig(**execution),
            callbacks=callbacks,
        )
        tracker_group.end(RunFinished(result.summary))
    if options.as_json:
        echo_json(json.dumps(result.summary, indent=2))
    else:
        terminal.print_result(result)
