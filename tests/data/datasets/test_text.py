"""Characters of a text: windows, parts, and invalid texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsgd.config.component import FieldError
from fedsgd.data import Dataset
from fedsgd.data.datasets.text import Text
from fedsgd.errors import DataError, ModelError
from fedsgd.models import MODELS
from fedsgd.models.builder import build_task

TEXT = "To be, or not to be: that is the quäestion,\nwhether 'tis nobler.\n"


def write_text(tmp_path: Path, text: str = TEXT) -> Path:
    """Write a text file; return its folder."""
    (tmp_path / "play.txt").write_text(text, encoding="utf-8")
    return tmp_path


def read_windows(dataset: Dataset, values: np.ndarray) -> list[str]:
    """Return windows of numbers as texts."""
    assert dataset.class_names is not None
    return ["".join(dataset.class_names[code] for code in row) for row in values]


@pytest.mark.parametrize(("context", "share"), [(4, 0.25), (7, 0.2), (1, 0.5)])
def test_text_windows_are_consecutive_with_next_characters_as_targets(context: int, share: float, tmp_path: Path) -> None:
    dataset = Text(path="play.txt", context=context, test_share=share).load(write_text(tmp_path))
    n_train = int(len(TEXT) * (1 - share))
    assert (dataset.shape, dataset.classes) == ((context,), len(set(TEXT)))
    for examples, part in ((dataset.train, TEXT[:n_train]), (dataset.test, TEXT[n_train:])):
        starts = range(0, len(part) - context, context)
        assert read_windows(dataset, examples.x) == [part[i : i + context] for i in starts]
        assert read_windows(dataset, examples.y) == [part[i + 1 : i + context + 1] for i in starts]


def test_text_windows_take_no_memory_of_their_own(tmp_path: Path) -> None:
    dataset = Text(path="play.txt", context=8).load(write_text(tmp_path, 40 * TEXT))
    assert np.shares_memory(dataset.train.x, dataset.train.y)
    assert dataset.train.x.base is not None
    assert dataset.train.x.base.nbytes <= 8 * len(40 * TEXT)


def test_text_without_path_is_shakespeare_split_as_in_nanogpt(data_folder: Path) -> None:
    """nanoGPT trains on the first 1,003,854 characters and validates on the other 111,540."""
    dataset = Text().load(data_folder)
    assert (dataset.classes, len(dataset.train), len(dataset.test)) == (65, 1_003_853 // 64, 111_539 // 64)
    assert read_windows(dataset, dataset.train.x[:1])[0].startswith("First Citizen:\nBefore we proceed")
    assert read_windows(dataset, dataset.test.x[:1])[0].startswith("?\n\nGREMIO:\nGood morrow, neighbour Baptista.")


@pytest.mark.parametrize(
    ("text", "context", "message"),
    [
        (TEXT, 64, r"^text.context: got 64, expected fewer than 7: the training part has \d\d characters and the test part 7 "),
        (TEXT, 7, r"^text.context: got 7, expected fewer than 7"),
        ("", 1, r"^text.context: got 1, expected a longer text: the training part has 0 characters"),
    ],
)
def test_text_context_longer_than_a_part_raises_one_line(text: str, context: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(FieldError, match=message) as error:
        Text(path="play.txt", context=context).load(write_text(tmp_path, text))
    assert "\n" not in str(error.value)


def test_text_that_cannot_be_read_raises_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^text: absent.txt not found \(looked for .*absent.txt, absent.txt\)$"):
        Text(path="absent.txt").load(tmp_path)
    with pytest.raises(DataError, match=r"^shakespeare: input.txt not found"):
        Text().load(tmp_path)
    (tmp_path / "play.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"^text: .*play.txt: cannot be read as text \(is UTF-16"):
        Text(path="play.txt").load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_share": 1.0}, "text.test_share: got 1, expected a share below 1"),
        ({"path": ""}, 'text.path: got "", expected a'),
    ],
)
def test_text_with_impossible_setting_raises_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        Text(**settings)


def test_char_gpt_whose_context_is_shorter_than_the_windows_raises_one_line(tmp_path: Path) -> None:
    dataset = Text(path="play.txt", context=9).load(write_text(tmp_path, 10 * TEXT))
    with pytest.raises(ModelError, match=r"^char-gpt: the examples have 9 characters, expected at most 8 \(model.context\)"):
        build_task(MODELS["char-gpt"](context=8), dataset, 0)
