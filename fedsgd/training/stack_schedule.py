"""In which order the clients of a stack make their steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedsgd.numerics.arrays import I64
from fedsgd.training.base import LocalTraining, TrainingJob, epochs


@dataclass(frozen=True, eq=False)
class StackedStepRange:
    """A step of the clients from `start` to before `stop`, which can be made at once.

    size: of their batches; rate: the step size; only: whether it is all that they do in the round; batches: of clients next to
    each other, the rows of the data [k, B].
    """

    start: int
    stop: int
    batch_size: int
    learning_rate: float
    is_only_step: bool
    batches: tuple[I64, ...]

    def concatenate_rows(self) -> I64:
        """The rows of all batches, one after the other."""
        return np.concatenate([batch.reshape(-1) for batch in self.batches])


def schedule_steps(jobs: Sequence[TrainingJob], local_training: LocalTraining) -> Iterator[StackedStepRange]:
    """Every step of every client, each client's in order. works: sorted, so that clients with equally many examples in the same
    round are next to each other: these make the same steps.

    Pass after pass: a client that is done with one waits for the others, so that full batches stay together.
    """
    groups = [
        _AlikeClients(local_training, list(alike))
        for _, alike in itertools.groupby(enumerate(jobs), lambda w: (len(w[1].examples), w[1].round))
    ]
    while groups:
        orders = [group.advance_epoch() for group in groups]
        for step in range(max((n_steps for _, n_steps in orders), default=0)):
            ready = [g.build_step(rows, step) for g, (rows, n_steps) in zip(groups, orders, strict=True) if step < n_steps]
            yield from _merge_ranges(ready)
        groups = [group for group, (_, n_steps) in zip(groups, orders, strict=True) if n_steps]


def _merge_ranges(ranges: Sequence[StackedStepRange]) -> Iterator[StackedStepRange]:
    """Runs next to each other whose steps are alike, as one."""
    joined: StackedStepRange | None = None
    for run in ranges:
        if (
            joined is not None
            and joined.stop == run.start
            and (joined.batch_size, joined.learning_rate, joined.is_only_step)
            == (run.batch_size, run.learning_rate, run.is_only_step)
        ):
            joined = StackedStepRange(
                joined.start, run.stop, run.batch_size, run.learning_rate, run.is_only_step, joined.batches + run.batches
            )
        else:
            if joined is not None:
                yield joined
            joined = run
    if joined is not None:
        yield joined


class _AlikeClients:
    """Clients of a stack that make the same steps."""

    def __init__(self, local_training: LocalTraining, indexed_jobs: Sequence[tuple[int, TrainingJob]]) -> None:
        self._local_training = local_training
        self._start, first = indexed_jobs[0]
        self._jobs = [work for _, work in indexed_jobs]
        n, self._round = len(first.examples), first.round
        self._batch_plan, self._n_steps = local_training.plan_batches(n), local_training.n_steps(n)
        self._n_steps_done = 0
        self._epochs = [epochs(work, local_training) for work in self._jobs]

    def advance_epoch(self) -> tuple[I64, int]:
        """(the rows of the data in the order of the next pass [k, `BatchPlan.n_examples`], how many steps that is); no steps if
        there is none."""
        rows, n_steps = [], 0
        for work, each in zip(self._jobs, self._epochs, strict=True):
            order, n_steps = next(each, (None, 0))
            if order is not None:
                rows.append(work.examples.row_indices(order))
        return np.stack(rows) if rows else np.empty((0, 0), dtype=np.int64), n_steps

    def build_step(self, rows: I64, step_index: int) -> StackedStepRange:
        """The step of that number, from 0, of a pass."""
        batch = rows[:, self._batch_plan.locate_batch(step_index)]
        self._n_steps_done += 1
        rate = self._local_training.optimizer.learning_rate(self._round, self._n_steps_done, self._n_steps)
        return StackedStepRange(self._start, self._start + len(self._jobs), batch.shape[1], rate, self._n_steps == 1, (batch,))
