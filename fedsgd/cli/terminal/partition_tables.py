"""Tables of a partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsgd.cli.terminal.column_table import ColumnTable, create_console, print_lines, print_tables
from fedsgd.config.text_columns import TextColumn

if TYPE_CHECKING:
    from fedsgd.experiment.partition_summary import PartitionSummary

MAX_ROWS = 20
MAX_CLASSES = 12
"""Maximum number of clients, and of classes, in a table without a summary."""


def print_partition(partition_summary: PartitionSummary) -> None:
    """Print a table with a row for each client, or quantiles over clients if there are more than `MAX_ROWS`."""
    console = create_console()
    fits = len(partition_summary.sizes) <= MAX_ROWS
    sizes = f"{partition_summary.population_text}, {partition_summary.sizes.sum():,} training examples"
    print_lines(console, [f"{partition_summary.name}: {partition_summary.partition}, {sizes}"], "bold")
    if fits and partition_summary.counts is not None and len(partition_summary.class_names) <= MAX_CLASSES:
        console.print("by class: % of a client's examples; distance: from the class distribution of all clients, 0 to 1")
        classes = [_format_class(partition_summary.class_names, label) for label in range(len(partition_summary.class_names))]
        if classes != [str(label) for label in range(len(classes))]:
            console.print(f"classes: {', '.join(classes)}", markup=False)
    tables = [_build_client_table(partition_summary) if fits else _build_spread_table(partition_summary)]
    if not fits and partition_summary.counts is not None:
        tables.append(_build_class_table(partition_summary, partition_summary.counts))
    print_tables(console, tables)
    if partition_summary.n_unassigned:
        console.print(f"{partition_summary.n_unassigned:,} training examples belong to no client", markup=False)


def _build_client_table(partition_summary: PartitionSummary) -> ColumnTable:
    columns = [_make_column("client", [str(client) for client in range(len(partition_summary.sizes))], rank=0)]
    columns.append(_make_column("examples", [f"{size:,}" for size in partition_summary.sizes], rank=1))
    if partition_summary.held_out_sizes is not None:
        columns.append(_make_column("held out", [f"{size:,}" for size in partition_summary.held_out_sizes], rank=3))
    if partition_summary.validation_sizes is not None:
        columns.append(_make_column("validation", [f"{size:,}" for size in partition_summary.validation_sizes], rank=3))
    shares = partition_summary.compute_class_distributions()
    if shares is not None:
        distances = partition_summary.compute_client_measures()["distance"]
        columns.append(_make_column("distance", [f"{distance:.2f}" for distance in distances], rank=2))
        if len(partition_summary.class_names) <= MAX_CLASSES:
            for heading, class_shares in zip(_shorten_headings(partition_summary.class_names), shares.T, strict=True):
                columns.append(
                    _make_column(heading, [f"{100 * share:.0f}" if share else "·" for share in class_shares], rank=0)
                )
        else:
            cells = tuple(_format_most_frequent(partition_summary.class_names, share) for share in shares)
            columns.append(TextColumn("most frequent", "most frequent", cells, align="left", shorten="end"))
    return ColumnTable(columns, gap=1)


def _make_column(heading: str, cells: Sequence[str], rank: int) -> TextColumn:
    return TextColumn(heading, heading, tuple(cells), rank)


def _shorten_headings(names: Sequence[str]) -> Sequence[str]:
    """Return short class names, or the numbers of the classes if short names would be equal."""
    from fedsgd.experiment.partition_summary import IGNORED_CLASS_NAME

    short_names = [_shorten_name(name, 3) for name in names]
    if len(set(short_names)) == len(names):
        return short_names
    return [
        short_name if name == IGNORED_CLASS_NAME else str(label)
        for label, (name, short_name) in enumerate(zip(names, short_names, strict=True))
    ]


def _format_class(names: Sequence[str], label: int) -> str:
    """Return "number name"; only the name if both are equal, or for IGNORED_CLASS_NAME."""
    from fedsgd.experiment.partition_summary import IGNORED_CLASS_NAME

    name = names[label]
    return name if name in (str(label), IGNORED_CLASS_NAME) else f"{label} {_shorten_name(name)}"


def _shorten_name(name: str, width: int = 12) -> str:
    """Return a class name, at most `width` characters, with control characters escaped."""
    return (repr(name)[1:-1] if name.strip(" ") else repr(name))[:width]


def _format_most_frequent(names: Sequence[str], shares: NDArray[np.float64]) -> str:
    most_frequent = shares.argsort(kind="stable")[::-1][:5]
    return ", ".join(f"{_shorten_name(names[label])} {shares[label]:.0%}" for label in most_frequent)


def _build_spread_table(partition_summary: PartitionSummary) -> ColumnTable:
    measures = dict(partition_summary.compute_client_measures())
    if partition_summary.held_out_sizes is not None:
        measures["held out"] = partition_summary.held_out_sizes
    if partition_summary.validation_sizes is not None:
        measures["validation"] = partition_summary.validation_sizes
    rows = []
    for name, values in measures.items():
        digits = 0 if values.dtype.kind == "i" else 2
        quantiles = np.quantile(values, (0, 0.1, 0.5, 0.9, 1), method="nearest")
        rows.append((name, *(f"{value:,.{digits}f}" for value in quantiles)))
    return _make_table({"per client": 0, "minimum": 1, "10 %": 4, "median": 0, "90 %": 3, "maximum": 2}, rows)


def _make_table(ranks: Mapping[str, int], rows: Sequence[Sequence[str]]) -> ColumnTable:
    """Return a table of rows, with the ranks of the columns by heading."""
    cells_by_column = zip(*rows, strict=True)
    columns = [TextColumn(name, name, cells, rank) for (name, rank), cells in zip(ranks.items(), cells_by_column, strict=True)]
    return ColumnTable([replace(columns[0], align="left", shorten="distinct"), *columns[1:]])


def _build_class_table(partition_summary: PartitionSummary, counts: NDArray[np.int64]) -> ColumnTable:
    labels = range(counts.shape[1])
    most_frequent = sorted(labels, key=lambda label: -int(counts[:, label].sum()))
    rows = []
    for label in labels if len(labels) <= MAX_CLASSES else most_frequent[:MAX_CLASSES]:
        class_counts = counts[:, label]
        figures = (class_counts.sum(), (class_counts > 0).sum(), class_counts.max())
        rows.append((_format_class(partition_summary.class_names, label), *(f"{figure:,}" for figure in figures)))
    if len(labels) > MAX_CLASSES:
        n_others = counts[:, most_frequent[MAX_CLASSES:]].sum()
        rows.append((f"{len(labels) - MAX_CLASSES} others", f"{n_others:,}", "", ""))
    return _make_table({"class": 0, "targets": 0, "clients with it": 1, "maximum per client": 2}, rows)
