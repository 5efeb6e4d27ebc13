"""Validation split: training examples that clients hold out, on which settings are tuned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsgd.data.base import ClientData
from fedsgd.data.generated import GeneratedData
from fedsgd.data.partitioned import PartitionedData, hold_out_examples
from fedsgd.errors import DataError
from fedsgd.numerics.arrays import I64
from fedsgd.numerics.rng import derive_generator


def hold_out_validation(train: ClientData, share: float, seed: int) -> tuple[ClientData, ClientData]:
    """Return (training examples, validation examples) of the clients, drawn by the seed from their training examples.

    The partition stays as it is: each client holds out its share, rounded up or down, so that all stored examples together
    hold out round(share · n). A client keeps at least one training example. The examples of `[data] held_out` do not change.

    Args:
        train: training examples of the clients, without those of `[data] held_out`.
        share: share of each client's training examples, above 0 and below 1.
        seed: seed of the run.

    Raises:
        DataError: a client would have no training example, or there would be no validation example.
    """
    _check_share(train, share)
    if isinstance(train, GeneratedData):
        split = replace(train, validation=share)
        parts: tuple[ClientData, ClientData] = split, replace(split, part="validation")
    elif isinstance(train, PartitionedData):
        sizes = train.sizes()
        counts = np.diff(np.rint(share * train.partition.bounds)).astype(np.int64)
        partitions = hold_out_examples(
            train.partition, np.minimum(counts, np.maximum(sizes - 1, 0)), derive_generator(seed, "validation")
        )
        parts = PartitionedData(train.examples, partitions[0]), PartitionedData(train.examples, partitions[1])
    else:
        raise TypeError(f"{type(train).__name__}: expected PartitionedData or GeneratedData")
    if not parts[1].distinct_sizes()[0].any():
        sizes, n_clients = train.distinct_sizes()
        owners = f"{n_clients.sum():,} clients with {_format_range(sizes)}"
        raise DataError(f"evaluation.validation: got {share:g}, which holds out none of {owners}; use a larger share, or 0")
    return parts


def _check_share(train: ClientData, share: float) -> None:
    """Raise DataError if the rounded share of a client's examples is all of them."""
    sizes, n_clients = train.distinct_sizes()
    is_empty = (sizes > 0) & (np.rint(share * sizes) >= sizes)
    if is_empty.any():
        clients = f"{n_clients[is_empty].sum():,} of {n_clients.sum():,} clients"
        raise DataError(
            f"evaluation.validation: got {share:g}, which leaves none to train on to {clients} with "
            f"{_format_range(sizes[is_empty])}, expected below {1 - 0.5 / sizes[is_empty][0]:g}"
        )


def _format_range(sizes: I64) -> str:
    """Return ascending numbers of examples as text, such as "2 to 7 examples each"."""
    if len(sizes) > 1:
        return f"{sizes[0]:,} to {sizes[-1]:,} examples each"
    return "1 example each" if sizes[0] == 1 else f"{sizes[0]:,} examples each"
