"""Parquet files that are written while a run goes, and can be read if it is killed. The only door to pyarrow.

While the run goes, `ledger.parquet` is a folder of closed segments, which pandas and pyarrow open like a
file. At its end the segments are merged into one file of the same name.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fedsgd.arrays import I32, Bools
from fedsgd.errors import ReportError, did_you_mean

SEGMENT_ROWS = 100_000
SEGMENT_SECONDS = 2.0

_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string()}


class TableWriter:
    """Rows to Parquet. columns: name → int, float or str; every column may hold None.

    path None: the rows are only kept until `table` is asked for.
    """

    def __init__(self, path: Path | None, columns: Mapping[str, type]) -> None:
        self.path = path
        self.schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
        self._rows: list[Mapping[str, Any]] = []
        self._closed: list[pa.Table] = []
        self._n_segments = 0
        self._last_flush = 0.0
        if path is not None:
            path.mkdir(parents=True)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; it is safe on disk after the next `flush`."""
        self._rows.append(row)

    def flush(self, force: bool = False) -> bool:
        """Close a segment if there are rows and the last one was closed some seconds ago (or if forced); say if that was so."""
        due = force or len(self._rows) >= SEGMENT_ROWS or time.monotonic() - self._last_flush >= SEGMENT_SECONDS
        if not self._rows or not due:
            return False
        segment = pa.Table.from_pylist(self._rows, schema=self.schema)
        self._rows = []
        if self.path is None:
            self._closed.append(segment)
        else:
            name = f"segment-{self._n_segments:06d}.parquet"
            pq.write_table(segment, self.path / f".{name}", compression="zstd")
            (self.path / f".{name}").rename(self.path / name)
        self._n_segments += 1
        self._last_flush = time.monotonic()
        return True

    def close(self) -> None:
        """Merge the segments into one file. Segment by segment, so memory stays that of one.

        A kill between the two renames leaves the whole table as `.NAME.merged`, and its segments in `.NAME.segments`.
        """
        self.flush(force=True)
        if self.path is None or not self.path.is_dir():
            return
        merged = self.path.with_name(f".{self.path.name}.merged")
        segments = self.path.with_name(f".{self.path.name}.segments")
        with pq.ParquetWriter(merged, self.schema, compression="zstd") as writer:
            for segment in sorted(self.path.glob("segment-*.parquet")):
                writer.write_table(pq.read_table(segment, schema=self.schema))
        self.path.rename(segments)
        merged.rename(self.path)
        shutil.rmtree(segments)

    def table(self) -> pa.Table:
        """All rows so far."""
        self.flush(force=True)
        if self.path is None:
            return pa.concat_tables([self.schema.empty_table(), *self._closed])
        return pq.read_table(self.path, schema=self.schema)


@dataclass(frozen=True, eq=False)
class Words:
    """A column of strings, few of them distinct: codes [rows] into names."""

    codes: I32
    names: tuple[str, ...]

    def are(self, *words: str) -> Bools:
        """Which rows say one of these."""
        return np.isin(self.codes, [code for code, name in enumerate(self.names) if name in words])


def read_batches(path: Path, names: Sequence[str], rows: int = SEGMENT_ROWS) -> Iterator[dict[str, Any]]:
    """Columns of a table, some `rows` at a time, so that memory does not grow with the file: integers as int64, floats as
    float64 with NaN for null, strings as `Words`. path: a file, or a folder of segments. ReportError if it cannot be read or
    lacks a column."""
    try:
        for part in sorted(path.glob("segment-*.parquet")) if path.is_dir() else [path]:
            with pq.ParquetFile(part, pre_buffer=False) as file:  # else it holds the whole file
                known = file.schema_arrow.names
                missing = next((name for name in names if name not in known), None)
                if missing is not None:
                    hint = did_you_mean(missing, known)
                    raise ReportError(f'{part}: has no column "{missing}"{hint}; was it written by an older version?')
                for batch in file.iter_batches(rows, columns=list(names)):
                    yield {name: _column(batch.column(name)) for name in names}
    except (OSError, pa.ArrowException) as error:
        raise ReportError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None


def read_columns(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Columns of numbers, all rows at once."""
    batches = list(read_batches(path, names))
    if not batches:
        raise ReportError(f"{path}: has no rows")
    return {name: np.concatenate([batch[name] for batch in batches]) for name in names}


def column_names(path: Path) -> list[str]:
    """Of a table."""
    try:
        return list(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        raise ReportError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None


def _column(values: pa.Array) -> NDArray[Any] | Words:
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):  # pandas writes the latter
        coded = pc.dictionary_encode(values)
        return Words(coded.indices.to_numpy(zero_copy_only=False), tuple(coded.dictionary.to_pylist()))
    made: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return made
