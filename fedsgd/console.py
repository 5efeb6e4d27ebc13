"""What a person sees of a run in a terminal: progress while it goes, tables at its end. The only door to rich."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from fedsgd.experiment import Result, Round
    from fedsgd.scenario import Scenario

LINE_SECONDS = 5.0
"""Where there is no terminal, a line of progress at most this often."""


@contextmanager
def progress(scenario: Scenario, quiet: bool) -> Iterator[Callable[[Round], None] | None]:
    """What to call after each round, so that it is shown on standard error; None if nothing is to be shown."""
    console = Console(stderr=True)
    if quiet:
        yield None
    elif console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("", total=scenario.rounds, state="preparing")

            def show(record: Round) -> None:
                bar.update(task, completed=record.round, state=_state(record))

            yield show
    else:
        yield _lines(console, scenario)


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
    accuracy = "" if record.accuracy is None else f"acc {record.accuracy:.3f} · "
    ratio = record.dense_uplink_bytes / record.uplink_bytes
    return f"{accuracy}up {decimal(record.uplink_bytes)} ({ratio:.1f}×) · down {decimal(record.downlink_bytes)}"


def show_result(result: Result) -> None:
    """The closing tables, on standard output."""
    console = Console(highlight=False)
    console.print(_bytes_table(result.summary))
    for line in _lines_of(result):
        console.print(line, soft_wrap=True, markup=False)


def _bytes_table(summary: Mapping[str, Any]) -> Table:
    table = Table(
        title=escape(f"{summary['name']}: bytes on the wire"), title_justify="left", title_style="bold", box=SIMPLE_HEAD
    )
    for heading in ("", "uplink", "downlink"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    up, down = summary["uplink"], summary["downlink"]
    for part in ("header", "index", "value", "side"):
        table.add_row(part, *(f"{traffic[part]:,}" for traffic in (up, down)))
    table.add_section()
    table.add_row("total", f"{up['n_bytes']:,}", f"{down['n_bytes']:,}", style="bold")
    table.add_row("frames", f"{up['frames']:,}", f"{down['frames']:,}")
    table.add_row("as dense float32", f"{summary['dense_uplink_bytes']:,}", "")
    table.add_row("times less", f"{summary['uplink_ratio']:.1f}×", "", style="bold")
    return table


def _lines_of(result: Result) -> Iterator[str]:
    summary = result.summary
    up = summary["uplink"]
    yield (
        f"{summary['parameters']:,} parameters, {summary['clients']} clients, {summary['cohort']} a round, "
        f"{summary['rounds']} rounds, {summary['seconds']:.1f} s"
    )
    if up["kept"]:
        total, index = (8 * up[key] / up["kept"] for key in ("n_bytes", "index"))
        yield f"uplink: {total:.1f} bits per kept coordinate, {index:.2f} of them for its position"
    if summary["final_accuracy"] is not None:
        yield f"accuracy {summary['final_accuracy']:.4f}, best {summary['best_accuracy']:.4f}"
    if summary["target_accuracy"] is not None:
        reached = summary["rounds_to_target"]
        yield f"target {summary['target_accuracy']:g}: " + ("not reached" if reached is None else f"reached in round {reached}")
    yield f"params_sha256 {summary['params_sha256']}"
    yield f"ledger_sha256 {summary['ledger_sha256']}"
    if result.out is not None:
        yield f"written to {result.out}"
