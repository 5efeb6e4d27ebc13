"""Sizes of encoded vectors by round, from trials of the encoders: a schedule of densities changes them during a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fedsgd.compression.trial import VECTOR_SCALE
from fedsgd.config.user_errors import wrap_user_errors
from fedsgd.federation import FederationPlan
from fedsgd.federation.downlink.frames import encode_changes
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.rng import derive_generator
from fedsgd.wire import ALL_CLIENTS, Sections, frame_overhead

MAX_TRIALS = 100
"""Trials of one encoder, at most."""
RELATIVE_NOISE = 0.02
"""Relative difference of two sizes below which no trial is made between their rounds."""
N_GRID_POINTS = 17
"""Numbers of coordinates for which the bytes of a sparse frame are measured."""


class EncodedSize(NamedTuple):
    """Size of an encoded vector.

    Attributes:
        n_bytes: bytes of a frame with the sections.
        n_coordinates: coordinates that the sections carry.
    """

    n_bytes: int
    n_coordinates: int


@dataclass(frozen=True, eq=False)
class SizeCurve:
    """Sizes by round: those of the rounds that were tried, and straight lines between them.

    Attributes:
        rounds: [n] float64, ascending rounds.
        n_bytes, n_coordinates: [n] float64, sizes in these rounds.
    """

    rounds: F64
    n_bytes: F64
    n_coordinates: F64

    def interpolate(self, round: int) -> EncodedSize:
        """Return the size in a round."""
        figures = (float(np.interp(round, self.rounds, values)) for values in (self.n_bytes, self.n_coordinates))
        return EncodedSize(*map(round_half_up, figures))


def round_half_up(value: float) -> int:
    """Return the nearest integer."""
    return int(np.floor(value + 0.5))


def measure_curve(measure: Callable[[int], EncodedSize], n_rounds: int) -> SizeCurve:
    """Try an encoder in rounds 1, 2, 4, ..., and between two rounds whose sizes differ.

    Args:
        measure: function of a round that encodes a vector.
        n_rounds: number of rounds of the run.
    """
    sizes = {round: measure(round) for round in sorted({2**power for power in range(n_rounds.bit_length())} | {n_rounds})}
    starts = sorted(sizes)
    intervals = list(pairwise(starts))
    while intervals and len(sizes) < MAX_TRIALS:
        first, last = intervals.pop(0)
        if last - first > 1 and _differ(sizes[first], sizes[last]):
            middle = (first + last) // 2
            sizes[middle] = measure(middle)
            intervals += [(first, middle), (middle, last)]
    rounds = sorted(sizes)
    columns = np.array([sizes[round] for round in rounds], dtype=np.float64)
    return SizeCurve(np.array(rounds, dtype=np.float64), columns[:, 0], columns[:, 1])


def _differ(a: EncodedSize, b: EncodedSize) -> bool:
    return abs(a.n_bytes - b.n_bytes) > RELATIVE_NOISE * max(a.n_bytes, b.n_bytes)


def make_uplink_trial(plan: FederationPlan) -> Callable[[int], EncodedSize]:
    """Return a function of a round that encodes an update of normal random numbers.

    Args:
        plan: settings of the federation.
    """
    x = _draw_vector(plan)

    def measure(round: int) -> EncodedSize:
        context = plan.make_context(round, 0)
        with wrap_user_errors("uplink.compressor", plan.uplink, round):
            sections = plan.uplink.send(x, {}, context).sections
            return EncodedSize(_count_frame_bytes(sections), plan.uplink.n_coordinates(sections, context))

    return measure


def make_downlink_trial(plan: FederationPlan, weights: F32) -> Callable[[int], EncodedSize]:
    """Return a function of a round that encodes the vector of the downlink's operator.

    Args:
        plan: settings of the federation.
        weights: [P] float32, the model, which is the vector under the policy "model"; else the vector is random.
    """
    operator = plan.downlink.operator
    x = _draw_vector(plan) if plan.downlink.clients_keep_model else weights

    def measure(round: int) -> EncodedSize:
        with wrap_user_errors("downlink.compressor", plan.downlink, round):
            sections, update = operator.encode(x, plan.make_context(round, ALL_CLIENTS))
        return EncodedSize(_count_frame_bytes(sections), update.n_coordinates)

    return measure


def _draw_vector(plan: FederationPlan) -> F32:
    x: F32 = derive_generator(plan.seed, "plan/vector").standard_normal(plan.layout.size, dtype=np.float32) * VECTOR_SCALE
    return x


def _count_frame_bytes(sections: Sections) -> int:
    return frame_overhead(len(sections)) + sum(len(section.data) for section in sections)


def measure_sparse_bytes(plan: FederationPlan, weights: F32) -> Callable[[float], float]:
    """Return a function of k that estimates the bytes of a frame with k coordinates of a model.

    Args:
        plan: settings of the federation.
        weights: [P] float32, the model.
    """
    size, context = len(weights), plan.make_context(1, ALL_CLIENTS)
    generator = derive_generator(plan.seed, "plan/positions")
    counts = np.unique(np.geomspace(1, size, N_GRID_POINTS).astype(np.int64))
    n_bytes = []
    for count in counts.tolist():
        positions = np.sort(generator.choice(size, count, replace=False)).astype(np.int64)
        n_bytes.append(len(encode_changes(1, weights, positions, context).data))
    return lambda k: float(np.interp(k, counts, n_bytes))
