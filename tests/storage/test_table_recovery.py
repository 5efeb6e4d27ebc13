"""Tables of killed processes, in each state that the change between a folder of segments and one file can leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fedsgd.errors import CheckpointError
from fedsgd.storage.parquet import TableWriter
from fedsgd.storage.table_recovery import keep_first_rows, remove_table

COLUMNS = {"round": int}


def write_segments(path: Path, n_rows: int = 4) -> None:
    writer = TableWriter(path, COLUMNS)
    for i in range(n_rows):
        writer.append({"round": i})
        if i % 2:
            writer.flush(force=True)


def write_file(path: Path) -> None:
    write_segments(path)
    TableWriter(path, COLUMNS, 4).close()


def leave_segments_hidden(path: Path) -> None:
    """Leave the state between the two renames of `close`."""
    write_segments(path)
    path.rename(path.with_name(f".{path.name}.segments"))
    path.with_name(f".{path.name}.merged").write_bytes(b"complete")


def leave_merge_unfinished(path: Path) -> None:
    write_segments(path)
    path.with_name(f".{path.name}.merged").write_bytes(b"half")


def leave_old_segments(path: Path) -> None:
    """Leave the state after both renames of `close`, while the segments are removed."""
    write_file(path)
    path.with_name(f".{path.name}.segments").mkdir()


def leave_recovery_unfinished(path: Path) -> None:
    """Leave the state between the two renames of a recovery."""
    write_file(path)
    folder = path.with_name(f".{path.name}.resumed")
    folder.mkdir()
    path.rename(folder / "segment-000000.parquet")


def leave_segment_unfinished(path: Path) -> None:
    write_segments(path)
    (path / ".segment-000002.parquet").write_bytes(b"half")


STATES = [
    write_segments,
    write_file,
    leave_segments_hidden,
    leave_merge_unfinished,
    leave_old_segments,
    leave_recovery_unfinished,
    leave_segment_unfinished,
]


@pytest.mark.parametrize("leave", STATES)
@pytest.mark.parametrize("n_rows", [1, 2, 3, 4])
def test_first_rows_are_kept_and_new_rows_follow(leave: Callable[[Path], None], n_rows: int, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    leave(path)
    writer = TableWriter(path, COLUMNS, n_rows)
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.parquet"]
    writer.append({"round": 100})
    writer.close()
    assert pq.read_table(path)["round"].to_pylist() == [*range(n_rows), 100]


def test_table_without_rows_is_recovered(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    (tmp_path / ".t.parquet.segments").mkdir()
    assert keep_first_rows(path, 0) == 0
    assert path.is_dir()


def test_table_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    write_segments(tmp_path / "t.parquet")
    with pytest.raises(CheckpointError, match="has 4 rows, but the checkpoint was written after 5"):
        keep_first_rows(tmp_path / "t.parquet", 5)


def test_table_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"text")
    with pytest.raises(CheckpointError, match="cannot be read as Parquet"):
        keep_first_rows(tmp_path / "t.parquet", 5)


@pytest.mark.parametrize("leave", STATES)
def test_removed_table_leaves_nothing(leave: Callable[[Path], None], tmp_path: Path) -> None:
    leave(tmp_path / "t.parquet")
    remove_table(tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == []
