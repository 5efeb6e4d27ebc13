"""Class labels, [n] or [n, T] for sequences of length T: count, range, ignored labels, and labels that are texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.errors import DataError, suggest_name
from fedsgd.numerics.arrays import I64

IGNORED_LABEL = -100
"""Label of a target that a loss ignores, the `ignore_index` of PyTorch's cross-entropy; it is no class."""


def count_classes(*targets: NDArray[Any]) -> int | None:
    """Return the largest label + 1; None if targets are not integers. DataError for a label far above the number of targets."""
    if any(y.dtype.kind not in "iub" for y in targets):
        return None
    largest_label = max(0, *(int(y.max()) for y in targets if y.size), 0)
    if largest_label > 1000 + sum(y.size for y in targets):
        raise DataError(
            f"the largest label is {largest_label}, far above the number of targets: labels are numbers from 0 to classes - 1"
        )
    return largest_label + 1


def check_labels(y: I64, classes: int, part: str) -> None:
    """Raise DataError for a label out of range, or if every label is ignored; `part` is "training" or "test"."""
    labels = y[y != IGNORED_LABEL]
    if y.size and not labels.size:
        raise DataError(f"all {part} labels are {IGNORED_LABEL}, which a loss ignores: no target remains")
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high >= classes:
        ignored = f", or {IGNORED_LABEL} for a target that the loss ignores" if low < 0 else ""
        raise DataError(f"the {part} labels run from {low} to {high}, expected 0 to {classes - 1}{ignored}")


def number_text_labels(*targets: Sequence[str], class_names: Sequence[str] | None = None) -> tuple[list[I64], tuple[str, ...]]:
    """Return (the class numbers of each part of a dataset, the class names) for labels that are texts.

    All parts are numbered together, in the order of `class_names`, or of code points, which is equal on every machine.
    DataError for a label that `class_names` lacks, and for a name that it has twice.

    >>> numbers, names = number_text_labels(["owl", "cat"], ["cat"])
    >>> [part.tolist() for part in numbers], names
    ([[1, 0], [0]], ('cat', 'owl'))
    """
    labels = sorted({str(label) for part in targets for label in part})
    names = labels if class_names is None else class_names
    missing_names = [label for label in labels if label not in names]
    if missing_names:
        raise DataError(f'class_names: has no "{missing_names[0]}", which is a label{suggest_name(missing_names[0], names)}')
    number = {name: i for i, name in enumerate(names)}
    duplicate = next((name for i, name in enumerate(names) if number[name] != i), None)
    if duplicate is not None:
        raise DataError(f'class_names: got "{duplicate}" several times, expected different names for labels that are texts')
    return [np.array([number[str(label)] for label in part], dtype=np.int64) for part in targets], tuple(names)


def suggest_label_conversion(y: NDArray[Any]) -> str:
    """Return a hint for a message: the conversion of targets to class labels, or "" if no conversion is known."""
    if y.ndim == 2 and y.shape[1] > 1 and np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all():
        return "; the targets are one-hot: y.argmax(1) converts them to class labels"
    return "; y.astype(numpy.int64) converts whole numbers to integers" if (y == np.rint(y)).all() else ""
