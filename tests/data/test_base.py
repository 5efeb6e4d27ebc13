"""Examples and datasets: selection, conversion and checks of arrays."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from fedsgd.data import Dataset, Examples
from fedsgd.errors import DataError
from tests.data.samples import make_examples


def test_examples_selection_copies_rows_on_demand() -> None:
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)
    selection = Examples(x, y, np.array([4, 1]))
    assert len(selection) == 2
    assert selection.arrays()[0].tolist() == [[8, 9], [2, 3]]
    assert Examples(x, y).arrays()[0] is x
    assert selection.slice(1, 5).arrays()[1].tolist() == [1]
    assert Examples(x, y).slice(4, 9).arrays()[1].tolist() == [4, 5]


INVALID_DATASETS: dict[str, tuple[Examples, Examples, int | None, str]] = {
    "no test examples": (make_examples(), make_examples(0), 2, "the dataset has no test examples"),
    "no rows": (Examples(np.zeros((3, 2)), np.zeros(3, int), np.zeros(0, int)), make_examples(), 2, "no training examples"),
    "different counts": (Examples(np.zeros((3, 2)), np.zeros(2, int)), make_examples(), 2, "3 training examples but 2 targets"),
    "lists": (
        Examples([[1.0]], np.zeros(1, int)),
        make_examples(),
        2,
        "the training examples are list, expected a numpy array",
    ),
    "objects": (make_examples(), Examples(np.array([None]), np.zeros(1, int)), 2, "the test examples are object of shape"),
    "float labels": (
        make_examples(dtype="float32"),
        make_examples(),
        2,
        "the training targets are float32 of shape .3., expected class labels",
    ),
    "not a number": (
        Examples(np.array([[0.0, 1], [2, np.nan], [np.inf, 3]]), np.zeros(3, int)),
        make_examples(),
        2,
        "the training examples are not all finite float32 numbers, first in row 1",
    ),
    "too large for float32": (
        make_examples(),
        Examples(np.full((1, 2), 1e39), np.zeros(1, int)),
        2,
        "the test examples are not all finite",
    ),
    "infinite targets": (
        make_examples(),
        Examples(np.zeros((1, 2)), np.array([np.inf])),
        None,
        "the test targets are not all finite",
    ),
    "different shapes": (make_examples(), Examples(np.zeros((1, 3)), np.zeros(1, int)), 2, r"float32 \[2\] and float32 \[3\]"),
    "different types": (
        make_examples(),
        Examples(np.zeros((1, 2), int), np.zeros(1, int)),
        2,
        r"examples differ .*: float32 \[2\] and int64 \[2\]",
    ),
    "different target shapes": (
        make_examples(),
        Examples(np.zeros((1, 2)), np.zeros((1, 2), int)),
        2,
        r"targets differ .*: int64 \[\] and int64 \[2\]",
    ),
    "beyond int64": (Examples(np.zeros((1, 2)), np.array([2**63], np.uint64)), make_examples(), 2, "which int64 cannot hold"),
    "too few owners": (
        make_examples(writer=np.zeros(2, int)),
        make_examples(),
        2,
        r"the training owners \(Examples.writer\) are int64 of shape .2., expected a number",
    ),
    "owners by name": (
        make_examples(writer=np.array(["a"] * 3)),
        make_examples(),
        2,
        r"the training owners \(Examples.writer\) are <U1 of shape",
    ),
    "owners below zero": (
        make_examples(),
        make_examples(writer=np.array([0, -1, 2])),
        2,
        r"the test owners \(Examples.writer\) are int64",
    ),
    "float as classes": (
        make_examples(),
        make_examples(),
        2.0,
        "classes is 2.0, expected a whole number of at least 1, or None",
    ),
    "bool as classes": (make_examples(), make_examples(), True, "classes is True, expected a whole number"),
    "zero classes": (make_examples(), make_examples(), 0, "classes is 0, expected a whole number of at least 1"),
    "pair": (
        (np.zeros((1, 2)), np.zeros(1, int)),
        make_examples(),
        2,
        r"the training part is a tuple, expected a fedsgd.Examples",
    ),
    "tensors": (
        Examples(torch.zeros(1, 2), np.zeros(1, int)),
        make_examples(),
        2,
        r"examples are torch.Tensor, .*; call its \.numpy\(\)",
    ),
    "frame": (
        Examples(pd.DataFrame({"a": [1.0]}), np.zeros(1, int)),
        make_examples(),
        2,
        r"are pandas.DataFrame, .* call its \.to_numpy",
    ),
    "text labels": (
        Examples(np.zeros((1, 2)), np.array(["cat"])),
        make_examples(),
        2,
        "numpy.unique.labels, return_inverse=True.",
    ),
    "ragged": (
        Examples(np.array([[1], [1, 2]], object), np.zeros(2, int)),
        make_examples(),
        2,
        "rows of different lengths or types",
    ),
    "floats of whole numbers": (
        Examples(np.zeros((1, 2)), np.array([1.0])),
        make_examples(),
        2,
        r"float32 of shape \[1\], expected class labels.*; y.astype\(numpy.int64\) converts whole numbers",
    ),
    "rows by list": (
        Examples(np.zeros((1, 2)), np.zeros(1, int), [0]),
        make_examples(),
        2,
        "the training rows are list, expected",
    ),
    "rows out of range": (
        Examples(np.zeros((1, 2)), np.zeros(1, int), np.array([1])),
        make_examples(),
        2,
        "rows run from 1 to 1, expected 0 to 0",
    ),
    "negative label": (
        Examples(np.zeros((2, 2)), np.array([-1, 1])),
        make_examples(),
        2,
        "the training labels run from -1 to 1, expected 0 to 1, or -100 for a target that the loss ignores",
    ),
    "all ignored": (make_examples(), Examples(np.zeros((1, 2)), np.array([-100])), 2, "all test labels are -100"),
    "label too large": (
        make_examples(),
        Examples(np.zeros((1, 2)), np.array([2])),
        2,
        "the test labels run from 2 to 2, expected 0 to 1",
    ),
}


@pytest.mark.parametrize(("train", "test", "classes", "message"), INVALID_DATASETS.values(), ids=INVALID_DATASETS.keys())
def test_dataset_with_invalid_parts_raises_error(train: Examples, test: Examples, classes: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(train, test, classes)


def test_dataset_classes_of_numpy_become_plain_values() -> None:
    data = Dataset(make_examples(), make_examples(), np.int64(2), ["a", "b"])
    assert (data.classes, type(data.classes), data.class_names) == (2, int, ("a", "b"))
    for names in ("ab", [1, 2], {"a": 0, "b": 1}):
        with pytest.raises(DataError, match="expected a tuple of texts"):
            Dataset(make_examples(), make_examples(), 2, names)


def test_dataset_arrays_become_contiguous_float32_and_int64() -> None:
    x, y = np.arange(6, dtype=">f8").reshape(3, 2)[::-1], np.array([1, 0, 1], dtype=np.int32)
    data = Dataset(Examples(x, y), Examples(x, y), 2)
    assert (data.train.x.dtype, data.train.y.dtype) == (np.float32, np.int64)
    assert data.train.x.tolist() == [[4, 5], [2, 3], [0, 1]]
    assert Dataset(Examples(y.astype(np.uint8), y), Examples(y, y), 2).train.x.dtype == np.int64
    regression = Dataset(Examples(x, x[:, :1]), Examples(x, x[:, :1]), None)
    assert regression.test.y.dtype == np.float32


def test_dataset_rows_and_writers_are_applied_once() -> None:
    data = Dataset(Examples(np.zeros((4, 2)), np.arange(4), np.array([3, 1]), np.array([9, 8, 7, 6])), make_examples(), 4)
    assert data.train.y.tolist() == [3, 1]
    assert data.train.writer is not None
    assert data.train.writer.tolist() == [6, 8]
    assert data.train.rows is None


def test_dataset_sequences_of_labels_are_checked_like_labels() -> None:
    sequences = Examples(np.zeros((2, 3), int), np.array([[0, 1, 2], [2, 2, 2]]))
    assert Dataset(sequences, sequences, 3, ("a", "b", "c")).class_names == ("a", "b", "c")
    with pytest.raises(DataError, match="2 class names for 3 classes"):
        Dataset(sequences, sequences, 3, ("a", "b"))
    with pytest.raises(DataError, match="labels run from 0 to 2, expected 0 to 1"):
        Dataset(sequences, sequences, 2)


def test_dataset_one_hot_labels_raise_error_with_argmax() -> None:
    y = np.eye(3)[np.arange(6) % 3]
    with pytest.raises(DataError, match=r"one-hot: y.argmax\(1\) converts them to class labels"):
        Dataset(Examples(y, y), Examples(y, y), 3)
