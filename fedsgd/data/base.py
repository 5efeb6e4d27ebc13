"""Datasets: examples and targets for training, which are partitioned over clients, and for testing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.config.component import Component, FieldError
from fedsgd.data.labels import check_labels, suggest_label_conversion
from fedsgd.errors import DataError
from fedsgd.numerics.arrays import I64
from fedsgd.numerics.rng import derive_generator


@dataclass(frozen=True, eq=False)
class Examples:
    """n examples, or a selection of the rows of a larger set, which `arrays` copies on demand.

    Attributes:
        x: [n, ...] usually float32, the inputs of the model.
        y: [n, ...] int64 class labels, or any other targets that the loss takes.
        rows: [m] int64, the rows of `x` and `y` that are selected; None: all rows.
        writer: [n] int64, number of each example's owner (writer, speaker or user); None: the examples have no owners.

    >>> examples = Examples(x=np.eye(4, dtype=np.float32), y=np.array([0, 1, 1, 0]), rows=np.array([3, 1]))
    >>> len(examples), examples.targets().tolist()
    (2, [0, 1])
    """

    x: NDArray[Any]
    y: NDArray[Any]
    rows: I64 | None = None
    writer: I64 | None = None

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {getattr(self, name).dtype}{[*getattr(self, name).shape]}" for name in ("x", "y"))
        return f"Examples({len(self)} examples of {shapes})"

    def __len__(self) -> int:
        return len(self.y) if self.rows is None else len(self.rows)

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return (x, y) of the selected rows."""
        if self.rows is None:
            return self.x, self.y
        return self.x[self.rows], self.y[self.rows]

    def targets(self) -> NDArray[Any]:
        """Return y of the selected rows."""
        return self.y if self.rows is None else self.y[self.rows]

    def select(self, positions: I64) -> Examples:
        """Return a selection of these examples, without their writers; no array is copied.

        Args:
            positions: [m] int64, positions among these examples.
        """
        return Examples(self.x, self.y, self.row_indices(positions))

    def row_indices(self, positions: I64) -> I64:
        """Return the rows of `x` and `y` that belong to some of these examples.

        Args:
            positions: [m] int64, positions among these examples.
        """
        return positions if self.rows is None else self.rows[positions]

    def slice(self, start: int, stop: int) -> Examples:
        """Return consecutive examples, without their writers; no array is copied.

        Args:
            start: position of the first example.
            stop: position after the last example.
        """
        if self.rows is None:
            return Examples(self.x[start:stop], self.y[start:stop])
        return Examples(self.x, self.y, self.rows[start:stop])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples, checked and converted when the dataset is built.

    Arrays become contiguous and of native byte order, with `rows` applied. Floats and integers become float32 and int64.
    Integer examples stay integers, as embeddings expect; images must be floats. DataError for a field that is no array of
    finite numbers or contradicts another field.

    Attributes:
        train, test: training examples, which are partitioned over the clients; test examples of equal types and shapes.
        classes: number of classes; None: the targets are not class labels. Labels are integers from 0 to classes − 1,
            [n] or, for sequences of length T, [n, T]. Label −100 is no class and marks a target that the loss ignores.
        class_names: name of each class; None: the classes have no names.

    >>> x, y = np.zeros((6, 2)), np.array([0, 1, 2, 0, 1, 2])
    >>> dataset = Dataset(Examples(x[:4], y[:4]), Examples(x[4:], y[4:]), classes=3)
    >>> dataset.shape, dataset.train.x.dtype.name
    ((2,), 'float32')
    """

    train: Examples
    test: Examples
    classes: int | None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check_classes()
        for part, field in (("training", "train"), ("test", "test")):
            object.__setattr__(self, field, self._validate_examples(getattr(self, field), part))
        for subject, train, test in (("examples", self.train.x, self.test.x), ("targets", self.train.y, self.test.y)):
            kinds = [f"{a.dtype} {list(a.shape[1:])}" for a in (train, test)]
            if kinds[0] != kinds[1]:
                raise DataError(f"training and test {subject} differ in type or shape: {kinds[0]} and {kinds[1]}")

    def _check_classes(self) -> None:
        classes: Any = self.classes
        names: Any = self.class_names
        is_count = isinstance(classes, int | np.integer) and not isinstance(classes, bool) and 1 <= classes < 2**31
        if classes is not None and not is_count:
            maximum = f" and at most {2**31 - 1}" if isinstance(classes, int) and classes > 1 else ""
            raise DataError(
                f"classes is {classes!r:.40}, expected a whole number of at least 1{maximum}, or None for other targets"
            )
        if names is not None:
            if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
                raise DataError(f"class_names is a {type(names).__name__}, expected a tuple of texts, one for each class")
            object.__setattr__(self, "class_names", tuple(names))
            if len(names) != classes:
                raise DataError(f"there are {len(names)} class names for {classes} classes")
        object.__setattr__(self, "classes", None if classes is None else int(classes))

    def _validate_examples(self, examples: Examples, part: str) -> Examples:
        if not isinstance(examples, Examples):
            raise DataError(
                f"the {part} part is a {_describe_values(examples)}, expected a fedsgd.Examples(x, y) of numpy arrays"
            )
        x, y = _to_array(examples.x, f"{part} examples"), _to_array(examples.y, f"{part} targets")
        if len(x) != len(y):
            raise DataError(f"there are {len(x)} {part} examples but {len(y)} targets")
        if self.classes is not None:
            _check_integers(y, part)
            check_labels(y, self.classes, part)
        writer = None if examples.writer is None else _validate_writer(examples.writer, len(y), part)
        if examples.rows is not None:
            _check_rows(examples.rows, len(y), part)
            x, y, writer = x[examples.rows], y[examples.rows], None if writer is None else writer[examples.rows]
        if not len(y):
            raise DataError(f"the dataset has no {part} examples")
        return Examples(x, y, None, writer)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.train.x.shape[1:])


def scale_pixels(x: NDArray[Any]) -> NDArray[Any]:
    """Return pixels (uint8) as float32 in [0, 1], and any other array unchanged."""
    if x.dtype != np.uint8:
        return x
    pixels: NDArray[np.float32] = np.multiply(x, np.float32(1 / 255), dtype=np.float32)
    return pixels


def scale_pixels_of_parts(train: NDArray[Any], test: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the inputs of both parts of a dataset, with pixels (uint8) as float32 in [0, 1].

    DataError if only one part is pixels, since numbers from 0 to 255 in the other part would stay as they are.
    """
    if (train.dtype == np.uint8) != (test.dtype == np.uint8):
        types = f"{train.dtype} and {test.dtype}"
        raise DataError(f"training and test examples differ in type: {types}; only uint8 is scaled to [0, 1]")
    return scale_pixels(train), scale_pixels(test)


def hold_out_test_examples(examples: Examples, share: float, source_name: str) -> tuple[Examples, Examples]:
    """Return (training examples, test examples); the test examples are drawn independently of the scenario's seed."""
    n = len(examples)
    n_test = max(1, round(share * n))
    if n_test >= n:
        raise FieldError(source_name, "test_share", f"got {share:g}, which leaves none of {n:,} examples to train on")
    order = derive_generator(0, f"{source_name}/test").permutation(n)
    rows = np.sort(order[n_test:]), np.sort(order[:n_test])
    train, test = (Examples(examples.x, examples.y, part, examples.writer) for part in rows)
    return train, test


def _describe_values(values: Any) -> str:
    if isinstance(values, np.ndarray):
        return f"{values.dtype} of shape {list(values.shape)}"
    kind = type(values)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _to_array(values: Any, subject: str) -> NDArray[Any]:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub" or not values.ndim:
        hint = _suggest_conversion(values, subject)
        raise DataError(
            f"the {subject} are {_describe_values(values)}, expected a numpy array of numbers, one row for each example{hint}"
        )
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # a number that float32 cannot hold becomes infinite and is refused below
            floats: NDArray[np.float32] = np.ascontiguousarray(values, dtype=np.float32)
        if not np.isfinite(floats).all():
            first = int(np.flatnonzero(~np.isfinite(floats.reshape(len(floats), -1)).all(axis=1))[0])
            raise DataError(f"the {subject} are not all finite float32 numbers, first in row {first}")
        return floats
    if values.dtype.kind == "u" and values.size and int(values.max()) > np.iinfo(np.int64).max:
        raise DataError(f"the {subject} go up to {values.max()}, which int64 cannot hold")
    return np.ascontiguousarray(values, dtype=np.int64)


def _suggest_conversion(values: Any, subject: str) -> str:
    """Return a hint for a message: the conversion of the values to an array of numbers."""
    if not isinstance(values, np.ndarray):
        hint = next((f"call its .{name}()" for name in ("numpy", "to_numpy") if hasattr(values, name)), None)
        return f"; {hint or 'numpy.asarray(...) converts rows of equal length'}"
    if values.dtype.kind in "US" and "targets" in subject:
        return "; names, y = numpy.unique(labels, return_inverse=True) numbers labels that are texts"
    return "; rows of different lengths or types make an object array" if values.dtype.kind == "O" else ""


def _validate_writer(values: Any, n: int, part: str) -> I64:
    writer = _to_array(values, f"{part} owners (Examples.writer)")
    if writer.dtype.kind != "i" or writer.shape != (n,) or (n and writer.min() < 0):
        raise DataError(
            f"the {part} owners (Examples.writer) are {_describe_values(writer)}, "
            f"expected a number from 0 for each of {n} examples"
        )
    return writer


def _check_integers(y: NDArray[Any], part: str) -> None:
    if y.dtype.kind != "i":
        problem = f"expected class labels: integers [n] or [n, T] (classes=None for other targets){suggest_label_conversion(y)}"
        raise DataError(f"the {part} targets are {_describe_values(y)}, {problem}")


def _check_rows(rows: Any, n: int, part: str) -> None:
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "iu" or rows.ndim != 1:
        raise DataError(f"the {part} rows are {_describe_values(rows)}, expected a numpy array of integers [m]")
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < n:
        raise DataError(f"the {part} rows run from {rows.min()} to {rows.max()}, expected 0 to {n - 1}")


class ClientData(ABC):
    """Examples of N clients, numbered from 0.

    If examples are generated on demand, only the cost of `sizes` and `all_examples` grows with N. The cost of any other method
    grows with the clients in its arguments.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return N."""

    @abstractmethod
    def examples_of(self, client: int) -> Examples:
        """Return the examples of one client.

        Args:
            client: number of the client, from 0.
        """

    @abstractmethod
    def sizes_of(self, clients: Sequence[int]) -> I64:
        """Return the number of examples of some clients, [len(clients)] int64.

        Args:
            clients: numbers of the clients.
        """

    @abstractmethod
    def sizes(self) -> I64:
        """Return the number of examples of each client, [N] int64."""

    @abstractmethod
    def distinct_sizes(self) -> tuple[I64, I64]:
        """Return (distinct numbers of examples that clients have, ascending; number of clients for each distinct number)."""

    @abstractmethod
    def all_examples(self) -> Examples:
        """Return all clients' examples, client after client, as the same arrays at each call; DataError for too many."""

    @abstractmethod
    def limit_clients(self, max_clients: int) -> ClientData:
        """Return the first clients if examples are generated on demand; all clients if they are stored.

        Args:
            max_clients: maximum number of clients whose examples are generated.
        """


@dataclass(frozen=True)
class DatasetSource(Component, ABC):
    """Source of a dataset: a file format, a hub or a generator, with its settings."""

    instance_hint: ClassVar[str] = "; pass a dataset of your own to fedsgd.run(scenario, data=...)"

    @property
    def may_have_owners(self) -> bool:
        """False if the examples are known to have no owners, which the partitioner "natural" needs."""
        return True

    @abstractmethod
    def load(self, folder: Path | None) -> Dataset:
        """Load the dataset; raise DataError for a dataset that is missing or corrupt.

        Args:
            folder: data folder that `--data` or FEDSGD_DATA names; None: no folder is set.
        """
