"""Progress of a run on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from fedsgd.experiment.state_budget import StateBudget
    from fedsgd.federation.round_record import RoundRecord
    from fedsgd.flower.deployment import DeploymentCallbacks
    from fedsgd.scenario.scenario import Scenario
    from fedsgd.training.selection import EngineChoice

LINE_SECONDS = 5.0
"""Minimum number of seconds between two lines of progress, if standard error is not a terminal."""


class ProgressCallbacks(NamedTuple):
    """Functions that show a run on standard error, each None if nothing is shown.

    `on_status` and `on_trouble` are for deployments, as in `DeploymentCallbacks`.
    """

    on_engine: Callable[[EngineChoice | str], None] | None = None
    on_state_budget: Callable[[StateBudget], None] | None = None
    on_round: Callable[[RoundRecord], None] | None = None
    on_status: Callable[[str], None] | None = None
    on_trouble: Callable[[str], None] | None = None


@contextmanager
def show_progress(scenario: Scenario, quiet: bool) -> Iterator[ProgressCallbacks]:
    """Show the progress of a run: a bar in a terminal, otherwise lines."""
    console = Console(stderr=True)

    def print_line(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    def print_engine(engine: EngineChoice | str) -> None:
        print_line(f"engine: {engine}")

    def print_state_budget(state_budget: StateBudget) -> None:
        print_line(str(state_budget))

    if quiet:
        yield ProgressCallbacks()
    elif console.is_terminal:
        with _create_bar(console) as bar:
            task = bar.add_task("", total=scenario.rounds, state="preparing")

            def update_bar(record: RoundRecord) -> None:
                bar.update(task, completed=record.round, state=record.describe())

            def set_status(status: str) -> None:
                bar.update(task, state=status)

            yield ProgressCallbacks(print_engine, print_state_budget, update_bar, set_status, print_line)
    else:
        yield ProgressCallbacks(
            print_engine,
            print_state_budget,
            _make_line_printer(console, scenario),
            lambda status: print_line(f"{scenario.name}: {status}"),
            print_line,
        )


def _create_bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(bar_width=8),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
    )


def _make_line_printer(console: Console, scenario: Scenario) -> Callable[[RoundRecord], None]:
    last_line_time, elapsed, n_rounds = time.monotonic(), 0.0, 0

    def print_round(record: RoundRecord) -> None:
        nonlocal last_line_time, elapsed, n_rounds
        elapsed, n_rounds = elapsed + record.seconds, n_rounds + 1  # a resumed run does not begin with round 1
        if time.monotonic() - last_line_time >= LINE_SECONDS:
            last_line_time = time.monotonic()
            remaining = elapsed / n_rounds * (scenario.rounds - record.round)
            rounds = f"round {record.round}/{scenario.rounds}"
            line = f"{scenario.name}: {rounds}, {record.describe()}, about {remaining:.0f} s left"
            console.print(line, highlight=False, soft_wrap=True, markup=False)

    return print_round


@contextmanager
def show_deployment_progress(scenario: Scenario, quiet: bool) -> Iterator[DeploymentCallbacks]:
    """Show the progress of a deployment."""
    from fedsgd.flower.deployment import DeploymentCallbacks

    with show_progress(scenario, quiet) as callbacks:
        names = {"on_status", "on_trouble", "on_engine", "on_round"}
        yield DeploymentCallbacks(
            **{name: call for name, call in callbacks._asdict().items() if name in names and call is not None}
        )


@contextmanager
def spinner(text: str, quiet: bool) -> Iterator[None]:
    """Show a spinner on standard error, if it is a terminal."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
    else:
        with console.status(text):
            yield
