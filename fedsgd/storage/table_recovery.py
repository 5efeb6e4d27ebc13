"""Recovery of a table that an earlier process wrote: its first rows, as a folder of segments.

A killed process may leave a table as one file, as a folder of segments, or in the middle of the change from one to the other.
Each step here renames complete files only, so that a process that is killed here leaves a table that can be recovered again.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fedsgd.errors import CheckpointError, make_write_error
from fedsgd.storage.durable import sync_path

FIRST_SEGMENT = "segment-000000.parquet"


def keep_first_rows(path: Path, n_rows: int) -> int:
    """Remove all rows but the first from a table, leave it as a folder of segments, and return the number of the next segment.

    Args:
        path: table, a file or a folder of segments.
        n_rows: number of rows that stay.

    Raises:
        CheckpointError: the table has fewer rows, or cannot be read or written.
    """
    try:
        _become_folder(path, n_rows)
        return _cut_segments(path, n_rows)
    except pa.ArrowException as error:
        raise CheckpointError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None
    except OSError as error:
        raise make_write_error(path, error) from None


def replace_segment(segment: Path, table: pa.Table) -> None:
    """Replace a segment, so that a crash leaves the old one or the new one.

    Args:
        segment: file of the segment.
        table: its new rows.
    """
    partial_file = segment.with_name(f".{segment.name}")
    pq.write_table(table, partial_file, compression="zstd")
    sync_path(partial_file)
    partial_file.replace(segment)
    sync_path(segment.parent)


def remove_table(path: Path) -> None:
    """Remove a table, and what an interrupted change of it left. OutputError if that fails.

    Args:
        path: table, a file or a folder of segments.
    """
    try:
        for name in (path.name, *(f".{path.name}.{end}" for end in ("merged", "segments", "resumed"))):
            other = path.with_name(name)
            shutil.rmtree(other) if other.is_dir() else other.unlink(missing_ok=True)
    except OSError as error:
        raise make_write_error(path, error) from None


def _become_folder(path: Path, n_rows: int) -> None:
    """Turn a table of one file into a folder with one segment, and finish or undo such a change that was interrupted."""
    merged_file, segment_folder, new_folder = (
        path.with_name(f".{path.name}.{end}") for end in ("merged", "segments", "resumed")
    )
    for folder in (segment_folder, new_folder):
        if not path.exists() and folder.is_dir() and any(folder.iterdir()):
            folder.rename(path)
    merged_file.unlink(missing_ok=True)
    for folder in (segment_folder, new_folder):
        shutil.rmtree(folder, ignore_errors=True)
    if not path.exists():
        if n_rows:
            raise CheckpointError(f"{path}: not found, but the checkpoint was written after {n_rows:,} rows")
        path.mkdir()  # a table without rows, whose folder was being merged
    if path.is_file():
        new_folder.mkdir()
        path.rename(new_folder / FIRST_SEGMENT)
        new_folder.rename(path)


def _cut_segments(folder: Path, n_rows: int) -> int:
    for partial_file in folder.glob(".segment-*"):
        with suppress(OSError):
            partial_file.unlink()
    next_number, n_kept = 0, 0
    for segment in sorted(folder.glob("segment-*.parquet")):
        if n_kept == n_rows:
            segment.unlink()
            continue
        n_segment_rows = pq.read_metadata(segment).num_rows
        if n_kept + n_segment_rows > n_rows:
            replace_segment(segment, pq.read_table(segment, partitioning=None).slice(0, n_rows - n_kept))
            n_segment_rows = n_rows - n_kept
        n_kept += n_segment_rows
        next_number = int(segment.stem.removeprefix("segment-")) + 1
    if n_kept < n_rows:
        raise CheckpointError(f"{folder}: has {n_kept:,} rows, but the checkpoint was written after {n_rows:,}")
    return next_number
