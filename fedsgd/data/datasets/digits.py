"""Handwritten digits of scikit-learn, which need no download."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedsgd.data.base import Dataset, DatasetSource, Examples
from fedsgd.numerics.arrays import F64, I64
from fedsgd.numerics.rng import derive_generator

TEST_EXAMPLES = 360


@dataclass(frozen=True)
class Digits(DatasetSource):
    """scikit-learn's digits: 1,437 training and 360 test images of 8×8 grey levels, ten classes, no download.

    Source: Alpaydin and Kaynak 1998 (UCI). Inputs x are [n, 8, 8] float32 in [0, 1]. The test images do not depend on the
    scenario's seed.

    >>> dataset = Digits().load(None)
    >>> len(dataset.train), len(dataset.test), dataset.shape, dataset.classes
    (1437, 360, (8, 8), 10)
    """

    name: ClassVar[str] = "digits"
    may_have_owners: ClassVar[bool] = False

    def load(self, folder: Path | None) -> Dataset:
        images, y = _read_images()
        x = (images / 16).astype(np.float32)
        order = derive_generator(0, "digits/test").permutation(len(y))
        test, train = np.sort(order[:TEST_EXAMPLES]), np.sort(order[TEST_EXAMPLES:])
        return Dataset(Examples(x[train], y[train]), Examples(x[test], y[test]), classes=10)


def _read_images() -> tuple[F64, I64]:
    """Return the pixels [n, 8, 8], from 0 to 16, and the labels [n].

    The file of scikit-learn is read without an import of scikit-learn, which takes a second of processor time in each process.
    A release that keeps the file elsewhere is imported.
    """
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images, bunch.target.astype(np.int64)
