"""Cohorts of encoded updates, and the rules of the registry at their defaults and at settings that change what they do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsgd.aggregation import AggregationContext, Aggregator, WeightedUpdate
from fedsgd.aggregation.clipping import CenteredClipping, NormClipping
from fedsgd.aggregation.coordinate_wise import Median, TrimmedMean
from fedsgd.aggregation.geometric_median import GeometricMedian
from fedsgd.aggregation.krum import Krum, MultiKrum
from fedsgd.aggregation.mean import MeanOfSenders, WeightedMean
from fedsgd.compression import CompressionOperator, MemorylessScheme
from fedsgd.compression.operators.dense import Dense
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.testing import aggregator_laws

RULES: tuple[Aggregator, ...] = (
    WeightedMean(), MeanOfSenders(), Median(), TrimmedMean(0.25), Krum(2), MultiKrum(2), MultiKrum(1, 3), GeometricMedian(),
    NormClipping(), NormClipping(2.0), NormClipping(mean_over="senders"), CenteredClipping(2.0), CenteredClipping(2.0, 3),
)  # fmt: skip


def encode_cohort(
    updates: Sequence[F32], operator: CompressionOperator | None = None, weights: Sequence[float] | None = None
) -> tuple[list[WeightedUpdate], AggregationContext]:
    """Return the encoded updates of clients 0, 1, ..., by default dense and with equal weights, and the context of round 1."""
    layout = ParameterLayout.from_size(len(updates[0]))
    return aggregator_laws.encode_cohort(updates, MemorylessScheme(operator or Dense()), weights, layout=layout)


def aggregate(
    rule: Aggregator,
    updates: Sequence[F32],
    operator: CompressionOperator | None = None,
    weights: Sequence[float] | None = None,
) -> F32:
    """Return the aggregate of the first round."""
    cohort, ctx = encode_cohort(updates, operator, weights)
    return rule.aggregate(rule.init_state(ctx.layout), iter(cohort), ctx)[0]


def draw_updates(n: int, size: int, seed: int = 0) -> list[F32]:
    """Return n updates of about unit norm with a common mean."""
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal(size)
    return [((mean + 0.5 * rng.standard_normal(size)) / np.sqrt(size)).astype(np.float32) for _ in range(n)]
