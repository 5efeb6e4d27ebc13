"""Trials of a training step before round 1, at a selection of batch sizes, on a copy of the task if it can be copied."""

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
from fedsgd.training.flat_module import FlatModule, batch_tensors

MAX_TRIAL_EXAMPLES = 2048
"""Maximum sum of the batch sizes that are tried in ascending order: 2048 suffices for all sizes of at most 63 examples."""
N_FREQUENT_SIZES = 8
"""Number of the batch sizes that most clients have. These sizes are always tried, as are the smallest and the largest size."""


@dataclass(frozen=True)
class BatchSizeUse:
    """Clients that train on batches of one size: distinct numbers of examples, and the number of clients with each."""

    example_counts: tuple[int, ...] = ()
    client_counts: tuple[int, ...] = ()

    def add(self, n: int, n_clients: int) -> BatchSizeUse:
        """Return the use with `n_clients` more clients of n examples."""
        return BatchSizeUse((*self.example_counts, n), (*self.client_counts, n_clients))


def collect_batch_size_uses(train: ClientData, local_training: LocalTraining) -> dict[int, BatchSizeUse]:
    """Return the uses of all batch sizes, in ascending order of the sizes."""
    uses: dict[int, BatchSizeUse] = {}
    for n, n_clients in zip(*(values.tolist() for values in train.distinct_sizes()), strict=True):
        for size in distinct_batch_sizes(n, local_training):
            uses[size] = uses.get(size, BatchSizeUse()).add(n, n_clients)
    return dict(sorted(uses.items()))


def select_sizes_to_try(uses: Mapping[int, BatchSizeUse]) -> list[int]:
    """Return the batch sizes to try, ascending: see `MAX_TRIAL_EXAMPLES` and `N_FREQUENT_SIZES`."""
    sizes = sorted(uses)
    small_sizes = [size for size, total in zip(sizes, np.cumsum(sizes), strict=True) if total <= MAX_TRIAL_EXAMPLES]
    frequent_sizes = sorted(sizes, key=lambda size: -sum(uses[size].client_counts))[:N_FREQUENT_SIZES]
    return sorted({*small_sizes, *frequent_sizes, *sizes[:1], *sizes[-1:]})


def find_first_clients(data: ClientData) -> dict[int, int]:
    """Return the first client with each number of examples."""
    counts, _ = data.distinct_sizes()
    if len(counts) == 1:  # without `sizes`, whose cost grows with N
        return {int(counts[0]): 0}
    sizes, clients = np.unique(data.sizes(), return_index=True)
    return dict(zip(sizes.tolist(), clients.tolist(), strict=True))


class StepTrial:
    """Training steps at the initial model, on a copy of the task.

    The examples of `sample` are used for the sizes that `has_working_size` tries, and for clients with generated examples.
    """

    def __init__(self, task: LearningTask, train: ClientData, sample: Examples, seed: int) -> None:
        self._task = task
        self._train = train
        self._sample = sample
        self._seed = seed
        self._client_by_n_examples = find_first_clients(train)
        self._flat_module: FlatModule | None = None

    def try_client_step(self, local_training: LocalTraining, n: int, batch_size: int) -> Exception | None:
        """Return the error of a step in round 1 on a batch of a client with n examples; None if the step succeeds."""
        client = self._client_by_n_examples[n]
        examples = self._take_sample(n) if isinstance(self._train, GeneratedData) else self._train.examples_of(client)
        job = TrainingJob(self._seed, 1, client, self._task.initial_parameters, examples)
        rows = next(batch for batch in batches(job, local_training) if len(batch) == batch_size)
        return self._try_step(examples.select(rows))

    def has_working_size(self, local_training: LocalTraining, batch_size: int) -> bool:
        """Return True if a step succeeds on one example more, on twice as many, or on the batch size of the settings."""
        other_sizes = {batch_size + 1, 2 * batch_size, local_training.batch_size or batch_size} - {batch_size}
        return any(self._try_step(self._take_sample(size)) is None for size in sorted(other_sizes))

    def _take_sample(self, n: int) -> Examples:
        """Return n examples of the sample, repeated if the sample has fewer."""
        return self._sample.select(np.arange(n, dtype=np.int64) % len(self._sample))

    def _try_step(self, batch: Examples) -> Exception | None:
        if self._flat_module is None:
            self._flat_module = FlatModule(self._task.copy())
            self._flat_module.load_weights(self._task.initial_parameters)
        try:
            with use_single_thread(), isolate_generators(0), self._flat_module.isolated_buffers():
                self._flat_module.task.module.train()
                self._flat_module.compute_gradients(*batch_tensors(batch))
        except Exception as error:  # the user's module or loss
            self._flat_module = None  # the copy may be in any state after the error
            return error
        return None


def check_training_steps(
    task: LearningTask, local_training: LocalTraining, train: ClientData, sample: Examples, seed: int
) -> None:
    """Try training steps at the clients' batch sizes: see `select_sizes_to_try` and `StepTrial`.

    ModelError names the smallest size at which a step fails, the number of clients with such a batch, and settings that avoid
    such batches; or it states that every size fails.
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
    n_clients = sum(uses[size].client_counts)
    share = (
        f"{n_clients:,} of {len(train):,} client{'s' * (len(train) != 1)} {'has' if n_clients == 1 else 'have'} such a batch"
    )
    advice = _advise(trial, local_training, size, uses[size], train)
    message = f"a training step on a batch of {_format_examples(size)} fails ({share}): {describe_error(error)}; {advice}"
    raise ModelError(message) from error


def _advise(trial: StepTrial, local_training: LocalTraining, batch_size: int, use: BatchSizeUse, train: ClientData) -> str:
    """Return the settings that avoid a batch of this size."""
    # clients with these numbers of examples have a full batch and a rest
    large_counts = [n for n in use.example_counts if local_training.batch_size is not None and n > local_training.batch_size]
    counts = zip(use.example_counts, use.client_counts, strict=True)
    n_small_clients = sum(n_clients for n, n_clients in counts if n not in large_counts)
    options = [
        option for option in get_args(LastBatch) if _can_train(trial, replace(local_training, last_batch=option), large_counts)
    ]
    needs_examples = n_small_clients > 0 and trial.has_working_size(local_training, batch_size)
    remedies = []
    if large_counts and options:
        values = " or ".join(f'"{option}"' for option in options)
        remedies.append(f"set client.last_batch = {values}, or another client.batch_size")
    elif large_counts or not needs_examples:
        remedies.append("set another client.batch_size")
    if needs_examples:
        keys = "data.examples" if isinstance(train, GeneratedData) else "another data.partition, or fewer of its clients"
        clients = "each client"
        if large_counts:
            clients = f"the {n_small_clients:,} client{'s' * (n_small_clients != 1)} with no other batch"
        remedies.append(f"give {clients} more than {_format_examples(batch_size)} ({keys})")
    return "; ".join(remedies)


def _can_train(trial: StepTrial, local_training: LocalTraining, counts: Sequence[int]) -> bool:
    """Return True if all steps of clients with these numbers of examples succeed."""
    n_by_size = {size: n for n in counts for size in distinct_batch_sizes(n, local_training)}
    return all(trial.try_client_step(local_training, n, size) is None for size, n in n_by_size.items())


def _format_examples(n: int) -> str:
    return f"{n:,} example{'s' * (n != 1)}"
