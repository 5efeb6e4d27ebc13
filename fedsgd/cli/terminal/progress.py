"""Progress on standard error while a run goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from fedsgd.config.quantities import format_bytes, format_ratio

if TYPE_CHECKING:
    from fedsgd.experiment.state_budget import StateBudget
    from fedsgd.federation.round_record import RoundRecord
    from fedsgd.flower.deployment import DeploymentCallbacks
    from fedsgd.scenario.scenario import Scenario
    from fedsgd.training.selection import EngineChoice

LINE_SECONDS = 5.0
"""Where there is no terminal, a line of progress at most this often."""


class RunCallbacks(NamedTuple):
    """What to call so that a run is shown on standard error; None if nothing is to be shown."""

    on_engine: Callable[[EngineChoice | str], None] | None = None
    on_state_budget: Callable[[StateBudget], None] | None = None
    on_round: Callable[[RoundRecord], None] | None = None
    on_status: Callable[[str], None] | None = None
    on_trouble: Callable[[str], None] | None = None


@contextmanager
def show_progress(scenario: Scenario, quiet: bool) -> Iterator[RunCallbacks]:
    """Shows how far a run is."""
    console = Console(stderr=True)

    def print_line(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    def print_engine(engine: EngineChoice | str) -> None:
        print_line(f"engine: {engine}")

    def print_state_budget(state_budget: StateBudget) -> None:
        print_line(str(state_budget))

    if quiet:
        yield RunCallbacks()
    elif console.is_terminal:
        with _create_bar(console) as bar:
            task = bar.add_task("", total=scenario.rounds, state="preparing")

            def update_bar(record: RoundRecord) -> None:
                bar.update(task, completed=record.round, state=_describe_round(record))

            def set_state(state: str) -> None:
                bar.update(task, state=state)

            yield RunCallbacks(print_engine, print_state_budget, update_bar, set_state, print_line)
    else:
        yield RunCallbacks(
            print_engine,
            print_state_budget,
            _make_line_printer(console, scenario),
            lambda what: print_line(f"{scenario.name}: {what}"),
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
    shown, spent = time.monotonic(), 0.0

    def print_round(record: RoundRecord) -> None:
        nonlocal shown, spent
        spent += record.seconds
        if time.monotonic() - shown >= LINE_SECONDS:
            shown = time.monotonic()
            left = spent / record.round * (scenario.rounds - record.round)
            line = (
                f"{scenario.name}: round {record.round}/{scenario.rounds}, {_describe_round(record)}, about {left:.0f} s left"
            )
            console.print(line, highlight=False, soft_wrap=True, markup=False)

    return print_round


def _describe_round(record: RoundRecord) -> str:
    """Return "acc 0.967 · up 101 kB, 76× · both ways 1.27 MB, 12.1×": bytes so far, and their compression ratio."""
    accuracy = "" if record.accuracy is None else f"acc {record.accuracy:.3f} · "
    up, both = record.uplink_bytes, record.uplink_bytes + record.downlink_bytes
    ratios = record.compression_ratios
    uplink = _format_bytes_and_ratio(up, ratios["uplink_ratio"])
    return f"{accuracy}up {uplink} · both ways {_format_bytes_and_ratio(both, ratios['bidirectional_ratio'])}"


def _format_bytes_and_ratio(n_bytes: int, ratio: float | None) -> str:
    return ", ".join(filter(None, (format_bytes(n_bytes), format_ratio(ratio))))


@contextmanager
def show_deployment_progress(scenario: Scenario, quiet: bool) -> Iterator[DeploymentCallbacks]:
    """Shows how far a deployment is."""
    from fedsgd.flower.deployment import DeploymentCallbacks

    with show_progress(scenario, quiet) as shown:
        known = {"on_status", "on_trouble", "on_engine", "on_round"}
        yield DeploymentCallbacks(
            **{name: call for name, call in shown._asdict().items() if name in known and call is not None}
        )


@contextmanager
def spinner(text: str, quiet: bool) -> Iterator[None]:
    """A sign of life on standard error, in a terminal, while something takes its time."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
    else:
        with console.status(text):
            yield
