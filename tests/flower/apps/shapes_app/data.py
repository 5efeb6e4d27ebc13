"""Digits of each node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

CLASSES = 10
PIXELS = 64


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples of one node.

    Attributes:
        x: [n, 64] float64, pixels from 0 to 1.
        y: [n] int64, digits.
    """

    x: np.ndarray
    y: np.ndarray


def load_examples(partition: int, partitions: int) -> tuple[Examples, Examples]:
    """Return the training and the test examples of a node."""
    x, y = load_digits(return_X_y=True)
    rows = np.array_split(np.random.default_rng(0).permutation(len(x)), partitions)[partition]
    cut = len(rows) * 4 // 5
    train, test = rows[:cut], rows[cut:]
    return Examples(x[train] / 16, y[train]), Examples(x[test] / 16, y[test])
