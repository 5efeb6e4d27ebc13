"""The step recorded once for each batch size, and replayed without autograd or module calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsgd.arrays import F32
from fedsgd.data import Examples
from fedsgd.engine.arrangement import Arrangement
from fedsgd.engine.base import CaptureError, Evaluated, Local, Recipe, Update, Work, beginning, passes, step_sizes
from fedsgd.engine.network import check_attributes, network_to_capture, shared
from fedsgd.engine.steps import Step, Workspace, capture, folded
from fedsgd.generators import seeded_generators
from fedsgd.models import Task
from fedsgd.profiling import phased
from fedsgd.rng import torch_seed
from fedsgd.torch_scope import one_thread


class Captured:
    """SGD of any module, as a list of tensor operations.

    like: examples to record and to try steps with; sizes: the batch sizes that are worth recording, the most frequent first
    (others go through autograd). update: "exact" gives the oracle's bits; "fused" adds the gradients of weights to the
    parameters as they are computed, and has the channels of images last. So it rounds in another order, which deep networks
    amplify: `python -m tests.bench.engine rounding` prints how far updates end from the oracle's. An optimiser that needs the
    gradient itself is exact in its update either way.
    """

    together = 1

    def __init__(self, task: Task, recipe: Recipe, like: Examples, sizes: Sequence[int], update: Update = "fused") -> None:
        """CaptureError, with the reason, if the module cannot be captured."""
        self.recipe = recipe
        self._network = network_to_capture(task)
        self._like = like
        self._sizes = frozenset(sizes)
        self._fold = folded(recipe) if update == "fused" else None
        self._x, self._y = Gathered(), Gathered()
        has_images = update == "fused" and any(len(shape) == 4 for shape in task.layout.shapes)
        self._space, self._steps = self._first_step(sizes[0], has_images)

    def _first_step(self, size: int, has_images: bool) -> tuple[Workspace, dict[int, Step | None]]:
        """The workspace in the arrangement in which the module can be captured, and the step that shows it."""
        layout, optimizer = self._network.task.layout, self.recipe.optimizer
        for channels_last in (True, False) if has_images else (False,):
            space = Workspace(self._network, Arrangement(layout, channels_last), optimizer)
            try:
                steps: dict[int, Step | None] = {size: self._capture(space, size)}
                if channels_last:  # metrics see the outputs as they stand
                    self._network.evaluate(self._network.task.initial, self._like.part(0, size), space.arrangement)
                return space, steps
            except Exception:  # CaptureError, and whatever a metric does
                if not channels_last:
                    raise
        raise AssertionError("unreachable")

    def _capture(self, space: Workspace, size: int) -> Step:
        rows = np.arange(len(self._like))
        with one_thread(), self._network.own_buffers():
            step = capture(space, self._fold, self._like.take(rows[:size]), self._like.take(rows[::-1][:size].copy()))
            check_attributes(self._network)
            return step

    def _step(self, size: int) -> Step | None:
        """The step for batches of this size; None if they go through autograd."""
        if size not in self._steps:
            step = None
            if size in self._sizes:
                try:
                    step = self._capture(self._space, size)
                except CaptureError:
                    step = None
            self._steps[size] = step
        return self._steps[size]

    def train(self, works: Sequence[Work]) -> Iterator[Local]:
        """The results, in the order of `works`."""
        for work in works:
            steps = {size: self._step(size) for size in step_sizes(len(work.examples), self.recipe)}
            with one_thread(), torch.no_grad(), self._network.own_buffers(), self._randomness(work, steps.values()):
                local = self._train_one(work, steps)
            yield local

    def _randomness(self, work: Work, steps: Iterable[Step | None]) -> AbstractContextManager[Any]:
        """The client's own, as far as its steps draw any."""
        if not any(step is None or step.random for step in steps):
            return nullcontext()
        return seeded_generators(torch_seed(work.seed, "module", work.round, work.client))

    def _train_one(self, work: Work, steps: Mapping[int, Step | None]) -> Local:
        space, optimizer, n_steps = self._space, self.recipe.optimizer, self.recipe.n_steps(len(work.examples))
        memory, correction = beginning(work, self.recipe)
        space.begin(work.weights, memory)
        added = None if correction is None else space.arranged(correction)
        start = space.w.clone() if self.recipe.proximal else space.w
        space.network.task.module.train()
        for number, (x, y) in enumerate(self._batches(work), start=1):
            step, at = steps[y.shape[0]], (work.round, number, n_steps)
            if step is not None and step.update is not None and n_steps > 1:
                step.update(x, y, -optimizer.rate(*at))
                continue
            if step is None:
                unused: Sequence[slice] = space.step_by_step(x, y)
            else:
                unused = step.unused
                step.gradient(x, y)
            direction, alpha = self.recipe.increment(space.w, start, space.g, space.memory, at, added, unused)
            if n_steps == 1:
                return self._local(work, space.arrangement.unload(direction * alpha))
            space.w.add_(direction, alpha=alpha)
        update = space.arrangement.unload(space.w)
        np.subtract(update, work.weights, out=update)
        return self._local(work, update)

    def _local(self, work: Work, update: F32) -> Local:
        """The result, with what is now remembered."""
        self._network.state.check_copies(self._space.buffers)
        space, n = self._space, len(work.examples)
        kept = {name: space.arrangement.unload(value) for name, value in space.memory.items()} if self.recipe.carry else {}
        return Local(work.client, update, n, self.recipe.n_steps(n), kept)

    def _batches(self, work: Work) -> Iterator[tuple[Tensor, Tensor]]:
        """The examples of each step."""
        sizes = self.recipe.batch_plan(len(work.examples)).sizes
        for order, n_steps in passes(work, self.recipe):
            rows = torch.split(torch.from_numpy(work.examples.rows_at(order)), sizes)
            for batch in rows[:n_steps]:
                yield self._x.take(work.examples.x, batch), self._y.take(work.examples.y, batch)

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> Evaluated:
        """The loss and the metrics of the model with these weights [P] and running statistics [S] (None: as it was made)."""
        return self._network.evaluate(weights, examples, self._space.arrangement, buffers)


class Gathered:
    """Rows of an array, in memory that is used again and again.

    Always from its beginning: what a matrix product rounds to may depend on how its operands are aligned.
    """

    def __init__(self) -> None:
        self._array: NDArray[Any] | None = None
        self._source = self._rows = torch.empty(0)
        self._beginnings: dict[int, Tensor] = {}

    @phased("gather")
    def take(self, array: NDArray[Any], rows: Tensor) -> Tensor:
        """These rows of it, valid until the next are taken."""
        if self._array is not array:
            self._array, self._source, self._beginnings = array, shared(array), {}
        n = rows.numel()
        beginning = self._beginnings.get(n)
        if beginning is None:
            beginning = self._beginning(n)
        return torch.index_select(self._source, 0, rows, out=beginning)

    def _beginning(self, n: int) -> Tensor:
        """Room for n rows: the beginning of what there is, if that is enough."""
        shape = self._source.shape[1:]
        if self._rows.shape[0] < n or self._rows.shape[1:] != shape or self._rows.dtype != self._source.dtype:
            self._rows, self._beginnings = torch.empty((n, *shape), dtype=self._source.dtype), {}
        self._beginnings[n] = self._rows[:n]
        return self._beginnings[n]
