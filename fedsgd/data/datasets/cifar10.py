"""CIFAR-10 from Parquet files in the layout of the Hugging Face hub."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.data.base import Dataset, DatasetSource, Examples
from fedsgd.data.datasets.files import find_data_files
from fedsgd.errors import DataError
from fedsgd.numerics.arrays import F32

DOWNLOAD_HINT = (
    "the Parquet files train-00000-of-00001.parquet and test-00000-of-00001.parquet are in the folder plain_text of "
    "uoft-cs/cifar10 on the Hugging Face hub; put them into DIR or DIR/cifar10 and pass --data DIR or set FEDSGD_DATA"
)
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = np.array([0.4914, 0.4822, 0.4465], dtype=np.float32)
STD = np.array([0.2470, 0.2435, 0.2616], dtype=np.float32)
"""Standard deviation of each colour over the training images in [0, 1], as `MEAN` is the mean."""


@dataclass(frozen=True)
class Cifar10(DatasetSource):
    """CIFAR-10 from Parquet files: 50,000 + 10,000 colour images of 32×32, ten classes.

    Source: Krizhevsky 2009. Inputs x are [n, 3, 32, 32] float32. Each colour has mean 0 and standard deviation 1 over the
    training images.

    The files are train*.parquet and test*.parquet in DIR or DIR/cifar10, where `--data` or FEDSGD_DATA names DIR. Column
    `img` or `image` has images encoded as PNG or JPEG, and column `label` has class labels.
    """

    name: ClassVar[str] = "cifar10"
    may_have_owners: ClassVar[bool] = False

    def load(self, folder: Path | None) -> Dataset:
        parts = []
        for part in ("train", "test"):
            paths = find_data_files(folder, "cifar10", [f"{part}*.parquet"], DOWNLOAD_HINT)
            _check_file_set(paths)
            pieces = [_read_file(path) for path in paths]
            pixels, labels = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
            parts.append(Examples(_standardise(pixels), labels))
        return Dataset(parts[0], parts[1], classes=10, class_names=CLASS_NAMES)


def _check_file_set(paths: list[Path]) -> None:
    """Raise DataError unless there is one file, or all of NAME-00000-of-N to NAME-(N−1)-of-N: no image may be read twice."""
    matches = [re.search(r"-(\d+)-of-(\d+)$", path.stem) for path in paths]
    numbers = [(int(match[1]), int(match[2])) for match in matches if match]
    if (len(paths) > 1 or numbers) and numbers != [(i, len(paths)) for i in range(len(paths))]:
        names = ", ".join(path.name for path in paths)
        raise DataError(f"{paths[0].parent}: {names}: expected one file or all its parts, NAME-00000-of-N.parquet and so on")


def _standardise(pixels: NDArray[np.uint8]) -> F32:
    """Return images [n, 32, 32, 3] as standardised [n, 3, 32, 32] float32."""
    x = np.empty((len(pixels), 3, 32, 32), dtype=np.float32)
    for colour in range(3):
        x[:, colour] = (pixels[..., colour] / np.float32(255) - MEAN[colour]) / STD[colour]
    return x


def _read_file(path: Path) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return (pixels [n, 32, 32, 3], labels [n]) of one file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}): {DOWNLOAD_HINT}") from error
    columns = table.column_names
    column = next((name for name in ("img", "image") if name in columns), None)
    if column is None or "label" not in columns:
        raise DataError(f"{path}: has the columns {', '.join(columns)}; expected img and label: {DOWNLOAD_HINT}")
    if table.column("label").null_count:
        raise DataError(f"{path}: {table.column('label').null_count} labels are missing")
    pixels = np.empty((table.num_rows, 32, 32, 3), dtype=np.uint8)
    for row, cell in enumerate(table.column(column).to_pylist()):
        pixels[row] = _decode_image(cell, path, row)
    return pixels, table.column("label").to_numpy()


def _decode_image(cell: Any, path: Path, row: int) -> NDArray[np.uint8]:
    """Return the pixels of one encoded image, [32, 32, 3]."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(cell["bytes"] if isinstance(cell, dict) else cell)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, TypeError, KeyError) as error:
        raise DataError(f"{path}: row {row} is not an encoded image ({error})") from error
    if pixels.shape != (32, 32, 3):
        raise DataError(f"{path}: row {row} is an image of {pixels.shape[1]}×{pixels.shape[0]}, expected 32×32")
    return pixels
