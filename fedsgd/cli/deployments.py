"""`fedsgd flower`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.base import Finite, Given, UserPath, ledger_is_told_of, main, numbered_folder, of_a_scenario
from fedsgd.cli.streams import echo_json
from fedsgd.cli.tracking import asked, deployment_followed, print_warnings, tracked
from fedsgd.track import Ended, Tracker

if TYPE_CHECKING:
    from fedsgd.scenario import Scenario


@main.command()
@of_a_scenario
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
@click.option("--start-seconds", type=Finite(min=1), default=120.0, show_default=True, help="For all nodes to be ready.")
@click.option("--round-seconds", type=Finite(min=1), default=600.0, show_default=True, help="For a node's answer.")
@click.option("--out", type=UserPath(), help="Run folder to write. [default: runs/NAME-N, the next free N]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in the run folder.")
@tracked
def flower(
    given: Given,
    nodes: int,
    keep_logs: Path | None,
    cold: bool,
    out: Path | None,
    track: tuple[str, ...],
    networks: str | None,
    **options: Any,
) -> None:
    """Run SCENARIO (a TOML file) as a real deployment: Flower's SuperLink and N SuperNodes as processes of this machine.

    Client c lives at node c mod N. The results, the run folder and its digests are those of `fedsgd run`; transport.parquet is
    added, with what became of the frames on their way: frames, Flower's messages and, if they were counted, bytes on sockets.

    A node that dies, or does not answer in time, ends the run, or with [participation] on_failure = "continue" counts as
    clients whose replies never arrived. Everything that was started is stopped, however the run ends.
    """
    from fedsgd.scenario import in_file

    scenario = given.load()
    trackers = asked(track, networks)
    clients = scenario.data.n_clients
    if clients is not None and nodes > clients:
        raise click.BadParameter(f"got {nodes}, but there are {clients} clients to be spread over them", param_hint="--nodes")
    with in_file(given.scenario), numbered_folder(scenario.name) if out is None else nullcontext(out) as folder:
        _deploy(scenario, given, folder, nodes=nodes, warm=not cold, logs=keep_logs, trackers=trackers, **options)


def _deploy(scenario: Scenario, given: Given, out: Path, trackers: Sequence[Tracker], **options: Any) -> None:
    from fedsgd import console

    with (
        ledger_is_told_of(out),
        print_warnings(given.quiet),
        console.deployment_progress(scenario, given.quiet) as shown,
        deployment_followed(trackers, scenario, out, shown) as (watched, followed),
    ):
        from fedsgd.deployment import deploy

        deployed = deploy(scenario, out, data=given.data, watched=watched, **options)
        followed.end(Ended(deployed.summary))
    if given.as_json:
        echo_json(json.dumps(deployed.summary, indent=2))
    else:
        console.show_result(deployed)
