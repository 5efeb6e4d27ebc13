"""Stragglers: clients of a cohort that do not finish their local training before the server closes the round."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction

from fedsgd.numerics.rng import derive_generator
from fedsgd.sampling.base import CohortSampler, Sampler, SamplingPool, bind_with_checks


def count_stragglers(share: float, cohort_size: int) -> int:
    """Return the number of stragglers of a cohort: C − round((1 − share) · C), as in the code of Li et al. 2020.

    >>> [count_stragglers(0.9, cohort_size) for cohort_size in (10, 5, 3)]
    [9, 5, 3]
    """
    return cohort_size - round((1 - Fraction(str(share))) * cohort_size)  # the float 1 − 0.9 is below 0.1


@dataclass(frozen=True, eq=False)
class StragglerModel:
    """Model of each round's stragglers, which server and clients derive independently.

    Source: systems heterogeneity of FedProx (Li et al. 2020, section 5.2). In each round, `count_stragglers` clients of the
    cohort are drawn. A straggler makes uniformly 1 to E of its E local epochs, or 1 to S of its S local steps. Stragglers and
    their work depend on the seed, the round and the cohort alone, so that methods with equal seeds have equal stragglers.

    Attributes:
        share: stragglers as a share of the cohort.
        drops: True if stragglers send no update; False if they send the update of their fewer steps.
        full_work: E or S, epochs or steps of other clients.
        sampler, pool: rule that draws the cohorts, and clients from which it draws; `pool.sizes` must support pickling.
        cohort_size: clients that are invited in a round.
    """

    share: float
    drops: bool
    full_work: int
    sampler: Sampler
    pool: SamplingPool
    cohort_size: int

    def work_of(self, round: int, client: int) -> int | None:
        """Return the epochs or steps of a client in a round; None if the client is no straggler.

        Args:
            round: number of the round, from 1.
            client: number of the client, from 0.
        """
        if client not in _draw_stragglers(self, round):
            return None
        return int(derive_generator(self.pool.seed, "stragglers/work", round, client).integers(1, self.full_work + 1))

    def is_dropped(self, round: int, client: int) -> bool:
        """Return whether a client of a round's cohort is a straggler that sends no update.

        Args:
            round: number of the round, from 1.
            client: number of the client, from 0.
        """
        return self.drops and client in _draw_stragglers(self, round)


@functools.lru_cache(maxsize=4)
def _bind_sampler(model: StragglerModel) -> CohortSampler:
    return bind_with_checks(model.sampler, model.pool)


@functools.lru_cache(maxsize=16)
def _draw_stragglers(model: StragglerModel, round: int) -> frozenset[int]:
    """Draw the stragglers of a round. The cache is outside the model, so that it is not sent to workers."""
    cohort = _bind_sampler(model)(round, model.cohort_size).cohort
    rng = derive_generator(model.pool.seed, "stragglers", round)
    positions = rng.choice(len(cohort), size=count_stragglers(model.share, len(cohort)), replace=False)
    return frozenset(cohort[position] for position in positions.tolist())
