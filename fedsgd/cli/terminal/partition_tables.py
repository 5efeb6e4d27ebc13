"""A split as tables."""

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
"""Of a table of a split: clients and classes beyond these are summarised."""


def print_partition(partition_summary: PartitionSummary) -> None:
    """The table of a split, on standard output: every client if they fit on a screen, else how they are spread."""
    console = Console(highlight=False)
    few = len(partition_summary.sizes) <= MAX_ROWS
    sizes = f"{partition_summary.population_text}, {partition_summary.sizes.sum():,} training examples"
    title = f"{partition_summary.name}: {partition_summary.partition}, {sizes}"
    console.print(title, style="bold", soft_wrap=True, markup=False)
    if few and partition_summary.counts is not None and len(partition_summary.class_names) <= MAX_CLASSES:
        console.print("by class: % of a client's examples; distance from the classes of all: 0 to 1")
        named = [_format_class(partition_summary.class_names, label) for label in range(len(partition_summary.class_names))]
        if named != [str(label) for label in range(len(named))]:
            console.print(f"classes: {', '.join(named)}", markup=False)
    console.print(_build_client_table(partition_summary) if few else _build_spread_table(partition_summary))
    if not few and partition_summary.counts is not None:
        console.print(_build_class_table(partition_summary, partition_summary.counts))
    if partition_summary.n_unassigned:
        console.print(f"{partition_summary.n_unassigned:,} training examples are nobody's", markup=False)


def _build_client_table(partition_summary: PartitionSummary) -> Table:
    columns = [("client", [str(client) for client in range(len(partition_summary.sizes))])]
    columns.append(("examples", [f"{size:,}" for size in partition_summary.sizes]))
    if partition_summary.held_out_sizes is not None:
        columns.append(("held out", [f"{size:,}" for size in partition_summary.held_out_sizes]))
    shares = partition_summary.compute_class_distributions()
    if shares is not None:
        columns.append(
            ("distance", [f"{distance:.2f}" for distance in partition_summary.compute_client_measures()["distance"]])
        )
        if len(partition_summary.class_names) <= MAX_CLASSES:
            for heading, of_class in zip(_shorten_headings(partition_summary.class_names), shares.T, strict=True):
                columns.append((escape(heading), [f"{100 * share:.0f}" if share else "·" for share in of_class]))
        else:
            columns.append(("most frequent", [_format_most_frequent(partition_summary.class_names, share) for share in shares]))
    table = Table(box=SIMPLE_HEAD, padding=0)
    for heading, _ in columns:
        table.add_column(heading, justify="left" if heading == "most frequent" else "right", no_wrap=True)
    for row in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*row)
    return table


def _shorten_headings(names: Sequence[str]) -> Sequence[str]:
    """Class names that are narrow, or the classes' numbers where narrow names would be alike."""
    from fedsgd.experiment.partition_summary import IGNORED_CLASS_NAME

    narrow = [_shorten_name(name, 3) for name in names]
    if len(set(narrow)) == len(names):
        return narrow
    return [
        short if name == IGNORED_CLASS_NAME else str(label)
        for label, (name, short) in enumerate(zip(names, narrow, strict=True))
    ]


def _format_class(names: Sequence[str], label: int) -> str:
    """Return a class's number and name, or the name alone where that is the number, or of targets without a class."""
    from fedsgd.experiment.partition_summary import IGNORED_CLASS_NAME

    name = names[label]
    return name if name in (str(label), IGNORED_CLASS_NAME) else f"{label} {_shorten_name(name)}"


def _shorten_name(name: str, width: int = 12) -> str:
    """A class name, visible and narrow."""
    return (repr(name)[1:-1] if name.strip(" ") else repr(name))[:width]


def _format_most_frequent(names: Sequence[str], shares: NDArray[np.float64]) -> str:
    top = shares.argsort(kind="stable")[::-1][:5]
    return escape(", ".join(f"{_shorten_name(names[label])} {shares[label]:.0%}" for label in top))


def _build_spread_table(partition_summary: PartitionSummary) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("of a client")
    for heading in ("least", "10 %", "median", "90 %", "most"):
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
    for heading in ("class", "targets", "clients that have it", "most with one client"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    labels = range(counts.shape[1])
    most_frequent = sorted(labels, key=lambda label: -int(counts[:, label].sum()))
    for label in labels if len(labels) <= MAX_CLASSES else most_frequent[:MAX_CLASSES]:
        of_class = counts[:, label]
        figures = (of_class.sum(), (of_class > 0).sum(), of_class.max())
        table.add_row(escape(_format_class(partition_summary.class_names, label)), *(f"{f:,}" for f in figures))
    if len(labels) > MAX_CLASSES:
        table.add_row(f"{len(labels) - MAX_CLASSES} others", f"{counts[:, most_frequent[MAX_CLASSES:]].sum():,}", "", "")
    return table
