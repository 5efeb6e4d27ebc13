"""Runs on the ranks of torch.distributed: what `fedsgd run` does in each process that torchrun has started."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsgd.cli.app import EXIT_FAILURE
from fedsgd.errors import DeploymentError, FedsgdError, ScenarioError

if TYPE_CHECKING:
    from fedsgd.runtime.ranks.group import RankGroup
    from fedsgd.scenario.scenario import Scenario
    from fedsgd.system.rank_environment import RankEnvironment


def find_ranks(workers: int, profile: bool = False) -> RankEnvironment | None:
    """Return this process's place among the ranks that a launcher has started; None if there is no other rank.

    Ranks other than rank 0 end without a message if the environment or the options are wrong: rank 0 prints it.

    Args:
        workers: value of `--workers`, which must be 1 with ranks.
        profile: value of `--profile`, which must be False with ranks.
    """
    from fedsgd.system.rank_environment import is_silent_rank, read_rank_environment

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # torch logs each connection that ends, and errors that are raised
    try:
        environment = read_rank_environment()
        if environment is not None and workers != 1:
            problem = f"got {workers}, expected no such option: the {environment.n_ranks} ranks of torchrun train the clients"
            raise click.BadParameter(problem, param_hint="--workers")
        if environment is not None and profile:
            raise click.BadParameter("the phases of ranks are not measured, those of --workers are", param_hint="--profile")
    except (ScenarioError, click.BadParameter):
        if is_silent_rank():
            sys.exit(EXIT_FAILURE)
        raise
    return environment


def run_as_rank(
    environment: RankEnvironment,
    load: Callable[[], tuple[Scenario, Path | None]],
    run: Callable[[Scenario, RankGroup], None],
) -> None:
    """Join the other ranks; run the scenario as rank 0, and train clients as any other rank.

    Args:
        environment: place of this process.
        load: function that returns the scenario, and the folder of data files, None for the folder that FEDSGD_DATA names.
        run: function that runs the scenario on the ranks.
    """
    from fedsgd.experiment.rank_execution import serve_rank
    from fedsgd.runtime.ranks.group import join_ranks

    try:
        with join_ranks(environment) as group:
            if environment.rank:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt ends rank 0, whose end ends this rank
                serve_rank(group, load)
            else:
                run(load()[0], group)
    except DeploymentError as error:
        if environment.rank:
            click.echo(f"fedsgd: {error}", err=True)
            sys.exit(EXIT_FAILURE)
        raise
    except FedsgdError:
        if environment.rank:  # rank 0 prints the error
            sys.exit(EXIT_FAILURE)
        raise


def refuse_ranks(command: str) -> None:
    """Raise a ScenarioError in a process of several that a launcher has started: each would do the whole work of a command.

    Args:
        command: name of the command.
    """
    from fedsgd.system.rank_environment import read_rank_environment

    environment = read_rank_environment()
    if environment is not None:
        problem = f"got {environment.n_ranks} ranks of torchrun, which `fedsgd {command}` would run {environment.n_ranks} times"
        raise ScenarioError(f"WORLD_SIZE: {problem}; `fedsgd run` and `fedsgd resume` use ranks")
