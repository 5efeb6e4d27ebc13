"""Check of the dataset argument: messages with the conversion of other types."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from fedsgd.data import Dataset, Examples, check_dataset
from fedsgd.data.datasets.npz import Npz
from fedsgd.errors import DataError
from fedsgd.experiment.partition_summary import summarize_partition
from fedsgd.scenario.scenario import Scenario
from tests.data.samples import make_examples

WRONG_TYPES: dict[str, tuple[object, str]] = {
    "tensors": (TensorDataset(torch.zeros(2, 2), torch.zeros(2)), r"got a torch.TensorDataset, .*tensor.numpy\(\) for tensor"),
    "loader": (DataLoader(TensorDataset(torch.zeros(2, 2))), r"got a torch.DataLoader, .*batches = list\(loader\)"),
    "subset": (Subset(TensorDataset(torch.zeros(2, 2)), [0]), r"got a torch.Subset, .*map\(numpy.stack, zip\(\*dataset\)\)"),
    "frame": (pd.DataFrame({"a": [1]}), r"got a pandas.DataFrame, .*frame\[columns\].to_numpy\(\)"),
    "pair": ((np.zeros((2, 2)), np.zeros(2)), "got a tuple, .*takes one pair of arrays"),
    "dictionary": ({"train": 1}, "got a dict, .*takes one pair of arrays"),
    "array": (np.zeros((2, 2)), "got a numpy.ndarray, .*takes one pair of arrays"),
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
def test_hugging_face_dataset_raises_error_with_settings_to_load_it() -> None:
    import datasets

    table = datasets.Dataset.from_dict({"x": [1.0]})
    for value in (table, datasets.DatasetDict(train=table)):
        with pytest.raises(DataError, match=r"got a datasets.Dataset.*save_to_disk\(folder\) and set \[data\] name"):
            check_dataset(value)


def test_conversions_of_messages_return_the_arrays() -> None:
    tensors = TensorDataset(torch.arange(6.0).reshape(3, 2), torch.tensor([1, 0, 1]))
    x, y = (tensor.numpy() for tensor in tensors.tensors)
    stacked = tuple(map(np.stack, zip(*Subset(tensors, [0, 1, 2]), strict=True)))
    np.testing.assert_array_equal(stacked[0], x)
    np.testing.assert_array_equal(stacked[1], y)
    data = check_dataset(Dataset(Examples(x, y), Examples(*stacked), 2))
    assert (data.train.x.tolist(), data.test.y.tolist()) == ([[0, 1], [2, 3], [4, 5]], [1, 0, 1])
