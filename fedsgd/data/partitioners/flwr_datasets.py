"""Partitioners of the library flwr-datasets."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from fedsgd.config.component import FieldError, PositiveInt
from fedsgd.config.registry import import_by_path
from fedsgd.data.base import Examples
from fedsgd.data.datasets.files import require_extra
from fedsgd.data.partitioners.base import Partitioner, require_enough_examples
from fedsgd.errors import DataError, suggest_name
from fedsgd.numerics.arrays import I64

EXCLUDED_PREFIXES = ("Vertical", "Partitioner")


@dataclass(frozen=True)
class FlwrDatasets(Partitioner):
    """Any partitioner of flwr-datasets, such as `partitioner = "DirichletPartitioner"`. Needs the extra "huggingface".

    The library's partitioner receives a table with the column "index". The table has a column "label" if the targets are class
    labels, and a column "owner" if the examples have owners. Rows are shuffled first, because some partitioners
    (IidPartitioner) only cut the table. Examples that a partitioner omits (ShardPartitioner) have no client. Partitioners that
    split columns are not available.

    Attributes:
        clients: N, number of clients, the default of the library's num_partitions; None: the partitioner determines N.
        partitioner: name of a class in flwr_datasets.partitioner.
        arguments: arguments of the class; a function is written "my_package.my_module:function". By default, partition_by is
            "owner" for a partitioner by natural id and "label" otherwise, and the seed is derived from the scenario's seed.
    """

    name: ClassVar[str] = "flwr-datasets"
    needs_labels: ClassVar[bool] = False
    covers_all_examples: ClassVar[bool] = False

    clients: PositiveInt | None = None
    partitioner: str = field(kw_only=True, metadata={"example": '"DirichletPartitioner"'})
    arguments: dict[str, Any] = field(default_factory=dict, metadata={"example": "{ alpha = 0.5 }"})

    def list_import_paths(self) -> dict[str, str]:
        """Return the import paths of the functions in `arguments`, by key."""
        return {f"arguments.{key}": value for key, value in self.arguments.items() if _is_function_path(key, value)}

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> I64:
        order = rng.permutation(len(examples))
        columns: dict[str, Any] = {"index": order}
        if examples.y.ndim == 1 and examples.y.dtype.kind == "i":
            columns["label"] = examples.y[order]
        if examples.writer is not None:
            columns["owner"] = examples.writer[order]
        partitioner = self._create_partitioner(columns, seed=int(rng.integers(2**31)))
        try:
            partitioner.dataset = require_extra("datasets", "huggingface").Dataset.from_dict(columns)
            clients = range(partitioner.num_partitions)
            if self.clients not in (None, len(clients)):
                raise DataError(f"{self.partitioner} makes {len(clients)} partitions, but `clients` is {self.clients}")
            require_enough_examples(len(clients), len(examples))
            parts = [np.asarray(partitioner.load_partition(client)["index"], dtype=np.int64) for client in clients]
        except DataError:
            raise
        except Exception as error:  # the library's partitioner may raise any type
            raise DataError(f"{self.partitioner}: {type(error).__name__}: {error}") from error
        rows = np.concatenate(parts)
        if len(np.unique(rows)) != len(rows):
            problem = f"assigns {len(rows)} examples, but only {len(np.unique(rows))} distinct examples"
            raise DataError(f"{self.partitioner} {problem}")
        assignment = np.full(len(examples), -1, dtype=np.int64)
        assignment[rows] = np.repeat(clients, [len(part) for part in parts])
        return assignment

    def _create_partitioner(self, columns: dict[str, Any], seed: int) -> Any:
        """Build the library's partitioner, with defaults for its seed, number of partitions and column."""
        library = require_extra("flwr_datasets.partitioner", "huggingface")
        names = [name for name in dir(library) if name.endswith("Partitioner") and not name.startswith(EXCLUDED_PREFIXES)]
        if self.partitioner not in names:
            raise FieldError(self.name, "partitioner", f'got "{self.partitioner}"{suggest_name(self.partitioner, names)}')
        partitioner_class = getattr(library, self.partitioner)
        parameters = inspect.signature(partitioner_class).parameters
        defaults: dict[str, Any] = {"seed": seed, "num_partitions": self.clients}
        column = "owner" if "NaturalId" in self.partitioner else "label"
        if column in columns:
            defaults["partition_by"] = column
        defaults = {key: value for key, value in defaults.items() if key in parameters and value is not None}
        arguments = {key: _convert_argument(key, value) for key, value in self.arguments.items()}
        try:
            return partitioner_class(**{**defaults, **arguments})
        except (TypeError, ValueError) as error:
            raise FieldError(self.name, "arguments", f"{self.partitioner} does not take {self.arguments}: {error}") from error


def _convert_argument(key: str, value: Any) -> Any:
    """Convert an argument that TOML has no type for: a function, written as its path, and an array, written as nested lists."""
    if _is_function_path(key, value):
        return import_by_path(value)
    return np.asarray(value) if key.endswith("_array") else value


def _is_function_path(key: str, value: object) -> bool:
    return key.endswith("_fn") and isinstance(value, str)
