"""Partition of a scenario's data over its clients, and its summary: sizes and classes by client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsgd.config.component import describe_value
from fedsgd.config.user_errors import make_component_error, wrap_user_errors
from fedsgd.data import (
    IGNORED_LABEL,
    ClientData,
    ClientGenerator,
    Dataset,
    DatasetSource,
    PartitionedData,
    check_dataset,
    generate_clients,
    hold_out_validation,
    partition_dataset,
)
from fedsgd.data.labels import suggest_label_conversion
from fedsgd.errors import DataError, ModelError
from fedsgd.numerics.arrays import F64, I64
from fedsgd.scenario.parsing import errors_in_section
from fedsgd.scenario.scenario import Scenario
from fedsgd.system.user_files import expand_user_path

MAX_GENERATED_CLIENTS = 1000
"""Maximum number of clients with generated data that a summary covers."""
IGNORED_CLASS_NAME = "ignored (-100)"
"""Name of the group of targets that the loss ignores."""


@dataclass(frozen=True, eq=False)
class PartitionSummary:
    """Sizes and classes of the clients' data.

    Attributes:
        class_names: [K] names of the classes; empty if targets are not class labels.
        counts: [N, K] int64, targets of each class in a client's training examples; None where targets are not class labels. A
            sequence has one target for each position. `IGNORED_CLASS_NAME` is a last class of ignored targets (-100).
        sizes, held_out_sizes: [N] int64, training and test examples by client; `held_out_sizes` is None without test data.
        n_unassigned: stored training examples that no client trains, tests or validates on.
        n_registered: number of registered clients if the summary covers only the first N clients, else None.
        validation_sizes: [N] int64, validation examples by client; None without a validation split.
    """

    name: str
    partition: str
    class_names: tuple[str, ...]
    counts: I64 | None
    sizes: I64
    held_out_sizes: I64 | None
    n_unassigned: int
    n_registered: int | None = None
    validation_sizes: I64 | None = None

    @property
    def population_text(self) -> str:
        """Description of the clients that the summary covers, such as "20 clients"."""
        n = f"{len(self.sizes):,}"
        return f"{n} clients" if self.n_registered is None else f"the first {n} of {self.n_registered:,} clients"

    def compute_class_distributions(self) -> F64 | None:
        """Return the class distribution of each client, [N, K] float64, with rows that sum to 1."""
        return None if self.counts is None else self.counts / self.counts.sum(axis=1, keepdims=True)

    def compute_client_measures(self) -> dict[str, F64 | I64]:
        """Return figures of each client, [N] each, by name.

        "examples" and "classes" are counts; "largest class" is the share of the client's most frequent class. "distance" is the
        total variation distance between the client's class distribution and the distribution of all clients' targets, 0 to 1.
        """
        shares = self.compute_class_distributions()
        if self.counts is None or shares is None:
            return {"examples": self.sizes}
        overall_shares = self.counts.sum(axis=0) / self.counts.sum()
        classes = slice(len(self.class_names) - (IGNORED_CLASS_NAME in self.class_names))
        return {
            "examples": self.sizes,
            "classes": (self.counts[:, classes] > 0).sum(axis=1),
            "largest class": shares[:, classes].max(axis=1),
            "distance": np.abs(shares - overall_shares).sum(axis=1) / 2,
        }

    def to_json(self) -> dict[str, Any]:
        """Return all fields in plain types; "validation" is absent without a validation split."""
        validation = {} if self.validation_sizes is None else {"validation": self.validation_sizes.tolist()}
        return {
            "name": self.name,
            "partition": self.partition,
            "clients": len(self.sizes),
            "registered": self.n_registered or len(self.sizes),
            "left_out": self.n_unassigned,
            "class_names": list(self.class_names),
            "sizes": self.sizes.tolist(),
            "held_out": None if self.held_out_sizes is None else self.held_out_sizes.tolist(),
            **validation,
            "counts": None if self.counts is None else self.counts.tolist(),
        }


def load_client_data(
    scenario: Scenario, data: str | Path | None, dataset: Dataset | None = None
) -> tuple[Dataset, ClientData, ClientData | None]:
    """Load and partition a scenario's data, or partition `dataset` in place of the scenario's dataset.

    Files are searched in the folder `data`, if any, and in the current folder.

    Returns:
        (dataset, training data of all clients, test data of all clients or None). `split_validation` splits the training data.
    """
    source = scenario.data.source
    if dataset is None:
        with errors_in_section("data"):
            if isinstance(source, ClientGenerator):
                with wrap_user_errors("data", source):
                    return generate_clients(source, scenario.data.held_out, scenario.seed)
            with wrap_user_errors("data", source), _prefix_source_path(source):
                dataset = source.load(None if data is None else expand_user_path(data, "data"))
            if not isinstance(dataset, Dataset):
                raise make_component_error(
                    "data", source, f"load returned {describe_value(dataset)}, expected a fedsgd.Dataset"
                )
    else:
        check_dataset(dataset)
    with errors_in_section("data.partition"):
        return dataset, *partition_dataset(dataset, scenario.data.partition, scenario.data.held_out, scenario.seed)


def split_validation(scenario: Scenario, train: ClientData) -> tuple[ClientData, ClientData | None]:
    """Return (training examples, validation examples or None) of the clients for `[evaluation] validation` of a scenario."""
    share = scenario.evaluation.validation
    return hold_out_validation(train, share, scenario.seed) if share else (train, None)


@contextmanager
def _prefix_source_path(source: DatasetSource) -> Iterator[None]:
    """Prefix a DataError with the path of a source, if it does not name the path."""
    try:
        yield
    except DataError as error:
        path = getattr(source, "path", None)
        if path is None or str(path) in str(error):
            raise
        raise DataError(f"{path}: {error}") from error


def check_class_labels(scenario: Scenario, dataset: Dataset) -> None:
    """Raise a ModelError, with the remedy, if the model needs class labels and the dataset's targets are not class labels."""
    if scenario.model.needs_labels and dataset.classes is None:
        source = scenario.data.source
        column = {"npz": "y_train", "hugging-face": f"column {getattr(source, 'y', '')}"}.get(source.name)
        place = f" ({source.path}: {column})" if column and hasattr(source, "path") else ""
        hint = suggest_label_conversion(dataset.train.y)
        if "astype" in hint and source.name == "hugging-face":
            hint = "; write them as whole numbers, 0 in place of 0.0"
        problem = f"the dataset's targets are not class labels{place}{hint}"
        raise ModelError(f"{scenario.model.name}: this model needs class labels, but {problem}; your own module may need none")


def summarize_partition(scenario: Scenario, data: str | Path | None = None, dataset: Dataset | None = None) -> PartitionSummary:
    """Summarize the partition of a scenario; of generated data, at most the first `MAX_GENERATED_CLIENTS` clients."""
    dataset, all_clients, held_out = load_client_data(scenario, data, dataset)
    all_clients, validation = split_validation(scenario, all_clients)
    train = all_clients.limit_clients(MAX_GENERATED_CLIENTS)
    n_registered = None if len(train) == len(all_clients) else len(all_clients)
    held_out, validation = (part and part.limit_clients(len(train)) for part in (held_out, validation))
    names: tuple[str, ...] = ()
    counts = None
    if dataset.classes is not None:
        names = dataset.class_names or tuple(str(label) for label in range(dataset.classes))
        labels = train.all_examples().targets()
        if (labels == IGNORED_LABEL).any():
            names, labels = (*names, IGNORED_CLASS_NAME), np.where(labels == IGNORED_LABEL, dataset.classes, labels)
        counts = _count_targets(labels, train.sizes(), len(names))
    held_out_sizes, validation_sizes = (None if part is None else part.sizes() for part in (held_out, validation))
    n_unassigned = _count_unassigned(train, held_out, validation) if isinstance(train, PartitionedData) else 0
    return PartitionSummary(
        scenario.name,
        scenario.data.partition.name,
        names,
        counts,
        train.sizes(),
        held_out_sizes,
        n_unassigned,
        n_registered,
        validation_sizes,
    )


def _count_unassigned(train: PartitionedData, *others: ClientData | None) -> int:
    """Count the training examples that no client has, in its training examples or in `others`."""
    n_used = int(train.sizes().sum())
    for part in others:
        if isinstance(part, PartitionedData) and part.examples is train.examples:
            n_used += int(part.sizes().sum())
    return len(train.examples) - n_used


def _count_targets(labels: I64, sizes: I64, classes: int) -> I64:
    """Count the targets of each class by client, [N, K], from labels [n] or [n, positions] in the order of the clients."""
    client = np.repeat(np.arange(len(sizes)), sizes).reshape(-1, *[1] * (labels.ndim - 1))
    cells = np.bincount((client * classes + labels).ravel(), minlength=len(sizes) * classes)
    return cells.reshape(len(sizes), classes)
