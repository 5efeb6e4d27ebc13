"""Handwritten digits of scikit-learn, which need no download."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.data.base import Dataset, DatasetSource, Examples
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
        table = _read_table()
        x = (table[:, :-1].reshape(-1, 8, 8) / 16).astype(np.float32)
        y = table[:, -1].astype(np.int64)
        order = derive_generator(0, "digits/test").permutation(len(y))
        test, train = np.sort(order[:TEST_EXAMPLES]), np.sort(order[TEST_EXAMPLES:])
        return Dataset(Examples(x[train], y[train]), Examples(x[test], y[test]), classes=10)


def _read_table() -> NDArray[np.float64]:
    """Return scikit-learn's table [1797, 65] of grey levels and labels.

    The file is read without an import of scikit-learn, which takes seconds in each process.
    """
    spec = find_spec("sklearn")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
