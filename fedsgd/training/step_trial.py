"""Trial of a training step at each batch size before round 1.

It runs on a copy of the task's module and loss, where they can be copied. Torch is imported when the trial begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from fedsgd.data import ClientData, Examples
from fedsgd.data.generated import GeneratedData
from fedsgd.errors import ModelError, describe_error
from fedsgd.models.task import LearningTask
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training.base import LastBatch, LocalTraining, TrainingJob, batches, distinct_batch_sizes
from fedsgd.training.flat_module import FlatModule, TensorFormat, batch_tensors

MAX_TRIAL_EXAMPLES = 2048
"""Batch sizes are tried in ascending order up to this many examples in all: every size where batches have at most 63."""
N_FREQUENT_SIZES = 8
"""Batch sizes of most clients that are tried in any case, as are the smallest and the largest."""


@dataclass(frozen=True)
class BatchSizeUse:
    """Clients that train on batches of one size.

    Attributes:
        counts: numbers of examples of these clients, ascending.
        clients: number of clients with each of these.
    """

    example_counts: tuple[int, ...] = ()
    client_counts: tuple[int, ...] = ()

    def add(self, n: int, n_clients: int) -> BatchSizeUse:
        """Return the use with further clients of n examples."""
        return BatchSizeUse((*self.example_counts, n), (*self.client_counts, n_clients))


def collect_batch_size_uses(train: ClientData, local_training: LocalTraining) -> dict[int, BatchSizeUse]:
    """Return each batch size of each client's training, ascending, and its clients."""
    uses: dict[int, BatchSizeUse] = {}
    for n, clients in zip(*(values.tolist() for values in train.distinct_sizes()), strict=True):
        for size in distinct_batch_sizes(n, local_training):
            uses[size] = uses.get(size, BatchSizeUse()).add(n, clients)
    return dict(sorted(uses.items()))


def select_sizes_to_try(uses: Mapping[int, BatchSizeUse]) -> list[int]:
    """Return the batch sizes that are tried, ascending: see `MAX_TRIAL_EXAMPLES` and `N_FREQUENT_SIZES`."""
    ascending = sorted(uses)
    small = [size for size, total in zip(ascending, np.cumsum(ascending), strict=True) if total <= MAX_TRIAL_EXAMPLES]
    frequent = sorted(ascending, key=lambda size: -sum(uses[size].client_counts))[:N_FREQUENT_SIZES]
    return sorted({*small, *frequent, *ascending[:1], *ascending[-1:]})


def find_first_clients(data: ClientData) -> dict[int, int]:
    """Return the first client with each number of examples. Clients that all have as many need no list of their sizes."""
    counts, _ = data.distinct_sizes()
    if len(counts) == 1:
        return {int(counts[0]): 0}
    sizes, clients = np.unique(data.sizes(), return_index=True)
    return dict(zip(sizes.tolist(), clients.tolist(), strict=True))


class StepTrial:
    """Training steps at the initial model, on a copy of the task's module.

    Args:
        task: module and loss to copy.
        train: each client's training examples.
        sample: examples for batches that no client has, and of clients that are made from their number.
        seed: the run's seed.
    """

    def __init__(self, task: LearningTask, train: ClientData, sample: Examples, seed: int) -> None:
        self._task = task
        self._train = train
        self._sample = sample
        self._seed = seed
        self._client_by_n_examples = find_first_clients(train)
        self._flat_module: FlatModule | None = None

    def try_client_step(self, local_training: LocalTraining, n: int, batch_size: int) -> Exception | None:
        """Return the error of a step on a batch that a client of n examples has in round 1, None if the step succeeds."""
        client = self._client_by_n_examples[n]
        examples = self._take_sample(n) if isinstance(self._train, GeneratedData) else self._train.examples_of(client)
        work = TrainingJob(self._seed, 1, client, self._task.initial_parameters, examples)
        return self._try_step(
            work.examples.select(next(batch for batch in batches(work, local_training) if len(batch) == batch_size))
        )

    def has_working_size(self, local_training: LocalTraining, batch_size: int) -> bool:
        """Return whether a step on one example more, on twice as many, or on the recipe's batch size succeeds."""
        others = {batch_size + 1, 2 * batch_size, local_training.batch_size or batch_size} - {batch_size}
        return any(self._try_step(self._take_sample(other)) is None for other in sorted(others))

    def _take_sample(self, n: int) -> Examples:
        """Return n examples of the sample, some of them twice if it has fewer."""
        return self._sample.select(np.arange(n, dtype=np.int64) % len(self._sample))

    def _try_step(self, batch: Examples) -> Exception | None:
        if self._flat_module is None:
            self._flat_module = copy_flat_module(self._task)
        try:
            with use_single_thread(), isolate_generators(0), self._flat_module.isolated_buffers():
                self._flat_module.task.module.train()
                self._flat_module.compute_gradients(*batch_tensors(batch))
        except Exception as error:  # the user's module or loss
            self._flat_module = None  # the failure may have left the copy in any state
            return error
        return None


def check_training_steps(
    task: LearningTask, local_training: LocalTraining, train: ClientData, sample: Examples, seed: int
) -> None:
    """Try a training step at each batch size that any client's training has.

    Args:
        task: module, loss and initial model.
        recipe: the clients' training.
        train: each client's training examples.
        sample: training examples for batches that no client has, and of clients that are made from their number.
        seed: the run's seed, which decides the batches of round 1.

    Raises:
        ModelError: a step fails; with the number of clients that have such a batch, and the settings that avoid it.
    """
    trial, uses = StepTrial(task, train, sample, seed), collect_batch_size_uses(train, local_training)
    results = {
        size: trial.try_client_step(local_training, uses[size].example_counts[0], size) for size in select_sizes_to_try(uses)
    }
    failures = {size: error for size, error in results.items() if error is not None}
    if not failures:
        return
    size, error = next(iter(failures.items()))
    if len(failures) == len(results) and not trial.has_working_size(local_training, size):
        raise ModelError(f"a training step fails at every batch size that was tried: {describe_error(error)}") from error
    having = sum(uses[size].client_counts)
    who = f"{having:,} of {len(train):,} client{'s' * (len(train) != 1)} {'has' if having == 1 else 'have'} such a batch"
    advice = _advise(trial, local_training, size, uses[size], train)
    message = f"a training step on a batch of {_format_examples(size)} fails ({who}): {describe_error(error)}; {advice}"
    raise ModelError(message) from error


def _advise(trial: StepTrial, local_training: LocalTraining, batch_size: int, use: BatchSizeUse, train: ClientData) -> str:
    """Return the settings that avoid a batch of this size."""
    fills = {
        n: local_training.batch_size is not None and n > local_training.batch_size for n in use.example_counts
    }  # a batch, with examples left over
    several = [n for n, more in fills.items() if more]
    n_only = sum(clients for n, clients in zip(use.example_counts, use.client_counts, strict=True) if not fills[n])
    options = [
        option for option in get_args(LastBatch) if _can_train(trial, replace(local_training, last_batch=option), several)
    ]
    too_few = n_only > 0 and trial.has_working_size(local_training, batch_size)
    ways = []
    if several and options:
        quoted = " or ".join(f'"{option}"' for option in options)
        ways.append(f"set client.last_batch = {quoted}, or another client.batch_size")
    elif several or not too_few:
        ways.append("set another client.batch_size")
    if too_few:
        keys = "data.examples" if isinstance(train, GeneratedData) else "another data.partition, or fewer of its clients"
        who = f"the {n_only:,} of them that {'has' if n_only == 1 else 'have'} no other batch" if several else "each client"
        ways.append(f"give {who} more than {_format_examples(batch_size)} ({keys})")
    return "; ".join(ways)


def _can_train(trial: StepTrial, local_training: LocalTraining, counts: Sequence[int]) -> bool:
    """Return whether every step of clients with these numbers of examples succeeds under a recipe."""
    tried = {size: n for n in counts for size in distinct_batch_sizes(n, local_training)}
    return all(trial.try_client_step(local_training, n, size) is None for size, n in tried.items())


def copy_flat_module(task: LearningTask) -> FlatModule:
    """Return a network on a copy of the task's module and loss, at the task's initial model."""
    import torch

    network, flat = FlatModule(task.copy()), torch.from_numpy(task.initial_parameters.copy())
    network.bind_parameters(TensorFormat(task.layout).view_tensors(flat))
    return network


def _format_examples(n: int) -> str:
    return f"{n:,} example{'s' * (n != 1)}"
