"""The engine's contract: work in, local results out, each independent of which others are there.

n examples of a client, B batch size, P parameters.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from fedsgd.data import Examples
from fedsgd.numerics import rng
from fedsgd.numerics.arrays import F32, I64
from fedsgd.optim import Optimizer, ScaledStep
from fedsgd.training.evaluation_result import EvaluationResult

if TYPE_CHECKING:
    from torch import Tensor

    from fedsgd.optim.base import Buffers


EngineName = Literal["auto", "sequential", "captured", "stacked"]
UpdateMode = Literal["exact", "fused"]
LastBatch = Literal["keep", "drop", "merge"]
"""Use of the examples that do not fill a last batch: see `LocalTraining`."""


@dataclass(frozen=True)
class BatchPlan:
    """Batches of one pass over a client's examples.

    Attributes:
        size: examples in each batch but the last.
        full: number of batches of `size` examples.
        last: examples in the batch after these, 0 if there is none; never equal to `size`.
    """

    size: int
    n_full: int
    last_size: int

    @property
    def n_batches(self) -> int:
        """Number of batches, which is the number of steps in a pass."""
        return self.n_full + (self.last_size > 0)

    @property
    def n_examples(self) -> int:
        """Number of examples in all batches together."""
        return self.n_full * self.size + self.last_size

    @property
    def batch_sizes(self) -> list[int]:
        """Number of examples in each batch, in order."""
        return [self.size] * self.n_full + [self.last_size] * (self.last_size > 0)

    def locate_batch(self, step: int) -> slice:
        """Return the places of batch `step`, from 0, in the order of the pass."""
        return slice(step * self.size, (step + 1) * self.size if step < self.n_full else self.n_examples)


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains in one round: `epochs` passes or `n_steps` steps (the other is None) of batches of `batch_size`
    (None: all its examples at once). FedSGD is one step a round.

    last_batch: use of the examples of a pass that do not fill a last batch. "keep": a smaller batch; "drop": no batch, as with
    PyTorch's DataLoader(drop_last=True); "merge": they join the batch before. Examples that fill no batch at all are the only
    batch in all three. An update is weighted by all examples of its client in all three.

    proximal: μ of FedProx (Li et al. 2020, equation 2): μ(w − w_received) is added to each gradient, before it is clipped.
    carry: a client's optimiser goes on with the buffers that it had after the client's last round; else they start at zero in
    each round. corrected: each client has a vector that is added to its gradients, see `TrainingJob`.
    """

    optimizer: Optimizer
    epochs: int | None
    steps: int | None
    batch_size: int | None
    proximal: float = 0.0
    keep_optimizer_state: bool = False
    uses_correction: bool = False
    last_batch: LastBatch = "keep"

    def plan_batches(self, n: int) -> BatchPlan:
        """Return the batches of one pass over n examples. Every count of steps, batches and examples follows from it."""
        size = n if self.batch_size is None else min(self.batch_size, n)
        full, rest = divmod(n, size) if size else (0, 0)
        if not rest or self.last_batch == "drop":
            return BatchPlan(size, full, 0)
        return BatchPlan(size, full, rest) if self.last_batch == "keep" else BatchPlan(size, full - 1, size + rest)

    def n_steps(self, n: int) -> int:
        """The number of steps that a client of n examples makes in a round."""
        if n == 0:
            return 0
        return self.plan_batches(n).n_batches * (self.epochs or 0) if self.steps is None else self.steps

    def n_examples_processed(self, n: int) -> int:
        """The number of examples that these steps take in, each counted as often as it is in a batch."""
        plan = self.plan_batches(n)
        passes, rest = divmod(self.n_steps(n), max(plan.n_batches, 1))
        return passes * plan.n_examples + rest * plan.size

    def local_step(
        self,
        w: Tensor,
        received_weights: Tensor,
        g: Tensor,
        buffers: Buffers,
        schedule_time: tuple[int, int, int],
        correction: Tensor | None = None,
        unused_slices: Sequence[slice] = (),
    ) -> ScaledStep:
        """The step at w [P] for a batch's gradient g [P], which it may write to; start: the received model [P]; at: (round,
        step, steps of this client in the round), from 1; correction: what is added to g [P]. In this order: proximal term,
        correction, clipping, weight decay, the rule.

        unused: stretches of the parameters that the batch does not use. As in torch, which skips a parameter without a
        gradient, they and their buffers stay as they are, unless the proximal term or a correction gives them a gradient.
        """
        if self.proximal:
            g.add_(w - received_weights, alpha=self.proximal)
        if correction is not None:
            g.add_(correction)
        rate = self.optimizer.learning_rate(*schedule_time)
        if not unused_slices or not self.skips_unused_parameters:
            return self.optimizer.step(w, g, buffers, rate)
        kept = [(value[where], value[where].clone()) for value in buffers.values() for where in unused_slices]
        direction, alpha = self.optimizer.step(w, g, buffers, rate)
        direction = direction.clone()  # it may be one of the buffers
        for where in unused_slices:
            direction[where] = 0
        for stretch, value in kept:
            stretch.copy_(value)
        return ScaledStep(direction, alpha)

    @property
    def skips_unused_parameters(self) -> bool:
        """True if a parameter that a batch does not use stays as it is; a proximal term or a correction reaches all of them."""
        return not self.proximal and not self.uses_correction

    def fednova_normalizer(self, n_examples: int, round: int) -> float:
        """By how much a constant gradient of one moves each coordinate of a client of so many examples in this round, against
        the gradient: FedNova's ‖a_i‖₁ with the step sizes in it (Wang et al. 2020, "Tackling the objective inconsistency
        problem", section 4). Schedule, momentum and proximal term count; buffers start at zero; clipping, correction and
        weight decay are left out. τη for τ steps of SGD; 0 without examples."""
        return _fednova_normalizer(self, self.n_steps(n_examples), round)

    def learning_rate_sum(self, n_examples: int, round: int) -> float:
        """The sum of the step sizes η over the steps of a client of so many examples in this round: SCAFFOLD's Kη (Karimireddy
        et al. 2020, algorithm 1)."""
        n_steps = self.n_steps(n_examples)
        return float(sum(self.optimizer.learning_rate(round, step, n_steps) for step in range(1, n_steps + 1)))


@functools.lru_cache(4096)
def _fednova_normalizer(local_training: LocalTraining, n_steps: int, round: int) -> float:
    """`LocalTraining.fednova_normalizer`, by its own recurrence on one number."""
    import torch

    plain = replace(local_training, optimizer=replace(local_training.optimizer, clip_norm=None, weight_decay=0.0))
    start = torch.zeros(1, dtype=torch.float64)
    w, buffers = start.clone(), local_training.optimizer.init(start)
    with torch.no_grad():
        for step in range(1, n_steps + 1):
            direction, alpha = plain.local_step(w, start, torch.ones_like(w), buffers, (round, step, n_steps))
            w.add_(direction, alpha=alpha)
    return -float(w)


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """One client's task in one round. Nothing that it has is written to.

    weights: the decoded model [P]. memory: what the optimiser begins with if the recipe says `keep_optimizer_state`, by the
    names that
    `Optimizer.init` gives, each [P]; what is absent is zero. correction: what is added to the gradient of each batch [P] if the
    recipe says `uses_correction`, SCAFFOLD's c − c_i (Karimireddy et al. 2020, algorithm 1); None: zero. buffers: batch norm's
    running statistics before training [S], as `LearningTask.module_buffers` describes them; None: as the module was made.
    """

    seed: int
    round: int
    client: int
    weights: F32
    examples: Examples
    optimizer_state: Mapping[str, F32] = field(default_factory=dict)
    correction: F32 | None = None
    buffers: F32 | None = None


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What a client's training gave. update: w_local − w_received [P], or the step itself if it was the only one.

    (w + s) − w is not s in floating point, so a one-step client hands over s. memory: if the recipe says
    `keep_optimizer_state`, the
    optimiser's buffers after the last step, each [P], in memory of their own; else nothing. buffers: batch norm's running
    statistics after training [S]; None if the task has none.
    """

    client: int
    update: F32
    n_examples: int
    n_steps: int
    optimizer_state: Mapping[str, F32] = field(default_factory=dict)
    buffers: F32 | None = None


def explain_restart(label: str) -> str:
    """Return the sentence about Python state that training changes and that clients do not carry."""
    return f"training changes {label} in Python, which begins as it was made at each client; keep it in a buffer to carry it on"


class NotCapturableError(Exception):
    """Why an engine cannot train a task. Nobody's mistake: another engine can."""


class TrainingEngine(Protocol):
    """Laws: each result depends on its own Work alone, and the evaluation of each slice on that slice; torch's thread count and
    global generator are left as they were.

    together: how many works it likes to be given at once.

    What a module, or a loss that is one, keeps in its buffers is put back after each client; batch norm's running statistics,
    if the task has them, come with each Work and go with its result. What a module keeps in Python attributes that its forward
    changes is its own: such a module has no place in a federation, where clients do not share memory.
    """

    preferred_batch_of_clients: int

    @abstractmethod
    def train(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        """A result for each of `jobs`, in any order."""

    @abstractmethod
    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> EvaluationResult:
        """The loss and the metrics of the model with these weights [P] and running statistics [S] (None: as it was made)."""


def initial_training_state(job: TrainingJob, local_training: LocalTraining) -> tuple[Mapping[str, F32], F32 | None]:
    """What a client begins with besides the model: (the optimiser's buffers, what is added to each gradient [P], None if that
    is nothing for all clients).

    A zero in a correction becomes −0: to add that changes nothing, not even the sign of a zero.
    """
    memory: Mapping[str, F32] = job.optimizer_state if local_training.keep_optimizer_state else {}
    if not local_training.uses_correction:
        return memory, None
    correction = np.zeros_like(job.weights) if job.correction is None else job.correction
    return memory, np.negative(0 - correction)


def epochs(job: TrainingJob, local_training: LocalTraining) -> Iterator[tuple[I64, int]]:
    """(the order of the pass's examples [`BatchPlan.n_examples`], the number of steps) of each pass; every pass has an order of
    its own, the last may stop early.

    Full batches are in the order of the data, so that they add up the same in every round.
    """
    n, left, epoch = len(job.examples), local_training.n_steps(len(job.examples)), 0
    plan = local_training.plan_batches(n)
    while left:
        if plan.n_batches == 1 and plan.n_examples == n:
            order = np.arange(n, dtype=np.int64)
        else:
            order = rng.derive_generator(job.seed, "batches", job.round, job.client, epoch).permutation(n)[: plan.n_examples]
        n_steps = min(left, plan.n_batches)
        yield order, n_steps
        left -= n_steps
        epoch += 1


def batches(job: TrainingJob, local_training: LocalTraining) -> Iterator[I64]:
    """The examples of each step, as `LocalTraining.plan_batches` divides a pass."""
    plan = local_training.plan_batches(len(job.examples))
    for order, n_steps in epochs(job, local_training):
        for step in range(n_steps):
            yield order[plan.locate_batch(step)]


def distinct_batch_sizes(n: int, local_training: LocalTraining) -> list[int]:
    """The sizes of the batches that a client of n examples makes in a round."""
    plan, n_steps = local_training.plan_batches(n), local_training.n_steps(n)
    full = [plan.size] if n_steps and plan.n_full else []
    return [*full, plan.last_size] if plan.last_size and n_steps > plan.n_full else full
