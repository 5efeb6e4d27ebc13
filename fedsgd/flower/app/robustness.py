"""Warning for robust strategies, which suppress sparse updates like wrong replies."""

from __future__ import annotations

from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, MultiKrum, Strategy

from fedsgd.compression import CompressionOperator
from fedsgd.compression.operators.dense import Dense
from fedsgd.flower.app.inner_strategy import iterate_strategies
from fedsgd.scenario.sections import UplinkConfig

MIN_OVERLAP = 1 / 3
"""Share of the changed coordinates that at least half of the replies must change to avoid the warning."""

_REMEDY = (
    'set a compressor that sends most coordinates: "natural", "eden", "drive", "qsgd" with more levels than the square root of '
    'the model\'s size, "top-k" with a density of 0.5 and error feedback, or "dense" with values = "bfloat16"'
)


def describe_sparsity(inner: Strategy, uplink: UplinkConfig, overlap: float, n_replies: int) -> str | None:
    """Return a warning if an aggregation rule of the strategy suppresses sparse updates; None otherwise.

    `overlap` is the share of the changed coordinates that at least half of the replies changed.
    """
    if overlap >= MIN_OVERLAP or isinstance(uplink.compressor, Dense):
        return None
    sparsity = (
        f"only {overlap:.0%} of the changed coordinates were changed by at least half of the {n_replies} replies with "
        f'"{uplink.compressor.name}"'
    )
    for rule in iterate_strategies(inner):
        name = type(rule).__name__
        if _is_trimming_rule(rule, n_replies):
            return f"{name} discards most of each update: {sparsity}, and a median of mostly zeros is zero; {_REMEDY}"
        if isinstance(rule, MultiKrum) and 2 * rule.num_nodes_to_select < n_replies and _is_unbiased(uplink):
            return (
                f"{name} averages only {rule.num_nodes_to_select} of {n_replies} updates, too few to average out the errors of "
                f"an unbiased compressor: {sparsity}; {_REMEDY}"
            )
    return None


def _is_trimming_rule(rule: object, n_replies: int) -> bool:
    """Return True for a rule that discards the most distant values of each coordinate."""
    if isinstance(rule, FedTrimmedAvg):
        return int(rule.beta * n_replies) > 0
    return isinstance(rule, FedMedian) or (isinstance(rule, Bulyan) and rule.num_malicious_nodes > 0)


def _is_unbiased(uplink: UplinkConfig) -> bool:
    return isinstance(uplink.compressor, CompressionOperator) and uplink.compressor.kind == "unbiased"
