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
    """train and test examples; classes: number of classes, or None where targets are not class labels."""

    train: Examples
    test: Examples
    classes: int | None

    def __post_init__(self) -> None:
        for part, examples in (("training", self.train), ("test", self.test)):
            if not len(examples):
                raise DataError(f"the dataset has no {part} examples")
            if len(examples.x) != len(examples.y):
                raise DataError(f"{len(examples.x)} {part} examples but {len(examples.y)} targets")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.train.x.shape[1:])


@dataclass(frozen=True)
class Source(Component, ABC):
    """Where a dataset comes from."""

    @abstractmethod
    def load(self, folder: Path | None) -> Dataset:
        """The dataset; DataError if it is missing or corrupt. folder: what `--data` or FEDSGD_DATA named, or None."""
