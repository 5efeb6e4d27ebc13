"""Check of the dataset argument: messages with the conversion of other types."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from fedsgd.data import Dataset, check_dataset
from fedsgd.data.datasets.npz import Npz
from fedsgd.errors import DataError
from fedsgd.experiment.partition_summary import summarize_partition
from fedsgd.scenario.scenario import Scenario
from tests.data.samples import make_examples

WRONG_TYPES: dict[str, tuple[object, str]] = {
    "tensors": (TensorDataset(torch.zeros(2, 2), torch.zeros(2)), r"got a torch.TensorDataset, .*from_torch\(train, test\)"),
    "loader": (
        DataLoader(TensorDataset(torch.zeros(2, 2))),
        r"got a torch.DataLoader, .*from_torch\(train.dataset, test.dataset\)",
    ),
    "subset": (Subset(TensorDataset(torch.zeros(2, 2)), [0]), r"got a torch.Subset, .*from_torch\(train, test\)"),
    "frame": (pd.DataFrame({"a": [1]}), r"got a pandas.DataFrame, .*from_pandas\(train, test, target="),
    "pair": ((np.zeros((2, 2)), np.zeros(2)), r"got a tuple, .*from_arrays\(\(x, y\), \(x_test, y_test\)\)"),
    "dictionary": ({"train": 1}, r"got a dict, .*from_arrays\(\(x, y\)"),
    "array": (np.zeros((2, 2)), r"got a numpy.ndarray, .*from_arrays\(\(x, y\)"),
    "examples": (make_examples(), "got a fedsgd.Examples, .*test examples are required too"),
    "source": (Npz(path="x"), r"got a fedsgd.Npz, .*its load\(folder\) returns one"),
    "path": ("data.npz", r"got a str, .*name a file in \[data\]"),
    "class": (Dataset, "got the class Dataset, "),
    "number": (3, "got an int, "),
}


@pytest.mark.parametrize(("value", "message"), WRONG_TYPES.values(), ids=WRONG_TYPES.keys())
def test_value_of_another_type_raises_error_with_conversion(value: object, message: str) -> None:
    with pytest.raises(DataError) as error:
        summarize_partition(Scenario(name="x"), dataset=value)
    assert "expected a fedsgd.Dataset(train, test, classes), with train and test a fedsgd.Examples(x, y)" in str(error.value)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("offline")
def test_hugging_face_dataset_raises_error_with_its_conversion() -> None:
    import datasets

    table = datasets.Dataset.from_dict({"x": [1.0]})
    for value in (table, datasets.DatasetDict(train=table)):
        with pytest.raises(DataError, match=r"got a datasets.Dataset.*from_hugging_face\(train, test, features="):
            check_dataset(value)
