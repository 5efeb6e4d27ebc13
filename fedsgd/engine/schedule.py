"""In which order the clients of a stack make their steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedsgd.arrays import I64
from fedsgd.engine.base import Recipe, Work, passes


@dataclass(frozen=True, eq=False)
class Run:
    """A step of the clients from `start` to before `stop`, which can be made at once.

    size: of their batches; rate: the step size; only: whether it is all that they do in the round; batches: of clients next to
    each other, the rows of the data [k, B].
    """

    start: int
    stop: int
    size: int
    rate: float
    only: bool
    batches: tuple[I64, ...]

    def rows(self) -> I64:
        """The rows of all batches, one after the other."""
        return np.concatenate([batch.reshape(-1) for batch in self.batches])


def runs(works: Sequence[Work], recipe: Recipe) -> Iterator[Run]:
    """Every step of every client, each client's in order. works: sorted, so that clients with equally many examples in the same
    round are next to each other: these make the same steps.

    Pass after pass: a client that is done with one waits for the others, so that full batches stay together.
    """
    groups = [
        _Group(recipe, list(alike))
        for _, alike in itertools.groupby(enumerate(works), lambda w: (len(w[1].examples), w[1].round))
    ]
    while groups:
        orders = [group.next_pass() for group in groups]
        for step in range(max((n_steps for _, n_steps in orders), default=0)):
            ready = [g.step(rows, step) for g, (rows, n_steps) in zip(groups, orders, strict=True) if step < n_steps]
            yield from _joined(ready)
        groups = [group for group, (_, n_steps) in zip(groups, orders, strict=True) if n_steps]


def _joined(ready: Sequence[Run]) -> Iterator[Run]:
    """Runs next to each other whose steps are alike, as one."""
    joined: Run | None = None
    for run in ready:
        if (
            joined is not None
            and joined.stop == run.start
            and (joined.size, joined.rate, joined.only) == (run.size, run.rate, run.only)
        ):
            joined = Run(joined.start, run.stop, run.size, run.rate, run.only, joined.batches + run.batches)
        else:
            if joined is not None:
                yield joined
            joined = run
    if joined is not None:
        yield joined


class _Group:
    """Clients of a stack that make the same steps."""

    def __init__(self, recipe: Recipe, places: Sequence[tuple[int, Work]]) -> None:
        self._recipe = recipe
        self._start, first = places[0]
        self._works = [work for _, work in places]
        n, self._round = len(first.examples), first.round
        self._plan, self._n_steps = recipe.batch_plan(n), recipe.n_steps(n)
        self._done = 0
        self._passes = [passes(work, recipe) for work in self._works]

    def next_pass(self) -> tuple[I64, int]:
        """(the rows of the data in the order of the next pass [k, `BatchPlan.examples`], how many steps that is); no steps if
        there is none."""
        rows, n_steps = [], 0
        for work, each in zip(self._works, self._passes, strict=True):
            order, n_steps = next(each, (None, 0))
            if order is not None:
                rows.append(work.examples.rows_at(order))
        return np.stack(rows) if rows else np.empty((0, 0), dtype=np.int64), n_steps

    def step(self, rows: I64, number: int) -> Run:
        """The step of that number, from 0, of a pass."""
        batch = rows[:, self._plan.batch(number)]
        self._done += 1
        rate = self._recipe.optimizer.rate(self._round, self._done, self._n_steps)
        return Run(self._start, self._start + len(self._works), batch.shape[1], rate, self._n_steps == 1, (batch,))
