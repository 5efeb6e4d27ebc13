"""What a dataset is: arrays of examples and targets, a training part to be split over clients and a held-out test part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.component import Component
from fedsgd.errors import DataError

I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Examples:
    """n examples, or the rows `rows` of a larger set, gathered only when asked for.

    x: [n, ...], usually float32; y: [n, ...], int64 class labels or any target that the loss takes.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    rows: I64 | None = None

    def __len__(self) -> int:
        return len(self.y) if self.rows is None else len(self.rows)

    def gather(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """(x, y) of these examples alone."""
        if self.rows is None:
            return self.x, self.y
        return self.x[self.rows], self.y[self.rows]


@dataclass(frozen=True, eq=False)
class Dataset:
    """train and test examples; classes: number of classes, or None where targets are not class labels.

    Arrays are brought into the form that models compute with: contiguous, native bytes, floats as float32, class labels as
    int64 in [0, classes). Integer examples stay integers, as embeddings want them: images must be floats.
    DataError for anything that is not an array of numbers, or does not fit together.
    """

    train: Examples
    test: Examples
    classes: int | None

    def __post_init__(self) -> None:
        for part, field in (("training", "train"), ("test", "test")):
            examples = getattr(self, field)
            x, y = _array(examples.x, f"{part} examples"), _array(examples.y, f"{part} targets")
            if len(x) != len(y):
                raise DataError(f"{len(x)} {part} examples but {len(y)} targets")
            if self.classes is not None:
                y = _labels(y, self.classes, part)
            object.__setattr__(self, field, Examples(x, y, examples.rows))
            if not len(getattr(self, field)):
                raise DataError(f"the dataset has no {part} examples")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.train.x.shape[1:])


def _array(values: Any, what: str) -> NDArray[Any]:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub" or not values.ndim:
        got = f"{values.dtype} of shape {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
        raise DataError(f"the {what} are {got}, expected a numpy array of numbers, one row an example")
    native = np.dtype(np.float32) if values.dtype.kind == "f" else values.dtype.newbyteorder("=")
    return np.ascontiguousarray(values, dtype=native)


def _labels(y: NDArray[Any], classes: int, part: str) -> I64:
    if y.dtype.kind not in "iu" or y.ndim != 1:
        got = f"{y.dtype} of shape {list(y.shape)}"
        raise DataError(f"the {part} targets are {got}, expected class labels: integers [n] (classes=None for other targets)")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise DataError(f"the {part} labels run from {y.min()} to {y.max()}, expected 0 to {classes - 1}")
    return y.astype(np.int64, copy=False)


@dataclass(frozen=True)
class Source(Component, ABC):
    """Where a dataset comes from."""

    @abstractmethod
    def load(self, folder: Path | None) -> Dataset:
        """The dataset; DataError if it is missing or corrupt. folder: what `--data` or FEDSGD_DATA named, or None."""
