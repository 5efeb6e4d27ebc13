"""Reader of CSV files that people write, with a fixed header and a check of each line."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from fedsgd.errors import DataError

T = TypeVar("T")


def read_rows(path: Path, header: Sequence[str], parse_row: Callable[[list[str]], T]) -> Iterator[T]:
    """Yield the parsed rows of a CSV file; empty lines are skipped, and a wrong line raises a DataError with the line number.

    The first line must have the names of `header`. `parse_row` is a function of the cells of a line, as many as the header has,
    which raises ValueError for wrong cells.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            names = [cell.strip() for cell in next(reader, [])]
            if names != list(header):
                raise DataError(f"{path}: line 1: expected the header {','.join(header)}, got {','.join(names) or 'nothing'}")
            for cells in filter(None, reader):
                try:
                    if len(cells) != len(header):
                        raise ValueError(f"expected {len(header)} values ({', '.join(header)}), got {len(cells)}")
                    yield parse_row(cells)
                except ValueError as problem:
                    raise DataError(f"{path}: line {reader.line_num}: {problem}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
