"""Tables that are written while a run goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
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


ROWS = [
    {"n": 1, "x": 0.5, "text": "ä, €", "i": np.int64(2**62)},
    {"n": None, "x": float("nan"), "text": "", "i": -(2**63)},
    {"x": None, "text": None, "i": 0},
    {"n": 3, "x": 2, "text": "x", "i": 1},
]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [{}, {}], []], ids=["mixed", "one", "nulls", "none"])
def test_rows_become_the_table_of_pyarrow(rows: list[dict[str, Any]]) -> None:
    columns = {"n": int, "x": float, "text": str, "i": int}
    writer = TableWriter(None, columns)
    for row in rows:
        writer.append(row)
    table = writer.to_table()
    expected = pa.Table.from_pylist(rows, schema=writer.schema)
    table.validate(full=True)
    assert repr(table.to_pylist()) == repr(expected.to_pylist())  # NaN != NaN
    assert [column.null_count for column in table.columns] == [column.null_count for column in expected.columns]


@pytest.mark.parametrize("value", [1.5, "1", 2**63], ids=repr)
def test_value_that_does_not_fit_its_column_is_refused(value: Any) -> None:
    writer = TableWriter(None, {"n": int})
    writer.append({"n": value})
    with pytest.raises(TypeError):
        writer.to_table()


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
