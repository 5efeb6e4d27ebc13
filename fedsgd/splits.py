"""The split of a scenario's data over its clients, and what it looks like: who has how many examples of which class.

N clients, C classes, n examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsgd.arrays import F64, I64
from fedsgd.data import ClientData, Dataset, deal
from fedsgd.scenario import Scenario
from fedsgd.schema import placed


@dataclass(frozen=True, eq=False)
class Split:
    """counts: targets of each class that each client trains on [N, C], or None where targets are not class labels; sizes: the
    examples that it trains on [N]; held_out: those it is tested on [N], or None; left_out: training examples that nobody has.
    A target is an example, or in sequences a place of one."""

    name: str
    partition: str
    class_names: tuple[str, ...]
    counts: I64 | None
    sizes: I64
    held_out: I64 | None
    left_out: int

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
        return {
            "examples": self.sizes,
            "classes": (self.counts > 0).sum(axis=1),
            "largest class": shares.max(axis=1),
            "distance": np.abs(shares - overall).sum(axis=1) / 2,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types."""
        return {
            "name": self.name,
            "partition": self.partition,
            "clients": len(self.sizes),
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
    if dataset is None:
        with placed("data"):
            dataset = scenario.data.source.load(None if data is None else Path(data))
    with placed("data.partition"):
        return dataset, *deal(dataset, scenario.data.partition, scenario.data.held_out, scenario.seed)


def split_of(scenario: Scenario, data: str | Path | None = None, dataset: Dataset | None = None) -> Split:
    """The split of a scenario, as a run of it has it."""
    dataset, train, held_out = dealt(scenario, data, dataset)
    names: tuple[str, ...] = ()
    counts = None
    if dataset.classes is not None:
        names = dataset.class_names or tuple(str(label) for label in range(dataset.classes))
        counts = _counts(train, dataset.classes)
    sizes = train.partition.sizes()
    tested = None if held_out is None else held_out.partition.sizes()
    used = int(sizes.sum())
    if held_out is not None and held_out.examples is train.examples:
        used += int(held_out.partition.sizes().sum())
    return Split(scenario.name, scenario.data.partition.name, names, counts, sizes, tested, len(dataset.train) - used)


def _counts(data: ClientData, classes: int) -> I64:
    """Targets of each class that each client has [N, C]."""
    labels = data.examples.y[data.partition.order]
    client = data.partition.clients().reshape(-1, *[1] * (labels.ndim - 1))
    cells = np.bincount((client * classes + labels).ravel(), minlength=len(data) * classes)
    return cells.reshape(len(data), classes)
