"""What a dataset is: arrays of examples and targets, a training part to be split over clients and a held-out test part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import I64
from fedsgd.component import Component
from fedsgd.errors import DataError


@dataclass(frozen=True, eq=False)
class Examples:
    """n examples, or the rows `rows` of a larger set, gathered only when asked for.

    x: [n, ...], usually float32; y: [n, ...], int64 class labels or any target that the loss takes; owner: [n], for data that
    were made by somebody, a number for whose each example is.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    rows: I64 | None = None
    owner: I64 | None = None

    def __len__(self) -> int:
        return len(self.y) if self.rows is None else len(self.rows)

    def gather(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """(x, y) of these examples alone."""
        if self.rows is None:
            return self.x, self.y
        return self.x[self.rows], self.y[self.rows]

    def targets(self) -> NDArray[Any]:
        """y of these examples alone."""
        return self.y if self.rows is None else self.y[self.rows]

    def take(self, places: I64) -> Examples:
        """The examples at these places among them, not gathered yet."""
        return Examples(self.x, self.y, self.rows_at(places))

    def rows_at(self, places: I64) -> I64:
        """The rows of x and y where the examples at these places are."""
        return places if self.rows is None else self.rows[places]

    def part(self, start: int, stop: int) -> Examples:
        """The examples from `start` to before `stop`, not gathered yet."""
        if self.rows is None:
            return Examples(self.x[start:stop], self.y[start:stop])
        return Examples(self.x, self.y, self.rows[start:stop])


@dataclass(frozen=True, eq=False)
class Dataset:
    """train and test examples; classes: number of classes, or None where targets are not class labels.

    Arrays are brought into the form that models compute with: contiguous, native bytes, `rows` gathered, floats as float32,
    integers as int64. Integer examples stay integers, as embeddings want them: images must be floats. Class labels are
    integers in [0, classes), [n] or, in sequences, [n, T]; class_names: what each is called.
    DataError for anything that is not an array of finite numbers, or does not fit together.
    """

    train: Examples
    test: Examples
    classes: int | None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for part, field in (("training", "train"), ("test", "test")):
            object.__setattr__(self, field, self._checked(getattr(self, field), part))
        for what, train, test in (("examples", self.train.x, self.test.x), ("targets", self.train.y, self.test.y)):
            kinds = [f"{a.dtype} {list(a.shape[1:])}" for a in (train, test)]
            if kinds[0] != kinds[1]:
                raise DataError(f"training and test {what} differ in kind or shape: {kinds[0]} and {kinds[1]}")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise DataError(f"{len(self.class_names)} class names for {self.classes} classes")

    def _checked(self, examples: Examples, part: str) -> Examples:
        x, y = _array(examples.x, f"{part} examples"), _array(examples.y, f"{part} targets")
        if len(x) != len(y):
            raise DataError(f"{len(x)} {part} examples but {len(y)} targets")
        if self.classes is not None:
            _check_labels(y, self.classes, part)
        owner = examples.owner
        if owner is not None:
            owner = _array(owner, f"{part} owners")
            if owner.dtype.kind != "i" or owner.shape != (len(y),) or (len(owner) and owner.min() < 0):
                raise DataError(f"the {part} owners are {_what(owner)}, expected a number from 0 for each of {len(y)} examples")
        if examples.rows is not None:
            x, y, owner = x[examples.rows], y[examples.rows], None if owner is None else owner[examples.rows]
        if not len(y):
            raise DataError(f"the dataset has no {part} examples")
        return Examples(x, y, None, owner)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.train.x.shape[1:])


def as_floats(x: NDArray[Any]) -> NDArray[Any]:
    """Pixels (uint8) as float32 in [0, 1]; anything else as it is."""
    if x.dtype != np.uint8:
        return x
    scaled: NDArray[np.float32] = np.multiply(x, np.float32(1 / 255), dtype=np.float32)
    return scaled


def classes_in(*targets: NDArray[Any]) -> int | None:
    """The number of classes that labels imply, one more than the largest; None where targets are not integers."""
    if any(y.dtype.kind not in "iub" for y in targets):
        return None
    largest = max((int(y.max()) for y in targets if y.size), default=0)
    if largest > 1000 + sum(y.size for y in targets):
        raise DataError(
            f"the largest label is {largest}, and there are not so many targets: labels are numbers from 0 to classes - 1"
        )
    return largest + 1


def _what(values: Any) -> str:
    return f"{values.dtype} of shape {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__


def _array(values: Any, what: str) -> NDArray[Any]:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub" or not values.ndim:
        raise DataError(f"the {what} are {_what(values)}, expected a numpy array of numbers, one row an example")
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold is found below
            floats: NDArray[np.float32] = np.ascontiguousarray(values, dtype=np.float32)
        if not np.isfinite(floats).all():
            first = int(np.flatnonzero(~np.isfinite(floats.reshape(len(floats), -1)).all(axis=1))[0])
            raise DataError(f"the {what} are not all finite float32 numbers, first in row {first}")
        return floats
    if values.dtype.kind == "u" and values.size and int(values.max()) > np.iinfo(np.int64).max:
        raise DataError(f"the {what} go up to {values.max()}, which int64 cannot hold")
    return np.ascontiguousarray(values, dtype=np.int64)


def _check_labels(y: NDArray[Any], classes: int, part: str) -> None:
    if y.dtype.kind != "i":
        raise DataError(
            f"the {part} targets are {_what(y)}, expected class labels: integers [n] (classes=None for other targets)"
        )
    if y.size and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise DataError(f"the {part} labels run from {y.min()} to {y.max()}, expected 0 to {classes - 1}")


class ClientData(ABC):
    """The examples of N clients, numbered from 0. Only `sizes` and `all` are about every client and cost as much; the others
    cost what the clients that are asked for cost, however many there are."""

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def of(self, client: int) -> Examples:
        """One client's examples."""

    @abstractmethod
    def sizes_of(self, clients: Sequence[int]) -> I64:
        """How many examples each of these clients has [len(clients)]."""

    @abstractmethod
    def sizes(self) -> I64:
        """How many examples each client has [N]."""

    @abstractmethod
    def distinct_sizes(self) -> tuple[I64, I64]:
        """(the numbers of examples that clients have, ascending, how many clients have each)."""

    @abstractmethod
    def all(self) -> Examples:
        """The examples of all clients, client after client, the same arrays at each call. DataError if they are too many to be
        looked at together."""

    @abstractmethod
    def first(self, most: int) -> ClientData:
        """The first `most` clients of those whose data are made when they are asked for; all of those that have theirs."""


@dataclass(frozen=True)
class Source(Component, ABC):
    """Where a dataset comes from."""

    @abstractmethod
    def load(self, folder: Path | None) -> Dataset:
        """The dataset; DataError if it is missing or corrupt. folder: what `--data` or FEDSGD_DATA named, or None."""
