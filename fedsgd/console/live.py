"""Progress on standard error while a run goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from fedsgd.sizes import size_text
from fedsgd.units import ratio_text

if TYPE_CHECKING:
    from fedsgd.deployment import Watched
    from fedsgd.engine import Chosen
    from fedsgd.record import Round
    from fedsgd.scenario import Scenario
    from fedsgd.state_plan import StatePlan

LINE_SECONDS = 5.0
"""Where there is no terminal, a line of progress at most this often."""


class Shown(NamedTuple):
    """What to call so that a run is shown on standard error; None if nothing is to be shown."""

    on_engine: Callable[[Chosen | str], None] | None = None
    on_states: Callable[[StatePlan], None] | None = None
    on_round: Callable[[Round], None] | None = None
    on_state: Callable[[str], None] | None = None
    on_trouble: Callable[[str], None] | None = None


@contextmanager
def progress(scenario: Scenario, quiet: bool) -> Iterator[Shown]:
    """Shows how far a run is."""
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    def chosen(engine: Chosen | str) -> None:
        say(f"engine: {engine}")

    def planned(states: StatePlan) -> None:
        say(str(states))

    if quiet:
        yield Shown()
    elif console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("", total=scenario.rounds, state="preparing")

            def show(record: Round) -> None:
                bar.update(task, completed=record.round, state=_state(record))

            def wait(what: str) -> None:
                bar.update(task, state=what)

            yield Shown(chosen, planned, show, wait, say)
    else:
        yield Shown(chosen, planned, _lines(console, scenario), lambda what: say(f"{scenario.name}: {what}"), say)


def _bar(console: Console) -> Progress:
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


def _lines(console: Console, scenario: Scenario) -> Callable[[Round], None]:
    shown, spent = time.monotonic(), 0.0

    def show(record: Round) -> None:
        nonlocal shown, spent
        spent += record.seconds
        if time.monotonic() - shown >= LINE_SECONDS:
            shown = time.monotonic()
            left = spent / record.round * (scenario.rounds - record.round)
            line = f"{scenario.name}: round {record.round}/{scenario.rounds}, {_state(record)}, about {left:.0f} s left"
            console.print(line, highlight=False, soft_wrap=True, markup=False)

    return show


def _state(record: Round) -> str:
    """Return "acc 0.967 · up 101 kB, 76× · both ways 1.27 MB, 12.1×": bytes so far, and their compression ratio."""
    accuracy = "" if record.accuracy is None else f"acc {record.accuracy:.3f} · "
    up, both = record.uplink_bytes, record.uplink_bytes + record.downlink_bytes
    ratios = record.compression_ratios
    return f"{accuracy}up {_amount(up, ratios['uplink_ratio'])} · both ways {_amount(both, ratios['bidirectional_ratio'])}"


def _amount(n_bytes: int, ratio: float | None) -> str:
    return ", ".join(filter(None, (size_text(n_bytes), ratio_text(ratio))))


@contextmanager
def deployment_progress(scenario: Scenario, quiet: bool) -> Iterator[Watched]:
    """Shows how far a deployment is."""
    from fedsgd.deployment import Watched

    with progress(scenario, quiet) as shown:
        known = {"on_state", "on_trouble", "on_engine", "on_round"}
        yield Watched(**{name: call for name, call in shown._asdict().items() if name in known and call is not None})


@contextmanager
def waiting(what: str, quiet: bool) -> Iterator[None]:
    """A sign of life on standard error, in a terminal, while something takes its time."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
    else:
        with console.status(what):
            yield
