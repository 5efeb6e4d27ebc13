"""Times relative to a memcpy that is measured in the same run.

The speed of a machine changes from minute to minute, also because other programs use it. The ratio to a memcpy of the same
vector changes much less. So each repetition first copies one vector and then runs the measured steps on the next ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import torch

from fedsgd.compression import CodecContext
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Frame, FrameKind, Header, Sections, encode_frame

MIB = 2**20
FEWEST_VECTORS = 4
SCALE = 1e-3
"""Standard deviation of the coordinates: about the size of a real update."""

Step = Callable[[int], Any]
"""Function whose time is measured. Its argument is the number of the call, which selects a vector of the pool."""


@dataclass(frozen=True)
class Effort:
    """Duration of the measurement of one figure.

    Attributes:
        pool_mib: MiB of vectors in the pool.
        seconds: seconds after which no repetition starts.
        repetitions: fixed number of repetitions; None for as many as fit into `seconds`.
        fewest: smallest number of repetitions if their number is not fixed.
        most: largest number of repetitions if their number is not fixed.
    """

    pool_mib: float = 160
    seconds: float = 0.7
    repetitions: int | None = None
    fewest: int = 5
    most: int = 400


@dataclass(frozen=True)
class Times:
    """Medians over the repetitions.

    Attributes:
        memcpy: seconds to copy a dense vector.
        steps: seconds of each step.
    """

    memcpy: float
    steps: tuple[float, ...]


class Bench:
    """Pool of Gaussian vectors of one size, and a clock."""

    def __init__(self, size: int, effort: Effort) -> None:
        self.size = size
        self.effort = effort
        n_vectors = max(FEWEST_VECTORS, math.ceil(effort.pool_mib * MIB / (4 * size)))
        pool = np.empty((n_vectors, size), dtype=np.float32)
        rng = np.random.default_rng(size)
        for row in pool:
            rng.standard_normal(out=row, dtype=np.float32)
            row *= np.float32(SCALE)
        self.vectors: list[F32] = list(pool)
        self.destinations: list[F32] = list(np.ones((n_vectors, size), dtype=np.float32))
        self.ctx = CodecContext(42, 7, 3, ParameterLayout.from_size(size))
        self.copy_seconds: list[float] = []

    @cached_property
    def total(self) -> F64:
        """Sum to which a server adds updates, [P]. All steps share it, as at a server."""
        return np.ones(self.size, dtype=np.float64)

    @cached_property
    def tensors(self) -> list[torch.Tensor]:
        """Vectors of the pool as torch tensors that share their memory."""
        return [torch.from_numpy(vector) for vector in self.vectors]

    def vector(self, turn: int) -> F32:
        """Return the vector of a turn, [P]."""
        return self.vectors[turn % len(self.vectors)]

    def tensor(self, turn: int) -> torch.Tensor:
        """Return the vector of a turn as a tensor, [P]."""
        return self.tensors[turn % len(self.vectors)]

    def frame(self, sections: Sections, codec: int) -> bytes:
        """Return the frame that a client would send."""
        header = Header(FrameKind.UPDATE, self.ctx.round, codec, self.ctx.round, 0, self.ctx.client, 600)
        return encode_frame(Frame(header, sections))

    def time(self, *steps: Step) -> Times:
        """Call each step once without a clock, so that numba compiles it, then time repetitions of a memcpy and each step.

        Each call gets the next vector of the pool, so that the vector is no longer in the cache.
        """
        for turn, step in enumerate(steps):
            step(turn)
        effort, start, turn = self.effort, time.perf_counter(), 0
        durations: list[list[float]] = [[] for _ in range(len(steps) + 1)]
        while not self._is_complete(len(durations[0]), start):
            for step, seconds in zip((self._copy, *steps), durations, strict=True):
                step_start = time.perf_counter()
                step(turn)
                seconds.append(time.perf_counter() - step_start)
                turn += 1
        assert effort.repetitions is None or effort.repetitions == len(durations[0])
        self.copy_seconds += durations[0]
        return Times(median(durations[0]), tuple(median(seconds) for seconds in durations[1:]))

    def _copy(self, turn: int) -> None:
        np.copyto(self.destinations[turn % len(self.destinations)], self.vector(turn))

    def _is_complete(self, repetitions: int, start: float) -> bool:
        effort = self.effort
        if effort.repetitions is not None:
            return repetitions >= effort.repetitions
        seconds = time.perf_counter() - start
        return repetitions >= effort.most or (repetitions >= effort.fewest and seconds > effort.seconds)
