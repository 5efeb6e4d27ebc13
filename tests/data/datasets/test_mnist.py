"""MNIST: valid, missing and corrupt IDX files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from fedsgd.data.datasets.mnist import Mnist, read_idx
from fedsgd.errors import DataError


def encode_idx(array: np.ndarray) -> bytes:
    """Return an IDX file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny_mnist(tmp_path: Path) -> Path:
    """Write a folder of four valid IDX files with a few images; the training images are gzipped."""
    rng = np.random.default_rng(0)
    for stem, n in (("train", 20), ("t10k", 10)):
        images, labels = rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(encode_idx(images)))
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(encode_idx(labels))
    return tmp_path


@pytest.mark.slow
def test_mnist_real_files_have_known_statistics(data_folder: Path) -> None:
    data = Mnist().load(data_folder)
    assert (len(data.train), len(data.test), data.shape, data.classes) == (60_000, 10_000, (28, 28), 10)
    assert data.train.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert float(data.train.x.mean()) == pytest.approx(0.1307, abs=1e-4)
    assert float(data.train.x.std()) == pytest.approx(0.3081, abs=1e-4)


def test_mnist_plain_and_gzipped_files_load_from_folder_and_subfolder(tiny_mnist: Path, tmp_path: Path) -> None:
    data = Mnist().load(tiny_mnist)
    assert (len(data.train), len(data.test)) == (20, 10)
    parent = tmp_path / "outer"
    parent.mkdir()
    (parent / "mnist").symlink_to(tiny_mnist)
    assert (Mnist().load(parent).train.x == data.train.x).all()


def test_mnist_without_folder_raises_error_with_download_hint() -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*--data DIR or set FEDSGD_DATA"):
        Mnist().load(None)


def test_mnist_missing_file_raises_error_with_searched_paths(tiny_mnist: Path) -> None:
    (tiny_mnist / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte not found \(looked for .*mnist.*https://"):
        Mnist().load(tiny_mnist)


CORRUPT_FILES: dict[str, tuple[str, bytes, str]] = {
    "truncated gzip": ("train-images-idx3-ubyte.gz", gzip.compress(encode_idx(np.zeros((20, 28, 28))))[:-9], "cannot be read"),
    "gzip header alone": ("train-images-idx3-ubyte.gz", b"\x1f\x8bnonsense", "cannot be read"),
    "HTML page": ("t10k-labels-idx1-ubyte", b"<html>", "starts with 3c 68 74 6d, expected 00 00 08 01"),
    "empty": ("t10k-labels-idx1-ubyte", b"", "starts with nothing"),
    "truncated": ("t10k-labels-idx1-ubyte", encode_idx(np.zeros(10))[:-2], "8 bytes of data, expected 10"),
    "too long": ("t10k-labels-idx1-ubyte", encode_idx(np.zeros(10)) + b"x", "11 bytes of data, expected 10"),
    "another count": ("t10k-labels-idx1-ubyte", encode_idx(np.zeros(9)), "9 labels for 10 images"),
    "label too large": ("t10k-labels-idx1-ubyte", encode_idx(np.full(10, 10)), "has the label 10, expected 0 to 9"),
    "another size": ("train-images-idx3-ubyte.gz", encode_idx(np.zeros((20, 8, 8))), "images of 8×8, expected 28×28"),
    "overflowing shape": ("t10k-labels-idx1-ubyte", bytes([0, 0, 8, 1, 255, 255, 255, 255]), "0 bytes of data"),
}


@pytest.mark.parametrize(("name", "content", "message"), CORRUPT_FILES.values(), ids=CORRUPT_FILES.keys())
def test_mnist_corrupt_file_raises_error_with_path_and_expectation(
    tiny_mnist: Path, name: str, content: bytes, message: str
) -> None:
    (tiny_mnist / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        Mnist().load(tiny_mnist)
    assert str(tiny_mnist / name) in str(error.value)


def test_idx_file_of_floats_raises_error(tmp_path: Path) -> None:
    path = tmp_path / "floats"
    path.write_bytes(bytes([0, 0, 13, 1, 0, 0, 0, 1]) + bytes(4))
    with pytest.raises(DataError, match="00 00 0d 01, expected 00 00 08 01"):
        read_idx(path, 1)


def test_mnist_standardised_pixels_have_mean_zero_and_deviation_one_over_all_images(tiny_mnist: Path) -> None:
    plain, standardised = Mnist().load(tiny_mnist), Mnist(standardise=True).load(tiny_mnist)
    pixels = 255 * np.concatenate([plain.train.x, plain.test.x]).astype(np.float64)
    expected = (pixels - pixels.mean(axis=0)) / (pixels.std(axis=0) + 0.001)
    actual = np.concatenate([standardised.train.x, standardised.test.x])
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(standardised.train.y, plain.train.y)
