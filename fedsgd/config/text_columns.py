"""Columns of a table of texts, for a terminal and for files, and their selection by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedsgd.errors import ScenarioError, suggest_name


@dataclass(frozen=True, eq=False)
class TextColumn:
    """Column of a table.

    Attributes:
        name: name of the column in `select_columns`; columns of equal name are selected together.
        heading: text above the cells.
        cells: one text for each row; a line break separates a figure from its range.
        rank: importance, 0 for a column that is always shown; of the others, the highest rank is dropped first.
        align: side at which the cells are aligned.
        shorten: "distinct" for cells that may be shortened as long as they differ, "end" for cells that may be cut at their
            end; None for figures, which are never shortened.
    """

    name: str
    heading: str
    cells: tuple[str, ...]
    rank: int = 0
    align: Literal["left", "right"] = "right"
    shorten: Literal["distinct", "end"] | None = None


def split_column_names(text: str | None) -> tuple[str, ...]:
    """Return the names in a text such as "method,up,down", without repetition; none for None.

    >>> split_column_names("up, down,up")
    ('up', 'down')
    """
    return tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def check_column_names(names: Sequence[str], valid_names: Iterable[str]) -> None:
    """Raise ScenarioError for a name in `names` that is not valid."""
    valid_names = dict.fromkeys(valid_names)
    for name in names:
        if name not in valid_names:
            raise ScenarioError(f'--columns: got "{name}"{suggest_name(name, valid_names)}')


def select_columns(columns: Sequence[TextColumn], names: Sequence[str]) -> list[TextColumn]:
    """Return the columns of the given names, in the order of the names; all columns without names.

    The first column, which has the labels of the rows, is added in front if it is not named. The order becomes the importance:
    if the columns do not fit, the last one is dropped first.

    >>> columns = [TextColumn(name, name, ("1",)) for name in ("method", "up", "down")]
    >>> [column.name for column in select_columns(columns, ["down", "up"])]
    ['method', 'down', 'up']

    Raises:
        ScenarioError: no column has one of the names.
    """
    check_column_names(names, [column.name for column in columns])
    if not names:
        return list(columns)
    label = columns[0]
    ordered_names = names if label.name in names else (label.name, *names)
    selected = [column for name in ordered_names for column in columns if column.name == name]
    figures = [column for column in selected if column is not label]
    return [column if column is label else replace(column, rank=figures.index(column)) for column in selected]
