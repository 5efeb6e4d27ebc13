"""Schedule of the steps of a stack of clients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedsgd.numerics.arrays import I64
from fedsgd.training.base import LocalTraining, TrainingJob, epochs


@dataclass(frozen=True, eq=False)
class StackedStepRange:
    """One step, in one call, of the stack's clients from `start` to before `stop`.

    Attributes:
        is_only_step: True if the clients make one step in the round.
        batches: for each group of consecutive clients, the rows of the dataset in the clients' batches, [k, B].
    """

    start: int
    stop: int
    batch_size: int
    learning_rate: float
    is_only_step: bool
    batches: tuple[I64, ...]

    def concatenate_rows(self) -> I64:
        """Return the rows of all batches in one array."""
        return np.concatenate([batch.reshape(-1) for batch in self.batches])


def schedule_steps(jobs: Sequence[TrainingJob], local_training: LocalTraining) -> Iterator[StackedStepRange]:
    """Yield the steps of a stack's clients; the steps of one client are in order.

    Jobs of one round with equally many examples and equal work, which have the same steps, must be consecutive. All clients
    finish a pass before the next pass starts, so that steps with full batches can be merged.
    """
    groups = [
        _AlikeClients(local_training, list(indexed_jobs)) for _, indexed_jobs in itertools.groupby(enumerate(jobs), _step_key)
    ]
    while groups:
        orders = [group.advance_epoch() for group in groups]
        for step in range(max((n_steps for _, n_steps in orders), default=0)):
            ranges = [
                group.build_step(rows, step) for group, (rows, n_steps) in zip(groups, orders, strict=True) if step < n_steps
            ]
            yield from _merge_ranges(ranges)
        groups = [group for group, (_, n_steps) in zip(groups, orders, strict=True) if n_steps]


def _step_key(indexed_job: tuple[int, TrainingJob]) -> tuple[int, int, int | None]:
    """Return the properties of a job that determine its steps."""
    _, job = indexed_job
    return len(job.examples), job.round, job.work


def _merge_ranges(ranges: Sequence[StackedStepRange]) -> Iterator[StackedStepRange]:
    """Merge consecutive ranges with equal batch size and learning rate."""
    last: StackedStepRange | None = None
    for step in ranges:
        if (
            last is not None
            and last.stop == step.start
            and (last.batch_size, last.learning_rate, last.is_only_step)
            == (step.batch_size, step.learning_rate, step.is_only_step)
        ):
            last = replace(last, stop=step.stop, batches=last.batches + step.batches)
        else:
            if last is not None:
                yield last
            last = step
    if last is not None:
        yield last


class _AlikeClients:
    """Consecutive clients of a stack with the same steps."""

    def __init__(self, local_training: LocalTraining, indexed_jobs: Sequence[tuple[int, TrainingJob]]) -> None:
        self._local_training = local_training
        self._start, first_job = indexed_jobs[0]
        self._jobs = [job for _, job in indexed_jobs]
        n, self._round = len(first_job.examples), first_job.round
        self._batch_plan, self._n_steps_done = local_training.plan_batches(n), 0
        self._n_steps = local_training.with_work(first_job.work).n_steps(n)
        self._n_scheduled_steps = local_training.n_scheduled_steps(n)
        self._epochs = [epochs(job, local_training) for job in self._jobs]

    def advance_epoch(self) -> tuple[I64, int]:
        """Start the next pass, and return its rows of the dataset, [k, `BatchPlan.n_examples`], and its number of steps.

        After the last pass, the number of steps is 0.
        """
        rows, n_steps = [], 0
        for job, epoch_iterator in zip(self._jobs, self._epochs, strict=True):
            order, n_steps = next(epoch_iterator, (None, 0))
            if order is not None:
                rows.append(job.examples.row_indices(order))
        return np.stack(rows) if rows else np.empty((0, 0), dtype=np.int64), n_steps

    def build_step(self, rows: I64, step_index: int) -> StackedStepRange:
        """Return step `step_index`, counted from 0, of the current pass, which has these rows."""
        batch = rows[:, self._batch_plan.locate_batch(step_index)]
        self._n_steps_done += 1
        rate = self._local_training.optimizer.learning_rate(self._round, self._n_steps_done, self._n_scheduled_steps)
        return StackedStepRange(self._start, self._start + len(self._jobs), batch.shape[1], rate, self._n_steps == 1, (batch,))
