"""Sampling with equal probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsgd.numerics.rng import derive_generator
from fedsgd.sampling.base import CohortSampler, SampledCohort, Sampler, SamplingPool, check_cohort_size


@dataclass(frozen=True)
class Uniform(Sampler):
    """Uniform sampling of m distinct clients: every cohort has the same probability.

    This is the sampling of FedAvg (McMahan et al. 2017, algorithm 1). Every inclusion probability is m / N, so the mean needs
    no correction. A draw takes O(m): numpy's `choice` uses Floyd's algorithm if N ≤ 10 000 or m ≤ N/50. Otherwise `choice`
    shuffles the end of a list of all N < 50 m clients.
    """

    name: ClassVar[str] = "uniform"

    def bind(self, pool: SamplingPool) -> CohortSampler:
        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            check_cohort_size(cohort_size, pool.clients)
            clients = derive_generator(pool.seed, "cohort", round).choice(pool.clients, size=cohort_size, replace=False)
            return SampledCohort(tuple(sorted(clients.tolist())))

        return sample_cohort
