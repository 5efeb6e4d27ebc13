"""Laws of partitioners. N clients share n examples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.certification.law import Law, make_law
from fedsgd.certification.operator_laws import require
from fedsgd.certification.simulate_rounds import rebuild
from fedsgd.data import Examples, Partition, Partitioner, partition_examples
from fedsgd.errors import DataError, FedsgdError, LawError
from fedsgd.numerics.rng import derive_generator
from fedsgd.testing.component_laws import arrange_laws

MIN_EXAMPLES, EXAMPLES_PER_CLIENT = 600, 20
"""Number n of examples: EXAMPLES_PER_CLIENT · N, at least MIN_EXAMPLES."""
N_CLASSES, N_OWNERS = 10, 30
SEEDS = (0, 1, 2)


def draw_examples(partitioner: Partitioner, n: int | None = None) -> Examples:
    """Return n examples with two inputs, labels of ten classes, and owners of many or few examples.

    Args:
        partitioner: partitioner whose number of clients determines n and the number of owners, if n is None.
        n: number of examples.
    """
    clients = partitioner.clients or N_OWNERS
    n = max(MIN_EXAMPLES, EXAMPLES_PER_CLIENT * clients) if n is None else n
    rng = derive_generator(0, "laws/partitioner")
    owners = np.sort(rng.permutation(np.arange(n) % max(N_OWNERS, clients)))[rng.permutation(n)]
    return Examples(rng.standard_normal((n, 2), dtype=np.float32), rng.integers(0, N_CLASSES, n), None, owners)


def _require_valid(law: str, partitioner: Partitioner, partition: Partition, case: str) -> None:
    """Raise LawError unless the partition has N clients, none of them empty."""
    clients = partitioner.clients or len(partition)
    n_empty = np.count_nonzero(partition.sizes() == 0)
    figures = f"{case}: {len(partition)} clients, {n_empty} of them empty, expected {clients} and none"
    require(len(partition) == clients and not n_empty, law, partitioner, figures)


def valid_partition(partitioner: Partitioner, examples: Examples) -> None:
    """`assign_clients` returns the client of each example, in [0, N), so that `partition_examples` gives N clients examples."""
    for seed in SEEDS:
        _require_valid("valid_partition", partitioner, partition_examples(partitioner, examples, seed), f"seed {seed}")


def covered_examples(partitioner: Partitioner, examples: Examples) -> None:
    """Every example has a client, unless `covers_all_examples` is False."""
    for seed in SEEDS:
        n_assigned = len(partition_examples(partitioner, examples, seed).order)
        hint = "a partitioner that leaves examples out sets covers_all_examples = False"
        figures = f"seed {seed}: {n_assigned} of {len(examples)} examples have a client; {hint}"
        require(n_assigned == len(examples), "covered_examples", partitioner, figures)


def equal_partitions(partitioner: Partitioner, examples: Examples) -> None:
    """Equal partitioners with equal seeds return equal partitions, after other calls too."""
    first, second = (
        {seed: _read_bits(partition_examples(member, examples, seed)) for seed in order}
        for member, order in ((partitioner, SEEDS), (rebuild(partitioner), SEEDS[::-1]))
    )
    different_seeds = [seed for seed in SEEDS if first[seed] != second[seed]]
    figures = f"the partitions of seeds {different_seeds} differ in a second call"
    require(not different_seeds, "equal_partitions", partitioner, figures)


def _read_bits(partition: Partition) -> bytes:
    return partition.order.tobytes() + partition.bounds.tobytes()


def unchanged_arguments(partitioner: Partitioner, examples: Examples) -> None:
    """The partitioner does not write to the examples."""
    arrays = {"x": examples.x, "y": examples.y, "writer": examples.writer}
    copies = {name: array.copy() for name, array in arrays.items() if array is not None}
    partition_examples(partitioner, replace(examples, **copies), SEEDS[0])
    changed = [name for name, array in arrays.items() if array is not None and array.tobytes() != copies[name].tobytes()]
    require(not changed, "unchanged_arguments", partitioner, f"writes to {', '.join(changed)} of the examples")


def smallest_dataset(partitioner: Partitioner) -> None:
    """With as many examples as clients, each client has an example, or the partitioner raises DataError."""
    clients = partitioner.clients or 1
    examples = draw_examples(partitioner, clients)
    cases = {
        "labels of several classes": replace(examples, writer=np.arange(clients)),
        "labels of one class": replace(examples, y=np.zeros(clients, dtype=np.int64), writer=np.arange(clients)),
    }
    for case, few_examples in cases.items():
        _require_valid_or_refused("smallest_dataset", partitioner, few_examples, f"{clients} examples with {case}")


def any_targets(partitioner: Partitioner) -> None:
    """Labels may be any integers, −100 included; if `needs_labels` is False, targets may also be numbers or vectors."""
    examples = draw_examples(partitioner)
    n = len(examples)
    targets: dict[str, NDArray[Any]] = {"labels −100, 3 and 7": np.resize(np.array([-100, 3, 7]), n)}
    if not partitioner.needs_labels:
        targets |= {"float targets": np.linspace(0, 1, n), "targets of two columns": np.zeros((n, 2), dtype=np.int64)}
    for case, y in targets.items():
        _require_valid_or_refused("any_targets", partitioner, replace(examples, y=y), case)


def _require_valid_or_refused(law: str, partitioner: Partitioner, examples: Examples, case: str) -> None:
    """Raise LawError unless the examples are partitioned, or refused by a DataError or the error of a setting."""
    for seed in SEEDS:
        try:
            partition = partition_examples(partitioner, examples, seed)
        except DataError:
            continue
        except FedsgdError as error:
            raise LawError(f"{law}: {partitioner}: {case}: {error}") from error
        _require_valid(law, partitioner, partition, case)


EXAMPLE_LAWS = (valid_partition, unchanged_arguments, equal_partitions)
"""Laws of a partitioner on its examples."""


def list_partitioner_laws(partitioner: Partitioner, examples: Examples | None = None) -> list[Law]:
    """Return the laws of a partitioner; `examples` are partitioned, by default random ones."""

    def copy_examples() -> Examples:
        return draw_examples(partitioner) if examples is None else copy.deepcopy(examples)

    def bind_examples(law: Callable[[Partitioner, Examples], None]) -> Law:
        return make_law(law, partitioner, lambda: law(partitioner, copy_examples()))

    laws = [bind_examples(law) for law in EXAMPLE_LAWS]
    if partitioner.covers_all_examples:
        laws.append(bind_examples(covered_examples))
    if examples is None:
        laws += [make_law(smallest_dataset, partitioner), make_law(any_targets, partitioner)]
    return arrange_laws(partitioner, laws, lambda: partition_examples(rebuild(partitioner), copy_examples(), SEEDS[0]))
