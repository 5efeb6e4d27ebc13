"""Datasets: what is loaded, and what is said when it cannot be."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import os
import re
import struct
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.utils.data import DataLoader, Subset, TensorDataset

from fedsgd.cli import main
from fedsgd.config.component import FieldError
from fedsgd.data import DATASETS, Dataset, Examples, check_dataset
from fedsgd.data.datasets.cifar10 import Cifar10
from fedsgd.data.datasets.columns import read_labels
from fedsgd.data.datasets.hugging_face import HuggingFace
from fedsgd.data.datasets.mnist import Mnist, read_idx
from fedsgd.data.datasets.npz import Npz
from fedsgd.data.datasets.shakespeare import Shakespeare
from fedsgd.errors import DataError, ModelError, ScenarioError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.partition_summary import summarize_partition
from fedsgd.scenario.scenario import Scenario, parse_scenario


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny_mnist(tmp_path: Path) -> Path:
    """A folder of four well-formed IDX files with a few images, one of them gzipped."""
    rng = np.random.default_rng(0)
    for stem, n in (("train", 20), ("t10k", 10)):
        images, labels = rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_digits() -> None:
    data = DATASETS["digits"]().load(None)
    assert (len(data.train), len(data.test), data.shape, data.classes) == (1437, 360, (8, 8), 10)
    assert data.train.x.dtype == np.float32
    assert data.train.y.dtype == np.int64
    assert (data.train.x.min(), data.train.x.max()) == (0, 1)
    assert set(np.unique(data.test.y)) == set(range(10))
    from sklearn.datasets import load_digits

    whole = sorted(image.tobytes() for image in (load_digits().images / 16).astype(np.float32))
    assert sorted(image.tobytes() for image in np.concatenate([data.train.x, data.test.x])) == whole


def test_mnist_is_the_mnist_that_everyone_has(data_folder: Path) -> None:
    data = Mnist().load(data_folder)
    assert (len(data.train), len(data.test), data.shape, data.classes) == (60_000, 10_000, (28, 28), 10)
    assert data.train.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert float(data.train.x.mean()) == pytest.approx(0.1307, abs=1e-4)
    assert float(data.train.x.std()) == pytest.approx(0.3081, abs=1e-4)


def test_plain_and_gzipped_files_are_found_in_the_folder_and_below(tiny_mnist: Path, tmp_path: Path) -> None:
    data = Mnist().load(tiny_mnist)
    assert (len(data.train), len(data.test)) == (20, 10)
    below = tmp_path / "outer"
    below.mkdir()
    (below / "mnist").symlink_to(tiny_mnist)
    assert (Mnist().load(below).train.x == data.train.x).all()


def test_no_folder_says_where_to_get_the_files() -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*--data DIR or set FEDSGD_DATA"):
        Mnist().load(None)


def test_a_missing_file_says_where_it_was_looked_for(tiny_mnist: Path) -> None:
    (tiny_mnist / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte not found \(looked for .*mnist.*https://"):
        Mnist().load(tiny_mnist)


CORRUPT: dict[str, tuple[str, bytes, str]] = {
    "cut off in the gzip": ("train-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((20, 28, 28))))[:-9], "cannot be read"),
    "not gzip after all": ("train-images-idx3-ubyte.gz", b"\x1f\x8bnonsense", "cannot be read"),
    "a web page": ("t10k-labels-idx1-ubyte", b"<html>", "starts with 3c 68 74 6d, expected 00 00 08 01"),
    "empty": ("t10k-labels-idx1-ubyte", b"", "starts with nothing"),
    "cut off": ("t10k-labels-idx1-ubyte", idx(np.zeros(10))[:-2], "8 bytes of data, expected 10"),
    "too long": ("t10k-labels-idx1-ubyte", idx(np.zeros(10)) + b"x", "11 bytes of data, expected 10"),
    "other count": ("t10k-labels-idx1-ubyte", idx(np.zeros(9)), "9 labels for 10 images"),
    "a letter": ("t10k-labels-idx1-ubyte", idx(np.full(10, 10)), "label 10, expected 0 to 9"),
    "other size": ("train-images-idx3-ubyte.gz", idx(np.zeros((20, 8, 8))), "images of 8×8, expected 28×28"),
    "wrapping shape": ("t10k-labels-idx1-ubyte", bytes([0, 0, 8, 1, 255, 255, 255, 255]), "0 bytes of data"),
}


@pytest.mark.parametrize(("name", "content", "message"), CORRUPT.values(), ids=CORRUPT.keys())
def test_a_corrupt_file_gives_its_path_and_what_was_expected(tiny_mnist: Path, name: str, content: bytes, message: str) -> None:
    (tiny_mnist / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        Mnist().load(tiny_mnist)
    assert str(tiny_mnist / name) in str(error.value)


def test_an_idx_file_of_other_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "floats"
    path.write_bytes(bytes([0, 0, 13, 1, 0, 0, 0, 1]) + bytes(4))
    with pytest.raises(DataError, match="00 00 0d 01, expected 00 00 08 01"):
        read_idx(path, 1)


def test_examples_are_gathered_when_asked_for() -> None:
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)
    some = Examples(x, y, np.array([4, 1]))
    assert len(some) == 2
    assert some.arrays()[0].tolist() == [[8, 9], [2, 3]]
    assert Examples(x, y).arrays()[0] is x
    assert some.slice(1, 5).arrays()[1].tolist() == [1]
    assert Examples(x, y).slice(4, 9).arrays()[1].tolist() == [4, 5]


def some(n: int = 3, dtype: str = "int64", owner: object = None) -> Examples:
    return Examples(np.zeros((n, 2)), np.zeros(n, dtype), None, owner)


REFUSED: dict[str, tuple[Examples, Examples, int | None, str]] = {
    "no test examples": (some(), some(0), 2, "the dataset has no test examples"),
    "no rows": (Examples(np.zeros((3, 2)), np.zeros(3, int), np.zeros(0, int)), some(), 2, "no training examples"),
    "counts": (Examples(np.zeros((3, 2)), np.zeros(2, int)), some(), 2, "3 training examples but 2 targets"),
    "lists": (Examples([[1.0]], np.zeros(1, int)), some(), 2, "the training examples are list, expected a numpy array"),
    "objects": (some(), Examples(np.array([None]), np.zeros(1, int)), 2, "the test examples are object of shape"),
    "float labels": (some(dtype="float32"), some(), 2, "the training targets are float32 of shape .3., expected class labels"),
    "not a number": (
        Examples(np.array([[0.0, 1], [2, np.nan], [np.inf, 3]]), np.zeros(3, int)),
        some(),
        2,
        "the training examples are not all finite float32 numbers, first in row 1",
    ),
    "too large for float32": (
        some(),
        Examples(np.full((1, 2), 1e39), np.zeros(1, int)),
        2,
        "the test examples are not all finite",
    ),
    "infinite targets": (some(), Examples(np.zeros((1, 2)), np.array([np.inf])), None, "the test targets are not all finite"),
    "other shapes": (some(), Examples(np.zeros((1, 3)), np.zeros(1, int)), 2, r"float32 \[2\] and float32 \[3\]"),
    "other kinds": (
        some(),
        Examples(np.zeros((1, 2), int), np.zeros(1, int)),
        2,
        r"examples differ .*: float32 \[2\] and int64 \[2\]",
    ),
    "other targets": (
        some(),
        Examples(np.zeros((1, 2)), np.zeros((1, 2), int)),
        2,
        r"targets differ .*: int64 \[\] and int64 \[2\]",
    ),
    "beyond int64": (Examples(np.zeros((1, 2)), np.array([2**63], np.uint64)), some(), 2, "which int64 cannot hold"),
    "owners of fewer": (
        some(owner=np.zeros(2, int)),
        some(),
        2,
        r"the training owners \(Examples.writer\) are int64 of shape .2., expected a number",
    ),
    "owners by name": (some(owner=np.array(["a"] * 3)), some(), 2, r"the training owners \(Examples.writer\) are <U1 of shape"),
    "owners below zero": (some(), some(owner=np.array([0, -1, 2])), 2, r"the test owners \(Examples.writer\) are int64"),
    "no numbers of classes": (some(), some(), 2.0, "classes is 2.0, expected a whole number of at least 1, or None"),
    "classes by flag": (some(), some(), True, "classes is True, expected a whole number"),
    "no classes": (some(), some(), 0, "classes is 0, expected a whole number of at least 1"),
    "a pair": ((np.zeros((1, 2)), np.zeros(1, int)), some(), 2, r"the training part is a tuple, expected a fedsgd.Examples"),
    "tensors": (
        Examples(torch.zeros(1, 2), np.zeros(1, int)),
        some(),
        2,
        r"examples are torch.Tensor, .*; call its \.numpy\(\)",
    ),
    "a frame": (
        Examples(pd.DataFrame({"a": [1.0]}), np.zeros(1, int)),
        some(),
        2,
        r"are pandas.DataFrame, .* call its \.to_numpy",
    ),
    "text labels": (Examples(np.zeros((1, 2)), np.array(["cat"])), some(), 2, "numpy.unique.labels, return_inverse=True."),
    "ragged": (Examples(np.array([[1], [1, 2]], object), np.zeros(2, int)), some(), 2, "rows of different lengths or types"),
    "whole floats": (
        Examples(np.zeros((1, 2)), np.array([1.0])),
        some(),
        2,
        r"float32 of shape \[1\], expected class labels.*; y.astype\(numpy.int64\) converts whole numbers",
    ),
    "rows by list": (Examples(np.zeros((1, 2)), np.zeros(1, int), [0]), some(), 2, "the training rows are list, expected"),
    "rows beyond": (
        Examples(np.zeros((1, 2)), np.zeros(1, int), np.array([1])),
        some(),
        2,
        "rows run from 1 to 1, expected 0 to 0",
    ),
    "negative label": (
        Examples(np.zeros((2, 2)), np.array([-1, 1])),
        some(),
        2,
        "the training labels run from -1 to 1, expected 0 to 1, or -100 for a target that the loss ignores",
    ),
    "all ignored": (some(), Examples(np.zeros((1, 2)), np.array([-100])), 2, "all test labels are -100"),
    "label too large": (
        some(),
        Examples(np.zeros((1, 2)), np.array([2])),
        2,
        "the test labels run from 2 to 2, expected 0 to 1",
    ),
}


@pytest.mark.parametrize(("train", "test", "classes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_dataset_that_does_not_fit_together_is_refused(
    train: Examples, test: Examples, classes: int | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(train, test, classes)


GIVEN: dict[str, tuple[object, str]] = {
    "tensors": (TensorDataset(torch.zeros(2, 2), torch.zeros(2)), r"got a torch.TensorDataset, .*tensor.numpy\(\) for tensor"),
    "loader": (DataLoader(TensorDataset(torch.zeros(2, 2))), r"got a torch.DataLoader, .*batches = list\(loader\)"),
    "subset": (Subset(TensorDataset(torch.zeros(2, 2)), [0]), r"got a torch.Subset, .*map\(numpy.stack, zip\(\*dataset\)\)"),
    "frame": (pd.DataFrame({"a": [1]}), r"got a pandas.DataFrame, .*frame\[columns\].to_numpy\(\)"),
    "pair": ((np.zeros((2, 2)), np.zeros(2)), "got a tuple, .*takes one pair of arrays"),
    "dictionary": ({"train": 1}, "got a dict, .*takes one pair of arrays"),
    "array": (np.zeros((2, 2)), "got a numpy.ndarray, .*takes one pair of arrays"),
    "examples": (some(), "got a fedsgd.Examples, .*test examples are required too"),
    "source": (Npz(path="x"), r"got a fedsgd.Npz, .*its load\(folder\) returns one"),
    "path": ("data.npz", r"got a str, .*name a file in \[data\]"),
    "class": (Dataset, "got the class Dataset, "),
    "number": (3, "got an int, "),
}


@pytest.mark.parametrize(("given", "message"), GIVEN.values(), ids=GIVEN.keys())
def test_dataset_of_another_kind_is_refused_with_a_conversion(given: object, message: str) -> None:
    with pytest.raises(DataError) as refused:
        summarize_partition(Scenario(name="x"), dataset=given)
    assert "expected a fedsgd.Dataset(train, test, classes), with train and test a fedsgd.Examples(x, y)" in str(refused.value)
    assert re.search(message, str(refused.value))
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("offline")
def test_dataset_of_hugging_face_is_refused_with_the_way_to_read_it() -> None:
    import datasets

    table = datasets.Dataset.from_dict({"x": [1.0]})
    for given in (table, datasets.DatasetDict(train=table)):
        with pytest.raises(DataError, match=r"got a datasets.Dataset.*save_to_disk\(folder\) and set \[data\] name"):
            check_dataset(given)


def test_conversions_that_messages_name_make_the_arrays() -> None:
    tensors = TensorDataset(torch.arange(6.0).reshape(3, 2), torch.tensor([1, 0, 1]))
    x, y = (tensor.numpy() for tensor in tensors.tensors)
    stacked = tuple(map(np.stack, zip(*Subset(tensors, [0, 1, 2]), strict=True)))
    np.testing.assert_array_equal(stacked[0], x)
    np.testing.assert_array_equal(stacked[1], y)
    data = check_dataset(Dataset(Examples(x, y), Examples(*stacked), 2))
    assert (data.train.x.tolist(), data.test.y.tolist()) == ([[0, 1], [2, 3], [4, 5]], [1, 0, 1])


def test_classes_and_names_of_numpy_are_plain_afterwards() -> None:
    data = Dataset(some(), some(), np.int64(2), ["a", "b"])
    assert (data.classes, type(data.classes), data.class_names) == (2, int, ("a", "b"))
    for names in ("ab", [1, 2], {"a": 0, "b": 1}):
        with pytest.raises(DataError, match="expected a tuple of texts"):
            Dataset(some(), some(), 2, names)


def test_arrays_are_brought_into_the_form_that_models_compute_with() -> None:
    x, y = np.arange(6, dtype=">f8").reshape(3, 2)[::-1], np.array([1, 0, 1], dtype=np.int32)
    data = Dataset(Examples(x, y), Examples(x, y), 2)
    assert (data.train.x.dtype, data.train.y.dtype) == (np.float32, np.int64)
    assert data.train.x.tolist() == [[4, 5], [2, 3], [0, 1]]
    assert Dataset(Examples(y.astype(np.uint8), y), Examples(y, y), 2).train.x.dtype == np.int64
    regression = Dataset(Examples(x, x[:, :1]), Examples(x, x[:, :1]), None)
    assert regression.test.y.dtype == np.float32


def test_rows_and_their_owners_are_gathered_once() -> None:
    data = Dataset(Examples(np.zeros((4, 2)), np.arange(4), np.array([3, 1]), np.array([9, 8, 7, 6])), some(), 4)
    assert data.train.y.tolist() == [3, 1]
    assert data.train.writer is not None
    assert data.train.writer.tolist() == [6, 8]
    assert data.train.rows is None


def test_sequences_of_labels_are_labels_and_names_fit_classes() -> None:
    sequences = Examples(np.zeros((2, 3), int), np.array([[0, 1, 2], [2, 2, 2]]))
    assert Dataset(sequences, sequences, 3, ("a", "b", "c")).class_names == ("a", "b", "c")
    with pytest.raises(DataError, match="2 class names for 3 classes"):
        Dataset(sequences, sequences, 3, ("a", "b"))
    with pytest.raises(DataError, match="labels run from 0 to 2, expected 0 to 1"):
        Dataset(sequences, sequences, 2)


# ------------------------------------------------------------------------------------------------------------------- cifar10


def encoded(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_cifar(folder: Path, part: str, images: list[dict[str, object]], labels: list[int], column: str = "img") -> Path:
    path = folder / f"{part}-00000-of-00001.parquet"
    pq.write_table(pa.table({column: images, "label": labels}), path)
    return path


@pytest.mark.parametrize("column", ["img", "image"])
def test_cifar10_from_the_files_of_the_hub(tmp_path: Path, column: str) -> None:
    write_cifar(tmp_path, "train", [encoded((255, 0, 0)), encoded((0, 255, 51))], [3, 9], column)
    write_cifar(tmp_path, "test", [encoded((0, 0, 255))], [0], column)
    data = Cifar10().load(tmp_path)
    assert (data.shape, data.classes, data.train.y.tolist(), data.test.y.tolist()) == ((3, 32, 32), 10, [3, 9], [0])
    first = ((np.array([1, 0, 0]) - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]).astype(np.float32)
    assert data.train.x[0, :, 5, 7] == pytest.approx(first, abs=1e-5)
    assert data.class_names is not None
    assert data.class_names[3] == "cat"


def test_cifar10_is_the_cifar10_that_everyone_has(data_folder: Path) -> None:
    data = Cifar10().load(data_folder)
    assert (len(data.train), len(data.test), data.shape, data.classes) == (50_000, 10_000, (3, 32, 32), 10)
    assert np.bincount(data.train.y).tolist() == [5000] * 10
    assert np.bincount(data.test.y).tolist() == [1000] * 10
    assert data.train.x.mean(axis=(0, 2, 3)) == pytest.approx([0, 0, 0], abs=0.01)
    assert data.train.x.std(axis=(0, 2, 3)) == pytest.approx([1, 1, 1], abs=0.01)


def test_cifar10_in_several_files_is_read_whole(tmp_path: Path) -> None:
    write_cifar(tmp_path, "test", [encoded((0, 0, 255))], [0])
    for i in range(2):
        pq.write_table(
            pa.table({"img": [encoded((i, 0, 0))] * 3, "label": [i] * 3}), tmp_path / f"train-0000{i}-of-00002.parquet"
        )
    assert Cifar10().load(tmp_path).train.y.tolist() == [0, 0, 0, 1, 1, 1]
    (tmp_path / "train-00000-of-00002.parquet").rename(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet, train\.parquet: expected one file or all its parts"):
        Cifar10().load(tmp_path)
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(DataError, match="expected one file or all its parts"):
        Cifar10().load(tmp_path)


def test_corrupt_cifar10_files_are_named(tmp_path: Path) -> None:
    write_cifar(tmp_path, "train", [encoded((1, 2, 3))], [3])
    with pytest.raises(DataError, match=r"test\*.parquet not found .*uoft-cs/cifar10"):
        Cifar10().load(tmp_path)
    test = write_cifar(tmp_path, "test", [encoded((1, 2, 3)), {"bytes": b"GIF89a", "path": None}], [3, 4])
    with pytest.raises(DataError, match=rf"{test}: row 1 is not an encoded image"):
        Cifar10().load(tmp_path)
    write_cifar(tmp_path, "test", [encoded((1, 2, 3), (28, 28))], [3])
    with pytest.raises(DataError, match="row 0 is an image of 28×28, expected 32×32"):
        Cifar10().load(tmp_path)
    write_cifar(tmp_path, "test", [encoded((1, 2, 3))], [3], "picture")
    with pytest.raises(DataError, match="columns picture, label; expected img and label"):
        Cifar10().load(tmp_path)
    test.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        Cifar10().load(tmp_path)
    write_cifar(tmp_path, "test", [encoded((1, 2, 3))], [10])
    with pytest.raises(DataError, match="labels run from 10 to 10, expected 0 to 9"):
        Cifar10().load(tmp_path)
    pq.write_table(pa.table({"img": [encoded((1, 2, 3))], "label": pa.array([None], pa.int64())}), test)
    with pytest.raises(DataError, match="1 labels are missing"):
        Cifar10().load(tmp_path)


# --------------------------------------------------------------------------------------------------------------- shakespeare

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


def play(tmp_path: Path, text: str = PLAY) -> Path:
    (tmp_path / "input.txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_shakespeare_by_role(tmp_path: Path) -> None:
    """First Citizen has five lines, four to train and one to test; the others have one line each and are left out."""
    data = Shakespeare(unroll=3).load(play(tmp_path))
    names = data.class_names
    assert names is not None
    assert "\n" in names
    assert list(names) == sorted(names)
    train, test = (["".join(names[c] for c in row) for row in part] for part in (data.train.x, data.test.x))
    spoken = "Before we proceed, hear me speak.\nNote: this is a line, not a role:\nYou are all resolved\nto die?"
    assert "".join(train) == spoken[: 3 * len(train)]
    assert len(train) == (len(spoken) - 1) // 3
    assert test == ["Yes"]
    assert "".join(names[c] for c in data.test.y[0]) == "es."
    assert data.train.writer is not None
    assert set(data.train.writer.tolist()) == {0}


def test_roles_are_numbered_in_the_order_in_which_they_speak(tmp_path: Path) -> None:
    text = "".join(f"{role}:\nfirst line of {role}\nsecond line of {role}\n\n" for role in "ZAM")
    data = Shakespeare(unroll=5).load(play(tmp_path, text))
    assert data.train.writer is not None
    assert data.test.writer is not None
    assert data.train.writer.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.writer.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_the_real_plays(data_folder: Path) -> None:
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
def test_text_that_is_no_play_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Shakespeare().load(play(tmp_path, text))
    (tmp_path / "input.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as text"):
        Shakespeare().load(tmp_path)


# ----------------------------------------------------------------------------------------------------------------------- npz

X, Y = np.arange(40, dtype=np.float64).reshape(20, 2), np.arange(20) % 4


def npz(folder: Path, **arrays: object) -> Npz:
    np.savez(folder / "own.npz", **arrays)
    return Npz(path="own.npz")


def test_own_arrays_with_a_test_part(tmp_path: Path) -> None:
    data = npz(tmp_path, x_train=X, y_train=Y, x_test=X[:3], y_test=Y[:3], owner_train=Y, note=np.array(["mine"])).load(
        tmp_path
    )
    assert (len(data.train), len(data.test), data.classes) == (20, 3, 4)
    assert data.train.writer is not None


def test_own_arrays_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = npz(tmp_path, x_train=X, y_train=Y, owner_train=Y)
    monkeypatch.chdir(tmp_path)
    data = source.load(None)
    assert (len(data.train), len(data.test)) == (16, 4)
    assert sorted([*data.train.x[:, 0].tolist(), *data.test.x[:, 0].tolist()]) == X[:, 0].tolist()
    assert data.test.y.tolist() != Y[-4:].tolist()
    assert data.test.writer is not None
    assert data.test.writer.tolist() == data.test.y.tolist()


def test_pixels_become_floats_other_integers_stay_and_floats_are_no_classes(tmp_path: Path) -> None:
    pixels = npz(tmp_path, x_train=np.full((5, 2, 2), 255, np.uint8), y_train=np.zeros(5, np.uint8)).load(tmp_path)
    assert (pixels.train.x.dtype, pixels.train.x.max(), pixels.classes) == (np.float32, 1, 1)
    words = npz(tmp_path, x_train=X.astype(np.int32), y_train=X).load(tmp_path)
    assert (words.train.x.dtype, words.classes) == (np.int64, None)
    assert Npz(path="own.npz").load(tmp_path).train.y.dtype == np.float32
    assert dataclasses.replace(npz(tmp_path, x_train=X, y_train=Y), classes=9).load(tmp_path).classes == 9
    assert npz(tmp_path, x_train=X, y_train=Y > 1).load(tmp_path).classes == 2
    with pytest.raises(FieldError, match="classes: got 3, but y_train is float64: not class labels"):
        dataclasses.replace(npz(tmp_path, x_train=X, y_train=X[:, 0]), classes=3).load(tmp_path)


def test_a_damaged_npz_is_a_data_error_wherever_the_damage_is(tmp_path: Path) -> None:
    npz(tmp_path, x_train=X, y_train=Y)
    whole, rng = (tmp_path / "own.npz").read_bytes(), np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[at] ^= int(rng.integers(1, 256))
        (tmp_path / "own.npz").write_bytes(bytes(damaged) if at % 3 else whole[:at])
        with contextlib.suppress(DataError):
            Npz(path="own.npz").load(tmp_path)


def test_npz_files_that_will_not_do_are_named(tmp_path: Path) -> None:
    bad: dict[str, dict[str, object]] = {
        "has x, y, expected x_train and y_train": {"x": X, "y": Y},
        "expected x_test and y_test": {"x_train": X, "y_train": Y, "x_test": X},
        "20 training examples but 19 targets": {"x_train": X, "y_train": Y[1:]},
        "without pickled objects": {"x_train": np.array([{}, {}]), "y_train": Y},
        "x_train and y_train have 0 and 1 dimensions": {"x_train": np.array(3.0), "y_train": Y},
        "the largest label is 10995116277": {"x_train": X, "y_train": Y + 2**40},
    }
    for message, arrays in bad.items():
        with pytest.raises(DataError, match=message):
            npz(tmp_path, **arrays).load(tmp_path)
    np.save(tmp_path / "own.npz", X)
    (tmp_path / "own.npz.npy").rename(tmp_path / "own.npz")
    with pytest.raises(DataError, match="a single array, expected several"):
        Npz(path="own.npz").load(tmp_path)
    (tmp_path / "own.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match=r"cannot be read as a file of numpy\.savez"):
        Npz(path="own.npz").load(tmp_path)
    with pytest.raises(DataError, match=r"npz: none.npz not found \(looked for .*none.npz, none.npz\)"):
        Npz(path="none.npz").load(tmp_path)
    with pytest.raises(TypeError, match="path"):
        Npz()


def test_npz_ignored_labels_are_no_class(tmp_path: Path) -> None:
    y = np.where(np.arange(20) % 5 == 0, -100, Y)
    data = npz(tmp_path, x_train=X, y_train=y, x_test=X, y_test=y).load(tmp_path)
    assert (data.classes, data.train.y.tolist()) == (4, y.tolist())
    for wrong, message in ((np.where(y < 0, -1, y), "run from -1 to 3"), (np.full(20, -100), "all training labels are -100")):
        with pytest.raises(DataError, match=message):
            npz(tmp_path, x_train=X, y_train=wrong, x_test=X, y_test=y).load(tmp_path)


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards", "pathological", "quantity", "skewed"])
def test_ignored_labels_are_a_group_of_their_own_in_a_split(partition: str) -> None:
    y = np.repeat([-100, 0, 1, 2], 10)
    dataset = Dataset(Examples(np.zeros((40, 2)), y), some(), 3, ("a", "b", "c"))
    split = summarize_partition(
        Scenario(name="x").with_settings({"data.partition": {"name": partition, "clients": 4}}), dataset=dataset
    )
    assert split.class_names == ("a", "b", "c", "ignored (-100)")
    assert split.counts is not None
    assert split.counts.sum(axis=0).tolist() == [10, 10, 10, 10]
    assert split.counts.sum(axis=1).tolist() == split.sizes.tolist()
    assert split.compute_client_measures()["classes"].tolist() == (split.counts[:, :3] > 0).sum(axis=1).tolist()
    if partition == "pathological":
        assert ((split.counts > 0).sum(axis=1) == 2).all()


def test_partition_command_shows_the_number_of_each_text_label(tmp_path: Path) -> None:
    kinds = ["owl", "cat", "Dog", "cat"] * 10
    np.savez(tmp_path / "own.npz", x_train=np.zeros((40, 2)), y_train=np.array(kinds))
    (tmp_path / "s.toml").write_text('name = "x"\ndata = { name = "npz", path = "own.npz" }\n')
    for clients, shown in ((2, ["classes: 0 Dog, 1 cat, 2 owl"]), (30, ["0 Dog", "1 cat", "2 owl"])):
        arguments = ("--data", str(tmp_path), "--set", f"data.partition.clients={clients}", "--quiet")
        printed = CliRunner().invoke(main, ["partition", str(tmp_path / "s.toml"), *arguments])
        assert printed.exit_code == 0, printed.output
        assert all(text in printed.output for text in shown)


def test_ignored_positions_of_sequences_are_counted_apart() -> None:
    y = np.array([[0, 1, -100], [1, -100, -100]])
    dataset = Dataset(Examples(np.zeros((2, 3), int), y), Examples(np.zeros((1, 3), int), y[:1]), 2)
    split = summarize_partition(Scenario(name="x").with_settings({"data.partition.clients": 2}), dataset=dataset)
    assert split.counts is not None
    assert sorted(split.counts.tolist()) == [[0, 1, 2], [1, 1, 1]]


def test_npz_text_labels_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    train, test = np.array(["owl", "cat", "Dog", "cat"]), np.array(["éland", "cat"])
    data = npz(tmp_path, x_train=X[:4], y_train=train, x_test=X[:2], y_test=test).load(tmp_path)
    assert data.class_names == ("Dog", "cat", "owl", "éland")
    assert (data.train.y.tolist(), data.test.y.tolist(), data.classes) == ([2, 1, 0, 1], [3, 1], 4)
    with pytest.raises(FieldError, match="classes: got 9, but the labels are 4 different texts"):
        Npz(path="own.npz", classes=9).load(tmp_path)


# -------------------------------------------------------------------------------------------------------------- hugging face


def saved(folder: Path, **columns: object) -> HuggingFace:
    """A dataset of the hub's form in a folder: two Parquet files that say what their columns are."""
    import datasets

    (folder / "mine").mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict(columns)
    if "label" in columns:
        table = table.cast_column("label", datasets.ClassLabel(names=["cat", "dog", "owl"]))
    for part in ("train", "test"):
        table.to_parquet(folder / "mine" / f"{part}.parquet")
    return HuggingFace(path="mine", x="features")


@pytest.mark.usefixtures("offline")
def test_a_hugging_face_dataset_with_labels_and_owners(tmp_path: Path) -> None:
    source = saved(tmp_path, features=[[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]], label=[2, 0, 1], who=["zoe", "ann", "zoe"])
    data = dataclasses.replace(source, owner="who").load(tmp_path)
    assert (data.train.x.tolist(), data.train.y.tolist()) == ([[0.5, 1], [2, 3], [4, 5]], [2, 0, 1])
    assert (data.classes, data.class_names) == (3, ("cat", "dog", "owl"))
    assert data.train.writer is not None
    assert data.train.writer.tolist() == [1, 0, 1]


@pytest.mark.usefixtures("offline")
def test_hugging_face_images_with_and_without_features(tmp_path: Path) -> None:
    write_cifar(tmp_path, "train", [encoded((255, 0, 51)), encoded((0, 0, 0))], [1, 0])
    write_cifar(tmp_path, "test", [encoded((0, 0, 0))], [1])
    data = HuggingFace(path=str(tmp_path), x="img").load(None)
    assert (data.shape, data.classes) == ((3, 32, 32), 2)
    assert data.train.x[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0.2])


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("mode", "shape"), [("RGB", (3, 4, 6)), ("L", (4, 6)), ("1", (4, 6)), ("RGBA", (3, 4, 6)), ("P", (3, 4, 6))]
)
def test_hugging_face_images_of_any_usual_mode(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    """Six wide, four high, white but for one black pixel in the second row and third column."""
    image = Image.new("RGB", (6, 4), (255, 255, 255))
    image.putpixel((2, 1), (0, 0, 0))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    for part in ("train", "test"):
        write_cifar(tmp_path, part, [{"bytes": buffer.getvalue(), "path": None}], [0])
    data = HuggingFace(path=str(tmp_path), x="img").load(None)
    assert data.shape == shape
    assert (data.train.x[0, ..., 1, 2] == 0).all()
    assert data.train.x.sum() == np.prod(shape) - np.prod(shape[:-2])


@pytest.mark.usefixtures("offline")
def test_hugging_face_rows_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_cifar(tmp_path, part, [{"bytes": b"not an image", "path": None}], [0])
    with pytest.raises(DataError, match="column img: UnidentifiedImageError"):
        HuggingFace(path=str(tmp_path), x="img").load(None)
    source = saved(tmp_path, features=[[0.5], [1.0]], label=[0, 1], who=["ann", None])
    with pytest.raises(FieldError, match='column "who" has missing values'):
        dataclasses.replace(source, owner="who").load(tmp_path)
    for who in ([["a"], ["b", "c"]], [{"a": 1}, {"a": 2}], [[1], [2]]):
        source = saved(tmp_path, features=[[0.5], [1.0]], label=[0, 1], who=who)
        with pytest.raises(FieldError, match="no names or numbers"):
            dataclasses.replace(source, owner="who").load(tmp_path)
    for features in ([[0.5], None], [[0.5], [None]], [{"a": 1}, {"a": 2}]):
        with pytest.raises(DataError, match="column features has missing values, or values that are no numbers"):
            saved(tmp_path, features=features, label=[0, 1]).load(tmp_path)


@pytest.mark.usefixtures("offline")
def test_hugging_face_columns_splits_and_rows_that_will_not_do_are_named(tmp_path: Path) -> None:
    source = saved(tmp_path, features=[[0.5], [1.0, 2.0]], label=[0, 1])
    with pytest.raises(DataError, match=r"rows of column features have different shapes: \[1\], \[2\]"):
        source.load(tmp_path)
    for wrong, message in (
        ({"x": "featurs"}, 'x: got "featurs", did you mean "features"'),
        ({"owner": "user"}, 'owner: got "user"'),
    ):
        with pytest.raises(FieldError, match=message):
            dataclasses.replace(source, **wrong).load(tmp_path)
    for part in ("train", "test"):
        with pytest.raises(FieldError, match=f'{part}: got "trian", did you mean "train"'):
            dataclasses.replace(source, **{part: "trian"}).load(tmp_path)


@pytest.mark.usefixtures("offline")
def test_a_hugging_face_split_may_be_a_part_of_one(tmp_path: Path) -> None:
    source = saved(tmp_path, features=[[float(i)] for i in range(10)], label=[0, 1] * 5)
    data = dataclasses.replace(source, train="train[:80%]", test="train[80%:]").load(tmp_path)
    assert (data.train.x.ravel().tolist(), data.test.x.ravel().tolist()) == ([*range(8)], [8, 9])


CACHED = """
from fedsgd.data import DATASETS

data = DATASETS["hugging-face"](path="somebody/theirs", x="features").load(None)
print(data.train.x.tolist(), data.classes)
"""


@pytest.mark.usefixtures("offline")
def test_a_hugging_face_dataset_in_the_cache_is_found_offline(tmp_path: Path) -> None:
    """The cache of a dataset of the hub, made from that of a folder: it differs by its names alone."""
    import datasets

    saved(tmp_path, features=[[0.5], [1.0]], label=[0, 1])
    datasets.load_dataset(str(tmp_path / "mine"), cache_dir=str(tmp_path / "home" / "datasets"))
    (tmp_path / "home" / "datasets" / "mine").rename(tmp_path / "home" / "datasets" / "somebody___theirs")
    for path in (tmp_path / "home").rglob("mine-*.arrow"):
        path.rename(path.with_name(path.name.replace("mine", "theirs")))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", CACHED], env=environment, capture_output=True, text=True)
    assert done.stdout == "[[0.5], [1.0]] 3\n", done.stderr


@pytest.mark.usefixtures("offline")
def test_a_hugging_face_dataset_that_is_not_in_the_cache_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hugging-face: nobody/nothing cannot be loaded"):
        HuggingFace(path="nobody/nothing").load(tmp_path)


def table_of(n: int) -> Any:
    import datasets

    return datasets.Dataset.from_dict({"a": [float(i) for i in range(n)], "b": [*range(n)], "label": [i % 2 for i in range(n)]})


@pytest.mark.usefixtures("offline")
def test_hugging_face_folder_of_a_single_dataset_is_read_and_its_test_share_drawn(tmp_path: Path) -> None:
    table_of(10).save_to_disk(tmp_path / "one")
    source = HuggingFace(path="one", x="a", test_share=0.3)
    data = source.load(tmp_path)
    assert (len(data.train), len(data.test)) == (7, 3)
    assert sorted([*data.train.x.tolist(), *data.test.x.tolist()]) == [*range(10)], "no test example is trained on"
    assert (data.test.y == data.test.x % 2).all()
    assert source.load(tmp_path).test.x.tolist() == data.test.x.tolist()
    parts = dataclasses.replace(source, train="train[:80%]", test="train[80%:]").load(tmp_path)
    assert (parts.train.x.tolist(), parts.test.x.tolist()) == ([*range(8)], [8, 9])
    owned = dataclasses.replace(source, owner="b").load(tmp_path)
    assert owned.test.writer is not None
    assert owned.test.writer.tolist() == owned.test.x.tolist()
    with pytest.raises(FieldError, match='test: got "tset", expected one of: "train"'):
        dataclasses.replace(source, test="tset").load(tmp_path)


@pytest.mark.usefixtures("offline")
def test_hugging_face_folder_of_a_dataset_dict_is_read_by_its_splits(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict(train=table_of(4), validation=table_of(2)).save_to_disk(tmp_path / "two")
    source = HuggingFace(path="two", x="a", test="validation")
    assert [len(part) for part in (source.load(tmp_path).train, source.load(tmp_path).test)] == [4, 2]
    with pytest.raises(FieldError, match='test: got "test", expected one of: "train", "validation"'):
        HuggingFace(path="two", x="a").load(tmp_path)
    named = [table_of(2).cast_column("label", datasets.ClassLabel(names=names)) for names in (["cat", "dog"], ["dog", "cat"])]
    datasets.DatasetDict(train=named[0], test=named[1]).save_to_disk(tmp_path / "three")
    with pytest.raises(DataError, match="column label: training and test part name their classes differently"):
        HuggingFace(path="three", x="a").load(tmp_path)


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of the library's CSV reader
def test_csv_with_several_feature_columns_and_text_labels(tmp_path: Path) -> None:
    lines = ["width,height,kind,who", "1,0.5,owl,ann", "2,1.5,cat,zoe", "3,2.5,owl,ann", "4,3.5,Dog,zoe"]
    (tmp_path / "own.csv").write_text("\n".join(lines))
    whole = HuggingFace(path="own.csv", x=("width", "height"), y="kind", train="train", test="train[:2]").load(tmp_path)
    assert whole.train.x.dtype == np.float32
    assert whole.train.x.tolist() == [[1, 0.5], [2, 1.5], [3, 2.5], [4, 3.5]]
    assert (whole.train.y.tolist(), whole.class_names, whole.classes) == ([2, 1, 2, 0], ("Dog", "cat", "owl"), 3)
    assert whole.test.y.tolist() == [2, 1]
    every = HuggingFace(path="own.csv", x="*", y="kind", owner="who", test="train[:2]").load(tmp_path)
    assert every.train.x.tolist() == whole.train.x.tolist()
    assert HuggingFace(path="own.csv", x=("height",), y="kind").load(tmp_path).shape == (1,)
    for columns, message in (
        ("*", r"column who contains texts, expected one number in each row: name columns of numbers in data.x"),
        ((), "x: got no column, expected at least one of: width, height, kind, who"),
        ("widht", 'x: got "widht", did you mean "width".*give a list of columns of numbers, or "[*]"'),
        (("width", "hight"), 'x: got "hight", did you mean "height"'),
    ):
        with pytest.raises((DataError, FieldError), match=message):
            HuggingFace(path="own.csv", x=columns, y="kind").load(tmp_path)
    (tmp_path / "own.csv").write_text("\n".join([*lines, ",1,cat,ann"]))
    with pytest.raises(DataError, match="column width has missing values"):
        HuggingFace(path="own.csv", x=("width", "height"), y="kind").load(tmp_path)
    (tmp_path / "own.csv").write_text("\n".join([*lines, "1,1,,ann"]))
    with pytest.raises(DataError, match="column kind has missing values"):
        HuggingFace(path="own.csv", x=("width", "height"), y="kind").load(tmp_path)


@pytest.mark.usefixtures("offline")
def test_missing_file_is_not_asked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hugging-face: none.csv not found \(looked for .*/none.csv, none.csv\)"):
        HuggingFace(path="none.csv").load(tmp_path)


def test_feature_columns_survive_toml_and_settings() -> None:
    source = {"name": "hugging-face", "path": "p", "x": ["a", "b"]}
    scenario = Scenario(name="x").with_settings({"data": source})
    assert scenario.data.source == HuggingFace(path="p", x=("a", "b"))
    assert parse_scenario(tomllib.loads(scenario.to_toml())) == scenario
    with pytest.raises(ScenarioError, match=r"data.x: expected a text in quotes or a list, each entry a text in quotes, got 3"):
        Scenario(name="x").with_settings({"data": {**source, "x": 3}})


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("grey_test", [False, True])
def test_grey_images_among_coloured_ones_get_three_equal_channels(tmp_path: Path, grey_test: bool) -> None:
    buffers = []
    for image in (Image.new("RGB", (32, 32), (255, 0, 51)), Image.new("L", (32, 32), 102)):
        buffers.append(io.BytesIO())
        image.save(buffers[-1], "PNG")
    colour, grey = ({"bytes": buffer.getvalue(), "path": None} for buffer in buffers)
    write_cifar(tmp_path, "train", [colour] if grey_test else [colour, grey], [0] if grey_test else [0, 1])
    write_cifar(tmp_path, "test", [grey], [1])
    data = HuggingFace(path=str(tmp_path), x="img").load(None)
    assert data.shape == (3, 32, 32)
    assert data.train.x[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    for x in (data.test.x[0], data.train.x[-1])[: 1 if grey_test else 2]:
        assert x[:, 5, 7].tolist() == pytest.approx([0.4] * 3)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "own.csv cannot be loaded: the file is empty, expected a header and rows"),
        (["a,y"], "own.csv cannot be loaded: there are no rows"),
        (
            ["a,y", "1,0.0", "2,1.0", "3,2.0"],
            r"class labels \(own.csv: column y\); write them as whole numbers, 0 in place of 0.0",
        ),
        (["a,y", *["1,-100"] * 5], "own.csv: all training labels are -100"),
        (["a,y", "1,0", "inf,1", "2,0"], "own.csv: the training examples are not all finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of the library's CSV reader
def test_csv_file_that_cannot_be_learnt_is_named(
    tmp_path: Path, scenario: Callable[..., Scenario], lines: list[str], message: str
) -> None:
    (tmp_path / "own.csv").write_text("".join(f"{line}\n" for line in lines))
    source = {"data.name": "hugging-face", "data.path": "own.csv", "data.x": ["a"], "data.y": "y"}
    with pytest.raises((DataError, ModelError), match=message):
        build_experiment(
            scenario({**source, "data.partition.name": "iid", "data.partition.clients": 1, "server.cohort": 1}), tmp_path
        )


@pytest.mark.parametrize(
    ("targets", "hint"),
    [
        (np.eye(3)[Y % 3], "the targets are one-hot: y.argmax(1) converts them to class labels"),
        (Y.astype(float), "y.astype(numpy.int64) converts whole numbers to integers"),
    ],
)
def test_npz_targets_that_are_no_labels_are_named_with_the_remedy(
    tmp_path: Path, scenario: Callable[..., Scenario], targets: np.ndarray, hint: str
) -> None:
    npz(tmp_path, x_train=X, y_train=targets)
    with pytest.raises(ModelError) as refused:
        build_experiment(scenario({"data.name": "npz", "data.path": "own.npz", "data.partition.name": "iid"}), tmp_path)
    assert f"(own.npz: y_train); {hint}" in str(refused.value)


def test_one_hot_labels_are_refused_with_argmax() -> None:
    y = np.eye(3)[np.arange(6) % 3]
    with pytest.raises(DataError, match=r"one-hot: y.argmax\(1\) converts them to class labels"):
        Dataset(Examples(y, y), Examples(y, y), 3)


def test_npz_that_is_no_zip_file_is_refused_without_advice_on_pickles(tmp_path: Path) -> None:
    (tmp_path / "own.npz").write_text("hello")
    with pytest.raises(DataError) as refused:
        Npz(path="own.npz").load(tmp_path)
    assert str(refused.value).endswith("(it is no zip file)")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(DataError, match=r"folder.npz is a folder, expected a file of numpy.savez"):
        Npz(path="folder.npz").load(tmp_path)


def test_test_share_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    npz(tmp_path, x_train=X, y_train=Y)
    with pytest.raises(FieldError, match=f"test_share: got 1, which leaves none of {len(Y)} examples to train on"):
        Npz(path="own.npz", test_share=1.0).load(tmp_path)


def test_parts_with_other_class_names_are_refused_with_both() -> None:
    datasets = pytest.importorskip("datasets")
    tables = [
        datasets.Dataset.from_dict({"y": [0]}, features=datasets.Features({"y": datasets.ClassLabel(names=names)}))
        for names in (["a", "b"], ["b", "a"])
    ]
    with pytest.raises(DataError, match=r"name their classes differently: \[a, b\] and \[b, a\]"):
        read_labels(tables, "y", "own")
