"""Datasets: what is loaded, and what is said when it cannot be."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from fedsgd.data import DATASETS, Dataset, Examples
from fedsgd.data.datasets.mnist import Mnist, read_idx
from fedsgd.errors import DataError


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
    assert some.gather()[0].tolist() == [[8, 9], [2, 3]]
    assert Examples(x, y).gather()[0] is x


def some(n: int = 3, dtype: str = "int64") -> Examples:
    return Examples(np.zeros((n, 2)), np.zeros(n, dtype))


REFUSED: dict[str, tuple[Examples, Examples, int | None, str]] = {
    "no test examples": (some(), some(0), 2, "the dataset has no test examples"),
    "no rows": (Examples(np.zeros((3, 2)), np.zeros(3, int), np.zeros(0, int)), some(), 2, "no training examples"),
    "counts": (Examples(np.zeros((3, 2)), np.zeros(2, int)), some(), 2, "3 training examples but 2 targets"),
    "lists": (Examples([[1.0]], np.zeros(1, int)), some(), 2, "the training examples are list, expected a numpy array"),
    "objects": (some(), Examples(np.array([None]), np.zeros(1, int)), 2, "the test examples are object of shape"),
    "float labels": (some(dtype="float32"), some(), 2, "the training targets are float32 of shape .3., expected class labels"),
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


def test_arrays_are_brought_into_the_form_that_models_compute_with() -> None:
    x, y = np.arange(6, dtype=">f8").reshape(3, 2)[::-1], np.array([1, 0, 1], dtype=np.int32)
    data = Dataset(Examples(x, y), Examples(x, y), 2)
    assert (data.train.x.dtype, data.train.y.dtype) == (np.float32, np.int64)
    assert data.train.x.tolist() == [[4, 5], [2, 3], [0, 1]]
    regression = Dataset(Examples(x, x[:, :1]), Examples(x, x[:, :1]), None)
    assert regression.test.y.dtype == np.float32
