"""Any dataset of the Hugging Face hub, or in its formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import I64
from fedsgd.component import FieldError
from fedsgd.data.base import Dataset, Examples, Source, as_floats, classes_in
from fedsgd.data.datasets.files import places
from fedsgd.data.extra import need
from fedsgd.errors import DataError, did_you_mean


@dataclass(frozen=True)
class HuggingFace(Source):
    """Any Hugging Face dataset: `path` as datasets.load_dataset takes it, a name on the hub or a folder. Needs an extra.

    config: which of its configurations; train, test: its splits, also in parts ("train[:80%]" and "train[80%:]" where there is
    no test split); x, y: the columns of examples and targets; owner: the column
    that says whose each example is, for "natural". Columns of images become float32 in [0, 1], [channels, height, width]
    or, without colours, [height, width]; lists become arrays as they are, and must be of one length. Class labels (a
    ClassLabel column, or integers) make it a classification. The cache of the library is used, and its HF_HUB_OFFLINE and
    HF_DATASETS_OFFLINE are obeyed. A folder is looked for in --data DIR (or FEDSGD_DATA), if given, and then
    where you stand.
    """

    name: ClassVar[str] = "hugging-face"

    path: str = field(kw_only=True)
    config: str | None = None
    train: str = "train"
    test: str = "test"
    x: str = "image"
    y: str = "label"
    owner: str | None = None

    def load(self, folder: Path | None) -> Dataset:
        library = need("datasets", "huggingface")
        local = [path for path in places(folder, self.path) if path.is_dir()]
        try:
            where = str(local[0]) if local else self.path
            train, test = library.load_dataset(where, self.config, split=[self.train, self.test])
        except Exception as error:  # a hub, a cache, a network and a parser may each fail in ways of their own
            raise DataError(f"hugging-face: {self.path} cannot be loaded: {type(error).__name__}: {error}") from error
        self._check_columns(train.column_names)
        feature = train.features[self.x]  # of images in a Parquet file that does not say so: {bytes, path}
        if isinstance(feature, dict) and set(feature) == {
            "bytes",
            "path",
        }:
            train, test = (table.cast_column(self.x, library.Image()) for table in (train, test))
        x, y = ([self._array(table, column) for table in (train, test)] for column in (self.x, self.y))
        owners = self._owners(train, test)
        parts = [Examples(x[i], y[i], None, owners[i]) for i in range(2)]
        names = getattr(train.features[self.y], "names", None)
        return Dataset(parts[0], parts[1], len(names) if names else classes_in(*y), tuple(names) if names else None)

    def _check_columns(self, columns: Sequence[str]) -> None:
        for key in ("x", "y", "owner"):
            wanted = getattr(self, key)
            if wanted is not None and wanted not in columns:
                raise FieldError(self.name, key, f'got "{wanted}"{did_you_mean(wanted, columns)}')

    def _array(self, table: Any, column: str) -> NDArray[Any]:
        """A column as an array [n, ...]; images by their pixels."""
        images = type(table.features[column]).__name__ == "Image"
        try:
            rows = [_pixels(row) if images and row is not None else np.asarray(row) for row in table[column]]
        except Exception as error:  # rows are decoded as they are read
            raise DataError(f"hugging-face: {self.path}: column {column}: {type(error).__name__}: {error}") from error
        if any(row.dtype.kind == "O" for row in rows):
            raise DataError(f"hugging-face: {self.path}: column {column} has missing values, or values that are no numbers")
        if len({(row.shape, row.dtype.kind) for row in rows}) > 1:
            shapes = ", ".join(sorted({str(list(row.shape)) for row in rows})[:3])
            raise DataError(f"hugging-face: {self.path}: rows of column {column} have different shapes: {shapes}")
        return np.stack(rows) if rows else np.empty(0)

    def _owners(self, train: Any, test: Any) -> Sequence[I64 | None]:
        """Owners, whatever they are called, numbered in the order of their names."""
        if self.owner is None:
            return None, None
        columns = [list(table[self.owner]) for table in (train, test)]
        types = {type(name) for column in columns for name in column}
        if len(types) > 1 or not types <= {str, int, float, bool}:
            problem = (
                f'column "{self.owner}" has missing values, values of different types, or values that are no names or numbers'
            )
            raise FieldError(self.name, "owner", problem)
        numbers = np.unique(np.array(columns[0] + columns[1]), return_inverse=True)[1].astype(np.int64)
        return np.split(numbers, [len(columns[0])])


def _pixels(image: Any) -> NDArray[np.float32]:
    """A PIL image as [channels, height, width] or, without colours, [height, width]; in [0, 1]."""
    if image.mode in ("1", "L", "LA"):
        return as_floats(np.asarray(image.convert("L")))
    if image.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
        raise ValueError(f"an image of mode {image.mode}, expected 8 bits a channel")
    return as_floats(np.asarray(image.convert("RGB"))).transpose(2, 0, 1)
