"""Server halves of the schemes that have one: CAFe, EF21, FetchSGD and SCAFFOLD. The schemes' docstrings have the papers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from fedsgd.aggregation.base import (
    AcceptedWeights,
    AggregationContext,
    AggregationResult,
    Aggregator,
    WeightedUpdate,
    weighted_sum,
)
from fedsgd.compression import StateArrays
from fedsgd.compression.kernels.top_k import top_k
from fedsgd.compression.operators.count_sketch import sketch, unsketch
from fedsgd.compression.operators.sparsifier import top_k_size
from fedsgd.compression.schemes.cafe import CAFe
from fedsgd.compression.schemes.ef21 import EF21
from fedsgd.compression.schemes.fetch_sgd import FetchSGD
from fedsgd.compression.schemes.scaffold import Scaffold
from fedsgd.numerics.arrays import F64


@dataclass(frozen=True)
class CAFeAggregator(Aggregator):
    """Last aggregate, plus the weighted mean of the decoded differences from it.

    r ← r + Σ p_i C(x_i − r); Δ = r. The server stores r, which the next round's REFERENCE frame carries.
    """

    name: ClassVar[str] = "cafe"
    accepted_weights: ClassVar[AcceptedWeights] = "normalized"
    scheme_type = CAFe

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        update = weighted_sum(updates, ctx).astype(np.float32)
        if "reference" in state:
            update = state["reference"] + update
        return update, {"reference": update}


@dataclass(frozen=True)
class EF21Aggregator(Aggregator):
    """Mean of the estimates of all N clients' updates, absent clients included.

    g ← g + Σ c_i / N; Δ = g. The server stores g in float64, the sum of what clients store, and steps in every round.
    """

    name: ClassVar[str] = "ef21"
    accepted_weights: ClassVar[AcceptedWeights] = "equal"
    scheme_type = EF21
    steps_without_replies: ClassVar[bool] = True

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        total = np.zeros(ctx.layout.size) if "estimate" not in state else state["estimate"].copy()
        for update in updates:
            ctx.decode(update).add_to(total, 1 / ctx.n_clients)
        return total.astype(np.float32), {"estimate": total}


@dataclass(frozen=True)
class FetchSGDAggregator(Aggregator):
    """Momentum, error feedback and top-k on the weighted mean S of the clients' count sketches.

    S_u ← ρ S_u + S; S_e ← S_e + S_u; Δ = the largest coordinates of unsketch(S_e); S_e ← S_e − sketch(Δ). The settings are the
    scheme's. The server stores S_u and S_e.
    """

    name: ClassVar[str] = "fetch-sgd"
    scheme_type = FetchSGD

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        scheme, size = cast("FetchSGD", ctx.scheme), ctx.layout.size
        columns, key = scheme.n_columns(size), scheme.derive_hash_key(ctx.seed)
        mean = np.zeros((scheme.rows, columns))
        for update in updates:
            mean += scheme.decode_table(update.sections, ctx.layout) * update.weight
        momentum: F64 = mean if "momentum" not in state else scheme.momentum * state["momentum"] + mean
        error: F64 = momentum if "error" not in state else state["error"] + momentum
        estimate = unsketch(error, size, key).astype(np.float32)
        positions, values = top_k(estimate, top_k_size(scheme.kept_share, size))
        update_vector = np.zeros(size, dtype=np.float32)
        update_vector[positions] = values
        update_table = sketch(update_vector, scheme.rows, columns, key)
        if scheme.masking:
            momentum = np.where(update_table != 0, 0.0, momentum)
        return update_vector, {"momentum": momentum, "error": error - update_table}


@dataclass(frozen=True)
class ScaffoldAggregator(Aggregator):
    """Mean of the updates, and the control variate of the server.

    Δ = Σ p_i x_i; c ← c + (1/N) Σ (c_i⁺ − c_i) over the cohort. The server stores c, which the next round's REFERENCE frame
    carries.
    """

    name: ClassVar[str] = "scaffold"
    accepted_weights: ClassVar[AcceptedWeights] = "equal"
    scheme_type = Scaffold

    def aggregate(self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> AggregationResult:
        scheme = cast("Scaffold", ctx.scheme)
        total = np.zeros(ctx.layout.size) if "reference" not in state else state["reference"].copy()

        def accumulate_control_changes() -> Iterator[WeightedUpdate]:
            for update in updates:
                np.add(total, scheme.decode_control_change(update.sections, ctx.layout) / ctx.n_clients, out=total)
                yield update

        return weighted_sum(accumulate_control_changes(), ctx).astype(np.float32), {"reference": total}
