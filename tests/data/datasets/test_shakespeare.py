"""Shakespeare: roles, windows and invalid texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsgd.data.datasets.shakespeare import Shakespeare
from fedsgd.errors import DataError

PLAY = """First Citizen:
Before we proceed, hear me speak.
Note: this is a line, not a role:

All:
Speak, speak.

First Citizen:
You are all resolved
to die?
Yes.

MENENIUS:
Soft.
"""


def write_play(tmp_path: Path, text: str = PLAY) -> Path:
    """Write a text file of plays; return its folder."""
    (tmp_path / "input.txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_shakespeare_lines_of_a_role_become_windows(tmp_path: Path) -> None:
    """First Citizen has five lines: four train and one tests. The other roles have one line each and are left out."""
    data = Shakespeare(unroll=3).load(write_play(tmp_path))
    names = data.class_names
    assert names is not None
    assert "\n" in names
    assert list(names) == sorted(names)
    train, test = (["".join(names[c] for c in row) for row in part] for part in (data.train.x, data.test.x))
    training_text = "Before we proceed, hear me speak.\nNote: this is a line, not a role:\nYou are all resolved\nto die?"
    assert "".join(train) == training_text[: 3 * len(train)]
    assert len(train) == (len(training_text) - 1) // 3
    assert test == ["Yes"]
    assert "".join(names[c] for c in data.test.y[0]) == "es."
    assert data.train.writer is not None
    assert set(data.train.writer.tolist()) == {0}


def test_shakespeare_roles_are_numbered_in_order_of_first_speech(tmp_path: Path) -> None:
    text = "".join(f"{role}:\nfirst line of {role}\nsecond line of {role}\n\n" for role in "ZAM")
    data = Shakespeare(unroll=5).load(write_play(tmp_path, text))
    assert data.train.writer is not None
    assert data.test.writer is not None
    assert data.train.writer.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.writer.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_shakespeare_real_file_has_known_sizes(data_folder: Path) -> None:
    data = Shakespeare().load(data_folder)
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((80,), 65, 10_130, 2_439)
    assert (data.train.x[:, 1:] == data.train.y[:, :-1]).all()
    assert data.train.writer is not None
    assert len(np.unique(data.train.writer)) == 243


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no role at all\n", "no speeches: expected ROLE:"),
        ("A:\nshort\nshort\n", "no role speaks 81 characters"),
        ("", "no speeches"),
    ],
)
def test_shakespeare_other_text_raises_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Shakespeare().load(write_play(tmp_path, text))
    (tmp_path / "input.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as text"):
        Shakespeare().load(tmp_path)
