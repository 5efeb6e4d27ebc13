"""Progress of a sweep, as a bar or as a line for each cell, and the table of its results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedsgd.config.quantities import format_bytes

if TYPE_CHECKING:
    from fedsgd.federation.round_record import RoundRecord
    from fedsgd.sweeps import Cell, Sweep
    from fedsgd.sweeps.options import SweepCallbacks


@contextmanager
def show_sweep_progress(quiet: bool) -> Iterator[SweepCallbacks]:
    """Show the progress of a sweep: a bar in a terminal, otherwise lines."""
    from fedsgd.sweeps.options import SweepCallbacks

    console = Console(stderr=True)

    def print_start(sweep: Sweep) -> None:
        n_finished = _count_finished(sweep)
        text = f"{len(sweep.cells)} cells" + (f", {n_finished} of them finished before" if n_finished else "")
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    def print_cell(sweep: Sweep, cell: Cell, seconds: float) -> None:
        text = f"{_count_finished(sweep)} of {len(sweep.cells)}: {cell}: {_describe_outcome(sweep, cell, seconds)}"
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    if quiet:
        yield SweepCallbacks()
    elif console.is_terminal:
        with _create_bar(console) as bar:
            yield _make_bar_callbacks(bar, print_start)
    else:
        yield SweepCallbacks(print_start, None, print_cell)


def _create_bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("cell {task.fields[n_finished]}/{task.total:.0f}"),
        BarColumn(bar_width=8),
        TextColumn("{task.fields[state]}", markup=False),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        speed_estimate_period=1e9,  # cells take minutes
    )


def _make_bar_callbacks(bar: Progress, print_start: Callable[[Sweep], None]) -> SweepCallbacks:
    from fedsgd.sweeps.options import SweepCallbacks

    task = bar.add_task("", total=None, visible=False, n_finished=0, state="")
    n_finished = 0

    def start_bar(sweep: Sweep) -> None:
        nonlocal n_finished
        print_start(sweep)
        n_finished = _count_finished(sweep)
        bar.reset(task, total=len(sweep.cells), completed=n_finished, visible=True, n_finished=n_finished, state="preparing")

    def show_round(cell: Cell, record: RoundRecord) -> None:
        rounds = f"round {record.round}" + ("" if record.accuracy is None else f", accuracy {record.accuracy:.3f}")
        bar.update(task, state=f"{cell}: {rounds}")

    def finish_cell(sweep: Sweep, cell: Cell, seconds: float) -> None:
        nonlocal n_finished
        n_finished = _count_finished(sweep)
        bar.update(
            task, completed=n_finished, n_finished=n_finished, state=f"{cell}: {_describe_outcome(sweep, cell, seconds)}"
        )

    return SweepCallbacks(start_bar, show_round, finish_cell)


def _count_finished(sweep: Sweep) -> int:
    return sum(cell.state != "waiting" for cell in sweep.cells)


def _describe_outcome(sweep: Sweep, cell: Cell, seconds: float) -> str:
    """Return a cell's outcome: "accuracy 0.9633, up 1.2 MB, down 3.4 MB, 12.3 s"."""
    summary = sweep.read_summary(cell)
    if summary is None:
        return _describe_failure(cell)
    accuracy = summary["final_accuracy"]
    accuracy_text = "" if accuracy is None else f"accuracy {accuracy:.4f}, "
    warning = f", diverged: {summary['diverged']}" if summary.get("diverged") else ""
    n_bytes = f"up {format_bytes(summary['uplink_bytes'])}, down {format_bytes(summary['downlink_bytes'])}"
    return f"{accuracy_text}{n_bytes}, {seconds:.1f} s{warning}"


def _describe_failure(cell: Cell) -> str:
    return f"{'diverged' if cell.diverged else 'failed'}: {cell.error}"


def print_sweep(sweep: Sweep) -> None:
    """Print the table of results, and lines about cells that failed, diverged or have warnings."""
    console = Console(highlight=False)
    table = Table(title=escape(f"{sweep.scenario}: sweep"), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("")
    for heading in ("seeds", "failed", "best\naccuracy", "up", "down"):
        table.add_column(heading, justify="right", no_wrap=True)
    groups: dict[str, list[Cell]] = {}
    for cell in sweep.cells:
        groups.setdefault(cell.group, []).append(cell)
    for group, cells in groups.items():
        table.add_row(escape(group), *_format_group(sweep, cells))
    console.print(table)
    lines = [f"{cell}: {_describe_failure(cell)}" for cell in sweep.cells if cell.state == "failed"]
    summaries = ((cell, sweep.read_summary(cell) or {}) for cell in sweep.cells)
    labels_by_warning: dict[str, dict[str, None]] = {}
    for cell, summary in summaries:
        lines += [f"{cell}: diverged: {summary['diverged']}"] if summary.get("diverged") else []
        for text in summary.get("warnings", ()):
            labels_by_warning.setdefault(text, {})[cell.label] = None
    lines += [f"warning: {', '.join(names)}: {text}" for text, names in labels_by_warning.items()]
    for line in (*lines, f"written to {sweep.out}", f"to compare the methods: fedsgd compare {sweep.out}"):
        console.print(line, soft_wrap=True, markup=False)


def _format_group(sweep: Sweep, cells: list[Cell]) -> tuple[str, ...]:
    """Return the numbers of finished and failed seeds, and medians over finished seeds: best accuracy, bytes up and down."""
    summaries = [summary for summary in map(sweep.read_summary, cells) if summary is not None]
    accuracies = [summary["best_accuracy"] for summary in summaries if summary["best_accuracy"] is not None]
    n_failed = sum(cell.state == "failed" for cell in cells)
    return (
        str(len(summaries)),
        str(n_failed) if n_failed else "",
        f"{statistics.median(accuracies):.4f}" if accuracies else "",
        *(_format_median_bytes(summaries, link) for link in ("uplink", "downlink")),
    )


def _format_median_bytes(summaries: Sequence[Mapping[str, Any]], link: str) -> str:
    return format_bytes(round(statistics.median(summary[f"{link}_bytes"] for summary in summaries))) if summaries else ""
