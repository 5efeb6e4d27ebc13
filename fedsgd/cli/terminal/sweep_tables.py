"""Progress of a sweep, as a bar or as a line for each cell, and the table of its results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import progress
from rich.console import Console

from fedsgd.cli.terminal.column_table import CHOOSE, ColumnTable, create_console, print_lines, print_tables
from fedsgd.cli.terminal.comparison_tables import build_ratio_tables
from fedsgd.config.quantities import format_bytes, format_metric
from fedsgd.config.text_columns import TextColumn, check_column_names, select_columns

if TYPE_CHECKING:
    from fedsgd.analysis.comparison import Comparison
    from fedsgd.federation.round_record import RoundRecord
    from fedsgd.scenario.target import Criterion
    from fedsgd.sweeps import Cell, Sweep
    from fedsgd.sweeps.options import SweepCallbacks


SWEEP_COLUMNS = (
    *(("cell", "", 0), ("seeds", "seeds", 4), ("failed", "failed", 5), ("best", "best", 0)),
    *(("up", "up", 1), ("down", "down", 2)),
)
"""Name, heading and rank of each column; the heading of "best" names the metric."""


@contextmanager
def show_sweep_progress(quiet: bool) -> Iterator[SweepCallbacks]:
    """Show the progress of a sweep: a bar in a terminal, otherwise lines."""
    from fedsgd.sweeps.options import SweepCallbacks

    console = Console(stderr=True)

    def print_start(sweep: Sweep) -> None:
        n_finished = _count_finished(sweep)
        text = f"{len(sweep.cells)} cell{'s' * (len(sweep.cells) != 1)}" + (
            f", {n_finished} of them finished before" if n_finished else ""
        )
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


def _create_bar(console: Console) -> progress.Progress:
    return progress.Progress(
        progress.SpinnerColumn(),
        progress.TextColumn("cell {task.fields[n_finished]}/{task.total:.0f}"),
        progress.BarColumn(bar_width=8),
        progress.TextColumn("{task.fields[state]}", markup=False),
        progress.TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        speed_estimate_period=1e9,  # cells take minutes
    )


def _make_bar_callbacks(bar: progress.Progress, print_start: Callable[[Sweep], None]) -> SweepCallbacks:
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
    """Return a cell's outcome: "accuracy 0.9633, up 1.2 MB, down 3.4 MB, 12.3 s", with the metric of its target."""
    summary = sweep.read_summary(cell)
    if summary is None:
        return _describe_failure(cell)
    metric = _get_best(summary)["metric"]
    value = summary["final_accuracy"] if metric == "accuracy" else summary["final_metrics"][metric]
    metric_text = "" if value is None else f"{metric} {format_metric(value)}, "
    warning = f", diverged: {summary['diverged']}" if summary.get("diverged") else ""
    n_bytes = f"up {format_bytes(summary['uplink_bytes'])}, down {format_bytes(summary['downlink_bytes'])}"
    return f"{metric_text}{n_bytes}, {seconds:.1f} s{warning}"


def _get_best(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return metric, direction and best value of a run; earlier releases have the best accuracy only."""
    return summary.get("best") or {"metric": "accuracy", "direction": "above", "value": summary["best_accuracy"]}


def _describe_failure(cell: Cell) -> str:
    return f"{'diverged' if cell.diverged else 'failed'}: {cell.error}"


def check_sweep_columns(names: Sequence[str]) -> None:
    """Raise ScenarioError unless all names are columns of the table of results."""
    check_column_names(names, (name for name, _, _ in SWEEP_COLUMNS))


def print_sweep(sweep: Sweep, comparison: Comparison | None, column_names: Sequence[str] = ()) -> None:
    """Print the table of results, and lines about cells that failed, diverged or have warnings.

    Args:
        sweep: the sweep.
        comparison: comparison of its methods; with several methods and enough seeds, a table of ratios follows.
        column_names: names and order of the columns; empty for all.
    """
    from fedsgd.analysis.columns import TableConfig

    console = create_console()
    columns = select_columns(build_sweep_columns(sweep), column_names)
    ratios = [] if comparison is None else build_ratio_tables(comparison, TableConfig())
    print_tables(console, [ColumnTable(columns, f"{sweep.scenario}: sweep", hint=CHOOSE), *ratios])
    has_several_seeds = len({cell.seed for cell in sweep.cells}) > 1
    lines = ["medians over the finished seeds of each row"] if has_several_seeds else []
    lines += [f"{cell}: {_describe_failure(cell)}" for cell in sweep.cells if cell.state == "failed"]
    lines += [f"{cell}: not run" for cell in sweep.cells if cell.state == "waiting"]
    summaries = ((cell, sweep.read_summary(cell) or {}) for cell in sweep.cells)
    labels_by_warning: dict[str, dict[str, None]] = {}
    for cell, summary in summaries:
        lines += [f"{cell}: diverged: {summary['diverged']}"] if summary.get("diverged") else []
        for text in summary.get("warnings", ()):
            labels_by_warning.setdefault(text, {})[cell.label] = None
    lines += [f"warning: {', '.join(names)}: {text}" for text, names in labels_by_warning.items()]
    lines += [] if comparison is None else _describe_comparison(comparison)
    print_lines(console, (*lines, f"written to {sweep.out}", f"to compare the methods: fedsgd compare {sweep.out}"))


def _describe_comparison(comparison: Comparison) -> Iterator[str]:
    """Yield the best tuned values, lines about edges and the cost of tuning, and remarks on intervals."""
    from fedsgd.analysis.columns import collect_tuning_notes, describe_end, format_label
    from fedsgd.analysis.ratio_columns import collect_statistics_notes, has_intervals

    best = [format_label(row) for row in comparison.rows if row.tuned]
    if best:
        yield f"best tuned values {describe_end(comparison)}: {'; '.join(best)}"
    yield from collect_tuning_notes(comparison)
    if has_intervals(comparison):
        yield from collect_statistics_notes(comparison, "mean")


def build_sweep_columns(sweep: Sweep) -> list[TextColumn]:
    """Return the columns of the table of results, with a row for each method or value of the grid."""
    groups: dict[str, list[Cell]] = {}
    for cell in sweep.cells:
        groups.setdefault(cell.group, []).append(cell)
    criterion = _find_criterion(sweep)
    rows = [(group, *_format_group(sweep, cells, criterion)) for group, cells in groups.items()]
    labels, *figures = zip(*rows, strict=True)
    columns = [TextColumn("cell", "", labels, align="left", shorten="distinct")]
    for (name, heading, rank), cells in zip(SWEEP_COLUMNS[1:], figures, strict=True):
        columns.append(TextColumn(name, criterion.best_name if name == "best" else heading, cells, rank))
    return columns


def _find_criterion(sweep: Sweep) -> Criterion:
    """Return the criterion of the first finished cell, that of its target if there is one."""
    from fedsgd.scenario.target import Criterion

    summary = next(filter(None, map(sweep.read_summary, sweep.cells)), None)
    best = {} if summary is None else _get_best(summary)
    return Criterion(best["metric"], best["direction"]) if best else Criterion()


def _format_group(sweep: Sweep, cells: list[Cell], criterion: Criterion) -> tuple[str, ...]:
    """Return the numbers of finished and failed seeds, and medians over finished seeds: best value, bytes up and down."""
    summaries = [summary for summary in map(sweep.read_summary, cells) if summary is not None]
    bests = [best for best in map(_get_best, summaries) if best["metric"] == criterion.metric]
    values = [best["value"] for best in bests if best["value"] is not None]
    n_failed = sum(cell.state == "failed" for cell in cells)
    return (
        str(len(summaries)),
        str(n_failed) if n_failed else "",
        format_metric(statistics.median(values)) if values else "",
        *(_format_median_bytes(summaries, link) for link in ("uplink", "downlink")),
    )


def _format_median_bytes(summaries: Sequence[Mapping[str, Any]], link: str) -> str:
    return format_bytes(round(statistics.median(summary[f"{link}_bytes"] for summary in summaries))) if summaries else ""
