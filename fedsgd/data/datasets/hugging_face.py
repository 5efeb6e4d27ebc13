"""Datasets of the Hugging Face hub, and files in formats that its library reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fedsgd.config.component import FieldError, FractionAboveZero
from fedsgd.data.base import Dataset, DatasetSource, Examples, hold_out_test_examples
from fedsgd.data.datasets.columns import read_features, read_labels
from fedsgd.data.datasets.files import require_extra, search_paths
from fedsgd.data.labels import count_classes
from fedsgd.errors import DataError, suggest_name
from fedsgd.numerics.arrays import I64

FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""Name of a format in the library, by file extension."""
ALL_COLUMNS = "*"


@dataclass(frozen=True)
class HuggingFace(DatasetSource):
    """Any Hugging Face dataset: `path` is a name on the hub, a folder or a file. Needs the extra "huggingface".

    Images become float32 in [0, 1], [channels, height, width] or, if all images are grey, [height, width]. In a dataset with
    colour images a grey image gets three equal channels. Transparency is dropped. Lists become arrays and must have equal
    lengths. The library's cache is used, and its variables HF_HUB_OFFLINE and HF_DATASETS_OFFLINE apply.

    Attributes:
        path: argument of datasets.load_dataset; or a folder that `save_to_disk` wrote; or a file .csv, .json, .jsonl or
            .parquet. A relative path is searched in the data folder (`--data DIR` or FEDSGD_DATA), then in the current folder.
        config: name of the dataset's configuration; None: the default configuration.
        train, test: splits of the training and test examples, or parts of a split, such as "train[:80%]" and "train[80%:]".
        x: column of the examples; or a list of columns of numbers, or "*" for all columns but `y` and `owner`. A list or "*"
            gives each row a vector [features] of float32.
        y: column of the targets. A ClassLabel column, integers and texts are class labels; texts are numbered in sorted
            order, and `fedsgd partition` shows the names. Floats are regression targets. The loss ignores the label -100.
        owner: column of the owners (writers, speakers or users), for the partitioner "natural"; None: no owners.
        test_share: share of the examples that are drawn for testing, independently of the scenario's seed, if there is only
            one split and `test` has its default.
    """

    name: ClassVar[str] = "hugging-face"

    path: str = field(kw_only=True, metadata={"example": '"my_table.csv"'})
    config: str | None = field(default=None, metadata={"example": '"default"'})
    train: str = "train"
    test: str = "test"
    x: str | tuple[str, ...] = "image"
    y: str = "label"
    owner: str | None = field(default=None, metadata={"example": '"writer"'})
    test_share: FractionAboveZero = 0.2

    def __post_init__(self) -> None:
        """Raise FieldError for a target among the features, and for a repeated feature."""
        super().__post_init__()
        columns = (self.x,) if isinstance(self.x, str) else self.x
        for i, name in enumerate(columns):
            if name == self.y:
                raise FieldError(self.name, "x", f'names "{name}", which is data.y: the model would be given its target')
            if name in columns[:i]:
                raise FieldError(self.name, "x", f'names "{name}" twice, expected each column once')

    @property
    def may_have_owners(self) -> bool:
        return self.owner is not None

    def load(self, folder: Path | None) -> Dataset:
        return self.build_dataset(*self._load_parts(folder))

    def build_dataset(self, tables: Sequence[Any], has_single_split: bool) -> Dataset:
        """Return the dataset of two tables, or of one table of which a share is drawn for testing.

        Args:
            tables: (training table, test table), or the only table.
            has_single_split: True for a single table.
        """
        features = self._select_feature_columns(tables[0].column_names)
        for table in tables:
            self._check_columns(table.column_names, features)
        source_name = f"hugging-face: {self.path}"
        x = read_features(tables, features, isinstance(self.x, str) and self.x != ALL_COLUMNS, source_name)
        y, names = read_labels(tables, self.y, source_name)
        writers = self._number_writers(tables)
        parts = [Examples(x[i], y[i], None, writers[i]) for i in range(len(tables))]
        if has_single_split:
            parts = [*hold_out_test_examples(parts[0], self.test_share, self.name)]
        return Dataset(parts[0], parts[1], len(names) if names else count_classes(*y), names)

    def _load_parts(self, folder: Path | None) -> tuple[list[Any], bool]:
        """Return ([training table, test table], False), or ([table of both], True) if there is only one split."""
        library = require_extra("datasets", "huggingface")
        try:
            splits = self._load_splits(library, folder)
            has_single_split = self.test == "test" and len(splits) == 1 and "test" not in splits
            keys = ("train",) if has_single_split else ("train", "test")
            return [self._select_split(library, splits, key) for key in keys], has_single_split
        except (FieldError, DataError):
            raise
        except Exception as error:  # the hub, the cache, the network and the parsers raise many types
            raise DataError(f"hugging-face: {self.path} cannot be loaded: {_describe_cause(error)}") from error

    def _load_splits(self, library: Any, folder: Path | None) -> dict[str, Any]:
        """Return the tables of the dataset by split."""
        for path in search_paths(folder, self.path):
            if (path / "state.json").is_file():  # written by save_to_disk of a single Dataset
                return {"train": library.load_from_disk(str(path))}
            if (path / "dataset_dict.json").is_file():
                return dict(library.load_from_disk(str(path)))
            if path.is_file() and path.suffix.lower() in FORMATS:
                return dict(library.load_dataset(FORMATS[path.suffix.lower()], self.config, data_files=str(path)))
            if path.is_dir():
                return dict(library.load_dataset(str(path), self.config))
        if Path(self.path).suffix.lower() in FORMATS:  # a file, not a name on the hub
            candidates = ", ".join(map(str, search_paths(folder, self.path)))
            raise DataError(f"hugging-face: {self.path} not found (looked for {candidates})")
        return dict(library.load_dataset(self.path, self.config))

    def _select_split(self, library: Any, splits: dict[str, Any], key: str) -> Any:
        """Return the rows that the field `train` or `test` selects, such as "train[:80%]". FieldError for an unknown split."""
        selection = getattr(self, key)
        try:
            ranges = library.ReadInstruction.from_spec(selection).to_absolute({name: len(splits[name]) for name in splits})
        except (ValueError, AssertionError) as error:
            split = selection.partition("[")[0].partition("+")[0]
            problem = suggest_name(split, splits) if split not in splits else f": {error}"
            raise FieldError(self.name, key, f'got "{selection}"{problem}') from None
        parts = [splits[part.splitname].select(range(part.from_, part.to)) for part in ranges]
        return parts[0] if len(parts) == 1 else library.concatenate_datasets(parts)

    def _select_feature_columns(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Return the columns of the examples."""
        if self.x == ALL_COLUMNS:
            return tuple(name for name in columns if name not in (self.y, self.owner))
        return (self.x,) if isinstance(self.x, str) else self.x

    def _check_columns(self, columns: Sequence[str], features: Sequence[str]) -> None:
        if not features:
            raise FieldError(self.name, "x", f"got no column, expected at least one of: {', '.join(columns)}")
        required = [*(("x", name) for name in features), ("y", self.y), *([("owner", self.owner)] if self.owner else [])]
        for key, name in required:
            if name not in columns:
                hint = '; for a vector, give a list of columns of numbers, or "*" for all but y and owner' if key == "x" else ""
                raise FieldError(self.name, key, f'got "{name}"{suggest_name(name, columns)}{hint}')

    def _number_writers(self, tables: Sequence[Any]) -> Sequence[I64 | None]:
        """Return the owner of each row of each table, as a number in the sorted order of the owners' names."""
        if self.owner is None:
            return [None] * len(tables)
        columns = [list(table[self.owner]) for table in tables]
        types = {type(name) for column in columns for name in column}
        if len(types) > 1 or not types <= {str, int, float, bool}:
            problem = f'column "{self.owner}" has missing values, mixed types, or values that are no names or numbers'
            raise FieldError(self.name, "owner", problem)
        numbers = np.unique(np.array([name for column in columns for name in column]), return_inverse=True)[1].astype(np.int64)
        return np.split(numbers, np.cumsum([len(column) for column in columns])[:-1])


def _describe_cause(error: Exception) -> str:
    """Return the cause of a failed load, in plain words for errors with an unclear message."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if type(cause).__name__ == "EmptyDataError":
        return "the file is empty, expected a header and rows"
    if "corresponds to no data" in str(cause):
        return "there are no rows"
    return " ".join(f"{type(cause).__name__}: {cause}".split())
