"""Time beside a memcpy that is measured in the same run.

P parameters. A machine's speed changes from minute to minute, and others work on it; the ratio to a memcpy of the same vector
changes much less. So each repetition first copies one vector and then runs what is measured on the next ones.
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
"""Of the vectors: about the size of a real update."""

Step = Callable[[int], Any]
"""Does what is measured. Its argument counts up: it says which vector of the pool is next."""


@dataclass(frozen=True)
class Effort:
    """How long to measure. pool_mib: MiB of vectors; seconds: for each figure; repetitions: a fixed number of them instead."""

    pool_mib: float = 160
    seconds: float = 0.7
    repetitions: int | None = None
    fewest: int = 5
    most: int = 400


@dataclass(frozen=True)
class Times:
    """Medians in seconds. memcpy: of a dense vector; steps: of each step."""

    memcpy: float
    steps: tuple[float, ...]


class Bench:
    """Gaussian vectors of one size, and the clock."""

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
        self.copies: list[float] = []

    @cached_property
    def total(self) -> F64:
        """What a server adds updates to [P]. There is one, as there is at a server."""
        return np.ones(self.size, dtype=np.float64)

    @cached_property
    def tensors(self) -> list[torch.Tensor]:
        """The same vectors as tensors of torch; nothing is copied."""
        return [torch.from_numpy(vector) for vector in self.vectors]

    def vector(self, turn: int) -> F32:
        """The vector of this turn [P]."""
        return self.vectors[turn % len(self.vectors)]

    def tensor(self, turn: int) -> torch.Tensor:
        """The vector of this turn [P]."""
        return self.tensors[turn % len(self.vectors)]

    def frame(self, sections: Sections, codec: int) -> bytes:
        """The frame that a client would send."""
        header = Header(FrameKind.UPDATE, self.ctx.round, codec, self.ctx.round, 0, self.ctx.client, 600)
        return encode_frame(Frame(header, sections))

    def time(self, *steps: Step) -> Times:
        """Each step once without a clock, so that numba has compiled; then rounds of a memcpy and each step, on vectors that
        have not been touched since the pool came round."""
        for turn, step in enumerate(steps):
            step(turn)
        effort, began, turn = self.effort, time.perf_counter(), 0
        taken: list[list[float]] = [[] for _ in range(len(steps) + 1)]
        while not self._enough(len(taken[0]), began):
            for step, seconds in zip((self._copy, *steps), taken, strict=True):
                at = time.perf_counter()
                step(turn)
                seconds.append(time.perf_counter() - at)
                turn += 1
        assert effort.repetitions is None or effort.repetitions == len(taken[0])
        self.copies += taken[0]
        return Times(median(taken[0]), tuple(median(seconds) for seconds in taken[1:]))

    def _copy(self, turn: int) -> None:
        np.copyto(self.destinations[turn % len(self.destinations)], self.vector(turn))

    def _enough(self, done: int, began: float) -> bool:
        effort = self.effort
        if effort.repetitions is not None:
            return done >= effort.repetitions
        return done >= effort.most or (done >= effort.fewest and time.perf_counter() - began > effort.seconds)
