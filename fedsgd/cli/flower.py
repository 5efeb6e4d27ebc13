"""`fedsgd flower`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.app import main
from fedsgd.cli.options import (
    FiniteFloat,
    ScenarioOptions,
    UserPath,
    claim_numbered_folder,
    mention_partial_ledger,
    scenario_options,
)
from fedsgd.cli.streams import echo_json
from fedsgd.cli.tracking import print_warnings, tracker_options, trackers_from_options, with_trackers
from fedsgd.trackers import RunFinished, Tracker

if TYPE_CHECKING:
    from fedsgd.scenario.scenario import Scenario


@main.command()
@scenario_options
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    required=True,
    metavar="N",
    help="SuperNodes that clients are spread over.",
)
@click.option("--tls", is_flag=True, help="Let nodes and server talk by TLS, with certificates made on the spot.")
@click.option("--measure-socket", is_flag=True, help="Count every byte on each node's connections, by a proxy before it.")
@click.option("--keep-logs", type=UserPath(), metavar="DIR", help="Write the processes' logs there.")
@click.option("--cold", is_flag=True, help="Start every ClientApp from nothing, as Flower does; otherwise it is forked, ready.")
@click.option("--start-seconds", type=FiniteFloat(min=1), default=120.0, show_default=True, help="For all nodes to be ready.")
@click.option("--round-seconds", type=FiniteFloat(min=1), default=600.0, show_default=True, help="For a node's answer.")
@click.option("--out", type=UserPath(), help="Run folder to write. [default: runs/NAME-N, the next free N]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in the run folder.")
@tracker_options
def flower(
    options: ScenarioOptions,
    nodes: int,
    keep_logs: Path | None,
    cold: bool,
    out: Path | None,
    track: tuple[str, ...],
    networks: str | None,
    **settings: Any,
) -> None:
    """Run SCENARIO (a TOML file) as a real deployment: Flower's SuperLink and N SuperNodes as processes of this machine.

    Client c lives at node c mod N. The results, the run folder and its digests are those of `fedsgd run`; transport.parquet is
    added, with what became of the frames on their way: frames, Flower's messages and, if they were counted, bytes on sockets.

    A node that dies, or does not answer in time, ends the run, or with [participation] on_failure = "continue" counts as
    clients whose replies never arrived. Everything that was started is stopped, however the run ends.
    """
    from fedsgd.scenario.scenario import errors_in_file

    scenario = options.load()
    trackers = trackers_from_options(track, networks)
    clients = scenario.data.n_clients
    if clients is not None and nodes > clients:
        raise click.BadParameter(f"got {nodes}, but there are {clients} clients to be spread over them", param_hint="--nodes")
    with errors_in_file(options.scenario), claim_numbered_folder(scenario.name) if out is None else nullcontext(out) as folder:
        _deploy(scenario, options, folder, nodes=nodes, warm=not cold, logs=keep_logs, trackers=trackers, **settings)


def _deploy(scenario: Scenario, options: ScenarioOptions, out: Path, trackers: Sequence[Tracker], **settings: Any) -> None:
    from fedsgd.cli import terminal

    with (
        mention_partial_ledger(out),
        print_warnings(options.quiet),
        terminal.show_deployment_progress(scenario, options.quiet) as shown,
        with_trackers(trackers, scenario, out, shown) as (watched, followed),
    ):
        from fedsgd.flower.deployment import deploy

        deployed = deploy(scenario, out, data=options.data, callbacks=watched, **settings)
        followed.end(RunFinished(deployed.summary))
    if options.as_json:
        echo_json(json.dumps(deployed.summary, indent=2))
    else:
        terminal.print_result(deployed)
