"""Any partitioner of flwr-datasets."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from fedsgd.config.component import FieldError, PositiveInt, import_by_path
from fedsgd.data.base import Examples
from fedsgd.data.datasets.files import require_extra
from fedsgd.data.partitioners.base import Partitioner, require_enough_examples
from fedsgd.errors import DataError, suggest_name
from fedsgd.numerics.arrays import I64

EXCLUDED_PREFIXES = ("Vertical", "Partitioner")


@dataclass(frozen=True)
class FlwrDatasets(Partitioner):
    """Any partitioner of flwr-datasets: `partitioner = "DirichletPartitioner"`, made with `iterate_input_arguments`. Needs an
    extra.

    It is given a table of up to three columns: "index"; "label", where targets are class labels; and "owner", where the data
    say whose each example is. Unless `iterate_input_arguments` say otherwise, its num_partitions is `clients`, its
    partition_by is "owner"
    for those by natural id and else "label", and its seed follows from the scenario's. Functions are given as
    "my_package.my_module:function". Rows are shuffled first, because some of its partitioners (IidPartitioner) only cut what
    they are given. Examples that it leaves out (ShardPartitioner) are nobody's. Those that split columns are of no use here.
    """

    name: ClassVar[str] = "flwr-datasets"
    needs_labels: ClassVar[bool] = False

    clients: PositiveInt | None = None
    partitioner: str = field(kw_only=True)
    arguments: dict[str, Any] = field(default_factory=dict)

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
        except Exception as error:  # whatever a partitioner of somebody else's says of its data
            raise DataError(f"{self.partitioner}: {type(error).__name__}: {error}") from error
        rows = np.concatenate(parts)
        if len(np.unique(rows)) != len(rows):
            problem = f"{len(rows)} examples dealt, but only {len(np.unique(rows))} different ones"
            raise DataError(f"{self.partitioner}: {problem}")
        owner = np.full(len(examples), -1, dtype=np.int64)
        owner[rows] = np.repeat(clients, [len(part) for part in parts])
        return owner

    def _create_partitioner(self, columns: dict[str, Any], seed: int) -> Any:
        """The partitioner, with what can be filled in for the user."""
        library = require_extra("flwr_datasets.partitioner", "huggingface")
        known = [name for name in dir(library) if name.endswith("Partitioner") and not name.startswith(EXCLUDED_PREFIXES)]
        if self.partitioner not in known:
            raise FieldError(self.name, "partitioner", f'got "{self.partitioner}"{suggest_name(self.partitioner, known)}')
        make = getattr(library, self.partitioner)
        takes = inspect.signature(make).parameters
        offered: dict[str, Any] = {"seed": seed, "num_partitions": self.clients}
        by = "owner" if "NaturalId" in self.partitioner else "label"
        if by in columns:
            offered["partition_by"] = by
        filled = {key: value for key, value in offered.items() if key in takes and value is not None}
        given = {key: _convert_argument(key, value) for key, value in self.arguments.items()}
        try:
            return make(**{**filled, **given})
        except (TypeError, ValueError) as error:
            raise FieldError(self.name, "arguments", f"{self.partitioner} does not take {self.arguments}: {error}") from error


def _convert_argument(key: str, value: Any) -> Any:
    """What TOML cannot say: a function by its path, an array as nested lists."""
    if key.endswith("_fn") and isinstance(value, str):
        return import_by_path(value)
    return np.asarray(value) if key.endswith("_array") else value
