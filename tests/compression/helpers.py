"""Contexts, vectors and rounds for the tests of compressors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fedsgd.aggregation import AggregationContext, WeightedUpdate, select_aggregator
from fedsgd.compression import (
    CodecContext,
    CompressionOperator,
    CompressionScheme,
    StateArrays,
)
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout


def make_context(size: int, round: int = 1, client: int = 0, **options: Any) -> CodecContext:
    """Return the context of a vector of `size` numbers in one tensor, seed 0."""
    return CodecContext(0, round, client, ParameterLayout.from_size(size), **options)


def draw_gaussian(size: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def draw_dyadic(size: int, seed: int) -> F32:
    """Return numbers whose sums are exact in float32."""
    return (np.random.default_rng(seed).integers(-512, 513, size) / 64).astype(np.float32)


def encode_and_decode(op: CompressionOperator, x: F32, ctx: CodecContext) -> np.ndarray:
    sections, _ = op.encode(x, ctx)
    return op.decode(sections, ctx).to_dense().astype(np.float64)


def relative_error(op: CompressionOperator, x: F32, ctx: CodecContext) -> float:
    """Return |x − C(x)|² / |x|²."""
    return float(np.square(x - encode_and_decode(op, x, ctx)).sum() / np.square(x, dtype=np.float64).sum())


def run_round(
    scheme: CompressionScheme,
    aggregator_state: StateArrays,
    updates: list[F32],
    states: list[StateArrays],
    round: int,
    clients: int,
) -> tuple[F32, StateArrays]:
    """Run one round in which each client sends its update, with equal weights. The clients' `states` are replaced in place.

    Returns:
        The aggregate, and the aggregator's next state.
    """
    layout = ParameterLayout.from_size(len(updates[0]))
    sections = scheme.encode_reference(aggregator_state, CodecContext(0, round, 0, layout))
    reference = scheme.decode_reference(sections, CodecContext(0, round, 0, layout)) if sections else None
    replies = []
    for client, x in enumerate(updates):
        ctx = CodecContext(0, round, client, layout, reference)
        update = scheme.send(x, states[client], ctx)
        states[client] = update.state
        replies.append(WeightedUpdate(update.sections, 1 / len(updates), replace(ctx, reference=None)))
    aggregation_ctx = AggregationContext(0, round, layout, clients, scheme)
    return select_aggregator(None, scheme).aggregate(aggregator_state, replies, aggregation_ctx)
