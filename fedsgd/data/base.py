"""What a dataset is: arrays of examples and targets, a training part to be split over clients and a held-out test part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.config.component import Component
from fedsgd.data.labels import check_labels, suggest_label_conversion
from fedsgd.errors import DataError
from fedsgd.numerics.arrays import I64


@dataclass(frozen=True, eq=False)
class Examples:
    """n examples, or the rows `rows` of a larger set, gathered only when asked for.

    x: [n, ...], usually float32; y: [n, ...], int64 class labels or any target that the loss takes; owner: [n], for data that
    were made by somebody, a number for whose each example is.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    rows: I64 | None = None
    writer: I64 | None = None

    def __len__(self) -> int:
        return len(self.y) if self.rows is None else len(self.rows)

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """(x, y) of these examples alone."""
        if self.rows is None:
            return self.x, self.y
        return self.x[self.rows], self.y[self.rows]

    def targets(self) -> NDArray[Any]:
        """y of these examples alone."""
        return self.y if self.rows is None else self.y[self.rows]

    def select(self, positions: I64) -> Examples:
        """The examples at these places among them, not gathered yet."""
        return Examples(self.x, self.y, self.row_indices(positions))

    def row_indices(self, positions: I64) -> I64:
        """The rows of x and y where the examples at these places are."""
        return positions if self.rows is None else self.rows[positions]

    def slice(self, start: int, stop: int) -> Examples:
        """The examples from `start` to before `stop`, not gathered yet."""
        if self.rows is None:
            return Examples(self.x[start:stop], self.y[start:stop])
        return Examples(self.x, self.y, self.rows[start:stop])


@dataclass(frozen=True, eq=False)
class Dataset:
    """train and test examples; classes: number of classes, or None where targets are not class labels.

    Arrays are brought into the form that models compute with: contiguous, native bytes, `rows` gathered, floats as float32,
    integers as int64. Integer examples stay integers, as embeddings want them: images must be floats. Class labels are
    integers in [0, classes), [n] or, in sequences, [n, T]; −100 marks a target that the loss ignores, and is no class.
    class_names: what each class is called.
    DataError for anything that is not an array of finite numbers, or does not fit together.
    """

    train: Examples
    test: Examples
    classes: int | None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check_classes()
        for part, field in (("training", "train"), ("test", "test")):
            object.__setattr__(self, field, self._validate_examples(getattr(self, field), part))
        for what, train, test in (("examples", self.train.x, self.test.x), ("targets", self.train.y, self.test.y)):
            kinds = [f"{a.dtype} {list(a.shape[1:])}" for a in (train, test)]
            if kinds[0] != kinds[1]:
                raise DataError(f"training and test {what} differ in kind or shape: {kinds[0]} and {kinds[1]}")

    def _check_classes(self) -> None:
        classes: Any = self.classes
        names: Any = self.class_names
        is_count = isinstance(classes, int | np.integer) and not isinstance(classes, bool) and 1 <= classes < 2**31
        if classes is not None and not is_count:
            most = f" and at most {2**31 - 1}" if isinstance(classes, int) and classes > 1 else ""
            raise DataError(
                f"classes is {classes!r:.40}, expected a whole number of at least 1{most}, or None for other targets"
            )
        if names is not None:
            if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
                raise DataError(f"class_names is a {type(names).__name__}, expected a tuple of texts, one for each class")
            object.__setattr__(self, "class_names", tuple(names))
            if len(names) != classes:
                raise DataError(f"{len(names)} class names for {classes} classes")
        object.__setattr__(self, "classes", None if classes is None else int(classes))

    def _validate_examples(self, examples: Examples, part: str) -> Examples:
        if not isinstance(examples, Examples):
            raise DataError(
                f"the {part} part is a {_describe_values(examples)}, expected a fedsgd.Examples(x, y) of numpy arrays"
            )
        x, y = _to_array(examples.x, f"{part} examples"), _to_array(examples.y, f"{part} targets")
        if len(x) != len(y):
            raise DataError(f"{len(x)} {part} examples but {len(y)} targets")
        if self.classes is not None:
            _check_integers(y, part)
            check_labels(y, self.classes, part)
        owner = examples.writer
        if owner is not None:
            owner = _to_array(owner, f"{part} owners")
            if owner.dtype.kind != "i" or owner.shape != (len(y),) or (len(owner) and owner.min() < 0):
                raise DataError(
                    f"the {part} owners are {_describe_values(owner)}, expected a number from 0 for each of {len(y)} examples"
                )
        if examples.rows is not None:
            _check_rows(examples.rows, len(y), part)
            x, y, owner = x[examples.rows], y[examples.rows], None if owner is None else owner[examples.rows]
        if not len(y):
            raise DataError(f"the dataset has no {part} examples")
        return Examples(x, y, None, owner)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.train.x.shape[1:])


def scale_pixels(x: NDArray[Any]) -> NDArray[Any]:
    """Pixels (uint8) as float32 in [0, 1]; anything else as it is."""
    if x.dtype != np.uint8:
        return x
    scaled: NDArray[np.float32] = np.multiply(x, np.float32(1 / 255), dtype=np.float32)
    return scaled


def _describe_values(values: Any) -> str:
    if isinstance(values, np.ndarray):
        return f"{values.dtype} of shape {list(values.shape)}"
    kind = type(values)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _to_array(values: Any, subject: str) -> NDArray[Any]:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub" or not values.ndim:
        hint = _suggest_conversion(values, subject)
        raise DataError(
            f"the {subject} are {_describe_values(values)}, expected a numpy array of numbers, one row an example{hint}"
        )
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold is found below
            floats: NDArray[np.float32] = np.ascontiguousarray(values, dtype=np.float32)
        if not np.isfinite(floats).all():
            first = int(np.flatnonzero(~np.isfinite(floats.reshape(len(floats), -1)).all(axis=1))[0])
            raise DataError(f"the {subject} are not all finite float32 numbers, first in row {first}")
        return floats
    if values.dtype.kind == "u" and values.size and int(values.max()) > np.iinfo(np.int64).max:
        raise DataError(f"the {subject} go up to {values.max()}, which int64 cannot hold")
    return np.ascontiguousarray(values, dtype=np.int64)


def _suggest_conversion(values: Any, subject: str) -> str:
    """Return how values become an array of numbers, for a message."""
    if not isinstance(values, np.ndarray):
        method = next((f"its .{name}() is one" for name in ("numpy", "to_numpy") if hasattr(values, name)), None)
        return f"; {method or 'numpy.asarray(...) makes one of rows of equal length'}"
    if values.dtype.kind in "US" and "targets" in subject:
        return "; names, y = numpy.unique(labels, return_inverse=True) numbers labels that are texts"
    return "; rows of different lengths or kinds make an object array" if values.dtype.kind == "O" else ""


def _check_integers(y: NDArray[Any], part: str) -> None:
    if y.dtype.kind != "i":
        problem = f"expected class labels: integers [n] (classes=None for other targets){suggest_label_conversion(y)}"
        raise DataError(f"the {part} targets are {_describe_values(y)}, {problem}")


def _check_rows(rows: Any, n: int, part: str) -> None:
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "iu" or rows.ndim != 1:
        raise DataError(f"the {part} rows are {_describe_values(rows)}, expected a numpy array of integers [m]")
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < n:
        raise DataError(f"the {part} rows run from {rows.min()} to {rows.max()}, expected 0 to {n - 1}")


class ClientData(ABC):
    """The examples of N clients, numbered from 0. Only `sizes` and `all_examples` are about every client and cost as much; the
    others
    cost what the clients that are asked for cost, however many there are."""

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def examples_of(self, client: int) -> Examples:
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
    def all_examples(self) -> Examples:
        """The examples of all clients, client after client, the same arrays at each call. DataError if they are too many to be
        looked at together."""

    @abstractmethod
    def limit_clients(self, max_clients: int) -> ClientData:
        """The first `max_clients` clients of those whose data are made when they are asked for; all of those that have
        theirs."""


@dataclass(frozen=True)
class DatasetSource(Component, ABC):
    """Where a dataset comes from."""

    @abstractmethod
    def load(self, folder: Path | None) -> Dataset:
        """The dataset; DataError if it is missing or corrupt. folder: what `--data` or FEDSGD_DATA named, or None."""
