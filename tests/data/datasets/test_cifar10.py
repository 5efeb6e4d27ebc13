"""CIFAR-10: valid, missing and corrupt Parquet files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedsgd.data.datasets.cifar10 import Cifar10
from fedsgd.errors import DataError
from tests.data.samples import encode_image, write_cifar


@pytest.mark.parametrize("column", ["img", "image"])
def test_cifar10_files_of_the_hub_load_standardised(tmp_path: Path, column: str) -> None:
    write_cifar(tmp_path, "train", [encode_image((255, 0, 0)), encode_image((0, 255, 51))], [3, 9], column)
    write_cifar(tmp_path, "test", [encode_image((0, 0, 255))], [0], column)
    data = Cifar10().load(tmp_path)
    assert (data.shape, data.classes, data.train.y.tolist(), data.test.y.tolist()) == ((3, 32, 32), 10, [3, 9], [0])
    first = ((np.array([1, 0, 0]) - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]).astype(np.float32)
    assert data.train.x[0, :, 5, 7] == pytest.approx(first, abs=1e-5)
    assert data.class_names is not None
    assert data.class_names[3] == "cat"


@pytest.mark.nightly
def test_cifar10_real_files_have_known_statistics(data_folder: Path) -> None:
    data = Cifar10().load(data_folder)
    assert (len(data.train), len(data.test), data.shape, data.classes) == (50_000, 10_000, (3, 32, 32), 10)
    assert np.bincount(data.train.y).tolist() == [5000] * 10
    assert np.bincount(data.test.y).tolist() == [1000] * 10
    assert data.train.x.mean(axis=(0, 2, 3)) == pytest.approx([0, 0, 0], abs=0.01)
    assert data.train.x.std(axis=(0, 2, 3)) == pytest.approx([1, 1, 1], abs=0.01)


def test_cifar10_in_several_files_loads_all_parts(tmp_path: Path) -> None:
    write_cifar(tmp_path, "test", [encode_image((0, 0, 255))], [0])
    for i in range(2):
        pq.write_table(
            pa.table({"img": [encode_image((i, 0, 0))] * 3, "label": [i] * 3}), tmp_path / f"train-0000{i}-of-00002.parquet"
        )
    assert Cifar10().load(tmp_path).train.y.tolist() == [0, 0, 0, 1, 1, 1]
    (tmp_path / "train-00000-of-00002.parquet").rename(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet, train\.parquet: expected one file or all its parts"):
        Cifar10().load(tmp_path)
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(DataError, match="expected one file or all its parts"):
        Cifar10().load(tmp_path)


def test_cifar10_corrupt_file_raises_error_with_its_name(tmp_path: Path) -> None:
    write_cifar(tmp_path, "train", [encode_image((1, 2, 3))], [3])
    with pytest.raises(DataError, match=r"test\*.parquet not found .*uoft-cs/cifar10"):
        Cifar10().load(tmp_path)
    test = write_cifar(tmp_path, "test", [encode_image((1, 2, 3)), {"bytes": b"GIF89a", "path": None}], [3, 4])
    with pytest.raises(DataError, match=rf"{test}: row 1 is not an encoded image"):
        Cifar10().load(tmp_path)
    write_cifar(tmp_path, "test", [encode_image((1, 2, 3), (28, 28))], [3])
    with pytest.raises(DataError, match="row 0 is an image of 28×28, expected 32×32"):
        Cifar10().load(tmp_path)
    write_cifar(tmp_path, "test", [encode_image((1, 2, 3))], [3], "picture")
    with pytest.raises(DataError, match="columns picture, label; expected img and label"):
        Cifar10().load(tmp_path)
    test.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        Cifar10().load(tmp_path)
    write_cifar(tmp_path, "test", [encode_image((1, 2, 3))], [10])
    with pytest.raises(DataError, match="labels run from 10 to 10, expected 0 to 9"):
        Cifar10().load(tmp_path)
    pq.write_table(pa.table({"img": [encode_image((1, 2, 3))], "label": pa.array([None], pa.int64())}), test)
    with pytest.raises(DataError, match="1 labels are missing"):
        Cifar10().load(tmp_path)
