"""CompressedStrategy over Flower's own `start`: log lines, traffic, and warnings about settings."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Strategy

from fedsgd.errors import ScenarioError
from fedsgd.flower import CompressedStrategy
from fedsgd.flower.records import RECORD_KEY
from tests.flower.app.fixed_updates import DIFFERENCE, TOP_K, flatten, make_grid, make_model, run_rounds

pytestmark = pytest.mark.usefixtures("quick_collection")


@pytest.mark.slow
def test_start_runs_compressed_rounds_and_logs_their_bytes(caplog: pytest.LogCaptureFixture) -> None:
    grid, initial = make_grid(), make_model()
    strategy = CompressedStrategy(FedAvg(), TOP_K, error_feedback="persist", downlink=DIFFERENCE)
    with caplog.at_level(logging.INFO, "flwr"):
        result = strategy.start(grid, initial, num_rounds=3)
    assert len(result.train_metrics_clientapp) == len(result.evaluate_metrics_clientapp) == 3
    evaluated = [arrays for kind, arrays, _ in grid.nodes[7].received if kind == "evaluate"]
    assert np.array_equal(flatten(evaluated[-1]), flatten(result.arrays)), "clients evaluate the final model"
    assert result.evaluate_metrics_clientapp[3]["sum"] == pytest.approx(float(flatten(result.arrays).sum()))

    rows = strategy.traffic
    assert [(row.round, row.what, row.nodes) for row in rows] == [
        (round, phase, 4) for round in (1, 2, 3) for phase in ("train", "evaluate")
    ]
    model_bytes = sum(len(array.data) for array in initial.values())
    assert all(0 < row.plain_down - 4 * model_bytes < 4 * 1700 for row in rows), "names and metadata"
    assert all(0 < row.plain_up - (4 * model_bytes if row.what == "train" else 0) < 4 * 1700 for row in rows)
    record_bytes = {"up": 0, "down": 0}
    for direction, _, content in grid.contents:
        for name in (RECORD_KEY, "fedsgd-task"):
            record = content.get(name)
            record_bytes[direction] += sum(map(len, record.values())) if isinstance(record, ConfigRecord) else 0
    assert record_bytes == {"up": sum(row.up for row in rows), "down": sum(row.down for row in rows)}
    assert rows[0].down > rows[2].down, "a difference is smaller than the model"
    row = rows[2]
    ratios = row.compression_ratios
    plain_up, plain_down, up, down = row.plain_up, row.plain_down, row.message_up, row.message_down
    assert list(ratios.values()) == [plain_up / up, plain_down / down, (plain_up + plain_down) / (up + down)]
    amounts = f"in Flower's messages {up:,} up, {down:,} down; compression ratio {ratios['bidirectional_ratio']:.1f} both ways"
    assert f"fedsgd: round 2: {row.up:,} bytes up, {row.down:,} down; {amounts}\n" in caplog.text
    assert f"fedsgd: round 2, evaluation: 0 bytes up, {rows[3].down:,} down; in Flower's messages" in caplog.text
    assert "Uplink: TopK(" in caplog.text


@pytest.mark.parametrize(
    ("create_strategy", "reason"),
    [
        (
            lambda: FedAvgM(fraction_train=0.5, server_momentum=0.9),
            "2 of 4 clients take part in a round and the server's optimizer",
        ),
        (lambda: FedAdam(), "the server's optimizer has a momentum of its own"),
        (lambda: FedAvg(), None),
    ],
)
def test_settings_that_do_not_suit_the_compressor_are_logged_once(
    create_strategy: Callable[[], Strategy], reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    compressor = {"name": "dgc", "density": 0.05, "momentum": 0.5}
    strategy = CompressedStrategy(create_strategy(), compressor, downlink=DIFFERENCE)
    list(run_rounds(strategy, make_grid(), make_model(), 3))
    warnings = [record.getMessage() for record in caplog.records if "compressor.momentum" in record.getMessage()]
    assert len(warnings) == (reason is not None), warnings
    assert reason is None or warnings[0].startswith(
        "fedsgd: compressor.momentum = 0.5: DGC corrects the momentum of one local step"
    )
    assert reason is None or f", but {reason}" in warnings[0]


def test_class_instead_of_a_strategy_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"inner: got <class .*FedAvg.*>, expected a strategy"):
        CompressedStrategy(FedAvg)
