"""Adapters of NumPy arrays, torch datasets, pandas data frames and Hugging Face tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from fedsgd.data.datasets.adapters import from_arrays, from_hugging_face, from_pandas, from_torch
from fedsgd.errors import DataError
from fedsgd.experiment.partition_summary import summarize_partition
from fedsgd.scenario.scenario import Scenario

X = np.arange(12.0).reshape(6, 2)
PAIR = (X, np.arange(6) % 3)
TENSORS = TensorDataset(torch.arange(8.0).reshape(4, 2), torch.tensor([0, 1, 2, 1]))
FRAME = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "who": ["zoe", "ann", "zoe"], "y": [0, 1, 1]})


class Items(TorchDataset[Any]):
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(TENSORS)


# ---------------------------------------------------------------------------------------------------------------------- arrays


def test_arrays_become_float32_and_class_labels() -> None:
    dataset = from_arrays(PAIR, (X[:2], [2, 0]))
    assert (dataset.train.x.dtype, dataset.train.y.dtype, dataset.classes) == (np.float32, np.int64, 3)
    np.testing.assert_array_equal(dataset.test.x, X[:2])


def test_pixels_are_scaled_and_other_integers_stay() -> None:
    pixels, words = np.array([[0, 255]], np.uint8), np.array([[7, 300]])
    assert from_arrays((pixels, [0]), (pixels, [0])).train.x.tolist() == [[0.0, 1.0]]
    assert from_arrays((words, [0]), (words, [0])).train.x.dtype == np.int64


def test_float_targets_are_regression_targets() -> None:
    assert from_arrays((X, X[:, 0]), (X, X[:, 1])).classes is None


def test_text_targets_are_numbered_over_both_parts() -> None:
    dataset = from_arrays((X[:2], ["owl", "cat"]), (X[:1], np.array(["dog"], object)))
    assert (dataset.class_names, dataset.train.y.tolist(), dataset.test.y.tolist()) == (("cat", "dog", "owl"), [2, 0], [1])


def test_class_names_number_the_text_targets() -> None:
    dataset = from_arrays((X[:2], ["owl", "cat"]), (X[:1], ["owl"]), class_names=["owl", "fox", "cat"])
    assert (dataset.class_names, dataset.train.y.tolist(), dataset.test.y.tolist()) == (("owl", "fox", "cat"), [0, 2], [0])


def test_class_names_give_the_number_of_classes() -> None:
    dataset = from_arrays(PAIR, PAIR, class_names=["cat", "dog", "owl", "fox"])
    assert (dataset.classes, dataset.class_names) == (4, ("cat", "dog", "owl", "fox"))


@pytest.mark.parametrize(
    "owners",
    [[30, 7, 30, 7, 7, 7], [*"zazaaa"], np.array([*"zazaaa"], object)],
    ids=["numbers", "texts", "objects"],
)
def test_owners_become_the_clients_of_the_natural_partition(owners: Any) -> None:
    dataset = from_arrays(PAIR, PAIR, owners=owners)
    assert dataset.train.writer is not None
    assert dataset.train.writer.tolist() == [1, 0, 1, 0, 0, 0]
    summary = summarize_partition(Scenario(name="o").with_settings({"data.partition.name": "natural"}), dataset=dataset)
    assert summary.sizes.tolist() == [4, 2]


ARRAY_ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "no test set": (
        lambda: from_arrays(PAIR, cast("Any", None)),
        "test: got None, expected a pair (x, y) of arrays: fedsgd measures",
    ),
    "one array": (lambda: from_arrays(cast("Any", X), PAIR), "train: got a numpy.ndarray, expected a pair (x, y)"),
    "three arrays": (lambda: from_arrays(cast("Any", (X, X, X)), PAIR), "train: got 3 values, expected a pair"),
    "lengths": (lambda: from_arrays((X, [0]), PAIR), "there are 6 training examples but 1 targets"),
    "ragged rows": (lambda: from_arrays(([[1], [1, 2]], [0, 1]), PAIR), "train: x: cannot be converted to an array: "),
    "objects": (lambda: from_arrays((np.array([None, 1]), [0, 1]), PAIR), "the training examples are object of shape [2]"),
    "types": (lambda: from_arrays(PAIR, (X.astype(int), PAIR[1])), "training and test examples differ in type or shape"),
    "pixels": (
        lambda: from_arrays((X.astype(np.uint8), PAIR[1]), PAIR),
        "training and test examples differ in type: uint8 and float64; only uint8 is scaled to [0, 1]",
    ),
    "class names": (
        lambda: from_arrays((X[:2], ["owl", "cat"]), (X[:1], ["owl"]), class_names=["owl", "cats"]),
        'class_names: has no "cat", which is a label, did you mean "cats"?',
    ),
    "one class name": (
        lambda: from_arrays(PAIR, PAIR, class_names="cat"),
        "class_names: got a str, expected a list of texts",
    ),
    "class name twice": (
        lambda: from_arrays((X[:2], ["owl", "cat"]), (X[:1], ["owl"]), class_names=["owl", "cat", "owl"]),
        'class_names: got "owl" several times, expected different names for labels that are texts',
    ),
    "masked inputs": (
        lambda: from_arrays((np.ma.masked_less(X, X.max()), PAIR[1]), PAIR),
        "train: x: has 11 masked values, expected none",
    ),
    "masked targets": (
        lambda: from_arrays(PAIR, (X, np.ma.masked_equal(np.arange(6), 3))),
        "test: y: has 1 masked value, expected none",
    ),
    "label": (lambda: from_arrays(PAIR, PAIR, classes=2), "the training labels run from 0 to 2, expected 0 to 1"),
    "owners": (
        lambda: from_arrays(PAIR, PAIR, owners=[1, 2]),
        "owners: got shape [2], expected one owner for each of 6 training",
    ),
    "float owners": (lambda: from_arrays(PAIR, PAIR, owners=X[:, 0]), "owners: got float64, expected whole numbers or texts"),
    "tensor": (
        lambda: from_arrays((cast("Any", torch.zeros(2, device="meta")), [0, 0]), PAIR),
        "train: x: cannot be converted to an array: ",
    ),
}


@pytest.mark.parametrize("case", ARRAY_ERRORS)
def test_wrong_arrays_are_refused_in_one_line(case: str) -> None:
    check_error(*ARRAY_ERRORS[case])


def check_error(call: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------------------- torch


@pytest.mark.parametrize(
    "dataset",
    [TENSORS, Subset(TENSORS, [0, 1, 2, 3]), Stream(), Items(*((x.numpy(), int(y)) for x, y in TENSORS))],
    ids=lambda dataset: type(dataset).__name__,
)
def test_items_of_torch_datasets_are_stacked(dataset: Any) -> None:
    converted = from_torch(dataset, TENSORS, owners=[1, 0, 0, 1])
    np.testing.assert_array_equal(converted.train.x, TENSORS.tensors[0].numpy())
    np.testing.assert_array_equal(converted.train.y, TENSORS.tensors[1].numpy())
    assert converted.classes == 3
    assert converted.train.writer is not None


def test_parameters_in_torch_datasets_are_detached() -> None:
    inputs = torch.zeros(2, 2, requires_grad=True)
    assert from_torch(TensorDataset(inputs, torch.tensor([0, 1])), TENSORS).shape == (2,)


ZERO = np.zeros(2, np.float32)
TORCH_ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "no test set": (lambda: from_torch(TENSORS, None), "test: got None, expected a torch.utils.data.Dataset"),
    "loader": (
        lambda: from_torch(DataLoader(TENSORS), TENSORS),
        "train: got a torch.DataLoader, expected a torch.utils.data.Dataset: pass loader.dataset",
    ),
    "class": (lambda: from_torch(Items, TENSORS), "train: got the class Items, expected a torch"),
    "empty": (lambda: from_torch(TENSORS, Items()), "test: the dataset has no items"),
    "no target": (
        lambda: from_torch(Items(ZERO), TENSORS),
        "train: item 0 is a numpy.ndarray, expected a pair (input, target)",
    ),
    "shape": (
        lambda: from_torch(Items((ZERO, 0), (ZERO[:1], 0)), TENSORS),
        "train: input of item 1 is float32 [1], expected float32 [2] as in item 0",
    ),
    "type": (
        lambda: from_torch(Items((ZERO, 0), (ZERO, 0.5)), TENSORS),
        "train: target of item 1 is float64 [], expected int64 [] as in item 0",
    ),
    "image": (
        lambda: from_torch(Items((object(), 0)), TENSORS),
        "train: input of item 0 is an object, expected an array of numbers; torchvision.transforms.ToTensor()",
    ),
    "label": (lambda: from_torch(TENSORS, TENSORS, classes=2), "the training labels run from 0 to 2"),
}


@pytest.mark.parametrize("case", TORCH_ERRORS)
def test_wrong_torch_datasets_are_refused_in_one_line(case: str) -> None:
    check_error(*TORCH_ERRORS[case])


# ---------------------------------------------------------------------------------------------------------------------- pandas


def test_columns_of_data_frames_become_vectors_labels_and_owners() -> None:
    dataset = from_pandas(FRAME, FRAME[:1], target="y", owner="who")
    assert dataset.train.x.tolist() == [[1.0, 0.5], [2.0, 1.5], [3.0, 2.5]]
    assert (dataset.train.y.tolist(), dataset.classes, len(dataset.test)) == ([0, 1, 1], 2, 1)
    assert dataset.train.writer is not None
    assert dataset.train.writer.tolist() == [1, 0, 1]


def test_texts_and_categories_are_class_labels() -> None:
    frame = FRAME.assign(y=pd.Categorical(["b", "a", "b"]))
    for target in ("who", "y"):
        dataset = from_pandas(frame, frame, target=target, features=["b", "a"])
        assert dataset.class_names == (("ann", "zoe") if target == "who" else ("a", "b"))
        assert dataset.train.x[0].tolist() == [0.5, 1.0]


PANDAS_ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "no test set": (lambda: from_pandas(FRAME, None, target="y"), "test: got None, expected a pandas.DataFrame"),
    "texts": (lambda: from_pandas(FRAME, FRAME, target="y"), 'train: column "who" contains texts, expected numbers'),
    "no column": (lambda: from_pandas(FRAME, FRAME, target="yy"), 'train: has no column "yy", did you mean "y"?'),
    "near name": (
        lambda: from_pandas(FRAME, FRAME, target="y", features=["bb"]),
        'train: has no column "bb", did you mean "b"?',
    ),
    "test column": (lambda: from_pandas(FRAME, FRAME[["y"]], target="y", features=["a"]), 'test: has no column "a"'),
    "target": (lambda: from_pandas(FRAME, FRAME, target="y", features=["a", "y"]), 'features: got "y", which is the target'),
    "text as columns": (
        lambda: from_pandas(FRAME, FRAME, target="y", features="ab"),
        'features: got the text "ab", expected a list of columns: ["ab"]',
    ),
    "nothing": (lambda: from_pandas(FRAME[["y"]], FRAME, target="y"), "features: got no column, expected at least one"),
    "missing": (
        lambda: from_pandas(FRAME.assign(a=[1, None, 3]), FRAME, target="y", features=["a"]),
        'train: column "a" has 1 missing values, expected none',
    ),
    "objects": (
        lambda: from_pandas(FRAME.assign(a=[[1], [2], [3]]), FRAME, target="y", features=["a"]),
        'train: column "a" contains list, expected numbers',
    ),
    "numbers of type object": (
        lambda: from_pandas(FRAME.astype({"a": object}), FRAME, target="y", features=["a"]),
        "frame.infer_objects() converts it",
    ),
    "twice": (
        lambda: from_pandas(pd.concat([FRAME, FRAME[["a"]]], axis=1), FRAME, target="y", features=["a"]),
        'train: has several columns "a", expected one',
    ),
    "label": (lambda: from_pandas(FRAME, FRAME, target="y", owner="who", classes=1), "the training labels run from 0 to 1"),
}


@pytest.mark.parametrize("case", PANDAS_ERRORS)
def test_wrong_data_frames_are_refused_in_one_line(case: str) -> None:
    check_error(*PANDAS_ERRORS[case])


# ---------------------------------------------------------------------------------------------------------------- Hugging Face


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_tables_and_dictionaries_of_tables_are_read_alike() -> None:
    import datasets

    table = datasets.Dataset.from_dict({"a": [1, 2], "b": [0.5, 1.5], "label": ["owl", "cat"], "who": ["z", "a"]})
    splits = datasets.DatasetDict(train=table, test=table.select([1]))
    for arguments in ((splits,), (splits["train"], splits["test"])):
        dataset = from_hugging_face(*arguments, features="*", owner="who")
        assert dataset.train.x.tolist() == [[1.0, 0.5], [2.0, 1.5]]
        assert (dataset.class_names, dataset.train.y.tolist(), dataset.test.y.tolist()) == (("cat", "owl"), [1, 0], [0])
        assert dataset.train.writer is not None
        assert dataset.train.writer.tolist() == [1, 0]


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_wrong_tables_are_refused_in_one_line() -> None:
    import datasets

    table = datasets.Dataset.from_dict({"x": [[1.0], [1.0, 2.0]], "label": [0, 1]})
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: from_hugging_face(table), "test: got None, expected a datasets.Dataset"),
        (lambda: from_hugging_face(FRAME, FRAME), "train: got a pandas.DataFrame, expected a datasets.Dataset"),
        (
            lambda: from_hugging_face(table.to_iterable_dataset(), table),
            "train: got a datasets.IterableDataset, expected a datasets.Dataset; collect the rows",
        ),
        (
            lambda: from_hugging_face(datasets.DatasetDict(train=table)),
            'train: got the splits "train", expected "train" and "test"; dataset.train_test_split(test_size=0.2)',
        ),
        (lambda: from_hugging_face(table, table), 'features: got "image", expected one of: "label", "x"'),
        (lambda: from_hugging_face(table, table, features="x", target="lable"), 'target: got "lable", did you mean "label"?'),
        (lambda: from_hugging_face(table, table, features="x", owner="who"), 'owner: got "who"'),
        (lambda: from_hugging_face(table, table, features="x"), "rows of column x differ in shape or type"),
    ]
    for call, message in cases:
        check_error(call, message)
