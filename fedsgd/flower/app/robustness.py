"""Robust strategies and sparse updates: a warning where a rule that resists wrong replies suppresses right ones."""

from __future__ import annotations

from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, MultiKrum, Strategy

from fedsgd.compression import CompressionOperator
from fedsgd.compression.operators.dense import Dense
from fedsgd.flower.app.inner_strategy import iterate_strategies
from fedsgd.scenario.sections import UplinkConfig

MIN_OVERLAP = 1 / 3
"""Smallest share of the changed coordinates that half of the replies have to change."""

_REMEDY = (
    'set a compressor that keeps most coordinates: "natural", "eden", "drive", "qsgd" with more levels than the root of the '
    'model\'s size, "top-k" with a density of 0.5 and error feedback, or "dense" with values = "bfloat16"'
)


def describe_sparsity(inner: Strategy, uplink: UplinkConfig, overlap: float, n_replies: int) -> str | None:
    """Return one line about a rule of aggregation that sparse updates break; None if there is nothing to warn of.

    Args:
        inner: the inner strategy.
        uplink: compressor of the clients' updates.
        overlap: of the coordinates that a reply changed, the share that half of the replies changed.
        n_replies: number of replies.
    """
    if overlap >= MIN_OVERLAP or isinstance(uplink.compressor, Dense):
        return None
    sparse = (
        f'of the coordinates that {n_replies} replies with "{uplink.compressor.name}" changed, half of the replies changed '
        f"only {overlap:.0%}"
    )
    for rule in iterate_strategies(inner):
        name = type(rule).__name__
        if _is_trimming_rule(rule, n_replies):
            return f"{name} drops most of each update: {sparse}, and a median of mostly zeros is zero; {_REMEDY}"
        if isinstance(rule, MultiKrum) and 2 * rule.num_nodes_to_select < n_replies and _is_unbiased(uplink):
            return (
                f"{name} uses {rule.num_nodes_to_select} of {n_replies} updates, so the errors of an unbiased compressor are "
                f"hardly averaged: {sparse}; {_REMEDY}"
            )
    return None


def _is_trimming_rule(rule: object, n_replies: int) -> bool:
    """Return True for a rule that leaves out the most distant values of each coordinate."""
    if isinstance(rule, FedTrimmedAvg):
        return int(rule.beta * n_replies) > 0
    return isinstance(rule, FedMedian) or (isinstance(rule, Bulyan) and rule.num_malicious_nodes > 0)


def _is_unbiased(uplink: UplinkConfig) -> bool:
    return isinstance(uplink.compressor, CompressionOperator) and uplink.compressor.kind == "unbiased"
