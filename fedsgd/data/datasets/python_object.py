"""Marker, in a scenario, of a dataset that the user passed in Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedsgd.config.component import FieldError
from fedsgd.config.python_objects import PYTHON_OBJECT_NAME, describe_missing_objects, fingerprint
from fedsgd.data.base import Dataset, DatasetSource


@dataclass(frozen=True)
class PythonObjectDataset(DatasetSource):
    """Marker of a `Dataset` that the user passed in Python; the marker cannot be loaded.

    Attributes:
        description: number of examples, and dtype and shape of the inputs.
        sha256: fingerprint of all arrays and the number of classes; equal datasets have equal fingerprints.
    """

    name: ClassVar[str] = PYTHON_OBJECT_NAME

    description: str = ""
    sha256: str = ""

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> PythonObjectDataset:
        """Return the marker of a dataset.

        Args:
            dataset: dataset that the user passed.
        """
        train, test = dataset.train, dataset.test
        kind = f"{train.x.dtype} {list(train.x.shape[1:])}"
        arrays = [(part.x, part.y, part.writer) for part in (train, test)]
        return cls(f"{len(train):,} training and {len(test):,} test examples, {kind}", fingerprint([arrays, dataset.classes]))

    def load(self, folder: Path | None) -> Dataset:
        """Raise FieldError: the dataset must be passed in Python again."""
        raise FieldError("data", "name", describe_missing_objects({"data.name": self.description}))
