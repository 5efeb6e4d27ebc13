"""`fedsgd flower`."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import click

from fedsgd.cli.base import Given, ledger_is_told_of, main, numbered_folder, of_a_scenario


@main.command()
@of_a_scenario
@click.option(
    "--nodes", type=click.IntRange(min=1), required=True, metavar="N", help="SuperNodes that clients are spread over."
)
@click.option("--tls", is_flag=True, help="Let nodes and server talk by TLS, with certificates made on the spot.")
@click.option("--measure-socket", is_flag=True, help="Count every byte on each node's connections, by a proxy before it.")
@click.option("--keep-logs", type=click.Path(path_type=Path), metavar="DIR", help="Write the processes' logs there.")
@click.option("--cold", is_flag=True, help="Start every ClientApp from nothing, as Flower does; otherwise it is forked, ready.")
@click.option(
    "--start-seconds", type=click.FloatRange(min=1), default=120.0, show_default=True, help="For all nodes to be ready."
)
@click.option("--round-seconds", type=click.FloatRange(min=1), default=600.0, show_default=True, help="For a node's answer.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder to write. [default: runs/NAME-N, the next free N]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in the run folder.")
def flower(
    given: Given,
    nodes: int,
    tls: bool,
    measure_socket: bool,
    keep_logs: Path | None,
    cold: bool,
    start_seconds: float,
    round_seconds: float,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Run SCENARIO (a TOML file) as a real deployment: Flower's SuperLink and N SuperNodes as processes of this machine.

    Client c lives at node c mod N. The results, the run folder and its digests are those of `fedsgd run`; transport.parquet is
    added, with what became of the frames on their way: frames, Flower's messages and, if they were counted, bytes on sockets.

    A node that dies, or does not answer in time, ends the run, or with [participation] on_failure = "continue" counts as
    clients whose replies never arrived. Everything that was started is stopped, however the run ends.
    """
    from fedsgd import console
    from fedsgd.scenario import in_file

    scenario = given.load()
    clients = scenario.data.n_clients
    if clients is not None and nodes > clients:
        raise click.BadParameter(f"got {nodes}, but there are {clients} clients to be spread over them", param_hint="--nodes")
    with in_file(given.scenario), numbered_folder(scenario.name) if out is None else nullcontext(out) as folder:
        with ledger_is_told_of(folder), console.deployment_progress(scenario, given.quiet) as watched:
            from fedsgd.deployment import deploy

            deployed = deploy(
                scenario,
                folder,
                nodes=nodes,
                tls=tls,
                measure_socket=measure_socket,
                warm=not cold,
                overwrite=overwrite,
                data=given.data,
                logs=keep_logs,
                start_seconds=start_seconds,
                round_seconds=round_seconds,
                watched=watched,
            )
        if given.as_json:
            click.echo(json.dumps(deployed.summary, indent=2))
        else:
            console.show_result(deployed)
