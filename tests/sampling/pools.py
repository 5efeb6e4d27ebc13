"""Pools of clients for tests of samplers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsgd.sampling import (
    DurationModel,
    Sampler,
    SamplingPool,
)
from fedsgd.sampling.client_durations import LogNormalDurations
from fedsgd.sampling.uniform import Uniform
from fedsgd.scenario.parsing import SettingsSection


def make_pool(clients: int, seed: int = 0, folder: Path | None = None) -> SamplingPool:
    def sizes() -> np.ndarray:
        raise AssertionError("this sampler does not use sizes")

    return SamplingPool(seed, clients, sizes, folder)


def make_pool_of_sizes(*sizes: int, seed: int = 0) -> SamplingPool:
    return SamplingPool(seed, len(sizes), lambda: np.array(sizes))


@dataclass(frozen=True)
class SamplingSection(SettingsSection):
    """Section with a key for each family."""

    sampler: Sampler = Uniform()
    durations: DurationModel = LogNormalDurations()
