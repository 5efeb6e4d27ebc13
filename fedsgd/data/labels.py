"""Class labels: their number, their range, labels that a loss ignores, and labels that are texts.

n targets, T positions of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.errors import DataError
from fedsgd.numerics.arrays import I64

IGNORED_LABEL = -100
"""Label of a target that a loss ignores: `ignore_index` of PyTorch's cross-entropy. It is no class."""


def count_classes(*targets: NDArray[Any]) -> int | None:
    """Return the number of classes that labels imply, one more than the largest; None where targets are not integers.

    Raises:
        DataError: the largest label is far beyond the number of targets.
    """
    if any(y.dtype.kind not in "iub" for y in targets):
        return None
    largest = max(0, *(int(y.max()) for y in targets if y.size), 0)
    if largest > 1000 + sum(y.size for y in targets):
        raise DataError(
            f"the largest label is {largest}, and there are not so many targets: labels are numbers from 0 to classes - 1"
        )
    return largest + 1


def check_labels(y: I64, classes: int, part: str) -> None:
    """Check that labels are classes, or `IGNORED_LABEL`.

    Args:
        y: labels, [n] or [n, T].
        classes: number of classes.
        part: "training" or "test", for messages.

    Raises:
        DataError: a label is out of range, or every label is ignored.
    """
    labels = y[y != IGNORED_LABEL]
    if y.size and not labels.size:
        raise DataError(f"all {part} labels are {IGNORED_LABEL}, which a loss ignores: there is nothing to learn or to test")
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high >= classes:
        ignored = f", or {IGNORED_LABEL} for a target that the loss ignores" if low < 0 else ""
        raise DataError(f"the {part} labels run from {low} to {high}, expected 0 to {classes - 1}{ignored}")


def number_text_labels(*targets: Sequence[str]) -> tuple[list[I64], tuple[str, ...]]:
    """Number the classes of labels that are texts, in sorted order (by code point, so alike on every machine).

    Args:
        targets: labels of each part, numbered together.

    Returns:
        The class numbers of each part, and the name of each class.
    """
    names = sorted({str(label) for part in targets for label in part})
    number = {name: i for i, name in enumerate(names)}
    return [np.array([number[str(label)] for label in part], dtype=np.int64) for part in targets], tuple(names)


def suggest_label_conversion(y: NDArray[Any]) -> str:
    """Return how targets that are no integers become class labels, for a message; "" where they do not."""
    if y.ndim == 2 and y.shape[1] > 1 and np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all():
        return "; they are one-hot, and y.argmax(1) makes class labels of them"
    return "; y.astype(numpy.int64) makes integers of whole numbers" if (y == np.rint(y)).all() else ""
