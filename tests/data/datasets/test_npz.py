"""Arrays of the user in npz files."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsgd.config.component import FieldError
from fedsgd.data.datasets.npz import Npz
from fedsgd.errors import DataError, ModelError
from fedsgd.experiment.builder import build_experiment
from fedsgd.scenario.scenario import Scenario

X, Y = np.arange(40, dtype=np.float64).reshape(20, 2), np.arange(20) % 4


def write_npz(folder: Path, **arrays: object) -> Npz:
    """Write a file of numpy.savez; return its dataset source."""
    np.savez(folder / "own.npz", **arrays)
    return Npz(path="own.npz")


def test_npz_with_test_arrays_loads_them(tmp_path: Path) -> None:
    data = write_npz(tmp_path, x_train=X, y_train=Y, x_test=X[:3], y_test=Y[:3], owner_train=Y, note=np.array(["text"])).load(
        tmp_path
    )
    assert (len(data.train), len(data.test), data.classes) == (20, 3, 4)
    assert data.train.writer is not None


def test_npz_without_test_arrays_draws_test_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_npz(tmp_path, x_train=X, y_train=Y, owner_train=Y)
    monkeypatch.chdir(tmp_path)
    data = source.load(None)
    assert (len(data.train), len(data.test)) == (16, 4)
    assert sorted([*data.train.x[:, 0].tolist(), *data.test.x[:, 0].tolist()]) == X[:, 0].tolist()
    assert data.test.y.tolist() != Y[-4:].tolist()
    assert data.test.writer is not None
    assert data.test.writer.tolist() == data.test.y.tolist()


def test_npz_types_follow_pixels_integers_and_floats(tmp_path: Path) -> None:
    pixels = write_npz(tmp_path, x_train=np.full((5, 2, 2), 255, np.uint8), y_train=np.zeros(5, np.uint8)).load(tmp_path)
    assert (pixels.train.x.dtype, pixels.train.x.max(), pixels.classes) == (np.float32, 1, 1)
    mixed = write_npz(tmp_path, x_train=X.astype(np.uint8), y_train=Y, x_test=X, y_test=Y)
    with pytest.raises(DataError, match="training and test examples differ in type: uint8 and float64"):
        mixed.load(tmp_path)
    integers = write_npz(tmp_path, x_train=X.astype(np.int32), y_train=X).load(tmp_path)
    assert (integers.train.x.dtype, integers.classes) == (np.int64, None)
    assert Npz(path="own.npz").load(tmp_path).train.y.dtype == np.float32
    assert dataclasses.replace(write_npz(tmp_path, x_train=X, y_train=Y), classes=9).load(tmp_path).classes == 9
    assert write_npz(tmp_path, x_train=X, y_train=Y > 1).load(tmp_path).classes == 2
    with pytest.raises(FieldError, match="classes: got 3, but y_train is float64: not class labels"):
        dataclasses.replace(write_npz(tmp_path, x_train=X, y_train=X[:, 0]), classes=3).load(tmp_path)


@pytest.mark.slow
def test_npz_with_any_damaged_byte_raises_no_other_error(tmp_path: Path) -> None:
    write_npz(tmp_path, x_train=X, y_train=Y)
    content, rng = (tmp_path / "own.npz").read_bytes(), np.random.default_rng(0)
    for position in rng.integers(0, len(content), 300):
        damaged = bytearray(content)
        damaged[position] ^= int(rng.integers(1, 256))
        (tmp_path / "own.npz").write_bytes(bytes(damaged) if position % 3 else content[:position])
        with contextlib.suppress(DataError):
            Npz(path="own.npz").load(tmp_path)


def test_npz_invalid_file_raises_error_with_cause(tmp_path: Path) -> None:
    invalid: dict[str, dict[str, object]] = {
        "has x, y, expected x_train and y_train": {"x": X, "y": Y},
        "expected x_test and y_test": {"x_train": X, "y_train": Y, "x_test": X},
        "20 training examples but 19 targets": {"x_train": X, "y_train": Y[1:]},
        "without pickled objects": {"x_train": np.array([{}, {}]), "y_train": Y},
        "x_train and y_train have 0 and 1 dimensions": {"x_train": np.array(3.0), "y_train": Y},
        "the largest label is 10995116277": {"x_train": X, "y_train": Y + 2**40},
    }
    for message, arrays in invalid.items():
        with pytest.raises(DataError, match=message):
            write_npz(tmp_path, **arrays).load(tmp_path)
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


def test_npz_ignored_labels_count_as_no_class(tmp_path: Path) -> None:
    y = np.where(np.arange(20) % 5 == 0, -100, Y)
    data = write_npz(tmp_path, x_train=X, y_train=y, x_test=X, y_test=y).load(tmp_path)
    assert (data.classes, data.train.y.tolist()) == (4, y.tolist())
    for labels, message in ((np.where(y < 0, -1, y), "run from -1 to 3"), (np.full(20, -100), "all training labels are -100")):
        with pytest.raises(DataError, match=message):
            write_npz(tmp_path, x_train=X, y_train=labels, x_test=X, y_test=y).load(tmp_path)


def test_npz_text_labels_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    train, test = np.array(["owl", "cat", "Dog", "cat"]), np.array(["éland", "cat"])
    data = write_npz(tmp_path, x_train=X[:4], y_train=train, x_test=X[:2], y_test=test).load(tmp_path)
    assert data.class_names == ("Dog", "cat", "owl", "éland")
    assert (data.train.y.tolist(), data.test.y.tolist(), data.classes) == ([2, 1, 0, 1], [3, 1], 4)
    with pytest.raises(FieldError, match="classes: got 9, but the labels are 4 different texts"):
        Npz(path="own.npz", classes=9).load(tmp_path)


@pytest.mark.parametrize(
    ("targets", "hint"),
    [
        (np.eye(3)[Y % 3], "the targets are one-hot: y.argmax(1) converts them to class labels"),
        (Y.astype(float), "y.astype(numpy.int64) converts whole numbers to integers"),
    ],
)
def test_npz_targets_that_are_no_labels_raise_error_with_conversion(
    tmp_path: Path, scenario: Callable[..., Scenario], targets: np.ndarray, hint: str
) -> None:
    write_npz(tmp_path, x_train=X, y_train=targets)
    with pytest.raises(ModelError) as error:
        build_experiment(scenario({"data.name": "npz", "data.path": "own.npz", "data.partition.name": "iid"}), tmp_path)
    assert f"(own.npz: y_train); {hint}" in str(error.value)


def test_npz_that_is_no_zip_file_raises_error_without_advice_on_pickles(tmp_path: Path) -> None:
    (tmp_path / "own.npz").write_text("hello")
    with pytest.raises(DataError) as error:
        Npz(path="own.npz").load(tmp_path)
    assert str(error.value).endswith("(it is no zip file)")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(DataError, match=r"folder.npz is a folder, expected a file of numpy.savez"):
        Npz(path="folder.npz").load(tmp_path)


def test_npz_test_share_of_all_examples_raises_error(tmp_path: Path) -> None:
    write_npz(tmp_path, x_train=X, y_train=Y)
    with pytest.raises(FieldError, match=f"test_share: got 1, which leaves none of {len(Y)} examples to train on"):
        Npz(path="own.npz", test_share=1.0).load(tmp_path)
