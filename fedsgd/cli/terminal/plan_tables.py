"""Tables of the plan of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fedsgd.cli.terminal.column_table import ColumnTable, create_console, print_lines, print_tables
from fedsgd.config.quantities import format_bytes, format_seconds
from fedsgd.config.text_columns import TextColumn

if TYPE_CHECKING:
    from fedsgd.experiment.planning.run_plan import MemoryPlan, RunPlan, TrafficPlan

UNKNOWN = "unknown"
"""Text for memory that the system does not report."""
LABEL_COLUMNS = {4: (0, 2), 5: (0,)}
"""Columns with labels, by the number of columns of a table."""


def print_plan(plan: RunPlan) -> None:
    """Print the tables and lines of a plan."""
    console = create_console()
    print_lines(console, [f"{plan.name}: plan of {_count(plan.rounds, 'round')}"], "bold")
    print_lines(console, _describe_run(plan))
    console.print()
    print_tables(console, [_build_traffic_table(plan), _build_space_table(plan)])
    print_lines(console, _describe_limits(plan))


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"


def _describe_run(plan: RunPlan) -> Iterator[str]:
    workers = "1 process" if plan.workers == 1 else f"{plan.workers} workers"
    yield f"{plan.parameters:,} parameters, {plan.clients:,} clients, {plan.cohort:,} a round, {workers}"
    yield f"calibrated: {_count(plan.calibrated_rounds, 'round')} in {format_seconds(plan.calibration_seconds)}"


def _build_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], last_is_total: bool) -> ColumnTable:
    columns = [
        TextColumn(heading, heading, cells, 0, "left" if index in LABEL_COLUMNS[len(headings)] else "right")
        for index, (heading, cells) in enumerate(zip(headings, zip(*rows, strict=True), strict=True))
    ]
    totals = frozenset({len(rows) - 1}) if last_is_total else frozenset()
    return ColumnTable(columns, title, totals, totals)


def _build_traffic_table(plan: RunPlan) -> ColumnTable:
    """Return bytes and time: of the first and the last round, of a mean round, and of all rounds."""

    def make_row(name: str, traffic: TrafficPlan) -> tuple[str, ...]:
        figures = traffic.first_round, traffic.last_round, round(traffic.total / plan.rounds), traffic.total
        return name, *map(format_bytes, figures)

    rows = [
        make_row("uplink", plan.uplink),
        make_row("downlink", plan.downlink),
        ("time", "", "", format_seconds(plan.time.round), format_seconds(plan.time.total)),
    ]
    return _build_table("bytes and time", ("", "first round", "last round", "mean round", "all rounds"), rows, False)


def _build_space_table(plan: RunPlan) -> ColumnTable:
    """Return memory and disk space by part."""
    memory, disk = plan.memory, plan.disk
    memory_rows = [("main process", _format_memory(memory.main))]
    if plan.workers > 1:
        memory_rows.append((f"{plan.workers} workers, each", _format_memory(memory.worker)))
        memory_rows.append(("shared by the workers", format_bytes(memory.shared)))
    disk_rows = [("ledger", format_bytes(disk.ledger)), ("other files", format_bytes(disk.files))]
    if disk.checkpoints:
        disk_rows.append(("checkpoints", format_bytes(disk.checkpoints)))
    if disk.client_states:
        disk_rows.append(("client states", format_bytes(disk.client_states)))
    n_rows = max(len(memory_rows), len(disk_rows))
    for rows, total in ((memory_rows, _format_memory(memory.total)), (disk_rows, format_bytes(disk.total))):
        rows += [("", "")] * (n_rows - len(rows)) + [("total", total)]
    cells = [(*left, *right) for left, right in zip(memory_rows, disk_rows, strict=True)]
    return _build_table("peak memory and disk space", ("memory", "", "disk", ""), cells, True)


def _format_memory(n_bytes: int | None) -> str:
    return UNKNOWN if n_bytes is None else format_bytes(n_bytes)


def _describe_limits(plan: RunPlan) -> Iterator[str]:
    """Yield lines about parts of the memory, the start of the run, the calibration and the target."""
    parts = ", ".join(f"{name} {format_bytes(n_bytes)}" for name, n_bytes in _list_memory_parts(plan.memory) if n_bytes)
    if parts:
        yield f"of the memory, at most: {parts}"
    if plan.disk.state_folder is not None:
        yield f"client states on disk in {plan.disk.state_folder}"
    yield f"time: {format_seconds(plan.time.start)} to start, {format_seconds(plan.time.evaluation)} an evaluation"
    if plan.calibrated_rounds == plan.rounds:
        yield "all rounds were run: bytes are those of the run"
    elif plan.calibrated_rounds == 1:
        yield "only one round was run, because it was slow: its time includes preparations, so the times are too long"
    if plan.stops_at is not None:
        yield f"the run may end earlier, at [stop] {plan.stops_at}"
    yield from (f"warning: {text}" for text in plan.warnings)


def _list_memory_parts(memory: MemoryPlan) -> list[tuple[str, int]]:
    return [
        ("client states", memory.client_states),
        ("models of clients", memory.models),
        ("aggregation", memory.aggregation),
        ("evaluation outputs", memory.evaluation),
    ]
