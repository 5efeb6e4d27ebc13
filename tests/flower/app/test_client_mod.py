"""The mod on a node: repeated messages, exact arrays, other mods, and messages that are not compressed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsgd.flower import CompressedStrategy, compression_mod
from fedsgd.flower.app.array_layout import build_array_layout
from tests.flower.app.fixed_updates import (
    NODES,
    TOP_K,
    Node,
    RecordingFedAvg,
    RecordingGrid,
    make_grid,
    make_model,
    run_rounds,
    to_numpy,
)
from tests.flower.grid import transfer_message

pytestmark = pytest.mark.usefixtures("quick_collection")


def test_repeated_message_gets_the_same_reply_without_training() -> None:
    grid = make_grid(nodes=NODES[:1])
    (node,) = grid.nodes.values()
    strategy = CompressedStrategy(FedAvg(min_train_nodes=1, min_available_nodes=1), TOP_K, error_feedback="persist")
    (message,) = strategy.configure_train(1, make_model(), ConfigRecord(), grid)
    first, second = (grid.send_and_receive([transfer_message(message)])[0] for _ in range(2))
    assert len(node.received) == 1
    assert first.content == second.content
    assert second.content.metric_records["metrics"]["loss"] == 0.5
    node.restart()
    (third,) = grid.send_and_receive([transfer_message(message)])
    assert third.content == first.content, "the reply is stored on the node's disk"
    assert len(node.received) == 1


def test_exact_arrays_are_sent_bit_for_bit() -> None:
    exact_values: dict[str, Any] = {
        "bn.running_var": np.array([1e-30, 3.0], dtype=np.float32),
        "bn.num_batches_tracked": np.array(2**53 + 1),
        "table": np.array([[1 / 3], [np.pi]]),
        "flags": np.array([True, False]),
    }
    grid = make_grid(nodes=NODES[:2])
    initial = make_model(0, **exact_values)
    strategy = CompressedStrategy(RecordingFedAvg(), TOP_K, exact=["table"])
    ((arrays, _),) = run_rounds(strategy, grid, initial, 1)
    for node in grid.nodes.values():
        received = to_numpy(node.received[0][1])
        assert list(received) == list(initial), "in the order of the server"
        for name, value in exact_values.items():
            assert received[name].dtype == value.dtype
            assert received[name].tobytes() == value.tobytes()
    np.testing.assert_array_equal(arrays["bn.running_var"].numpy(), exact_values["bn.running_var"])
    np.testing.assert_array_equal(arrays["table"].numpy(), exact_values["table"])
    array_layout = build_array_layout(initial, ("*running_var", "table"))
    assert array_layout is not None
    assert [name for name in initial if name not in array_layout.layout.names] == list(exact_values)


def test_equal_exact_arrays_are_sent_once() -> None:
    def measure_bytes_down(**exact_values: Any) -> int:
        grid = make_grid(nodes=NODES[:2])
        strategy = CompressedStrategy(FedAvg(), TOP_K, exact=[*"abc"])
        list(run_rounds(strategy, grid, make_model(0, **exact_values), 1))
        for node in grid.nodes.values():
            for name, value in exact_values.items():
                assert to_numpy(node.received[0][1])[name].tobytes() == value.tobytes()
        return strategy.traffic[0].down

    value = np.arange(500) / 3
    once, twice = measure_bytes_down(a=value), measure_bytes_down(a=value, b=value.copy(), c=np.array([7]))
    assert twice - once < 2 * (len(Array(np.array([7])).data) + 200)


def test_mods_behind_compression_mod_see_arrays() -> None:
    record_names: list[list[str]] = []

    def inspect_records(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        record_names.append([*message.content, *reply.content])
        return reply

    grid = RecordingGrid([Node(id, i, [compression_mod(), inspect_records]) for i, id in enumerate(NODES)])
    list(run_rounds(CompressedStrategy(FedAvg(), TOP_K), grid, make_model(), 1))
    assert [sorted(names) for names in record_names] == [["arrays", "arrays", "config", "metrics"]] * 4


def test_nonfinite_reply_is_an_error_of_its_node(caplog: pytest.LogCaptureFixture) -> None:
    grid = make_grid()
    nonfinite = Array(np.array(np.nan, dtype=np.float32))
    metrics = MetricRecord({"num-examples": 10, "loss": 0.5})
    grid.nodes[7].reply = lambda message, arrays: RecordDict(
        {"arrays": ArrayRecord({**arrays, "scale": nonfinite}), "metrics": metrics}
    )
    inner = RecordingFedAvg()
    list(run_rounds(CompressedStrategy(inner, TOP_K), grid, make_model(), 1))
    assert sorted(inner.replies[0]) == sorted({*NODES} - {7})
    assert "is not finite in 1 of 221 coordinates" in caplog.text


def test_uncompressed_messages_errors_and_replies_without_arrays_pass_unchanged() -> None:
    mod = compression_mod()
    context = Context(1, 1, {}, RecordDict(), {})
    message = Message(RecordDict({"arrays": make_model()}), 7, "train")
    assert mod(message, context, lambda message, context: message) is message
    grid = make_grid()
    grid.nodes[7].reply = lambda message, arrays: Error(2, "mine")
    grid.nodes[NODES[0]].reply = lambda message, arrays: RecordDict({"metrics": MetricRecord({"num-examples": 1})})
    messages = CompressedStrategy(FedAvg(), TOP_K).configure_train(1, make_model(), ConfigRecord(), grid)
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages)}
    assert replies[7].error.reason == "compression_mod(): mine"
    assert list(replies[NODES[0]].content) == ["metrics"]


@pytest.mark.slow
def test_mod_imports_no_heavy_libraries() -> None:
    """Flower starts a new ClientApp process for each message."""
    heavy = {"torch", "numba", "pyarrow", "sklearn", "matplotlib", "ray"}
    code = f"import sys, fedsgd.flower; fedsgd.flower.compression_mod(); print(sorted({heavy!r} & sys.modules.keys()))"
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert process.stdout.strip() == "[]"
