"""Correct components of a user, of forms that no built-in component has. The laws must accept them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedsgd.aggregation import AggregationContext, Aggregator, WeightedUpdate, weighted_sum
from fedsgd.aggregation.base import AggregationResult
from fedsgd.compression import StateArrays
from fedsgd.config.component import FractionBelowOne, PositiveFloat
from fedsgd.data import Examples, Partitioner
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import derive_generator
from fedsgd.optim import Optimizer, ScaledStep, Schedule
from fedsgd.sampling import CohortSampler, DurationModel, SampledCohort, Sampler, SamplingPool

if TYPE_CHECKING:
    from torch import Tensor

    from fedsgd.optim.base import Buffers


@dataclass(frozen=True)
class ServerMomentum(Aggregator):
    """Exponential mean of the rounds' weighted means."""

    name: ClassVar[str] = "server-momentum"
    decay: FractionBelowOne = 0.5

    def init_state(self, layout: ParameterLayout) -> StateArrays:
        return {"mean": np.zeros(layout.size)}

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        mean = self.decay * state["mean"] + (1 - self.decay) * weighted_sum(updates, ctx)
        return mean.astype(np.float32), {"mean": mean}


@dataclass(frozen=True)
class PoissonSampler(Sampler):
    """Independent draws of the clients, with probabilities in proportion to examples."""

    name: ClassVar[str] = "poisson"
    always_full: ClassVar[bool] = False
    yields_inclusion_probabilities: ClassVar[bool] = True

    def bind(self, pool: SamplingPool) -> CohortSampler:
        shares = pool.sizes() / max(1, pool.sizes().sum())

        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            if not 0 <= cohort_size <= pool.clients:
                raise ValueError(f"got {cohort_size}, expected 0 to {pool.clients}")
            probabilities = np.minimum(1.0, 0.5 * cohort_size * shares)
            numbers = derive_generator(pool.seed, "cohort", round).random(pool.clients)
            cohort = np.flatnonzero(numbers < probabilities)[:cohort_size]
            return SampledCohort(tuple(cohort.tolist()), probabilities[cohort])

        return sample_cohort


@dataclass(frozen=True)
class LongestAvailable(Sampler):
    """The lowest numbers of the clients that are available in turns, in every run alike."""

    name: ClassVar[str] = "turns"
    always_full: ClassVar[bool] = False

    def bind(self, pool: SamplingPool) -> CohortSampler:
        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            if not 0 <= cohort_size <= pool.clients:
                raise ValueError(f"got {cohort_size}, expected 0 to {pool.clients}")
            return SampledCohort(tuple(range(round % 3, pool.clients, 3)[:cohort_size]))

        return sample_cohort


@dataclass(frozen=True)
class FeatureQuantiles(Partitioner):
    """Clients by the quantiles of the first input, without random numbers."""

    name: ClassVar[str] = "quantiles"
    needs_labels: ClassVar[bool] = False

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> np.ndarray:
        ranks = np.argsort(np.argsort(examples.x.reshape(len(examples), -1)[:, 0], kind="stable"), kind="stable")
        return ranks * (self.clients or 1) // len(examples)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam on clients, with bias correction by powers that are stored as tensors."""

    name: ClassVar[str] = "adam-of-powers"
    beta1: FractionBelowOne = 0.9
    beta2: FractionBelowOne = 0.99
    epsilon: PositiveFloat = 1e-6

    def init(self, w: Tensor) -> Buffers:
        zeros = {name: w.new_zeros(w.shape) for name in ("m", "v")}
        return {**zeros, **{name: w.new_ones(w.shape) for name in ("power1", "power2")}}

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        m = buffers["m"].mul_(self.beta1).add_(g, alpha=1 - self.beta1)
        v = buffers["v"].mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        power1, power2 = buffers["power1"].mul_(self.beta1), buffers["power2"].mul_(self.beta2)
        return ScaledStep((m / (1 - power1)) / ((v / (1 - power2)).sqrt() + self.epsilon), -lr)


@dataclass(frozen=True)
class Sawtooth(Schedule):
    """Factor that falls to 0 and starts again."""

    name: ClassVar[str] = "sawtooth"

    def factor(self, t: int) -> float:
        return 1 - (t - 1) % 5 / 4


@dataclass(frozen=True)
class ConstantDurations(DurationModel):
    """One second for every reply."""

    name: ClassVar[str] = "constant-durations"

    def reply_seconds(self, seed: int, round: int, client: int, steps: int) -> float:
        return 1


ACCEPTED = (
    ServerMomentum(),
    LongestAvailable(),
    FeatureQuantiles(clients=7),
    FeatureQuantiles(clients=1),
    Adam(),
    Adam(schedule=Sawtooth()),
    Sawtooth(),
    ConstantDurations(),
)
