"""The split of a scenario's data over its clients, and what it looks like: who has how many examples of which class.

N clients, C classes, n examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsgd.arrays import F64, I64
from fedsgd.component import value_text
from fedsgd.data import IGNORED, ClientData, Dataset, Dealt, Population, Source, check_dataset, deal, populated
from fedsgd.data.labels import label_hint
from fedsgd.errors import DataError, ModelError
from fedsgd.scenario import Scenario
from fedsgd.schema import placed
from fedsgd.user_code import code_error, user_code
from fedsgd.user_files import user_path

MOST_MADE = 1000
"""Of clients whose data are made for the purpose, so many are looked at."""
UNLABELLED = "ignored (-100)"
"""Name of the group of targets that the loss ignores."""


@dataclass(frozen=True, eq=False)
class Split:
    """counts: targets of each class that each client trains on [N, C], or None where targets are not class labels; targets that
    the loss ignores (-100), if there are any, are counted as a last class, `UNLABELLED`; sizes: the
    examples that it trains on [N]; held_out: those it is tested on [N], or None; left_out: training examples that nobody has;
    registered: all clients there are, where these are but the first N of them. A target is an example, or in sequences a place
    of one."""

    name: str
    partition: str
    class_names: tuple[str, ...]
    counts: I64 | None
    sizes: I64
    held_out: I64 | None
    left_out: int
    registered: int | None = None

    @property
    def who(self) -> str:
        """Which clients these are, in words."""
        n = f"{len(self.sizes):,}"
        return f"{n} clients" if self.registered is None else f"the first {n} of {self.registered:,} clients"

    def shares(self) -> F64 | None:
        """The class distribution of each client [N, C]; rows add up to 1."""
        return None if self.counts is None else self.counts / self.counts.sum(axis=1, keepdims=True)

    def measures(self) -> dict[str, F64 | I64]:
        """Name → a figure for each client [N]: examples, classes that it has, share of its largest class, and distance, the
        total variation between its class distribution and that of all: 0 the same, 1 nothing in common."""
        shares = self.shares()
        if self.counts is None or shares is None:
            return {"examples": self.sizes}
        overall = self.counts.sum(axis=0) / self.counts.sum()
        classes = slice(len(self.class_names) - (UNLABELLED in self.class_names))  # of ignored targets there is no class
        return {
            "examples": self.sizes,
            "classes": (self.counts[:, classes] > 0).sum(axis=1),
            "largest class": shares[:, classes].max(axis=1),
            "distance": np.abs(shares - overall).sum(axis=1) / 2,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types."""
        return {
            "name": self.name,
            "partition": self.partition,
            "clients": len(self.sizes),
            "registered": self.registered or len(self.sizes),
            "left_out": self.left_out,
            "class_names": list(self.class_names),
            "sizes": self.sizes.tolist(),
            "held_out": None if self.held_out is None else self.held_out.tolist(),
            "counts": None if self.counts is None else self.counts.tolist(),
        }


def dealt(
    scenario: Scenario, data: str | Path | None, dataset: Dataset | None = None
) -> tuple[Dataset, ClientData, ClientData | None]:
    """(the scenario's dataset, what each client trains on, what each is tested on). data: the folder of the data files;
    dataset: in the place of the scenario's own."""
    source = scenario.data.source
    if dataset is None:
        with placed("data"):
            if isinstance(source, Population):
                with user_code("data", source):
                    return populated(source, scenario.data.held_out, scenario.seed)
            with user_code("data", source), _from_path(source):
                dataset = source.load(None if data is None else user_path(data, "data"))
            if not isinstance(dataset, Dataset):
                raise code_error("data", source, f"load returned {value_text(dataset)}, expected a fedsgd.Dataset")
    else:
        check_dataset(dataset)
    with placed("data.partition"):
        return dataset, *deal(dataset, scenario.data.partition, scenario.data.held_out, scenario.seed)


@contextmanager
def _from_path(source: Source) -> Iterator[None]:
    """Put the path of a source in front of a DataError that does not name it."""
    try:
        yield
    except DataError as error:
        path = getattr(source, "path", None)
        if path is None or str(path) in str(error):
            raise
        raise DataError(f"{path}: {error}") from error


def check_class_labels(scenario: Scenario, dataset: Dataset) -> None:
    """Check that a model that classifies gets class labels; ModelError that says how the targets become some."""
    if scenario.model.classifies and dataset.classes is None:
        source = scenario.data.source
        column = {"npz": "y_train", "hugging-face": f"column {getattr(source, 'y', '')}"}.get(source.name)
        place = f" ({source.path}: {column})" if column and hasattr(source, "path") else ""
        hint = label_hint(dataset.train.y)
        if "astype" in hint and source.name == "hugging-face":
            hint = "; write them as whole numbers, 0 in place of 0.0"
        problem = f"the dataset's targets are not class labels{place}{hint}"
        raise ModelError(f"{scenario.model.name}: this model classifies, and {problem}; or bring your own module")


def split_of(scenario: Scenario, data: str | Path | None = None, dataset: Dataset | None = None) -> Split:
    """The split of a scenario, as a run of it has it; of a population, its first `MOST_MADE` clients."""
    dataset, everyone, held_out = dealt(scenario, data, dataset)
    train = everyone.first(MOST_MADE)
    registered = None if len(train) == len(everyone) else len(everyone)
    held_out = held_out and held_out.first(len(train))
    names: tuple[str, ...] = ()
    counts = None
    if dataset.classes is not None:
        names = dataset.class_names or tuple(str(label) for label in range(dataset.classes))
        labels = train.all().targets()
        if (labels == IGNORED).any():
            names, labels = (*names, UNLABELLED), np.where(labels == IGNORED, dataset.classes, labels)
        counts = _counts(labels, train.sizes(), len(names))
    sizes = train.sizes()
    tested = None if held_out is None else held_out.sizes()
    left_out = _left_out(train, held_out) if isinstance(train, Dealt) else 0
    return Split(scenario.name, scenario.data.partition.name, names, counts, sizes, tested, left_out, registered)


def _left_out(train: Dealt, held_out: ClientData | None) -> int:
    """Examples that no client trains on, and that none holds out."""
    used = int(train.sizes().sum())
    if isinstance(held_out, Dealt) and held_out.examples is train.examples:
        used += int(held_out.sizes().sum())
    return len(train.examples) - used


def _counts(labels: I64, sizes: I64, classes: int) -> I64:
    """Count the targets of each class that each client has [N, C]. labels: [n] or [n, T], client after client; sizes: [N]."""
    client = np.repeat(np.arange(len(sizes)), sizes).reshape(-1, *[1] * (labels.ndim - 1))
    cells = np.bincount((client * classes + labels).ravel(), minlength=len(sizes) * classes)
    return cells.reshape(len(sizes), classes)
