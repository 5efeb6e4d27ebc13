"""Simulated faults: hostile clients, which follow the protocol but send an update of their own choice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from fedsgd.compression import ClientId
from fedsgd.config.component import ClosedFraction, PositiveFloat, ValidatedConfig
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.reductions import squared_norm
from fedsgd.numerics.rng import derive_generator


@dataclass(frozen=True)
class HostileClients(ValidatedConfig):
    """Clients whose trained update x is replaced before it is compressed.

    The round(share · N) hostile clients are drawn from the seed, once for a run. They use the run's compressor with its error
    feedback, and report their true number of examples.

    Attributes:
        kind: update that is sent. "sign-flip": −factor · x, the opposite direction; "scaling": factor · x, as of a client that
            wants to replace the model (Bagdasaryan et al. 2020); "random": a Gaussian vector of norm factor · |x|.
        share: hostile clients as a share of all.
        factor: multiple of the update; None: 1 for "sign-flip" and "random", and 10 for "scaling".
    """

    kind: Literal["sign-flip", "scaling", "random"]
    share: ClosedFraction
    factor: PositiveFloat | None = None

    @property
    def effective_factor(self) -> float:
        """Factor that replaces an unset one."""
        return (10.0 if self.kind == "scaling" else 1.0) if self.factor is None else self.factor

    def clients(self, seed: int, n_clients: int) -> frozenset[ClientId]:
        """Return the hostile clients of a run.

        Args:
            seed: seed of the run.
            n_clients: N, number of registered clients.
        """
        return _draw_clients(seed, n_clients, round(self.share * n_clients))

    def replace_update(self, update: F32, seed: int, round: int, client: ClientId) -> F32:
        """Return the update [P] that a hostile client sends in place of its own.

        Args:
            update: [P] float32, update of local training; not written to.
            seed: seed of the run.
            round: number of the round, from 1.
            client: number of the client, from 0.
        """
        factor = np.float32(self.effective_factor)
        if self.kind == "scaling":
            return factor * update
        if self.kind == "sign-flip":
            return -factor * update
        noise = derive_generator(seed, "hostile-update", round, client).standard_normal(len(update)).astype(np.float32)
        return factor * np.float32(math.sqrt(squared_norm(update) / squared_norm(noise))) * noise


@lru_cache(maxsize=8)
def _draw_clients(seed: int, n_clients: int, n_hostile: int) -> frozenset[ClientId]:
    order = derive_generator(seed, "hostile-clients").permutation(n_clients)
    return frozenset(order[:n_hostile].tolist())
