"""Sampling of clients in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.sampling.base import CohortSampler, SampledCohort, Sampler, SamplingPool, check_cohort_size, shuffle_clients


@dataclass(frozen=True)
class Cyclic(Sampler):
    """Sampling in turn: each round has the next m clients of an order that is shuffled once and repeats from its start.

    This is cyclic participation (Eichner et al. 2019; Cho et al. 2023). With the same m in all rounds, the
    numbers of rounds in which two clients take part differ by at most one.
    """

    name: ClassVar[str] = "cyclic"

    def bind(self, pool: SamplingPool) -> CohortSampler:
        order = shuffle_clients(pool)

        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            check_cohort_size(cohort_size, pool.clients)
            start = (round - 1) * cohort_size % pool.clients
            return SampledCohort(tuple(sorted(order[(start + np.arange(cohort_size)) % pool.clients].tolist())))

        return sample_cohort
