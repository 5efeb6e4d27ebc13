"""Handwritten digits, which are those of scikit-learn."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from fedsgd.data import DATASETS


def test_digits_load_has_all_images_of_scikit_learn() -> None:
    data = DATASETS["digits"]().load(None)
    assert (len(data.train), len(data.test), data.shape, data.classes) == (1437, 360, (8, 8), 10)
    assert data.train.x.dtype == np.float32
    assert data.train.y.dtype == np.int64
    assert (data.train.x.min(), data.train.x.max()) == (0, 1)
    assert set(np.unique(data.test.y)) == set(range(10))
    all_images = sorted(image.tobytes() for image in (load_digits().images / 16).astype(np.float32))
    assert sorted(image.tobytes() for image in np.concatenate([data.train.x, data.test.x])) == all_images
