"""Faulty components of a user, with the law that must reject each of them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fedsgd.aggregation import AggregationContext, Aggregator, WeightedMean, WeightedUpdate, weighted_sum
from fedsgd.aggregation.base import AcceptedWeights, AggregationResult
from fedsgd.aggregation.blocks import CohortAggregator, DecodedCohort
from fedsgd.aggregation.coordinate_wise import Median
from fedsgd.compression import StateArrays
from fedsgd.config.component import Component
from fedsgd.data import Examples, Partitioner
from fedsgd.errors import WireError
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import derive_generator
from fedsgd.optim import SGD, Momentum, PyTorchMomentum, ScaledStep, Schedule
from fedsgd.sampling import CohortSampler, DurationModel, SampledCohort, Sampler, SamplingPool
from fedsgd.sampling.client_durations import LogNormalDurations
from fedsgd.sampling.uniform import Uniform

if TYPE_CHECKING:
    from torch import Tensor

    from fedsgd.optim.base import Buffers

# -------------------------------------------------------------------------------------------------------------------- all families


@dataclass(frozen=True)
class NamelessSchedule(Schedule):
    def factor(self, t: int) -> float:
        return 1.0


class UndecoratedSchedule(NamelessSchedule):
    """No dataclass of its own."""

    name: ClassVar[str] = "undecorated"


@dataclass(frozen=True)
class ShiftingSetting(Schedule):
    """The stored setting differs from the argument, so that each copy differs from the original."""

    name: ClassVar[str] = "shifting"
    length: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", self.length + 1)

    def factor(self, t: int) -> float:
        return 1.0


# ------------------------------------------------------------------------------------------------------------------ aggregators


@dataclass(frozen=True)
class FirstClientsMean(Aggregator):
    """Mean of the first five updates only."""

    name: ClassVar[str] = "first-clients"
    accepted_weights: ClassVar[AcceptedWeights] = "equal"

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        total, n = np.zeros(ctx.layout.size), 0
        for update in updates:
            decoded = ctx.decode(update)
            if n < 5:
                decoded.add_to(total, 1.0)
                n += 1
        return (total / n).astype(np.float32), state


@dataclass(frozen=True)
class SumOfUpdates(Aggregator):
    """Sum without weights."""

    name: ClassVar[str] = "sum"

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        total = np.zeros(ctx.layout.size)
        for update in updates:
            ctx.decode(update).add_to(total, 1.0)
        return total.astype(np.float32), state


@dataclass(frozen=True)
class BoastfulMean(WeightedMean):
    """Weighted mean that claims to tolerate a hostile client."""

    name: ClassVar[str] = "boastful"

    def tolerated(self, n_updates: int) -> int:
        return 1


@dataclass(frozen=True)
class Float64Mean(Aggregator):
    """Aggregate in float64."""

    name: ClassVar[str] = "float64"

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        return weighted_sum(updates, ctx), state  # type: ignore[return-value]


@dataclass(frozen=True)
class NormalizedMean(Aggregator):
    """Mean scaled to the norm 1, which divides zero by zero if all updates are zero."""

    name: ClassVar[str] = "normalized"

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        total = weighted_sum(updates, ctx)
        return (total / np.linalg.norm(total)).astype(np.float32), state


@dataclass(frozen=True)
class InPlaceMomentum(Aggregator):
    """Server momentum that is added up in the state of the last round."""

    name: ClassVar[str] = "in-place"

    def init_state(self, layout: ParameterLayout) -> StateArrays:
        return {"momentum": np.zeros(layout.size)}

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        momentum: Any = state["momentum"]
        momentum *= 0.5
        momentum += weighted_sum(updates, ctx)
        return momentum.astype(np.float32), {"momentum": momentum}


_CALLS: list[int] = []


@dataclass(frozen=True)
class CountingMean(Aggregator):
    """Mean whose factor depends on the number of calls in the process."""

    name: ClassVar[str] = "counting"

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        _CALLS.append(ctx.round)
        return (weighted_sum(updates, ctx) * (1 + 1 / len(_CALLS))).astype(np.float32), state


@dataclass(frozen=True)
class TolerantMean(Aggregator):
    """Mean that skips malformed updates, so that nobody learns of the client's fault."""

    name: ClassVar[str] = "tolerant"

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        total = np.zeros(ctx.layout.size)
        for update in updates:
            try:
                ctx.decode(update).add_to(total, update.weight)
            except WireError:
                continue
        return total.astype(np.float32), state


@dataclass(frozen=True)
class LateMean(Aggregator):
    """Mean that reads all updates before it decodes the first, so that the error names the last client."""

    name: ClassVar[str] = "late"

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        return weighted_sum(list(updates), ctx).astype(np.float32), state


@dataclass(frozen=True)
class GreedyMean(Aggregator):
    """Mean that stores all decoded updates without stating their memory."""

    name: ClassVar[str] = "greedy"
    accepted_weights: ClassVar[AcceptedWeights] = "equal"

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        vectors = np.array([ctx.decode(update).to_dense() for update in updates])
        return vectors.mean(axis=0), state


@dataclass(frozen=True)
class BlockwiseClipping(CohortAggregator):
    """Mean of the values of a block, clipped at the block's largest value instead of the cohort's."""

    name: ClassVar[str] = "blockwise"
    accepted_weights: ClassVar[AcceptedWeights] = "equal"

    def aggregate_cohort(self, state: StateArrays, cohort: DecodedCohort) -> AggregationResult:
        out = np.zeros(cohort.size, dtype=np.float32)
        for block in cohort.blocks():
            row_norms = np.linalg.norm(block.values, axis=1, keepdims=True)
            factors = np.minimum(1, np.median(row_norms) / np.maximum(row_norms, 1e-30))
            out[block.positions] = (factors * block.values).mean(axis=0)
        return out, state


@dataclass(frozen=True)
class NoisyMedian(Median):
    """Median with noise from the global generator."""

    name: ClassVar[str] = "noisy"

    def aggregate_cohort(self, state: StateArrays, cohort: DecodedCohort) -> AggregationResult:
        vector, state = super().aggregate_cohort(state, cohort)
        return vector + np.float32(1e-9 * random.random()), state


@dataclass(frozen=True)
class FailingMean(Aggregator):
    """Mean that reads a state which no round has written."""

    name: ClassVar[str] = "failing"

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        return weighted_sum(updates, ctx).astype(np.float32) + state["momentum"].astype(np.float32), state


AGGREGATORS: tuple[tuple[Component, str], ...] = (
    (FirstClientsMean(), "exchanged_clients"),
    (SumOfUpdates(), "equal_updates"),
    (BoastfulMean(), "breakdown"),
    (Float64Mean(), "valid_aggregate"),
    (NormalizedMean(), "valid_aggregate"),
    (InPlaceMomentum(), "unchanged_arguments"),
    (CountingMean(), "repeated_call"),
    (TolerantMean(), "malformed_update"),
    (LateMean(), "malformed_update"),
    (GreedyMean(), "working_memory"),
    (BlockwiseClipping(), "coordinate_blocks"),
    (NoisyMedian(), "global_generators"),
    (FailingMean(), "valid_aggregate"),
)

# ----------------------------------------------------------------------------------------------------------------- partitioners


@dataclass(frozen=True)
class OffByOne(Partitioner):
    """Clients from 1 to N."""

    name: ClassVar[str] = "off-by-one"

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> np.ndarray:
        return 1 + rng.integers(0, self.clients or 1, len(examples))


@dataclass(frozen=True)
class FloatClients(Partitioner):
    """Clients as floats."""

    name: ClassVar[str] = "floats"

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> np.ndarray:
        return np.floor(rng.random(len(examples)) * (self.clients or 1))


@dataclass(frozen=True)
class EqualParts(Partitioner):
    """Parts of equal size; the rest of the examples has no client."""

    name: ClassVar[str] = "equal-parts"

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> np.ndarray:
        clients = self.clients or 1
        size = len(examples) // clients
        assignment = np.full(len(examples), -1)
        assignment[rng.permutation(len(examples))[: size * clients]] = np.repeat(np.arange(clients), size)
        return assignment


@dataclass(frozen=True)
class OwnGenerator(Partitioner):
    """Clients from a generator that continues in each call."""

    name: ClassVar[str] = "own-generator"
    generator: ClassVar[np.random.Generator] = derive_generator(0, "tests")

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> np.ndarray:
        return self.generator.integers(0, self.clients or 1, len(examples))


@dataclass(frozen=True)
class GlobalShuffle(Partitioner):
    """Clients from numpy's global generator, which is seeded and restored."""

    name: ClassVar[str] = "global-shuffle"

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> np.ndarray:
        state = np.random.get_state()
        np.random.seed(int(rng.integers(2**31)))
        assignment = np.random.randint(0, self.clients or 1, len(examples))
        np.random.set_state(state)
        return assignment


@dataclass(frozen=True)
class SortingPartitioner(Partitioner):
    """Shards of examples that are sorted by label in the dataset itself."""

    name: ClassVar[str] = "sorting"

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> np.ndarray:
        examples.y.sort()
        return rng.permutation(len(examples)) % (self.clients or 1)


@dataclass(frozen=True)
class CountedLabels(Partitioner):
    """Clients by label with `bincount`, which fails for the label −100."""

    name: ClassVar[str] = "counted-labels"

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> np.ndarray:
        assert len(np.bincount(examples.y)) > 0
        return rng.permutation(len(examples)) % (self.clients or 1)


@dataclass(frozen=True)
class TenClasses(Partitioner):
    """Clients by the probability of ten classes, without DataError for data of fewer."""

    name: ClassVar[str] = "ten-classes"

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> np.ndarray:
        first_examples = [np.flatnonzero(examples.y == label)[0] for label in range(10)]
        assignment = rng.integers(0, self.clients or 1, len(examples))
        assignment[first_examples] = np.arange(10) % (self.clients or 1)
        return assignment


PARTITIONERS: tuple[tuple[Component, str], ...] = (
    (OffByOne(clients=7), "valid_partition"),
    (FloatClients(clients=7), "valid_partition"),
    (EqualParts(clients=7), "covered_examples"),
    (OwnGenerator(clients=7), "equal_partitions"),
    (GlobalShuffle(clients=7), "global_generators"),
    (SortingPartitioner(clients=7), "unchanged_arguments"),
    (CountedLabels(clients=7), "any_targets"),
    (TenClasses(clients=7), "smallest_dataset"),
)

# -------------------------------------------------------------------------------------------------------------------- samplers


@dataclass(frozen=True)
class WithReplacement(Sampler):
    """Clients drawn with replacement."""

    name: ClassVar[str] = "with-replacement"

    def bind(self, pool: SamplingPool) -> CohortSampler:
        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            if not 0 <= cohort_size <= pool.clients:
                raise ValueError(cohort_size)
            clients = derive_generator(pool.seed, "cohort", round).integers(0, pool.clients, cohort_size)
            return SampledCohort(tuple(sorted(clients.tolist())))

        return sample_cohort


@dataclass(frozen=True)
class HalfCohort(Uniform):
    """Half of the requested clients, without always_full = False."""

    name: ClassVar[str] = "half"

    def bind(self, pool: SamplingPool) -> CohortSampler:
        sample_cohort = super().bind(pool)
        return lambda round, cohort_size: sample_cohort(round, (cohort_size + 1) // 2)


@dataclass(frozen=True)
class AnySize(Uniform):
    """Sizes outside [0, N] are cut instead of refused."""

    name: ClassVar[str] = "any-size"

    def bind(self, pool: SamplingPool) -> CohortSampler:
        sample_cohort = super().bind(pool)
        return lambda round, cohort_size: sample_cohort(round, min(max(cohort_size, 0), pool.clients))


@dataclass(frozen=True)
class ContinuingSampler(Sampler):
    """One generator for all rounds, so that a cohort depends on the earlier calls."""

    name: ClassVar[str] = "continuing"

    def bind(self, pool: SamplingPool) -> CohortSampler:
        rng = derive_generator(pool.seed, "cohort")

        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            if not 0 <= cohort_size <= pool.clients:
                raise ValueError(cohort_size)
            return SampledCohort(tuple(sorted(rng.choice(pool.clients, cohort_size, replace=False).tolist())))

        return sample_cohort


@dataclass(frozen=True)
class NaiveProportional(Sampler):
    """numpy's choice with p in proportion to examples, whose inclusion probabilities are not m · p."""

    name: ClassVar[str] = "naive"
    yields_inclusion_probabilities: ClassVar[bool] = True

    def bind(self, pool: SamplingPool) -> CohortSampler:
        shares = pool.sizes() / pool.sizes().sum()

        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            if not 0 <= cohort_size <= pool.clients:
                raise ValueError(cohort_size)
            rng = derive_generator(pool.seed, "cohort", round)
            clients = np.sort(rng.choice(pool.clients, cohort_size, replace=False, p=shares))
            return SampledCohort(tuple(clients.tolist()), np.minimum(1.0, cohort_size * shares[clients]))

        return sample_cohort


@dataclass(frozen=True)
class ShufflingSampler(Sampler):
    """A shuffle of all N clients for each cohort."""

    name: ClassVar[str] = "shuffling"

    def bind(self, pool: SamplingPool) -> CohortSampler:
        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            if not 0 <= cohort_size <= pool.clients:
                raise ValueError(cohort_size)
            order = derive_generator(pool.seed, "cohort", round).permutation(pool.clients)
            return SampledCohort(tuple(sorted(order[:cohort_size].tolist())))

        return sample_cohort


@dataclass(frozen=True)
class SortedSizes(Uniform):
    """Sizes sorted in the array of the pool."""

    name: ClassVar[str] = "sorted-sizes"

    def bind(self, pool: SamplingPool) -> CohortSampler:
        pool.sizes().sort()
        return super().bind(pool)


@dataclass(frozen=True)
class SampleOfRandom(Sampler):
    """Clients from `random.sample`, whose generator is seeded by the round."""

    name: ClassVar[str] = "random-sample"

    def bind(self, pool: SamplingPool) -> CohortSampler:
        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            random.seed(f"{pool.seed}/{round}")
            return SampledCohort(tuple(sorted(random.sample(range(pool.clients), cohort_size))))

        return sample_cohort


SAMPLERS: tuple[tuple[Component, str], ...] = (
    (WithReplacement(), "valid_cohort"),
    (HalfCohort(), "valid_cohort"),
    (AnySize(), "refused_sizes"),
    (ContinuingSampler(), "equal_cohorts"),
    (NaiveProportional(), "inclusion_probabilities"),
    (ShufflingSampler(), "memory_of_a_draw"),
    (SortedSizes(), "unchanged_arguments"),
    (SampleOfRandom(), "global_generators"),
)

# ------------------------------------------------------------------------------------------------------------------- optimizers


@dataclass(frozen=True)
class AscendingSGD(SGD):
    """Step along the gradient."""

    name: ClassVar[str] = "ascending"

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        return ScaledStep(g, lr)


@dataclass(frozen=True)
class ConstantRateSGD(SGD):
    """Step with the setting `lr`, so that the schedule has no effect."""

    name: ClassVar[str] = "constant-rate"

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        return ScaledStep(g, -self.lr)


@dataclass(frozen=True)
class SignSGD(SGD):
    """Gradient divided by its magnitude, which is 0/0 for a gradient of zero."""

    name: ClassVar[str] = "sign-sgd"

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        return ScaledStep(g / g.abs(), -lr)


@dataclass(frozen=True)
class NormalizedSGD(SGD):
    """Gradient divided by the norm of the whole vector, which stacks and layers do not have."""

    name: ClassVar[str] = "normalized-sgd"

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        return ScaledStep(g / (g.norm() + 1e-12), -lr)


@dataclass(frozen=True)
class FlatVelocity(PyTorchMomentum):
    """Velocity that is a vector for any shape of the parameters."""

    name: ClassVar[str] = "flat-velocity"

    def init(self, w: Tensor) -> Buffers:
        return {"velocity": w.new_zeros(w.numel())}

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        velocity = buffers["velocity"].mul_(self.momentum).add_(g.reshape(-1))
        return ScaledStep(velocity.view(g.shape), -lr)


_VELOCITIES: dict[Any, Any] = {}


@dataclass(frozen=True)
class HiddenVelocity(SGD):
    """Velocity that is stored outside the buffers, and shared by all clients."""

    name: ClassVar[str] = "hidden-velocity"

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        key = g.shape, g.dtype
        _VELOCITIES[key] = g + 0.9 * _VELOCITIES.get(key, 0.0)
        return ScaledStep(_VELOCITIES[key], -lr)


@dataclass(frozen=True)
class SteppingSGD(SGD):
    """Step that is added to w here, and once more by the caller."""

    name: ClassVar[str] = "stepping"

    def step_after_clipping(self, w: Tensor, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        w.add_(g, alpha=-lr)
        return ScaledStep(g, -lr)


@dataclass(frozen=True)
class UndecayedSGD(SGD):
    """Step without weight decay."""

    name: ClassVar[str] = "undecayed"

    def step_after_clipping(self, w: Tensor, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        return self.update_rule(g, buffers, lr)


@dataclass(frozen=True)
class TwiceDecayedSGD(SGD):
    """Decoupled weight decay, and weight decay of the gradient too."""

    name: ClassVar[str] = "twice-decayed"
    decouples_weight_decay: ClassVar[bool] = True

    def step_after_clipping(self, w: Tensor, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        return super().step_after_clipping(w, g.add_(w, alpha=self.weight_decay), buffers, lr)


@dataclass(frozen=True)
class ClippedCoordinates(SGD):
    """Clipping of each coordinate instead of the norm."""

    name: ClassVar[str] = "clipped-coordinates"

    def clip(self, g: Tensor) -> None:
        if self.clip_norm is not None:
            g.clamp_(-self.clip_norm, self.clip_norm)


@dataclass(frozen=True)
class ReplacedVelocity(Momentum):
    """Velocity that replaces the buffer in the dictionary, which engines do not see."""

    name: ClassVar[str] = "replaced-velocity"

    def update_rule(self, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        buffers["velocity"] = self.momentum * buffers["velocity"] - lr * g
        return ScaledStep(buffers["velocity"], 1.0)


@dataclass(frozen=True)
class AliasedAnchor(SGD):
    """Pull to the first model, which the buffer does not copy, so that it follows w until the buffer is stored."""

    name: ClassVar[str] = "aliased-anchor"

    def init(self, w: Tensor) -> Buffers:
        return {"anchor": w}

    def step_after_clipping(self, w: Tensor, g: Tensor, buffers: Buffers, lr: float) -> ScaledStep:
        return super().step_after_clipping(w, g.add_(w - buffers["anchor"], alpha=0.1), buffers, lr)


OPTIMIZERS: tuple[tuple[Component, str], ...] = (
    (AliasedAnchor(), "server_steps"),
    (AscendingSGD(), "descent"),
    (ConstantRateSGD(), "learning_rate"),
    (SignSGD(), "zero_gradient"),
    (NormalizedSGD(), "elementwise"),
    (FlatVelocity(), "valid_step"),
    (HiddenVelocity(), "equal_steps"),
    (SteppingSGD(), "unchanged_arguments"),
    (UndecayedSGD(), "weight_decay"),
    (TwiceDecayedSGD(), "weight_decay"),
    (ClippedCoordinates(), "clipping"),
    (ReplacedVelocity(), "equal_engines"),
)

# ------------------------------------------------------------------------------------------------- schedules and duration models


@dataclass(frozen=True)
class NegativeSchedule(Schedule):
    """Factor that falls below 0."""

    name: ClassVar[str] = "negative"

    def factor(self, t: int) -> float:
        return 1 - t / 100


@dataclass(frozen=True)
class CountingSchedule(Schedule):
    """Factor of the number of calls instead of t."""

    name: ClassVar[str] = "counting-schedule"

    def factor(self, t: int) -> float:
        _CALLS.append(t)
        return 1 / len(_CALLS)


@dataclass(frozen=True)
class UnwritableSetting(Schedule):
    """Setting whose None is not its default: a file without the key is read as the default."""

    name: ClassVar[str] = "unwritable"
    limit: float | None = 1.0

    def factor(self, t: int) -> float:
        return 1.0


SCHEDULES: tuple[tuple[Component, str], ...] = (
    (UnwritableSetting(limit=None), "settings_round_trip"),
    (NegativeSchedule(), "valid_factors"),
    (CountingSchedule(), "equal_factors"),
    (NamelessSchedule(), "immutable_value"),
    (UndecoratedSchedule(), "immutable_value"),
    (ShiftingSetting(), "immutable_value"),
)


@dataclass(frozen=True)
class InfiniteDurations(LogNormalDurations):
    """Clients that never reply."""

    name: ClassVar[str] = "infinite"

    def reply_seconds(self, seed: int, round: int, client: int, steps: int) -> float:
        return float("inf") if client == 2 else super().reply_seconds(seed, round, client, steps)


@dataclass(frozen=True)
class DescendingDurations(DurationModel):
    """Durations that fall with the number of steps."""

    name: ClassVar[str] = "descending"

    def reply_seconds(self, seed: int, round: int, client: int, steps: int) -> float:
        return 1 / (1 + steps)


@dataclass(frozen=True)
class RandomDurations(DurationModel):
    """Durations from Python's global generator."""

    name: ClassVar[str] = "random-durations"

    def reply_seconds(self, seed: int, round: int, client: int, steps: int) -> float:
        return steps + 0 * random.random()


DURATIONS: tuple[tuple[Component, str], ...] = (
    (InfiniteDurations(), "valid_durations"),
    (DescendingDurations(), "ascending_durations"),
    (RandomDurations(), "global_generators"),
)
