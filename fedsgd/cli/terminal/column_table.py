"""Tables that fit the width of the terminal: columns are dropped by importance, and no cell is wrapped."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsgd.cli.streams import ERROR_HANDLER
from fedsgd.config.text_columns import TextColumn

PLAIN_WIDTH = 80
"""Columns of an output that is not a terminal, unless the environment variable COLUMNS is set."""
MIN_LABEL_WIDTH = 24
"""Width down to which labels are shortened before a column is dropped."""
ELLIPSIS = "…"
SHOW_ALL = "--json or a wider terminal shows them"
CHOOSE = "--columns chooses; --json or a wider terminal shows all"
"""Hints at columns that do not fit, without and with an option --columns."""


def create_console() -> Console:
    """Return the console for tables: as wide as the terminal; elsewhere COLUMNS, or PLAIN_WIDTH wide."""
    is_sized = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(highlight=False, width=None if is_sized else PLAIN_WIDTH)


@dataclass(frozen=True)
class ColumnTable:
    """Table of columns.

    Attributes:
        columns: columns, the first one with the labels of the rows.
        title: text of the line above the table, if any.
        bold_rows: indices of rows in bold.
        sections: indices of rows with a rule above them.
        hint: text about the columns that do not fit.
        gap: number of spaces between two columns, at least 1.
        notes: lines about dropped columns and shortened cells, after `print`.
    """

    columns: Sequence[TextColumn]
    title: str = ""
    bold_rows: frozenset[int] = frozenset()
    sections: frozenset[int] = frozenset()
    hint: str = SHOW_ALL
    gap: int = 2
    notes: list[str] = field(default_factory=list, init=False)

    def print(self, console: Console) -> None:
        """Print title and table, and append to `notes`."""
        printable_columns = [_make_printable(column, console.encoding) for column in self.columns]
        columns, notes = fit_columns(printable_columns, console.width, self.gap, self.hint)
        if not console.encoding.startswith("utf"):  # streams would write "..."
            columns = [replace(c, cells=tuple(cell.replace(ELLIPSIS, "~") for cell in c.cells)) for c in columns]
            notes = [note.replace(ELLIPSIS, "~") for note in notes]
        self.notes.extend(notes)
        if self.title:
            console.print(Text(self.title, "bold"), soft_wrap=True)
        has_headings = any(column.heading for column in columns)
        table = Table(
            box=SIMPLE_HEAD if has_headings else None,
            show_header=has_headings,
            show_edge=False,
            pad_edge=False,
            padding=(0, self.gap - has_headings, 0, 0),  # the box has a divider of one space
        )
        widths = _widen_headings(columns, console.width, self.gap)
        for column, width in zip(columns, widths, strict=True):
            heading = column.heading if cell_len(column.heading) <= width else " ".join(_split_heading(column.heading))
            table.add_column(Text(heading), justify=column.align, width=width, overflow="ellipsis")
        for index in range(len(columns[0].cells)):
            if index in self.sections:
                table.add_section()
            style = "bold" if index in self.bold_rows else None
            table.add_row(*(_format_cell(column.cells[index]) for column in columns), style=style)
        console.print(table)


def print_tables(console: Console, tables: Iterable[ColumnTable]) -> None:
    """Print tables, then the notes about their columns, each once and dim."""
    notes: dict[str, None] = {}
    for table in tables:
        table.print(console)
        console.print()
        notes |= dict.fromkeys(table.notes)
    for note in (*notes, *([""] if notes else [])):
        console.print(Text(note, "dim"))


def print_lines(console: Console, lines: Iterable[str], style: str = "") -> None:
    """Print lines without breaking them."""
    for line in lines:
        console.print(Text(line, style), soft_wrap=True)


def fit_columns(
    columns: Sequence[TextColumn], width: int, gap: int = 2, hint: str = SHOW_ALL
) -> tuple[list[TextColumn], list[str]]:
    """Drop columns and shorten cells until a table fits.

    Labels are shortened to MIN_LABEL_WIDTH before a column is dropped. If only columns of rank 0 are left, labels are shortened
    as far as necessary.

    Args:
        columns: columns of the table.
        width: number of characters of a line.
        gap: number of spaces between two columns.
        hint: end of the note about dropped columns.

    Returns:
        The columns that fit, and notes about dropped columns and shortened cells.
    """
    shown, dropped = list(columns), list[TextColumn]()
    while _least_width(shown, gap) > width and any(column.rank for column in shown):
        column = max(reversed(shown), key=lambda column: column.rank)
        shown.remove(column)
        dropped.append(column)
    notes = list[str]()
    for index, column in enumerate(shown):
        rest = [other for other in shown if other is not column]
        room = max(width - _least_width(rest, gap) - gap * bool(rest), 1)
        if column.shorten is not None and _measure(column) > room:
            shown[index], note = _shorten_column(column, room)
            notes.append(note)
    if dropped:
        headings = "; ".join(column.heading for column in columns if column in dropped)
        notes.insert(0, f"not shown at {width} columns: {headings} ({hint})")
    return shown, notes


def _least_width(columns: Sequence[TextColumn], gap: int) -> int:
    """Return the width of the columns with shortened cells."""
    widths = (_measure(c) if c.shorten is None else min(_measure(c), MIN_LABEL_WIDTH) for c in columns)
    return sum(widths) + gap * (len(columns) - 1)


def _widen_headings(columns: Sequence[TextColumn], width: int, gap: int) -> list[int]:
    """Return the width of each column. Spare space goes to headings that then need a single line, short headings first."""
    widths = [_measure(column) for column in columns]
    spare = width - sum(widths) - gap * (len(widths) - 1)
    for index in sorted(range(len(columns)), key=lambda index: cell_len(columns[index].heading)):
        missing = max(cell_len(columns[index].heading) - widths[index], 0)
        if missing <= spare:
            widths[index] += missing
            spare -= missing
    return widths


def _measure(column: TextColumn) -> int:
    """Return the width of a column: of its longest line, or of the longest word of its heading."""
    lines = (line for cell in column.cells for line in cell.split("\n"))
    return max(map(cell_len, (*lines, *_split_heading(column.heading))), default=0)


def _split_heading(heading: str) -> list[str]:
    """Return the words of a heading, of "bits/parameter" and "decode+add" two."""
    return re.sub(r"([/+])(?=\w{3})", r"\1 ", heading).split()


def _shorten_column(column: TextColumn, width: int) -> tuple[TextColumn, str]:
    if column.shorten == "end":
        cells = tuple("\n".join(_cut_list(line, width) for line in cell.split("\n")) for cell in column.cells)
        return replace(column, cells=cells), f'"{ELLIPSIS}" stands for a part of {column.name} that does not fit'
    cells, prefix = shorten_labels(column.cells, width)
    is_cut = any(ELLIPSIS in cell[bool(prefix) :] for cell in cells)
    part = f"{'elsewhere ' if prefix else ''}for a part of a long {column.name}" if is_cut else ""
    start = f'at the start of a {column.name} for "{prefix}"' if prefix else ""
    return replace(column, cells=cells), f'"{ELLIPSIS}" stands {", ".join(filter(None, (start, part)))}'


def shorten_labels(labels: Sequence[str], width: int) -> tuple[tuple[str, ...], str]:
    """Shorten labels to a width, so that different labels stay different.

    An ellipsis takes the place of words that all labels begin with, then of the end or of the middle of each long label. If
    labels are still equal, they are numbered.

    >>> shorten_labels(["mnist, density 0.1", "mnist, density 0.01"], 16)
    (('…density 0.1', '…density 0.01'), 'mnist, ')

    Returns:
        The labels, and the text that an ellipsis at their start stands for; an empty text if there is none.
    """
    prefix = _find_common_prefix(labels)
    shorter = [ELLIPSIS + label.removeprefix(prefix) if prefix else label for label in labels]
    n_different = len(set(labels))
    for tail in (0, width // 2, width // 3, 2 * width // 3, width - 4, width - 2):
        cut_labels = tuple(_cut(label, width, tail) for label in shorter)
        if len(set(cut_labels)) == n_different:
            return cut_labels, prefix
    numbers = {label: f"#{number}" for number, label in enumerate(dict.fromkeys(labels), 1)}
    return tuple(_cut(label, width - len(numbers[label]), 0) + numbers[label] for label in labels), prefix


def _find_common_prefix(labels: Sequence[str]) -> str:
    """Return the parts, each with its comma, that all labels begin with; an empty text for a single label."""
    first, *others = ([f"{part}, " for part in label.split(", ")] for label in dict.fromkeys(labels))
    n_common = 0
    while others and all(first[: n_common + 1] == other[: n_common + 1] for other in others):
        n_common += 1
    return "".join(first[:n_common])


def _cut(text: str, width: int, tail: int) -> str:
    """Return a text of at most `width`, with an ellipsis in the middle, before the last `tail` characters, or at the end."""
    if cell_len(text) <= width:
        return text
    tail = max(min(tail, width - 2), 0)
    end = set_cell_size(text[::-1], tail)[::-1].strip()
    return set_cell_size(text, max(width - cell_len(end) - 1, 0)).rstrip(" ,") + ELLIPSIS + end


def _cut_list(text: str, width: int) -> str:
    """Return a text of at most `width`, cut after a comma where there is one."""
    cut_text = _cut(text, width, 0)
    if cut_text != text and ", " in cut_text:
        return f"{cut_text[: cut_text.rindex(', ')]}, {ELLIPSIS}"
    return cut_text


def _make_printable(column: TextColumn, encoding: str) -> TextColumn:
    """Return a column with substitutes for the characters that an encoding lacks, which are often wider."""
    cells = tuple(cell.encode(encoding, ERROR_HANDLER).decode(encoding) for cell in column.cells)
    return column if cells == column.cells else replace(column, cells=cells)


def _format_cell(text: str) -> Text:
    """Return a cell with a dim second line."""
    first_line, line_break, second_line = text.partition("\n")
    return Text.assemble(first_line, line_break, (second_line, "dim"))
