"""CSV files that people write: a header that is known, and lines that are checked one by one."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from fedsgd.errors import DataError

T = TypeVar("T")


def read_rows(path: Path, header: Sequence[str], parse_row: Callable[[list[str]], T]) -> Iterator[T]:
    """What `parse_row` makes of each line that is not empty. It is given as many cells as the header has, and raises a
    ValueError
    for what is wrong with them; that becomes a DataError with the file and the line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            found = [cell.strip() for cell in next(reader, [])]
            if found != list(header):
                raise DataError(f"{path}: line 1: expected the header {','.join(header)}, got {','.join(found) or 'nothing'}")
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
