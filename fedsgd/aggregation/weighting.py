"""Aggregation weights of a round: by examples or equal, corrected for inclusion probabilities, and FedNova's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsgd.numerics.arrays import F64


def compute_weights(counts: Sequence[float], inclusion_probabilities: Sequence[float] | None = None, total: float = 0) -> F64:
    """Return the aggregation weights p_i [C] float64 of the clients of a round.

    Without inclusion probabilities π_i, p_i = c_i / Σ c_j (McMahan et al. 2017, algorithm 1). With them, p_i = c_i / (π_i ·
    total), so that Σ p_i x_i is an unbiased estimate of the mean over all clients (Horvitz and Thompson 1952).

    Args:
        counts: c_i, number of examples of each client, or 1 for equal weights.
        inclusion_probabilities: π_i, probability that the client's reply is in the round.
        total: Σ c over all registered clients; used with inclusion probabilities only.
    """
    c = np.array(counts, dtype=np.float64)
    weights: F64 = c / c.sum() if inclusion_probabilities is None else c / np.array(inclusion_probabilities) / total
    return weights


def normalize_by_progress(weights: F64, normalizers: F64) -> F64:
    """Return the weights p_i τ_eff / τ_i [C], with τ_eff = Σ p_i τ_i / Σ p_i (FedNova, Wang et al. 2020).

    Args:
        weights: p [C].
        normalizers: τ [C], normalizer of each client's local steps; a client with 0 has weight 0.
    """
    effective_normalizer = float((weights * normalizers).sum() / weights.sum())
    out: F64 = np.divide(weights * effective_normalizer, normalizers, out=np.zeros_like(weights), where=normalizers > 0)
    return out
