"""Arrays of the user, in a file of numpy.savez."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.config.component import FieldError, FractionAboveZero, PositiveInt
from fedsgd.data.base import Dataset, DatasetSource, Examples, hold_out_test_examples, scale_pixels, scale_pixels_of_parts
from fedsgd.data.datasets.files import search_paths
from fedsgd.data.labels import count_classes, number_text_labels
from fedsgd.errors import DataError

ARRAY_NAMES = ("x_train", "y_train", "x_test", "y_test", "owner_train", "owner_test")


@dataclass(frozen=True)
class Npz(DatasetSource):
    """Your own arrays: `path` names a file of numpy.savez with x_train and y_train, and optionally x_test and y_test.

    Optional arrays owner_train and owner_test number the owner of each example, for the partitioner "natural". Inputs x of
    uint8 are pixels and become float32 in [0, 1]. Other integers (characters, words) stay integers; floats become float32.
    Targets y of integers or booleans, [n] or [n, T], are class labels. The loss ignores the label -100, which is no class.
    Texts are class labels too, numbered in sorted order; `fedsgd partition` shows the names. Floats are regression targets.
    Files with pickled objects are refused, because pickled objects can run code.

    Attributes:
        path: file; a relative path is searched in the data folder (`--data DIR` or FEDSGD_DATA), then in the current folder.
        classes: number of classes; None: the largest label + 1, or the number of different texts.
        test_share: share of the examples that are drawn for testing, independently of the scenario's seed, if the file has no
            test examples.
    """

    name: ClassVar[str] = "npz"

    path: str = field(kw_only=True, metadata={"example": '"my_arrays.npz"'})
    classes: PositiveInt | None = None
    test_share: FractionAboveZero = 0.2

    def load(self, folder: Path | None) -> Dataset:
        arrays, names = _number_labels(_read_arrays(self._find_file(folder)))
        x, y, writer = arrays["x_train"], arrays["y_train"], arrays.get("owner_train")
        if not x.ndim or not y.ndim:
            raise DataError(
                f"{self.path}: x_train and y_train have {x.ndim} and {y.ndim} dimensions, expected one row for each example"
            )
        if len(x) != len(y):
            raise DataError(f"{self.path}: has {len(x)} training examples but {len(y)} targets")
        if "x_test" in arrays:
            train = Examples(x, y, None, writer)
            test = Examples(arrays["x_test"], arrays["y_test"], None, arrays.get("owner_test"))
        else:
            train, test = hold_out_test_examples(Examples(x, y, None, writer), self.test_share, self.name)
        implied_classes = len(names) if names else count_classes(train.y, test.y)
        classes = implied_classes if self.classes is None else self.classes
        if names and classes != len(names):
            raise FieldError(self.name, "classes", f"got {classes}, but the labels are {len(names)} different texts")
        if self.classes is not None and y.dtype.kind == "f":
            raise FieldError(self.name, "classes", f"got {self.classes}, but y_train is {y.dtype}: not class labels")
        return Dataset(train, test, classes, names)

    def _find_file(self, folder: Path | None) -> Path:
        for path in search_paths(folder, self.path):
            if path.is_file():
                return path
            if path.is_dir():
                raise DataError(f"npz: {path} is a folder, expected a file of numpy.savez")
        raise DataError(f"npz: {self.path} not found (looked for {', '.join(map(str, search_paths(folder, self.path)))})")


def _number_labels(arrays: dict[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], tuple[str, ...] | None]:
    """Return (the arrays with numbers in place of text labels, the class names or None if the labels are numbers)."""
    labels = {name: arrays[name] for name in ("y_train", "y_test") if name in arrays}
    if not all(y.dtype.kind == "U" and y.ndim == 1 for y in labels.values()):
        return arrays, None
    numbers, names = number_text_labels(*(y.tolist() for y in labels.values()))
    return {**arrays, **dict(zip(labels, numbers, strict=True))}, names


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of a file. DataError for an unreadable file or a missing array."""
    try:
        with path.open("rb") as file:
            if not file.read(6).startswith((b"PK", b"\x93NUMPY")):
                raise ValueError("it is no zip file")  # numpy would report it as pickled objects
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{path}: has a single array, expected several: numpy.savez(path, x_train=..., y_train=...)")
            arrays = {name: archive[name] for name in ARRAY_NAMES if name in archive.files}
            names = ", ".join(archive.files)
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # NotImplementedError too
        raise DataError(f"{path}: cannot be read as a file of numpy.savez without pickled objects ({error})") from error
    for pair in (("x_train", "y_train"), ("x_test", "y_test")):
        missing_names = [name for name in pair if name not in arrays]
        if missing_names and (pair[0] == "x_train" or len(missing_names) == 1):
            raise DataError(f"{path}: has {names or 'nothing'}, expected {' and '.join(pair)}")
    if "x_test" not in arrays:
        return {**arrays, "x_train": scale_pixels(arrays["x_train"])}
    x_train, x_test = scale_pixels_of_parts(arrays["x_train"], arrays["x_test"])
    return {**arrays, "x_train": x_train, "x_test": x_test}
