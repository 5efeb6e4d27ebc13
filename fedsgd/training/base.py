"""Protocol of training engines, settings of local training, and the jobs and results of clients."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from fedsgd.config.user_errors import wrap_user_errors
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
"""Use of the examples that do not fill a batch: see `LocalTraining`."""


@dataclass(frozen=True)
class BatchPlan:
    """Batches of one pass over a client's examples: `n_full` batches of `size` examples, then one of `last_size`, if not 0."""

    size: int
    n_full: int
    last_size: int

    @property
    def n_batches(self) -> int:
        """Number of batches, and of steps, in a pass."""
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
        """Return the positions of a step's batch in the order of the pass; steps are counted from 0."""
        return slice(step * self.size, (step + 1) * self.size if step < self.n_full else self.n_examples)


@dataclass(frozen=True)
class LocalTraining:
    """Settings of a client's training in one round. FedSGD is one step a round on all examples.

        >>> from fedsgd.optim import SGD
        >>> local_training = LocalTraining(SGD(), epochs=2, steps=None, batch_size=10, last_batch="merge")
        >>> local_training.plan_batches(25).batch_sizes, local_training.n_steps(25)
        ([10, 15], 4)

    Attributes:
        optimizer: optimizer of the local steps.
        epochs, steps: number of local epochs, or of local steps; one of the two is None.
        batch_size: examples in a batch; None: all examples of the client.
        proximal: μ of FedProx (Li et al. 2020, equation 2): μ(w − w_received) is added to each gradient before clipping.
        keep_optimizer_state: start with the optimizer's buffers of the client's last round; else with the initial buffers.
        uses_correction: add a vector of the client to each gradient: see `TrainingJob`.
        last_batch: use of the examples that do not fill a last batch. "keep": a smaller batch; "drop": none, as with PyTorch's
            DataLoader(drop_last=True); "merge": add them to the batch before. In each case, a client with fewer examples than
            `batch_size` has one batch of all its examples, and all of a client's examples count in its aggregation weight.
        work: epochs (or steps, if `steps` is set) that a straggler makes, from 1; None: all. Schedules count all steps.
    """

    optimizer: Optimizer
    epochs: int | None
    steps: int | None
    batch_size: int | None
    proximal: float = 0.0
    keep_optimizer_state: bool = False
    uses_correction: bool = False
    last_batch: LastBatch = "keep"
    work: int | None = None

    @property
    def full_work(self) -> int:
        """Number of epochs, or of steps, of a client that is no straggler."""
        work = self.epochs if self.steps is None else self.steps
        return work or 0

    def with_work(self, work: int | None) -> LocalTraining:
        """Return the settings of a straggler that makes `work` epochs or steps; None: the settings of other clients."""
        return self if work == self.work else replace(self, work=work)

    def plan_batches(self, n: int) -> BatchPlan:
        """Return the batches of one pass over n examples, from which all counts of steps, batches and examples follow."""
        size = n if self.batch_size is None else min(self.batch_size, n)
        n_full, n_rest = divmod(n, size) if size else (0, 0)
        if not n_rest or self.last_batch == "drop":
            return BatchPlan(size, n_full, 0)
        return BatchPlan(size, n_full, n_rest) if self.last_batch == "keep" else BatchPlan(size, n_full - 1, size + n_rest)

    def n_steps(self, n: int) -> int:
        """Return the number of local steps in a round of a client with n examples."""
        return self._n_steps(n, self.plan_batches(n))

    def _n_steps(self, n: int, plan: BatchPlan) -> int:
        work = self.full_work if self.work is None else self.work
        return 0 if n == 0 else plan.n_batches * work if self.steps is None else work

    def n_scheduled_steps(self, n: int) -> int:
        """Return the number of local steps in a round of a client with n examples that is no straggler.

        A schedule over "steps" counts these steps, so that a straggler's learning rate is that of all other clients.
        """
        return self.with_work(None).n_steps(n)

    def n_examples_processed(self, n: int) -> int:
        """Return the number of examples in the batches of `n_steps(n)` steps, repetitions included."""
        plan = self.plan_batches(n)
        n_passes, n_rest = divmod(self._n_steps(n, plan), max(plan.n_batches, 1))
        return n_passes * plan.n_examples + n_rest * plan.size

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
        """Return the step at w: proximal term, correction, clipping, weight decay and the optimizer's rule, in this order.

        All vectors are [P] float32. The gradient g is overwritten, and the optimizer's buffers are updated in place.
        `schedule_time` is the round and the local step, from 1, and the client's `n_scheduled_steps`.
        `unused_slices` has the parameters that the batch does not use. If `skips_unused_parameters`, these parameters and their
        buffers do not change, as torch skips parameters without a gradient.
        """
        if self.proximal:
            g.add_(w - received_weights, alpha=self.proximal)
        if correction is not None:
            g.add_(correction)
        skipped_slices = unused_slices if self.skips_unused_parameters else ()
        copies = [(buffer[unused], buffer[unused].clone()) for buffer in buffers.values() for unused in skipped_slices]
        try:
            rate = self.optimizer.learning_rate(*schedule_time)
            step = self.optimizer.step(w, g, buffers, rate)
        except Exception:  # of a user's optimizer; a `with` block around each step would cost a microsecond
            with wrap_user_errors("client.optimizer", self.optimizer):
                raise
        if not skipped_slices:
            return step
        direction = step.direction.clone()  # may be one of the buffers
        for unused in skipped_slices:
            direction[unused] = 0
        for segment, copy in copies:
            segment.copy_(copy)
        return ScaledStep(direction, step.alpha, step.decay, skipped_slices)

    @property
    def skips_unused_parameters(self) -> bool:
        """True if steps do not change parameters that the batch does not use: no proximal term and no correction."""
        return not self.proximal and not self.uses_correction

    def initial_optimizer_state(self, size: int) -> dict[str, F32]:
        """Return the optimizer's initial buffers, each [size], if clients keep them between rounds; otherwise none."""
        import torch

        buffers = self.optimizer.init(torch.zeros(size)) if self.keep_optimizer_state else {}
        return {name: value.numpy() for name, value in buffers.items()}

    def fednova_normalizer(self, n_examples: int, round: int) -> float:
        """Return FedNova's ‖a_i‖₁ with learning rates: the distance by which a constant gradient of one moves a coordinate.

        Reference: Wang et al. 2020, "Tackling the objective inconsistency problem", section 4. τ steps of SGD at constant η
        give τη, no steps give 0. Schedule, momentum (from 0) and proximal term count. Clipping, correction and decay do not.
        Steps of Adam do not depend on the gradient's scale: τ of them give τη too.
        """
        return _fednova_normalizer(self, self.n_steps(n_examples), self.n_scheduled_steps(n_examples), round)

    def learning_rate_sum(self, n_examples: int, round: int) -> float:
        """Return the sum of η over a client's local steps: SCAFFOLD's Kη (Karimireddy et al. 2020, algorithm 1)."""
        n_steps, n_scheduled_steps = self.n_steps(n_examples), self.n_scheduled_steps(n_examples)
        return float(sum(self.optimizer.learning_rate(round, step, n_scheduled_steps) for step in range(1, n_steps + 1)))


@functools.lru_cache(4096)
def _fednova_normalizer(local_training: LocalTraining, n_steps: int, n_scheduled_steps: int, round: int) -> float:
    """Run the optimizer's steps on one coordinate with gradient one; see `LocalTraining.fednova_normalizer`."""
    import torch

    plain_training = replace(local_training, optimizer=replace(local_training.optimizer, clip_norm=None, weight_decay=0.0))
    start = torch.zeros(1, dtype=torch.float64)
    w, buffers = start.clone(), local_training.optimizer.init(start)
    with torch.no_grad():
        for step in range(1, n_steps + 1):
            plain_training.local_step(w, start, torch.ones_like(w), buffers, (round, step, n_scheduled_steps)).add_to(w)
    return -float(w)


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """Training of one client in one round. Engines write to none of its arrays.

    Attributes:
        seed, round, client: seed of the run, round from 1, client from 0; the batches depend on them.
        weights: [P] float32, decoded model.
        examples: training examples of the client.
        optimizer_state: the optimizer's initial buffers under `keep_optimizer_state`, by the names of `Optimizer.init`, each
            [P] float32; absent buffers have the values of `Optimizer.init`.
        correction: [P] float32, added to each gradient under `uses_correction`: SCAFFOLD's c − c_i (Karimireddy et al. 2020,
            algorithm 1); None: zero.
        buffers: [S] float32, values of `LearningTask.buffers` before training; None: their initial values.
        work: epochs or steps of a straggler, as `LocalTraining.work`; None: all.
    """

    seed: int
    round: int
    client: int
    weights: F32
    examples: Examples
    optimizer_state: Mapping[str, F32] = field(default_factory=dict)
    correction: F32 | None = None
    buffers: F32 | None = None
    work: int | None = None


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """Result of a client's training.

    Attributes:
        client: client of the job.
        n_examples, n_steps: examples of the client; local steps.
        update: [P] float32, w_local − w_received. A client with one step s returns s itself, since (w + s) − w is rounded. A
            tensor of the engine's device in place of an array, if the engine keeps updates there.
        optimizer_state: the optimizer's last buffers, each a [P] array of its own, under `keep_optimizer_state`; else empty.
        buffers: [S] float32, values of `LearningTask.buffers` after training; None if the task has no such buffers.
    """

    client: int
    update: F32
    n_examples: int
    n_steps: int
    optimizer_state: Mapping[str, F32] = field(default_factory=dict)
    buffers: F32 | None = None


def explain_restart(label: str) -> str:
    """Return the message about a Python attribute that training changes and that clients do not send."""
    return f"training changes {label} in Python, which is reset for each client; use a buffer to keep its value between rounds"


class NotCapturableError(Exception):
    """Error of an engine that cannot train a task, with the reason; another engine may be able to train it."""


class TrainingEngine(Protocol):
    """Implementation of local training and of evaluation.

    Laws: each training result depends only on the job, and the evaluation of a slice only on the model and the slice. Torch's
    thread count and global generators are restored. Each client starts with the initial buffers and Python attributes of module
    and loss. Values of `LearningTask.buffers` come with the job instead, and are returned with the result.

    Attributes:
        preferred_batch_of_clients: number of jobs that one call of `train` should have.
    """

    preferred_batch_of_clients: int

    @abstractmethod
    def train(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        """Yield a result for each job, in any order.

        Args:
            jobs: jobs of one call; they may have the same client or different rounds.
        """

    @abstractmethod
    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> EvaluationResult:
        """Return the loss and the metrics of a model.

        Args:
            weights: [P] float32, parameters.
            examples: examples to evaluate on.
            buffers: [S] float32, values of `LearningTask.buffers`; None: their initial values.
        """


def initial_training_state(job: TrainingJob, local_training: LocalTraining) -> tuple[Mapping[str, F32], F32 | None]:
    """Return the optimizer's initial buffers, and the correction [P], or None if the run has no corrections.

    Zeros in a correction become −0, because adding −0 changes no number, not even the sign of a zero.
    """
    optimizer_state: Mapping[str, F32] = job.optimizer_state if local_training.keep_optimizer_state else {}
    if not local_training.uses_correction:
        return optimizer_state, None
    correction = np.zeros_like(job.weights) if job.correction is None else job.correction
    return optimizer_state, np.negative(0 - correction)


def epochs(job: TrainingJob, local_training: LocalTraining) -> Iterator[tuple[I64, int]]:
    """Yield for each pass the order of the examples, [`BatchPlan.n_examples`], and the number of steps.

    Each pass has its own random order; the last pass may have fewer steps. A batch of all examples keeps the order of the
    data, so that sums over the batch round alike in every round.
    """
    n, remaining, epoch = len(job.examples), local_training.with_work(job.work).n_steps(len(job.examples)), 0
    plan = local_training.plan_batches(n)
    while remaining:
        if plan.n_batches == 1 and plan.n_examples == n:
            order = np.arange(n, dtype=np.int64)
        else:
            order = rng.derive_generator(job.seed, "batches", job.round, job.client, epoch).permutation(n)[: plan.n_examples]
        n_steps = min(remaining, plan.n_batches)
        yield order, n_steps
        remaining -= n_steps
        epoch += 1


def batches(job: TrainingJob, local_training: LocalTraining) -> Iterator[I64]:
    """Yield the indices of each step's examples, as `LocalTraining.plan_batches` divides a pass."""
    plan = local_training.plan_batches(len(job.examples))
    for order, n_steps in epochs(job, local_training):
        for step in range(n_steps):
            yield order[plan.locate_batch(step)]


def distinct_batch_sizes(n: int, local_training: LocalTraining) -> list[int]:
    """Return the distinct batch sizes of a client with n examples in a round."""
    plan, n_steps = local_training.plan_batches(n), local_training.n_steps(n)
    full_sizes = [plan.size] if n_steps and plan.n_full else []
    return [*full_sizes, plan.last_size] if plan.last_size and n_steps > plan.n_full else full_sizes
