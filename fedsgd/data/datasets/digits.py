"""Handwritten digits in a file of the package, which need no download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedsgd.data.base import Dataset, DatasetSource, Examples
from fedsgd.numerics.rng import derive_generator

TEST_EXAMPLES = 360
_FILE = Path(__file__).with_name("digits.npz")
"""images [1797, 8, 8] and labels [1797], uint8."""


@dataclass(frozen=True)
class Digits(DatasetSource):
    """Handwritten digits: 1,437 training and 360 test images of 8×8 grey levels, ten classes, no download.

    Source: the test set of "Optical Recognition of Handwritten Digits", Alpaydin and Kaynak 1998, UCI Machine Learning
    Repository, doi:10.24432/C50P49, CC BY 4.0; the same numbers as `load_digits` of scikit-learn. Inputs x are [n, 8, 8]
    float32 in [0, 1]. The test images do not depend on the scenario's seed.

    >>> dataset = Digits().load(None)
    >>> len(dataset.train), len(dataset.test), dataset.shape, dataset.classes
    (1437, 360, (8, 8), 10)
    """

    name: ClassVar[str] = "digits"
    may_have_owners: ClassVar[bool] = False

    def load(self, folder: Path | None) -> Dataset:
        with np.load(_FILE) as file:
            x = file["images"].astype(np.float32) / np.float32(16)
            y = file["labels"].astype(np.int64)
        order = derive_generator(0, "digits/test").permutation(len(y))
        test, train = np.sort(order[:TEST_EXAMPLES]), np.sort(order[TEST_EXAMPLES:])
        return Dataset(Examples(x[train], y[train]), Examples(x[test], y[test]), classes=10)
