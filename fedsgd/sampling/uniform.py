"""Every cohort as likely as any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsgd.numerics.rng import derive_generator
from fedsgd.sampling.base import CohortSampler, SampledCohort, Sampler, SamplingPool, check_cohort_size


@dataclass(frozen=True)
class Uniform(Sampler):
    """The same chance for every client: m distinct ones, uniformly.

    FedAvg's sampling (McMahan et al. 2017, algorithm 1). numpy's `choice` is Floyd's algorithm, O(m), up to N = 10 000 clients
    and wherever m ≤ N/50. Beyond that it shuffles the end of a list of all N, which are then less than 50 m: O(m) again.
    """

    name: ClassVar[str] = "uniform"

    def bind(self, pool: SamplingPool) -> CohortSampler:
        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            check_cohort_size(cohort_size, pool.clients)
            chosen = derive_generator(pool.seed, "cohort", round).choice(pool.clients, size=cohort_size, replace=False)
            return SampledCohort(tuple(sorted(chosen.tolist())))

        return sample_cohort
