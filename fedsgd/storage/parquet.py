"""Parquet tables that are written during a run, and stay readable if the run is killed.

During the run a table such as `ledger.parquet` is a folder of complete segments, which pandas and pyarrow open like a file.
After the run the segments are merged into one file of the same name.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fedsgd.errors import OutputError, ReportError, make_write_error, suggest_name
from fedsgd.numerics.arrays import I32, BoolArray
from fedsgd.storage.durable import sync_path
from fedsgd.storage.table_recovery import keep_first_rows, replace_segment

SEGMENT_ROWS = 100_000
SEGMENT_SECONDS = 2.0

_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string()}
_NUMPY_TYPES = {pa.int64(): np.int64, pa.float64(): np.float64}


class TableWriter:
    """Writer of rows to a Parquet file, or to memory without a path; each column accepts None.

    `flush`, `close` and `to_table` raise OutputError if rows cannot be written. The rows stay in memory, and the next call that
    succeeds writes the rows.
    """

    def __init__(self, path: Path | None, columns: Mapping[str, type], n_kept_rows: int | None = None) -> None:
        """Create the table; with `n_kept_rows`, continue the table of an earlier process after so many rows."""
        self.path = path
        self.schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
        self._rows: list[Mapping[str, Any]] = []
        self._closed_segments: list[pa.Table] = []
        self._n_segments = 0
        self._last_flush = 0.0
        self._n_written = 0
        self._unsynced_paths: list[Path] = []
        self._is_durable = n_kept_rows is not None
        if path is not None and n_kept_rows is not None:
            self._n_segments, self._n_written = keep_first_rows(path, n_kept_rows), n_kept_rows
        elif path is not None:
            try:
                path.mkdir(parents=True)
            except OSError as error:
                raise make_write_error(path, error) from None

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row, which stays in memory until a call writes all rows."""
        self._rows.append(row)

    def sync(self) -> int:
        """Write all rows, wait until they are on disk, and return their number."""
        self.flush(force=True)
        self._is_durable = True
        if self.path is not None and self._unsynced_paths:
            for path in (*self._unsynced_paths, self.path):
                sync_path(path)
            self._unsynced_paths = []
        return self._n_written

    def replace_last_row(self, row: Mapping[str, Any]) -> None:
        """Replace the last row of a table that continues the table of an earlier process and has no new rows."""
        assert self.path is not None
        last = self.path / f"segment-{self._n_segments - 1:06d}.parquet"
        kept = pq.read_table(last, schema=self.schema)
        table = pa.concat_tables([kept.slice(0, kept.num_rows - 1), _rows_to_table([row], self.schema)])
        replace_segment(last, table)

    def flush(self, force: bool = False) -> bool:
        """Write the rows to a segment and return True, if they fill a segment or the last segment is `SEGMENT_SECONDS` old.

        `force` writes any rows. The message of an OutputError says how many rows are safe; the other rows stay in memory.
        """
        is_due = force or len(self._rows) >= SEGMENT_ROWS or time.monotonic() - self._last_flush >= SEGMENT_SECONDS
        if not self._rows or not is_due:
            return False
        segment = _rows_to_table(self._rows, self.schema)
        if self.path is None:
            self._closed_segments.append(segment)
        else:
            self._write_segment(segment, self.path)
        self._n_written += len(self._rows)
        self._rows = []
        self._n_segments += 1
        self._last_flush = time.monotonic()
        return True

    def _write_segment(self, segment: pa.Table, folder: Path) -> None:
        """Write a segment under a hidden name, and rename it when it is complete."""
        name = f"segment-{self._n_segments:06d}.parquet"
        try:
            pq.write_table(segment, folder / f".{name}", compression="zstd")
            (folder / f".{name}").rename(folder / name)
            self._unsynced_paths.append(folder / name)
        except OSError as error:
            with suppress(OSError):
                (folder / f".{name}").unlink(missing_ok=True)
            total = self._n_written + segment.num_rows
            raise OutputError(f"{make_write_error(folder, error)}: it has {self._n_written:,} of {total:,} rows") from None

    def close(self) -> None:
        """Merge the segments into one file, with the memory of one segment; an OutputError leaves the segments as the table.

        A process that is killed between the two renames leaves the table as `.NAME.merged`, and its segments in
        `.NAME.segments`.
        """
        self.flush(force=True)
        if self.path is None or not self.path.is_dir():
            return
        merged_file = self.path.with_name(f".{self.path.name}.merged")
        segment_folder = self.path.with_name(f".{self.path.name}.segments")
        try:
            with pq.ParquetWriter(merged_file, self.schema, compression="zstd") as writer:
                for segment in sorted(self.path.glob("segment-*.parquet")):
                    writer.write_table(pq.read_table(segment, schema=self.schema))
            if self._is_durable:
                sync_path(merged_file)
            self.path.rename(segment_folder)
            merged_file.rename(self.path)
            if self._is_durable:
                sync_path(self.path.parent)
        except OSError as error:
            with suppress(OSError):
                merged_file.unlink(missing_ok=True)
            with suppress(OSError):
                segment_folder.rename(self.path)
            problem = f"{make_write_error(self.path, error)} as one file"
            raise OutputError(f"{problem}: it stays a folder of segments with all {self._n_written:,} rows") from None
        shutil.rmtree(segment_folder, ignore_errors=True)

    def to_table(self) -> pa.Table:
        """Return all rows so far."""
        self.flush(force=True)
        if self.path is None:
            return pa.concat_tables([self.schema.empty_table(), *self._closed_segments])
        return pq.read_table(self.path, schema=self.schema)


def _rows_to_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table: `Table.from_pylist` without its import of pandas, which takes half a second."""
    return pa.Table.from_arrays(
        [_to_arrow([row.get(field.name) for row in rows], field.type) for field in schema], schema=schema
    )


def _to_arrow(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return values, of which any may be None, as an array of one of `_TYPES`."""
    is_valid = np.array([value is not None for value in values])
    if pa.types.is_string(kind):
        words = [b"" if value is None else value.encode() for value in values]
        buffers = [np.cumsum([0, *map(len, words)]).astype(np.int32), b"".join(words)]
    else:
        numbers = np.array([0 if value is None else value for value in values])
        buffers = [numbers.astype(_NUMPY_TYPES[kind], casting="safe")]
    validity = None if is_valid.all() else pa.py_buffer(np.packbits(is_valid, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [validity, *map(pa.py_buffer, buffers)])


@dataclass(frozen=True, eq=False)
class Categorical:
    """Column of strings with few distinct values: `codes` [rows] are indices of `names`."""

    codes: I32
    names: tuple[str, ...]

    def isin(self, *values: str) -> BoolArray:
        """Return a mask [rows] of the rows that have one of the values."""
        return np.isin(self.codes, [code for code, name in enumerate(self.names) if name in values])


def read_batches(path: Path, names: Sequence[str], rows: int = SEGMENT_ROWS) -> Iterator[dict[str, Any]]:
    """Yield columns of a table in batches: integers as int64, floats as float64 with NaN for null, strings as `Categorical`.

    The table is a file or a folder of segments. `rows` is the maximum number of rows of a batch. A table that cannot be read,
    or lacks a column, raises a ReportError.
    """
    try:
        for part in sorted(path.glob("segment-*.parquet")) if path.is_dir() else [path]:
            with pq.ParquetFile(part, pre_buffer=False) as file:  # pre_buffer would read the whole file
                columns = file.schema_arrow.names
                missing_column = next((name for name in names if name not in columns), None)
                if missing_column is not None:
                    hint = suggest_name(missing_column, columns)
                    raise ReportError(f'{part}: has no column "{missing_column}"{hint}; was it written by an older version?')
                for batch in file.iter_batches(rows, columns=list(names)):
                    yield {name: _to_numpy(batch.column(name)) for name in names}
    except (OSError, pa.ArrowException) as error:
        raise ReportError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None


def list_values(column: NDArray[Any] | Categorical) -> list[Any]:
    """Return a column of `read_batches` as a list of Python values."""
    return [column.names[code] for code in column.codes.tolist()] if isinstance(column, Categorical) else column.tolist()


def read_columns(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return columns of numbers with all rows."""
    batches = list(read_batches(path, names))
    if not batches:
        raise ReportError(f"{path}: has no rows")
    return {name: np.concatenate([batch[name] for batch in batches]) for name in names}


def count_rows(path: Path) -> int:
    """Return the number of rows of a table: a file, or a folder of segments."""
    parts = path.glob("segment-*.parquet") if path.is_dir() else [path]
    try:
        return sum(pq.read_metadata(part).num_rows for part in parts)
    except (OSError, pa.ArrowException) as error:
        raise ReportError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None


def read_column_names(path: Path) -> list[str]:
    """Return the names of the columns of a table: a file, or a folder of segments."""
    try:
        first = min(path.glob("segment-*.parquet"), default=path) if path.is_dir() else path
        return list(pq.read_schema(first).names)
    except (OSError, pa.ArrowException) as error:
        raise ReportError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None


def _to_numpy(values: pa.Array) -> NDArray[Any] | Categorical:
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):  # pandas writes large strings
        column = pc.dictionary_encode(values)
        return Categorical(column.indices.to_numpy(zero_copy_only=False), tuple(column.dictionary.to_pylist()))
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array
