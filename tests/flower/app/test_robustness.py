"""Warnings of robust strategies with sparse updates, and the accuracy of robust strategies with other compressors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import pytest
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum, Strategy

from fedsgd.flower import CompressedStrategy
from tests.effort import nightly_unless
from tests.flower.regression import measure_final_mse

pytestmark = pytest.mark.usefixtures("quick_collection")

SPARSE = {
    "top-k": ({"name": "top-k", "density": 0.1}, "persist"),
    "rand-k": ({"name": "rand-k", "density": 0.1}, "none"),
    "qsgd": ({"name": "qsgd", "levels": 1}, "none"),
}
RECOMMENDED = {
    "bfloat16": ({"name": "dense", "values": "bfloat16"}, "none"),
    "natural": ("natural", "none"),
    "eden": ("eden", "none"),
    "drive": ("drive", "none"),
    "qsgd": ({"name": "qsgd", "levels": 15}, "none"),
    "top-k": ({"name": "top-k", "density": 0.5}, "persist"),
}
RULES: dict[str, Callable[[], Strategy]] = {
    "FedMedian": FedMedian,
    "FedTrimmedAvg": FedTrimmedAvg,
    "Bulyan": lambda: Bulyan(num_malicious_nodes=1),
}


DAILY_PAIR = ("top-k", "FedMedian")
"""The pair of a compressor and a rule outside the night."""


def pair_with_rules(compressors: Iterable[str]) -> list[Any]:
    """Return the pairs of compressors and rules; outside the night, one pair."""
    return nightly_unless(DAILY_PAIR.__eq__, product(compressors, RULES))


@pytest.mark.slow
@pytest.mark.parametrize(("compressor", "rule"), pair_with_rules(SPARSE))
def test_trimming_rule_with_sparse_updates_logs_a_warning(rule: str, compressor: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="flwr")
    table, feedback = SPARSE[compressor]
    strategy = CompressedStrategy(RULES[rule](), table, error_feedback=feedback)
    compressed_mse, plain_mse = measure_final_mse(strategy), measure_final_mse(RULES[rule](), [])
    assert compressed_mse > 3 * plain_mse, "the warning is correct"
    (line,) = (record.message for record in caplog.records if "a median of mostly zeros is zero" in record.message)
    assert f"{rule} discards most of each update" in line
    assert all(f'"{table["name"] if isinstance(table, dict) else table}"' in line for table, _ in RECOMMENDED.values())


@pytest.mark.slow
@pytest.mark.parametrize(("compressor", "rule"), pair_with_rules(RECOMMENDED))
def test_trimming_rule_with_a_recommended_compressor_learns_as_without_compression(
    rule: str, compressor: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="flwr")
    table, feedback = RECOMMENDED[compressor]
    compressed_mse = measure_final_mse(CompressedStrategy(RULES[rule](), table, error_feedback=feedback))
    plain_mse = measure_final_mse(RULES[rule](), [])
    assert compressed_mse < 1.3 * plain_mse
    assert "zeros" not in caplog.text


@pytest.mark.nightly
def test_krum_with_sparse_unbiased_updates_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="flwr")
    rand_k = {"name": "rand-k", "density": 0.1}
    compressed_mse = measure_final_mse(CompressedStrategy(Krum(num_malicious_nodes=1), rand_k))
    plain_mse = measure_final_mse(Krum(num_malicious_nodes=1), [])
    fed_avg_ratio = measure_final_mse(CompressedStrategy(FedAvg(), rand_k)) / measure_final_mse(FedAvg(), [])
    assert compressed_mse / plain_mse > 2 * fed_avg_ratio, "the warning is correct"
    assert "Krum averages only 1 of 7 updates" in caplog.text


@pytest.mark.parametrize(
    ("create_strategy", "compressor"),
    [
        (FedAvg, "top-k"),
        (FedMedian, "dense"),
        pytest.param(FedMedian, "eden", marks=pytest.mark.nightly),
        pytest.param(Krum, "top-k", marks=pytest.mark.nightly),
        (Bulyan, "top-k"),  # without malicious nodes, Bulyan is a mean of all replies
        (lambda: FedTrimmedAvg(beta=0.1), "top-k"),  # of seven replies, none is trimmed
    ],
)
def test_other_strategies_and_compressors_log_no_warning(
    create_strategy: Callable[[], Strategy], compressor: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="flwr")
    measure_final_mse(CompressedStrategy(create_strategy(), compressor), rounds=1)
    assert "of the changed coordinates" not in caplog.text
