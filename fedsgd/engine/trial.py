"""Trial of a training step at each batch size before round 1.

It runs on a copy of the task's module and loss, where they can be copied. Torch is imported when the trial begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import numpy as np

from fedsgd.data import ClientData, Examples
from fedsgd.data.population import Made
from fedsgd.engine.base import LastBatch, Recipe, Work, batches, step_sizes
from fedsgd.errors import ModelError, error_text
from fedsgd.models import Task

if TYPE_CHECKING:
    from fedsgd.engine.network import Network

MOST_EXAMPLES = 2048
"""Batch sizes are tried in ascending order up to this many examples in all: every size where batches have at most 63."""
MOST_FREQUENT = 8
"""Batch sizes of most clients that are tried in any case, as are the smallest and the largest."""


@dataclass(frozen=True)
class SizeUse:
    """Clients that train on batches of one size.

    Attributes:
        counts: numbers of examples of these clients, ascending.
        clients: number of clients with each of these.
    """

    counts: tuple[int, ...] = ()
    clients: tuple[int, ...] = ()

    def add(self, n: int, clients: int) -> SizeUse:
        """Return the use with further clients of n examples."""
        return SizeUse((*self.counts, n), (*self.clients, clients))


def batch_size_uses(train: ClientData, recipe: Recipe) -> dict[int, SizeUse]:
    """Return each batch size of each client's training, ascending, and its clients."""
    uses: dict[int, SizeUse] = {}
    for n, clients in zip(*(values.tolist() for values in train.distinct_sizes()), strict=True):
        for size in step_sizes(n, recipe):
            uses[size] = uses.get(size, SizeUse()).add(n, clients)
    return dict(sorted(uses.items()))


def sizes_to_try(uses: Mapping[int, SizeUse]) -> list[int]:
    """Return the batch sizes that are tried, ascending: see `MOST_EXAMPLES` and `MOST_FREQUENT`."""
    ascending = sorted(uses)
    small = [size for size, total in zip(ascending, np.cumsum(ascending), strict=True) if total <= MOST_EXAMPLES]
    frequent = sorted(ascending, key=lambda size: -sum(uses[size].clients))[:MOST_FREQUENT]
    return sorted({*small, *frequent, *ascending[:1], *ascending[-1:]})


def first_clients(data: ClientData) -> dict[int, int]:
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

    def __init__(self, task: Task, train: ClientData, sample: Examples, seed: int) -> None:
        self._task = task
        self._train = train
        self._sample = sample
        self._seed = seed
        self._client_of = first_clients(train)
        self._network: Network | None = None

    def client_error(self, recipe: Recipe, n: int, size: int) -> Exception | None:
        """Return the error of a step on a batch that a client of n examples has in round 1, None if the step succeeds."""
        client = self._client_of[n]
        examples = self._first(n) if isinstance(self._train, Made) else self._train.of(client)
        work = Work(self._seed, 1, client, self._task.initial, examples)
        return self._error(work.examples.take(next(batch for batch in batches(work, recipe) if len(batch) == size)))

    def another_succeeds(self, recipe: Recipe, size: int) -> bool:
        """Return whether a step on one example more, on twice as many, or on the recipe's batch size succeeds."""
        others = {size + 1, 2 * size, recipe.batch_size or size} - {size}
        return any(self._error(self._first(other)) is None for other in sorted(others))

    def _first(self, n: int) -> Examples:
        """Return n examples of the sample, some of them twice if it has fewer."""
        return self._sample.take(np.arange(n, dtype=np.int64) % len(self._sample))

    def _error(self, batch: Examples) -> Exception | None:
        from fedsgd.engine.network import tensors
        from fedsgd.generators import seeded_generators
        from fedsgd.torch_scope import one_thread

        if self._network is None:
            self._network = network_copy(self._task)
        try:
            with one_thread(), seeded_generators(0), self._network.own_buffers():
                self._network.task.module.train()
                self._network.gradients(*tensors(batch))
        except Exception as error:  # the user's module or loss
            self._network = None  # the failure may have left the copy in any state
            return error
        return None


def check_training_steps(task: Task, recipe: Recipe, train: ClientData, sample: Examples, seed: int) -> None:
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
    trial, uses = StepTrial(task, train, sample, seed), batch_size_uses(train, recipe)
    results = {size: trial.client_error(recipe, uses[size].counts[0], size) for size in sizes_to_try(uses)}
    failures = {size: error for size, error in results.items() if error is not None}
    if not failures:
        return
    size, error = next(iter(failures.items()))
    if len(failures) == len(results) and not trial.another_succeeds(recipe, size):
        raise ModelError(f"a training step fails at every batch size that was tried: {error_text(error)}") from error
    having = sum(uses[size].clients)
    who = f"{having:,} of {len(train):,} client{'s' * (len(train) != 1)} {'has' if having == 1 else 'have'} such a batch"
    advice = _advice(trial, recipe, size, uses[size], train)
    message = f"a training step on a batch of {_examples(size)} fails ({who}): {error_text(error)}; {advice}"
    raise ModelError(message) from error


def _advice(trial: StepTrial, recipe: Recipe, size: int, use: SizeUse, train: ClientData) -> str:
    """Return the settings that avoid a batch of this size."""
    fills = {n: recipe.batch_size is not None and n > recipe.batch_size for n in use.counts}  # a batch, with examples left over
    several = [n for n, more in fills.items() if more]
    n_only = sum(clients for n, clients in zip(use.counts, use.clients, strict=True) if not fills[n])
    options = [option for option in get_args(LastBatch) if _helps(trial, replace(recipe, last_batch=option), several)]
    too_few = n_only > 0 and trial.another_succeeds(recipe, size)
    ways = []
    if several and options:
        quoted = " or ".join(f'"{option}"' for option in options)
        ways.append(f"set client.last_batch = {quoted}, or another client.batch_size")
    elif several or not too_few:
        ways.append("set another client.batch_size")
    if too_few:
        keys = "data.examples" if isinstance(train, Made) else "another data.partition, or fewer of its clients"
        who = f"the {n_only:,} of them that {'has' if n_only == 1 else 'have'} no other batch" if several else "each client"
        ways.append(f"give {who} more than {_examples(size)} ({keys})")
    return "; ".join(ways)


def _helps(trial: StepTrial, recipe: Recipe, counts: Sequence[int]) -> bool:
    """Return whether every step of clients with these numbers of examples succeeds under a recipe."""
    tried = {size: n for n in counts for size in step_sizes(n, recipe)}
    return all(trial.client_error(recipe, n, size) is None for size, n in tried.items())


def network_copy(task: Task) -> Network:
    """Return a network on a copy of the task's module and loss, at the task's initial model."""
    import torch

    from fedsgd.engine.arrangement import Arrangement
    from fedsgd.engine.network import Network

    network, flat = Network(task.copied()), torch.from_numpy(task.initial.copy())
    network.point_at(Arrangement(task.layout).views(flat))
    return network


def _examples(n: int) -> str:
    return f"{n:,} example{'s' * (n != 1)}"
