"""Tables of a partition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fedsgd.experiment.partition_summary import PartitionSummary

MAX_ROWS = 20
MAX_CLASSES = 12
"""Maximum number of clients, and of classes, in a table without a summary."""


def print_partition(partition_summary: PartitionSummary) -> None:
    """Print a table with a row for each client, or quantiles over clients if there are more than `MAX_ROWS`."""
    console = Console(highlight=False)
    fits = len(partition_summary.sizes) <= MAX_ROWS
    sizes = f"{partition_summary.population_text}, {partition_summary.sizes.sum():,} training examples"
    title = f"{partition_summary.name}: {partition_summary.partition}, {sizes}"
    console.print(title, style="bold", soft_wrap=True, markup=False)
    if fits and partition_summary.counts is not None and len(partition_summary.class_names) <= MAX_CLASSES:
        console.print("by class: % of a client's examples; distance: from the class distribution of all clients, 0 to 1")
        classes = [_format_class(partition_summary.class_names, label) for label in range(len(partition_summary.class_names))]
        if classes != [str(label) for label in range(len(classes))]:
            console.print(f"classes: {', '.join(classes)}", markup=False)
    console.print(_build_client_table(partition_summary) if fits else _build_spread_table(partition_summary))
    if not fits and partition_summary.counts is not None:
        console.print(_build_class_table(partition_summary, partition_summary.counts))
    if partition_summary.n_unassigned:
        console.print(f"{partition_summary.n_unassigned:,} training examples belong to no client", markup=False)


def _build_client_table(partition_summary: PartitionSummary) -> Table:
    columns = [("client", [str(client) for client in range(len(partition_summary.sizes))])]
    columns.append(("examples", [f"{size:,}" for size in partition_summary.sizes]))
    if partition_summary.held_out_sizes is not None:
        columns.append(("held out", [f"{size:,}" for size in partition_summary.held_out_sizes]))
    shares = partition_summary.compute_class_distributions()
    if shares is not None:
        distances = partition_summary.compute_client_measures()["distance"]
        columns.append(("distance", [f"{distance:.2f}" for distance in distances]))
        if len(partition_summary.class_names) <= MAX_CLASSES:
            for heading, class_shares in zip(_shorten_headings(partition_summary.class_names), shares.T, strict=True):
                columns.append((escape(heading), [f"{100 * share:.0f}" if share else "·" for share in class_shares]))
        else:
            columns.append(("most frequent", [_format_most_frequent(partition_summary.class_names, share) for share in shares]))
    table = Table(box=SIMPLE_HEAD, padding=0)
    for heading, _ in columns:
        table.add_column(heading, justify="left" if heading == "most frequent" else "right", no_wrap=True)
    for row in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*row)
    return table


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
    return escape(", ".join(f"{_shorten_name(names[label])} {shares[label]:.0%}" for label in most_frequent))


def _build_spread_table(partition_summary: PartitionSummary) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("per client")
    for heading in ("minimum", "10 %", "median", "90 %", "maximum"):
        table.add_column(heading, justify="right")
    measures = dict(partition_summary.compute_client_measures())
    if partition_summary.held_out_sizes is not None:
        measures["held out"] = partition_summary.held_out_sizes
    for name, values in measures.items():
        digits = 0 if values.dtype.kind == "i" else 2
        quantiles = np.quantile(values, (0, 0.1, 0.5, 0.9, 1), method="nearest")
        table.add_row(name, *(f"{value:,.{digits}f}" for value in quantiles))
    return table


def _build_class_table(partition_summary: PartitionSummary, counts: NDArray[np.int64]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("class", "targets", "clients with it", "maximum per client"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    labels = range(counts.shape[1])
    most_frequent = sorted(labels, key=lambda label: -int(counts[:, label].sum()))
    for label in labels if len(labels) <= MAX_CLASSES else most_frequent[:MAX_CLASSES]:
        class_counts = counts[:, label]
        figures = (class_counts.sum(), (class_counts > 0).sum(), class_counts.max())
        table.add_row(escape(_format_class(partition_summary.class_names, label)), *(f"{figure:,}" for figure in figures))
    if len(labels) > MAX_CLASSES:
        table.add_row(f"{len(labels) - MAX_CLASSES} others", f"{counts[:, most_frequent[MAX_CLASSES:]].sum():,}", "", "")
    return table
