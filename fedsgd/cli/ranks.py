"""Runs on the ranks of torch.distributed: what `fedsgd run` does in each process that torchrun has started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsgd.cli.app import EXIT_FAILURE
from fedsgd.errors import DeploymentError, FedsgdError, ScenarioError

if TYPE_CHECKING:
    from fedsgd.experiment.execution import ExecutionFactory
    from fedsgd.scenario.scenario import Scenario
    from fedsgd.system.rank_environment import RankEnvironment


def find_ranks(workers: int) -> RankEnvironment | None:
    """Return this process's place among the ranks that a launcher has started; None if there is no other rank.

    Ranks other than rank 0 end without a message if the environment or the options are wrong: rank 0 prints it.

    Args:
        workers: value of `--workers`, which must be 1 with ranks.
    """
    from fedsgd.system.rank_environment import is_silent_rank, read_rank_environment

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # torch logs each connection that ends, and errors that are raised
    try:
        environment = read_rank_environment()
        if environment is not None and workers != 1:
            problem = f"got {workers}, expected no such option: the {environment.n_ranks} ranks of torchrun train the clients"
            raise click.BadParameter(problem, param_hint="--workers")
    except (ScenarioError, click.BadParameter):
        if is_silent_rank():
            sys.exit(EXIT_FAILURE)
        raise
    return environment


@contextmanager
def silence_rank(environment: RankEnvironment | None) -> Iterator[None]:
    """End a rank other than rank 0 without a message after an error that rank 0 prints, too."""
    try:
        yield
    except (FedsgdError, click.ClickException):
        if environment is not None and environment.rank:
            sys.exit(EXIT_FAILURE)
        raise


def run_as_rank(
    environment: RankEnvironment,
    scenario: Scenario,
    data: Path | None,
    run: Callable[[ExecutionFactory], None],
    shared_folder: Path | None = None,
) -> None:
    """Join the other ranks; call `run` as rank 0, and train clients as any other rank.

    Args:
        environment: place of this process.
        scenario: scenario of the run.
        data: folder of data files, None for the folder that FEDSGD_DATA names.
        run: function that runs the scenario with an execution on all ranks.
        shared_folder: folder that all machines must see.
    """
    from fedsgd.experiment.rank_execution import RankExecution, serve_rank
    from fedsgd.runtime.ranks.group import join_ranks

    with join_ranks(environment) as group:
        if not environment.rank:
            run(partial(RankExecution, group=group, shared_folder=shared_folder))
            return
        try:
            serve_rank(group, scenario, data)
        except DeploymentError as error:
            reason = group.explain_lost_leader()
            if reason:
                click.echo(f"fedsgd: {reason} ({error})", err=True)
            sys.exit(EXIT_FAILURE)
        except FedsgdError:  # rank 0 prints it
            sys.exit(EXIT_FAILURE)
