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
    from fedsgd.splits import Split

MOST_ROWS = 20
MOST_CLASSES = 12
"""Of a table of a split: clients and classes beyond these are summarised."""


def show_split(split: Split) -> None:
    """The table of a split, on standard output: every client if they fit on a screen, else how they are spread."""
    console = Console(highlight=False)
    few = len(split.sizes) <= MOST_ROWS
    title = f"{split.name}: {split.partition}, {split.who}, {split.sizes.sum():,} training examples"
    console.print(title, style="bold", soft_wrap=True, markup=False)
    if few and split.counts is not None and len(split.class_names) <= MOST_CLASSES:
        console.print("by class: % of a client's examples; distance from the classes of all: 0 to 1")
        named = [_numbered(split.class_names, label) for label in range(len(split.class_names))]
        if named != [str(label) for label in range(len(named))]:
            console.print(f"classes: {', '.join(named)}", markup=False)
    console.print(_clients_table(split) if few else _spread_table(split))
    if not few and split.counts is not None:
        console.print(_classes_table(split, split.counts))
    if split.left_out:
        console.print(f"{split.left_out:,} training examples are nobody's", markup=False)


def _clients_table(split: Split) -> Table:
    columns = [("client", [str(client) for client in range(len(split.sizes))])]
    columns.append(("examples", [f"{size:,}" for size in split.sizes]))
    if split.held_out is not None:
        columns.append(("held out", [f"{size:,}" for size in split.held_out]))
    shares = split.shares()
    if shares is not None:
        columns.append(("distance", [f"{distance:.2f}" for distance in split.measures()["distance"]]))
        if len(split.class_names) <= MOST_CLASSES:
            for heading, of_class in zip(_headings(split.class_names), shares.T, strict=True):
                columns.append((escape(heading), [f"{100 * share:.0f}" if share else "·" for share in of_class]))
        else:
            columns.append(("most frequent", [_most_frequent(split.class_names, share) for share in shares]))
    table = Table(box=SIMPLE_HEAD, padding=0)
    for heading, _ in columns:
        table.add_column(heading, justify="left" if heading == "most frequent" else "right", no_wrap=True)
    for row in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*row)
    return table


def _headings(names: Sequence[str]) -> Sequence[str]:
    """Class names that are narrow, or the classes' numbers where narrow names would be alike."""
    from fedsgd.splits import UNLABELLED

    narrow = [_short(name, 3) for name in names]
    if len(set(narrow)) == len(names):
        return narrow
    return [short if name == UNLABELLED else str(label) for label, (name, short) in enumerate(zip(names, narrow, strict=True))]


def _numbered(names: Sequence[str], label: int) -> str:
    """Return a class's number and name, or the name alone where that is the number, or of targets without a class."""
    from fedsgd.splits import UNLABELLED

    name = names[label]
    return name if name in (str(label), UNLABELLED) else f"{label} {_short(name)}"


def _short(name: str, width: int = 12) -> str:
    """A class name, visible and narrow."""
    return (repr(name)[1:-1] if name.strip(" ") else repr(name))[:width]


def _most_frequent(names: Sequence[str], shares: NDArray[np.float64]) -> str:
    top = shares.argsort(kind="stable")[::-1][:5]
    return escape(", ".join(f"{_short(names[label])} {shares[label]:.0%}" for label in top))


def _spread_table(split: Split) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("of a client")
    for heading in ("least", "10 %", "median", "90 %", "most"):
        table.add_column(heading, justify="right")
    measures = dict(split.measures())
    if split.held_out is not None:
        measures["held out"] = split.held_out
    for name, values in measures.items():
        digits = 0 if values.dtype.kind == "i" else 2
        quantiles = np.quantile(values, (0, 0.1, 0.5, 0.9, 1), method="nearest")
        table.add_row(name, *(f"{value:,.{digits}f}" for value in quantiles))
    return table


def _classes_table(split: Split, counts: NDArray[np.int64]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("class", "targets", "clients that have it", "most with one client"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    labels = range(counts.shape[1])
    most_frequent = sorted(labels, key=lambda label: -int(counts[:, label].sum()))
    for label in labels if len(labels) <= MOST_CLASSES else most_frequent[:MOST_CLASSES]:
        of_class = counts[:, label]
        figures = (of_class.sum(), (of_class > 0).sum(), of_class.max())
        table.add_row(escape(_numbered(split.class_names, label)), *(f"{f:,}" for f in figures))
    if len(labels) > MOST_CLASSES:
        table.add_row(f"{len(labels) - MOST_CLASSES} others", f"{counts[:, most_frequent[MOST_CLASSES:]].sum():,}", "", "")
    return table
