"""Tables that are written while a run goes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fedsgd.storage import parquet
from fedsgd.storage.parquet import TableWriter

COLUMNS = {"round": int, "word": str, "score": float}


def row(i: int) -> dict[str, object]:
    return {"round": i, "word": f"w{i}", "score": None if i % 2 else i / 2}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.parquet"


def test_table_writer_writes_segments_then_one_file(path: Path) -> None:
    writer = TableWriter(path, COLUMNS)
    for i in range(5):
        writer.append(row(i))
        writer.flush(force=True)
    assert path.is_dir()
    assert pd.read_parquet(path)["round"].tolist() == [0, 1, 2, 3, 4]
    writer.close()
    assert path.is_file()
    assert [p.name for p in path.parent.iterdir()] == ["t.parquet"]
    frame = pd.read_parquet(path)
    assert frame["word"].tolist() == ["w0", "w1", "w2", "w3", "w4"]
    assert frame["score"].isna().tolist() == [False, True, False, True, False]
    writer.close()
    assert writer.to_table().num_rows == 5


def test_table_without_rows_has_its_columns(path: Path) -> None:
    writer = TableWriter(path, COLUMNS)
    writer.close()
    assert list(pd.read_parquet(path).columns) == list(COLUMNS)
    assert TableWriter(None, COLUMNS).to_table().column_names == list(COLUMNS)


def test_unflushed_rows_are_limited_in_number(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "SEGMENT_SECONDS", 1e9)
    monkeypatch.setattr(parquet, "SEGMENT_ROWS", 10)
    writer = TableWriter(path, COLUMNS)
    writer._last_flush = parquet.time.monotonic()
    for i in range(25):
        writer.append(row(i))
        writer.flush()
    assert pd.read_parquet(path)["round"].tolist() == list(range(20))
    assert writer.to_table().num_rows == 25


def test_table_writer_without_a_path_stays_in_memory(path: Path) -> None:
    writer = TableWriter(None, COLUMNS)
    for i in range(3):
        writer.append(row(i))
    assert writer.to_table().to_pylist() == [row(i) for i in range(3)]
    writer.append(row(3))
    writer.close()
    assert writer.to_table().num_rows == 4
    assert not path.exists()
