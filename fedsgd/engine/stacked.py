"""Many clients at once: the recorded step with an axis of clients, for models so small that calls cost more than arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph

from fedsgd.arrays import F32
from fedsgd.data import Examples
from fedsgd.engine.arrangement import Arrangement
from fedsgd.engine.base import CaptureError, Evaluated, Local, Recipe, Update, Work, beginning, step_sizes
from fedsgd.engine.captured import Gathered
from fedsgd.engine.network import check_attributes, network_to_capture, shared, tensors
from fedsgd.engine.passes import write_gradients
from fedsgd.engine.program import Program
from fedsgd.engine.schedule import Run, runs
from fedsgd.engine.stacks import FEW, stacked_step
from fedsgd.engine.steps import CLOSE, Folded, Workspace, append_update, folded, placeholders_for
from fedsgd.layout import Layout
from fedsgd.models import Task
from fedsgd.torch_scope import one_thread


class Stacks:
    """The tensors [K, *shape] that the steps of a stack of K clients work on."""

    def __init__(self, layout: Layout, recipe: Recipe, most: int) -> None:
        self.layout = layout
        self.most = most
        self.w = [torch.zeros(most, *shape) for shape in layout.shapes]
        self.g = [torch.zeros_like(w) for w in self.w]
        self.memory = [recipe.optimizer.init(w) for w in self.w]
        self.received: list[Tensor] = []
        self.corrections: list[Tensor] = []

    def begin(self, models: Sequence[F32]) -> None:
        """A client for each of these models [P], which it received; nothing remembered, nothing to correct."""
        same = all(model is models[0] for model in models)
        self.received, self.corrections = self._tensors(np.stack(models[:1] if same else models)), []
        for w, received in zip(self.w, self.received, strict=True):
            w[: len(models)] = received
        for memory in self.memory:
            for value in memory.values():
                value[: len(models)] = 0

    def go_on(self, client: int, memory: Mapping[str, F32]) -> None:
        """Let this client begin with what its optimiser remembers, each [P]."""
        for name, values in memory.items():
            for buffers, part in zip(self.memory, self._tensors(values[np.newaxis]), strict=True):
                buffers[name][client] = part[0]

    def correct(self, corrections: Sequence[F32]) -> None:
        """What is added to the gradients of each client [P]."""
        self.corrections = self._tensors(np.stack(corrections))

    def remembered(self, k: int) -> dict[str, F32]:
        """What the optimisers of the first k clients remember, [k, P] each."""
        return {name: self.flat([memory[name][:k] for memory in self.memory]) for name in self.memory[0]}

    def _tensors(self, rows: F32) -> list[Tensor]:
        """Rows [k, P] as tensors [k, *shape], in the rows' memory."""
        return [shared(rows[:, where]).view(-1, *shape) for _, where, shape in self.layout.slices()]

    def updates(self, k: int) -> F32:
        """What the first k clients' training gave: w − received, [k, P]."""
        return self.flat([w[:k] - received for w, received in zip(self.w, self.received, strict=True)])

    def flat(self, parts: Sequence[Tensor]) -> F32:
        """Tensors [k, *shape] as rows [k, P]."""
        rows: F32 = torch.cat([part.reshape(len(part), -1) for part in parts], dim=1).numpy()
        return rows


class StackedStep:
    """The step of one batch size, for the clients from `start` to before `stop` of the stack. used: whether batches use each
    of the module's parameters."""

    def __init__(self, space: Workspace, stacks: Stacks, fold: Folded | None, batch: Examples) -> None:
        graph, gradients, unused = stacked_step(space, batch, stacks.most)
        self.used = [where not in unused for _, where, _ in stacks.layout.slices()]
        _stand_for(graph, stacks.w)
        write_gradients(graph, gradients, placeholders_for(graph, "g", stacks.g))
        self.gradient = functools.lru_cache(512)(Program(graph).bound)
        self.update: Callable[[int, int], Callable[..., None]] | None = None
        if fold is not None and fold.allows(unused):
            self.update = functools.lru_cache(512)(_folded(space, stacks, fold, batch).bound)


def _folded(space: Workspace, stacks: Stacks, fold: Folded, batch: Examples) -> Program:
    """The step with the update folded in."""
    graph, gradients, _ = stacked_step(space, batch, stacks.most)
    _stand_for(graph, stacks.w)
    targets = [memory["velocity"] for memory in stacks.memory] if fold.velocity else stacks.w
    append_update(graph, gradients, fold, targets, (stacks.w, targets))
    return Program(graph)


def _stand_for(graph: Graph, stacks: Sequence[Tensor]) -> None:
    """Let the placeholders w0, w1, ... stand for these stacks."""
    by_name = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    for i, stack in enumerate(stacks):
        by_name[f"w{i}"].meta.update(value=stack, varies=True)


class Stacked:
    """SGD of a small module, `together` clients at a time, each on its own parameters.

    Clients are sorted by how many examples they have, so that those with a step of the same size to make stand together: no
    padding, no wasted work. like, update: as for `Captured`; sizes: batch sizes to record at once, others are when
    they come. No result depends on who else is in the stack.
    """

    def __init__(
        self, task: Task, recipe: Recipe, like: Examples, sizes: Sequence[int], update: Update = "fused", together: int = 32
    ) -> None:
        """CaptureError, with the reason, if the module cannot be stacked."""
        self.recipe = recipe
        self.together = together
        self._network = network_to_capture(task)
        self._like = like
        self._fold = folded(recipe) if update == "fused" else None
        self._space = Workspace(self._network, Arrangement(task.layout), recipe.optimizer)
        self._stacks = Stacks(task.layout, recipe, max(together, FEW + 1))
        self._x, self._y = Gathered(), Gathered()
        self._steps: dict[int, StackedStep] = {}
        for size in sizes:
            self._step(size)

    def train(self, works: Sequence[Work]) -> Iterator[Local]:
        """The results, those with many examples first."""
        by_data: dict[tuple[int, int], list[Work]] = {}
        for work in works:
            by_data.setdefault((id(work.examples.x), id(work.examples.y)), []).append(work)
        for same in by_data.values():
            same.sort(key=lambda work: (-len(work.examples), work.round))
            for first in range(0, len(same), self.together):
                yield from self._train(same[first : first + self.together])

    def _train(self, works: Sequence[Work]) -> Iterator[Local]:
        """One stack, sorted."""
        stacks, counts = self._stacks, [self.recipe.n_steps(len(work.examples)) for work in works]
        for size in {size for n in {len(work.examples) for work in works} for size in step_sizes(n, self.recipe)}:
            self._step(size)
        with one_thread(), torch.no_grad():
            self._begin(works)
            only: dict[int, F32] = {}
            for run in runs(works, self.recipe):
                x, y = self._gather(works[0].examples, run)
                step = self._steps[run.size]
                if step.update is not None and not run.only:
                    step.update(run.start, run.stop)(run.stop - run.start, x, y, -run.rate)
                    continue
                step.gradient(run.start, run.stop)(run.stop - run.start, x, y)
                steps = self._exact(run, step.used)
                if steps is not None:
                    only.update(zip(range(run.start, run.stop), steps, strict=True))
            updates = stacks.updates(len(works))
            remembered = stacks.remembered(len(works)) if self.recipe.carry else {}
        for i, work in enumerate(works):
            memory = {name: rows[i].copy() for name, rows in remembered.items()}
            yield Local(work.client, only.get(i, updates[i]), len(work.examples), counts[i], memory)

    def _begin(self, works: Sequence[Work]) -> None:
        """What the clients of a stack begin with."""
        self._stacks.begin([work.weights for work in works])
        corrections = []
        for i, work in enumerate(works):
            memory, correction = beginning(work, self.recipe)
            self._stacks.go_on(i, memory)
            if correction is not None:
                corrections.append(correction)
        if corrections:
            self._stacks.correct(corrections)

    def _gather(self, examples: Examples, run: Run) -> tuple[Tensor, Tensor]:
        """x and y of the run's batches, [k, B, ...]."""
        rows, shape = torch.from_numpy(run.rows()), (run.stop - run.start, run.size)
        x, y = self._x.take(examples.x, rows), self._y.take(examples.y, rows)
        return x.view(*shape, *x.shape[1:]), y.view(*shape, *y.shape[1:])

    def _exact(self, run: Run, used: Sequence[bool]) -> F32 | None:
        """The optimiser's own step from the gradients, for the parameters that the batch uses; instead of making it, returned
        as rows [k, P] if it is all that these clients do in the round."""
        stacks, optimizer, clients = self._stacks, self.recipe.optimizer, slice(run.start, run.stop)
        made: list[Tensor] = []
        parts = [(w[clients], g[clients]) for w, g in zip(stacks.w, stacks.g, strict=True)]
        if self.recipe.proximal:
            for (w, g), received in zip(parts, stacks.received, strict=True):
                g.add_(w - (received[clients] if len(received) > 1 else received), alpha=self.recipe.proximal)
        for (_, g), correction in zip(parts, stacks.corrections, strict=False):  # there may be none at all
            g.add_(correction[clients])
        if optimizer.clip_norm is not None:
            self._clip([g for _, g in parts])
        for (w, g), memory, moves in zip(parts, stacks.memory, used, strict=True):
            if not moves and self.recipe.skips_unused:
                made.append(torch.zeros_like(w))
                continue
            buffers = {name: value[clients] for name, value in memory.items()}
            direction, alpha = optimizer.after_clipping(w, g, buffers, run.rate)
            if run.only:
                made.append(direction * alpha)
            else:
                w.add_(direction, alpha=alpha)
        return stacks.flat(made) if run.only else None

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        """Each client's gradient, as one vector [P]."""
        for parts in zip(*gradients, strict=True):
            whole = torch.cat([part.reshape(-1) for part in parts])
            self.recipe.optimizer.clip(whole)
            for part, clipped in zip(parts, torch.split(whole, [part.numel() for part in parts]), strict=True):
                part.copy_(clipped.view_as(part))

    def _step(self, size: int) -> None:
        """Record the step for batches of this size, unless that is done."""
        if size in self._steps:
            return
        with one_thread(), torch.no_grad(), self._network.own_buffers():
            self._network.task.module.train()
            self._space.begin(self._network.task.initial)
            try:
                step = StackedStep(self._space, self._stacks, self._fold, self._some(size, 0))
                self._try(step, size)
                check_attributes(self._network)
            except CaptureError:
                raise
            except Exception as error:  # whatever the module does that is not made for being recorded, or batched
                raise CaptureError(f"{type(error).__name__}: {error}") from error
        self._steps[size] = step

    def _some(self, size: int, client: int) -> Examples:
        return self._like.take((np.arange(size) + client * size) % len(self._like))

    def _try(self, step: StackedStep, size: int) -> None:
        """CaptureError unless clients in a stack get the bits of clients alone, and those are close to autograd's."""
        stacks, initial, k = self._stacks, self._network.task.initial, self._stacks.most
        models = [initial * np.float32(1 + 0.1 * client / k) for client in range(k)]
        batches = [tensors(self._some(size, client)) for client in range(k)]
        x, y = (torch.stack([batch[i] for batch in batches]) for i in (0, 1))
        for bound, results, rate in ((step.gradient, stacks.g, ()), (step.update, stacks.w, (-1.0,))):
            if bound is None:
                continue
            stacks.begin(models)
            bound(0, k)(k, x, y, *rate)
            together = [result.clone() for result in results]
            for i in range(k):  # alone, in the first place
                stacks.begin(models[i : i + 1])
                bound(0, 1)(1, x[i : i + 1].clone(), y[i : i + 1].clone(), *rate)
                if not all(torch.equal(a[i], b[0]) for a, b in zip(together, results, strict=True)):
                    raise CaptureError("a client's result depends on who else is in its stack")
            rows = stacks.flat(together) if not rate else np.stack(models) - stacks.flat(together)
            for model, batch, row in list(zip(models, batches, rows, strict=True))[:FEW]:
                self._network.point_at(self._space.arrangement.views(torch.from_numpy(model.copy())))
                twice = [self._network.gradient(*batch)[0] for _ in range(2)]
                if not torch.equal(*twice):
                    raise CaptureError("a step depends on those before it")
                expected = twice[0].numpy()
                off, scale = float(np.linalg.norm(row - expected)), float(np.linalg.norm(expected))
                if not off <= CLOSE * (scale + (float(np.linalg.norm(model)) if rate else 0)):
                    raise CaptureError(f"the step is not autograd's: off by {off:.3g}, the gradient's norm is {scale:.3g}")

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> Evaluated:
        """The loss and the metrics of the model with these weights [P] and running statistics [S] (None: as it was made)."""
        return self._network.evaluate(weights, examples, self._space.arrangement, buffers)
