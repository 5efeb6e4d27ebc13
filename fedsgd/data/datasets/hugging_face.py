"""Any dataset of the Hugging Face hub, or in its formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fedsgd.config.component import FieldError, FractionAboveZero
from fedsgd.data.base import Dataset, DatasetSource, Examples
from fedsgd.data.datasets.columns import read_features, read_labels
from fedsgd.data.datasets.files import require_extra, search_paths
from fedsgd.data.labels import count_classes
from fedsgd.errors import DataError, suggest_name
from fedsgd.numerics.arrays import I64
from fedsgd.numerics.rng import derive_generator

FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""End of a file's name → what the library calls the format."""
ALL_COLUMNS = "*"


@dataclass(frozen=True)
class HuggingFace(DatasetSource):
    """Any Hugging Face dataset: `path` as datasets.load_dataset takes it, a name on the hub or a folder. Needs an extra.

    path: also a folder of `save_to_disk`, of a `DatasetDict` or of a single `Dataset`; or a file .csv, .json, .jsonl or
    .parquet. A folder or file is looked for in --data DIR (or FEDSGD_DATA), if given, and then where you stand.
    config: which of the dataset's configurations.
    train, test: splits, also in parts ("train[:80%]" and "train[80%:]").
    test_share: where there is one split only, as in a file or a folder of a single `Dataset`, and `test` is left at its
    default, this share of the training examples, drawn once and for all, is taken out of training to test.
    x: the column of examples; or a list of columns of numbers, or "*" for all but y and owner, which become a vector
    [features] of float32. Images become float32 in [0, 1], [channels, height, width] or, where all are without colours,
    [height, width]; grey images among coloured ones get three equal channels, and transparency is dropped. Lists become arrays
    as they are, and must be of one length.
    y: the column of targets. A ClassLabel column, integers or texts are class labels; texts are numbered in sorted order, and
    `fedsgd partition` shows the names. A label of -100 is ignored by the loss.
    owner: the column that says whose each example is, for "natural".
    The cache of the library is used, and its HF_HUB_OFFLINE and HF_DATASETS_OFFLINE are obeyed.
    """

    name: ClassVar[str] = "hugging-face"

    path: str = field(kw_only=True, metadata={"example": '"my_table.csv"'})
    config: str | None = None
    train: str = "train"
    test: str = "test"
    x: str | tuple[str, ...] = "image"
    y: str = "label"
    owner: str | None = None
    test_share: FractionAboveZero = 0.2

    def __post_init__(self) -> None:
        """Refuse a target among the features, and a feature that is named twice."""
        super().__post_init__()
        columns = (self.x,) if isinstance(self.x, str) else self.x
        for i, name in enumerate(columns):
            if name == self.y:
                raise FieldError(self.name, "x", f'names "{name}", which is data.y: the model would be given its target')
            if name in columns[:i]:
                raise FieldError(self.name, "x", f'names "{name}" twice, expected each column once')

    def load(self, folder: Path | None) -> Dataset:
        tables, drawn = self._load_parts(folder)
        features = self._select_feature_columns(tables[0].column_names)
        for table in tables:
            self._check_columns(table.column_names, features)
        where = f"hugging-face: {self.path}"
        x = read_features(tables, features, isinstance(self.x, str) and self.x != ALL_COLUMNS, where)
        y, names = read_labels(tables, self.y, where)
        owners = self._number_writers(tables)
        parts = [Examples(x[i], y[i], None, owners[i]) for i in range(len(tables))]
        if drawn:
            parts = self._hold_out_test(parts[0])
        return Dataset(parts[0], parts[1], len(names) if names else count_classes(*y), names)

    def _load_parts(self, folder: Path | None) -> tuple[list[Any], bool]:
        """(the tables of training and test examples, False), or (the table of both, True)."""
        library = require_extra("datasets", "huggingface")
        try:
            splits = self._load_splits(library, folder)
            only_one = self.test == "test" and len(splits) == 1 and "test" not in splits
            keys = ("train",) if only_one else ("train", "test")
            return [self._select_split(library, splits, key) for key in keys], only_one
        except (FieldError, DataError):
            raise
        except Exception as error:  # a hub, a cache, a network and a parser may each fail in ways of their own
            raise DataError(f"hugging-face: {self.path} cannot be loaded: {_describe_cause(error)}") from error

    def _load_splits(self, library: Any, folder: Path | None) -> dict[str, Any]:
        """Return the dataset's tables by the names of their splits."""
        for place in search_paths(folder, self.path):
            if (place / "state.json").is_file():  # written by save_to_disk of a single Dataset
                return {"train": library.load_from_disk(str(place))}
            if (place / "dataset_dict.json").is_file():
                return dict(library.load_from_disk(str(place)))
            if place.is_file() and place.suffix.lower() in FORMATS:
                return dict(library.load_dataset(FORMATS[place.suffix.lower()], self.config, data_files=str(place)))
            if place.is_dir():
                return dict(library.load_dataset(str(place), self.config))
        if Path(self.path).suffix.lower() in FORMATS:  # a file, and no name on the hub
            looked_for = ", ".join(map(str, search_paths(folder, self.path)))
            raise DataError(f"hugging-face: {self.path} not found (looked for {looked_for})")
        return dict(library.load_dataset(self.path, self.config))

    def _select_split(self, library: Any, splits: dict[str, Any], key: str) -> Any:
        """Return what `train` or `test` names, such as "train[:80%]". FieldError if there is no such split."""
        wanted = getattr(self, key)
        try:
            stretches = library.ReadInstruction.from_spec(wanted).to_absolute({name: len(splits[name]) for name in splits})
        except (ValueError, AssertionError) as error:
            split = wanted.partition("[")[0].partition("+")[0]
            problem = suggest_name(split, splits) if split not in splits else f": {error}"
            raise FieldError(self.name, key, f'got "{wanted}"{problem}') from None
        parts = [splits[one.splitname].select(range(one.from_, one.to)) for one in stretches]
        return parts[0] if len(parts) == 1 else library.concatenate_datasets(parts)

    def _select_feature_columns(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Return the columns of the examples."""
        if self.x == ALL_COLUMNS:
            return tuple(name for name in columns if name not in (self.y, self.owner))
        return (self.x,) if isinstance(self.x, str) else self.x

    def _check_columns(self, columns: Sequence[str], features: Sequence[str]) -> None:
        if not features:
            raise FieldError(self.name, "x", f"got no column, expected at least one of: {', '.join(columns)}")
        wanted = [*(("x", name) for name in features), ("y", self.y), *([("owner", self.owner)] if self.owner else [])]
        for key, name in wanted:
            if name not in columns:
                more = '; a list of columns of numbers, or "*" for all but y and owner, makes a vector' if key == "x" else ""
                raise FieldError(self.name, key, f'got "{name}"{suggest_name(name, columns)}{more}')

    def _hold_out_test(self, examples: Examples) -> list[Examples]:
        """Return training and test examples: the latter are drawn by a generator of their own, whatever the seed is."""
        n_test = max(1, round(self.test_share * len(examples)))
        if n_test >= len(examples):
            problem = f"got {self.test_share:g}, which leaves none of {len(examples):,} examples to train on"
            raise FieldError(self.name, "test_share", problem)
        order = derive_generator(0, "hugging-face/test").permutation(len(examples))
        rows = (np.sort(order[n_test:]), np.sort(order[:n_test]))
        return [Examples(examples.x, examples.y, part, examples.writer) for part in rows]

    def _number_writers(self, tables: Sequence[Any]) -> Sequence[I64 | None]:
        """Owners, whatever they are called, numbered in the order of their names."""
        if self.owner is None:
            return [None] * len(tables)
        columns = [list(table[self.owner]) for table in tables]
        types = {type(name) for column in columns for name in column}
        if len(types) > 1 or not types <= {str, int, float, bool}:
            problem = (
                f'column "{self.owner}" has missing values, values of different types, or values that are no names or numbers'
            )
            raise FieldError(self.name, "owner", problem)
        numbers = np.unique(np.array([name for column in columns for name in column]), return_inverse=True)[1].astype(np.int64)
        return np.split(numbers, np.cumsum([len(column) for column in columns])[:-1])


def _describe_cause(error: Exception) -> str:
    """Return what went wrong while a dataset was loaded, in words where the library's own are of no help."""
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    if type(first).__name__ == "EmptyDataError":
        return "the file is empty, expected a header and rows"
    if "corresponds to no data" in str(first):
        return "there are no rows"
    return " ".join(f"{type(first).__name__}: {first}".split())
