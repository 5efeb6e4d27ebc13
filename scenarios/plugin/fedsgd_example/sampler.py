"""A sampler: clients of one time zone after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsgd.config.component import PositiveInt
from fedsgd.numerics.rng import derive_generator
from fedsgd.sampling import CohortSampler, SampledCohort, Sampler, SamplingPool


@dataclass(frozen=True)
class TimeZones(Sampler):
    """Uniform draw from the clients of one time zone, another one in each round; client i is in zone i mod `zones`.

    Attributes:
        zones: number of time zones. A cohort has fewer clients if the zone has fewer.
    """

    name: ClassVar[str] = "time-zones"
    always_full: ClassVar[bool] = False

    zones: PositiveInt = 3

    def bind(self, pool: SamplingPool) -> CohortSampler:
        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            if not 0 <= cohort_size <= pool.clients:
                raise ValueError(f"got a cohort of {cohort_size}, expected 0 to {pool.clients} clients")
            zone = round % min(self.zones, pool.clients)
            n_awake = len(range(zone, pool.clients, self.zones))
            rng = derive_generator(pool.seed, "time-zones", round)
            drawn_numbers = rng.choice(n_awake, min(cohort_size, n_awake), replace=False, shuffle=False)
            return SampledCohort(tuple(sorted((zone + self.zones * drawn_numbers).tolist())))

        return sample_cohort
