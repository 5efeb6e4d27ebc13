"""What a person sees of a sweep: a bar or a line for each cell while it goes, a table at its end."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedsgd.sizes import size_text

if TYPE_CHECKING:
    from fedsgd.record import Round
    from fedsgd.sweeps import Cell, Sweep


class SweepShown(NamedTuple):
    """What `fedsgd.sweep` is to call so that a sweep is shown on standard error; None if nothing is to be shown."""

    on_begin: Callable[[Sweep], None] | None = None
    on_round: Callable[[Cell, Round], None] | None = None
    on_cell: Callable[[Sweep, Cell, float], None] | None = None


@contextmanager
def sweep_progress(quiet: bool) -> Iterator[SweepShown]:
    """Shows how far a sweep is."""
    console = Console(stderr=True)

    def begin(sweep: Sweep) -> None:
        done = _done(sweep)
        text = f"{len(sweep.cells)} cells" + (f", {done} of them done already" if done else "")
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    def show(sweep: Sweep, cell: Cell, seconds: float) -> None:
        text = f"{_done(sweep)} of {len(sweep.cells)}: {cell}: {_ending(sweep, cell, seconds)}"
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    if quiet:
        yield SweepShown()
    elif console.is_terminal:
        with _bar(console) as bar:
            yield _shown_by(bar, begin)
    else:
        yield SweepShown(begin, None, show)


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("cell {task.fields[done]}/{task.total:.0f}"),
        BarColumn(bar_width=8),
        TextColumn("{task.fields[state]}", markup=False),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        speed_estimate_period=1e9,  # cells take minutes
    )


def _shown_by(bar: Progress, begin: Callable[[Sweep], None]) -> SweepShown:
    task = bar.add_task("", total=None, visible=False, done=0, state="")
    done = 0

    def begun(sweep: Sweep) -> None:
        nonlocal done
        begin(sweep)
        done = _done(sweep)
        bar.reset(task, total=len(sweep.cells), completed=done, visible=True, done=done, state="preparing")

    def during(cell: Cell, record: Round) -> None:
        rounds = f"round {record.round}" + ("" if record.accuracy is None else f", accuracy {record.accuracy:.3f}")
        bar.update(task, state=f"{cell}: {rounds}")

    def ended(sweep: Sweep, cell: Cell, seconds: float) -> None:
        nonlocal done
        done = _done(sweep)
        bar.update(task, completed=done, done=done, state=f"{cell}: {_ending(sweep, cell, seconds)}")

    return SweepShown(begun, during, ended)


def _done(sweep: Sweep) -> int:
    return sum(cell.state != "waiting" for cell in sweep.cells)


def _ending(sweep: Sweep, cell: Cell, seconds: float) -> str:
    """Return a cell's outcome: "accuracy 0.9633, up 1.2 MB, down 3.4 MB, 12.3 s"."""
    summary = sweep.summary(cell)
    if summary is None:
        return _failure(cell)
    accuracy = summary["final_accuracy"]
    measured = "" if accuracy is None else f"accuracy {accuracy:.4f}, "
    warning = f", diverged: {summary['diverged']}" if summary.get("diverged") else ""
    n_bytes = f"up {size_text(summary['uplink_bytes'])}, down {size_text(summary['downlink_bytes'])}"
    return f"{measured}{n_bytes}, {seconds:.1f} s{warning}"


def _failure(cell: Cell) -> str:
    return f"{'diverged' if cell.diverged else 'failed'}: {cell.error}"


def show_sweep(sweep: Sweep) -> None:
    """The closing table and what failed, on standard output."""
    console = Console(highlight=False)
    table = Table(title=escape(f"{sweep.scenario}: sweep"), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("")
    for heading in ("seeds", "failed", "best\naccuracy", "up", "down"):
        table.add_column(heading, justify="right", no_wrap=True)
    groups: dict[str, list[Cell]] = {}
    for cell in sweep.cells:
        groups.setdefault(cell.group, []).append(cell)
    for group, cells in groups.items():
        table.add_row(escape(group), *_figures(sweep, cells))
    console.print(table)
    lines = [f"{cell}: {_failure(cell)}" for cell in sweep.cells if cell.state == "failed"]
    summaries = ((cell, sweep.summary(cell) or {}) for cell in sweep.cells)
    labels: dict[str, dict[str, None]] = {}
    for cell, summary in summaries:
        lines += [f"{cell}: diverged: {summary['diverged']}"] if summary.get("diverged") else []
        for text in summary.get("warnings", ()):
            labels.setdefault(text, {})[cell.label] = None
    lines += [f"warning: {', '.join(names)}: {text}" for text, names in labels.items()]
    for line in (*lines, f"written to {sweep.out}", f"compare them: fedsgd compare {sweep.out}"):
        console.print(line, soft_wrap=True, markup=False)


def _figures(sweep: Sweep, cells: list[Cell]) -> tuple[str, ...]:
    """(seeds that finished, that failed, medians over those that finished: best accuracy, bytes up and down)."""
    summaries = [summary for summary in map(sweep.summary, cells) if summary is not None]
    reached = [summary["best_accuracy"] for summary in summaries if summary["best_accuracy"] is not None]
    failed = sum(cell.state == "failed" for cell in cells)
    return (
        str(len(summaries)),
        str(failed) if failed else "",
        f"{statistics.median(reached):.4f}" if reached else "",
        *(_median_size(summaries, link) for link in ("uplink", "downlink")),
    )


def _median_size(summaries: Sequence[Mapping[str, Any]], link: str) -> str:
    return size_text(round(statistics.median(summary[f"{link}_bytes"] for summary in summaries))) if summaries else ""
