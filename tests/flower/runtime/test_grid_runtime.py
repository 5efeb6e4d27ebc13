"""Tests of the runtime over a Grid with nodes in this process: equal results to a simulation, failing nodes, and messages."""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fedsgd
from fedsgd.compression import COMPRESSORS
from fedsgd.config.user_classes import ClassIdentity, find_import_paths, identify_classes
from fedsgd.errors import NonFiniteError, OutputError, RunError, ScenarioError, WireError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.runner import execute_run
from fedsgd.federation import Reply, broadcast
from fedsgd.federation.round_loop import ClientFailure
from fedsgd.flower import state_directory
from fedsgd.flower.records import MAX_CONFIG_VALUE_BYTES, read_payload, write_payload
from fedsgd.flower.runtime import message_content, node, server_app
from fedsgd.flower.runtime.client_app import app
from fedsgd.flower.runtime.execution import FlowerExecution
from fedsgd.flower.runtime.grid_runtime import FlowerRuntime, MessageEvent
from fedsgd.flower.runtime.settings import SERVER_FIELDS, read_scenario
from fedsgd.runtime.workers import protocol
from fedsgd.scenario.scenario import PythonObjects, Scenario
from fedsgd.system.torch_determinism import isolate_global_state
from tests.effort import examples, nightly_unless, slow_unless
from tests.flower.grid import InProcessGrid, InProcessNode, identity
from tests.flower.user_source import write_rules

Make = Callable[..., Scenario]


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the folder of the nodes' states."""
    monkeypatch.setenv("FEDSGD_STATE", str(tmp_path / "state"))
    node.PREBUILT.clear()
    with identity(1):
        yield tmp_path / "state"


def create_grid(scenario: Scenario, n_nodes: int, data: Path | None = None) -> InProcessGrid:
    return InProcessGrid.of(app, n_nodes, scenario=scenario.to_toml(), data=str(data or ""), state="")


def run_over_grid(
    grid: InProcessGrid,
    scenario: Scenario,
    events: list[MessageEvent] | None = None,
    server_classes: Sequence[ClassIdentity] = (),
    **options: Any,
) -> fedsgd.Result:
    """Run a scenario over a grid, and append its messages to `events`."""
    messages = [] if events is None else events

    def create_execution(experiment: Any) -> FlowerExecution:
        engine = str(experiment.engine_choice)
        runtime = FlowerRuntime(grid, len(experiment.train), len(grid.nodes), 5.0, messages.append, engine, server_classes)
        return FlowerExecution(experiment, runtime, 5.0)

    with isolate_global_state():
        return execute_run(scenario, execution_factory=create_execution, **options)


NEEDED_SETTINGS: dict[str, dict[str, Any]] = {
    "demo": {"uplink.compressor.momentum": 0.0},
    "dgc": {"uplink.compressor.momentum": 0.0},
    "ef21": {"server.weighting": "uniform"},
    "fetch-sgd": {"uplink.compressor.momentum": 0.0},
    "per-layer": {"uplink.compressor.op.name": "top-k"},
    "scaffold": {"client.optimizer.name": "sgd", "server.weighting": "uniform"},
    "scheduled": {"uplink.compressor.op.name": "top-k"},
}
"""Settings without which a compressor does not fit the scenario."""
COMPRESSOR_CASES: dict[str, dict[str, Any]] = {
    name: {"uplink.compressor.name": name, "uplink.error_feedback": "none", **NEEDED_SETTINGS.get(name, {})}
    for name in COMPRESSORS
}
CASES: dict[str, dict[str, Any]] = {
    **COMPRESSOR_CASES,
    "stc both ways": {
        **COMPRESSOR_CASES["stc"],
        "downlink.policy": "error-feedback",
        "downlink.compressor.name": "top-k",
        "downlink.compressor.values": "ternary",
    },
    "qsgd, differences": {**COMPRESSOR_CASES["qsgd"], "downlink.policy": "difference", "evaluation.validation": 0.2},
    "carried momentum, bfloat16 states": {"client.velocity": "carry", "state.precision": "bfloat16"},
    "stragglers": {"client.epochs": 3, "participation.stragglers": 0.5, "server.sampler": "weighted"},
    "dropped stragglers, differences": {
        "client.epochs": 3,
        "participation.stragglers": 0.5,
        "participation.straggler_policy": "drop",
        "downlink.policy": "difference",
    },
    "carried moments": {"client.optimizer.name": "adamw", "client.velocity": "carry", "server.optimizer.name": "diloco"},
}
ROUTINE_CASES = {
    "dense",
    "dgc",
    "cafe",
    "fetch-sgd",
    "scaffold",
    "stc both ways",
    "qsgd, differences",
    "carried momentum, bfloat16 states",
    "stragglers",
}
"""Cases outside the night: each kind of client state and of server state, a REFERENCE frame, each downlink policy."""
CASES_AND_ENGINES = slow_unless(
    lambda case: case[0] in ("dgc", "stc both ways"),
    nightly_unless(
        lambda case: case[0] in ROUTINE_CASES and case[1] == "sequential",
        [*((case, "sequential") for case in CASES), ("dgc", "auto"), ("eden", "stacked")],
    ),
)


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(("case", "engine"), CASES_AND_ENGINES)
def test_run_over_grid_has_the_results_of_a_simulation(scenario: Make, case: str, engine: str) -> None:
    s = scenario({**CASES[case], "engine.name": engine, "rounds": 3, "server.cohort": 5})
    simulation = fedsgd.run(s)
    result = run_over_grid(create_grid(s, 3), s)
    for digest in ("params_sha256", "ledger_sha256"):
        assert result.summary[digest] == simulation.summary[digest]
    assert result.summary["residuals"] == simulation.summary["residuals"]
    assert [record.metrics for record in result.history] == [record.metrics for record in simulation.history]
    assert result.summary["states"]["place"] == "nodes"


@pytest.mark.slow
def test_each_node_receives_one_message_in_a_round_with_shared_frames_once(scenario: Make) -> None:
    s, events = scenario({"rounds": 2, "server.cohort": 8, "engine.name": "sequential"}), []
    grid = create_grid(s, 3)
    result = run_over_grid(grid, s, events)
    assert [(event.round, event.node, event.direction) for event in events if event.direction == "down"] == [
        (round, node, "down") for round in (1, 2) for node in range(3)
    ]
    assert [node.n_messages for node in grid.nodes.values()] == [3, 3, 3], "a query, and two rounds"
    rows = result.ledger.table().to_pylist()
    model_bytes = next(row["n_bytes"] for row in rows if row["kind"] == "MODEL")
    task_bytes = next(row["n_bytes"] for row in rows if row["kind"] == "TASK")
    for event in events:
        clients = [client for client in range(8) if client % 3 == event.node]
        if event.direction == "down":
            assert event.frame_bytes == model_bytes + task_bytes * len(clients)
        else:
            update_bytes = [
                row["n_bytes"]
                for row in rows
                if (row["round"], row["kind"]) == (event.round, "UPDATE") and row["client"] in clients
            ]
            assert event.frame_bytes == sum(update_bytes)
        assert event.frame_bytes < event.message_bytes < event.frame_bytes + 3000


def test_large_payload_is_written_in_parts_and_read_unchanged() -> None:
    for size in (0, MAX_CONFIG_VALUE_BYTES, MAX_CONFIG_VALUE_BYTES + 1):
        data = bytes(size)
        assert read_payload(write_payload(RecordDict(), data)) == data
    with pytest.raises(WireError, match='expected a record "fedsgd"'):
        read_payload(RecordDict({"other": ConfigRecord({"frames": b"x"})}))


@pytest.mark.slow
def test_node_builds_the_scenario_once_and_then_reads_its_cache(
    scenario: Make, state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scenario({"rounds": 3})
    builds = []
    build_and_cache = node._build_and_cache
    monkeypatch.setattr(node, "_build_and_cache", lambda *arguments: builds.append(arguments) or build_and_cache(*arguments))
    cached_result = run_over_grid(create_grid(s, 2), s)
    assert len(builds) == 2, "one for each node"
    shutil.rmtree(state_folder)
    node.prebuild(node.NodeSource(s.to_toml(), ""))
    prebuilt_result = run_over_grid(create_grid(s, 2), s)
    assert len(builds) == 3
    assert prebuilt_result.summary["params_sha256"] == cached_result.summary["params_sha256"]


@pytest.mark.slow
def test_cache_of_a_node_has_only_the_examples_of_its_own_clients(scenario: Make, state_folder: Path) -> None:
    s = scenario({"rounds": 1})
    run_over_grid(create_grid(s, 2), s)
    experiment, source = build_experiment(s), node.NodeSource(s.to_toml(), "")
    for partition in (0, 1):
        cached = node._load_cached(state_folder / "run-77" / f"node-{partition}" / node.CACHE_FILE, source)
        assert cached is not None
        for client in range(8):
            is_own = client % 2 == partition
            cached_examples, examples = cached.data.examples_of(client), experiment.train.examples_of(client)
            assert len(cached_examples) == (len(examples) if is_own else 0)
            for cached_array, array in zip(cached_examples.arrays(), examples.arrays(), strict=True):
                assert not is_own or cached_array.tobytes() == array.tobytes()
    assert node._load_cached(state_folder / "run-77" / "node-0" / node.CACHE_FILE, node.NodeSource("another", "")) is None


# --------------------------------------------------------------------------------------------------------------------------- faults


def start_runtime(scenario: Scenario, n_nodes: int = 2, timeout: float = 0.3) -> tuple[Any, InProcessGrid, FlowerRuntime]:
    """Return the experiment, a grid and a runtime whose nodes are ready."""
    experiment, grid = build_experiment(scenario), create_grid(scenario, n_nodes)
    runtime = FlowerRuntime(grid, 8, n_nodes, timeout)
    runtime.wait_for_nodes(5.0)
    return experiment, grid, runtime


def exchange_errors(runtime: FlowerRuntime, experiment: Any, cohort: Sequence[int] = range(4)) -> dict[int, str]:
    """Run the messages of a round, and return the error of each client as text, "" for a reply."""
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, cohort)
    return {
        outcome.client: f"{type(outcome.error).__name__}: {outcome.error}" if isinstance(outcome, ClientFailure) else ""
        for outcome in runtime.exchange(messages, None)
    }


@pytest.mark.slow
def test_clients_of_an_unavailable_node_fail_with_its_cause(scenario: Make) -> None:
    experiment, grid, runtime = start_runtime(scenario())
    node_id = grid.find_id(1)
    for failing_nodes, expected in (
        (grid.unavailable_nodes, "ConnectionError: node 1: unavailable: Node Unavailable"),
        (grid.silent_nodes, "TimeoutError: node 1: no answer within 0.3 s"),
        (grid.unreachable_nodes, "ConnectionError: node 1: not connected"),
    ):
        failing_nodes.add(node_id)
        assert exchange_errors(runtime, experiment) == {0: "", 1: expected, 2: "", 3: expected}
        failing_nodes.clear()


@pytest.mark.slow
def test_corrupt_reply_fails_the_clients_of_its_node(scenario: Make) -> None:
    experiment, grid, runtime = start_runtime(scenario())
    for data in (b"", b"\0" * 40, bytes(range(200))):
        corrupt_content = write_payload(RecordDict(), data + b"!")
        grid.alter_reply = lambda to, content, corrupt=corrupt_content: corrupt if to == grid.find_id(0) else content
        errors = exchange_errors(runtime, experiment)
        assert errors[1] == errors[3] == ""
        assert errors[0].startswith("ConnectionError: node 0: its reply cannot be decoded: byte")
    grid.alter_reply = lambda to, content: RecordDict() if to == grid.find_id(0) else content
    assert 'expected a record "fedsgd" with bytes in "frames"' in exchange_errors(runtime, experiment)[2]


@pytest.mark.slow
def test_error_of_a_client_fails_one_client_and_error_of_an_app_its_node(scenario: Make, state_folder: Path) -> None:
    experiment, grid, runtime = start_runtime(scenario())
    (state_folder / "run-77" / "node-1" / "client-1").mkdir()
    errors = exchange_errors(runtime, experiment)
    assert errors[0] == errors[2] == errors[3] == "", "one client's failure does not affect other clients"
    assert "client 1: OutputError" in errors[1]
    assert "client state cannot be written (Is a directory)" in errors[1]
    grid.nodes[grid.find_id(1)].settings = {}
    error = exchange_errors(runtime, experiment)[3]
    assert (
        "node 1: its app raised an error: <class 'fedsgd.errors.ScenarioError'>:<'run config: no scenario, data, state: "
        in error
    )


@pytest.mark.slow
def test_error_of_a_client_has_its_class_and_message_at_the_server(scenario: Make) -> None:
    s = scenario({"client.optimizer.lr": 1e38, "client.epochs": 2})
    with pytest.raises(NonFiniteError, match=r"round 1, client \d: the update is not finite"):
        run_over_grid(create_grid(s, 2), s)


@pytest.mark.slow
def test_missing_or_unsuitable_node_is_a_run_error(scenario: Make) -> None:
    s = scenario()
    grid = create_grid(s, 3)
    grid.silent_nodes.add(grid.find_id(1))
    runtime = FlowerRuntime(grid, 8, 3)
    with pytest.raises(RunError, match=r"2 of 3 nodes are ready after 0.2 s: node 1 did not answer"):
        runtime.wait_for_nodes(0.2)
    with pytest.raises(RunError, match=r"node \d: cannot take part: its engine would be .*; the server expects another"):
        FlowerRuntime(create_grid(s, 2), 8, 2, expected_engine="another").wait_for_nodes(5.0)
    with pytest.raises(RunError, match=r"a node reports partition \d of 2, expected a partition-id from 0 to 2 of 3"):
        FlowerRuntime(InProcessGrid.of(app, 2, scenario=s.to_toml(), data="", state=""), 8, 3).wait_for_nodes(5.0)
    grid_without_data = InProcessGrid.of(app, 1, scenario=s.to_toml().replace('"digits"', '"mnist"'), data="/nowhere", state="")
    with pytest.raises(RunError, match=r"node 0: cannot take part: .*/nowhere"):
        FlowerRuntime(grid_without_data, 8, 1).wait_for_nodes(5.0)


@pytest.mark.slow
def test_run_with_a_users_classes_over_grid_has_the_results_of_a_simulation(scenario: Make, user_folder: Path) -> None:
    s = scenario({**write_rules(user_folder, "grid_rules"), "rounds": 2, "engine.name": "sequential"})
    classes = identify_classes(find_import_paths(s))
    assert [identity.path for identity in classes] == ["grid_rules:HalfTopK", "grid_rules:UserMean"]
    simulation, result = fedsgd.run(s), run_over_grid(create_grid(s, 3), s, server_classes=classes)
    for digest in ("params_sha256", "ledger_sha256"):
        assert result.summary[digest] == simulation.summary[digest]


@pytest.mark.slow
def test_node_without_a_users_class_is_a_scenario_error_before_round_1(scenario: Make, user_folder: Path) -> None:
    """The node's message has the classes of the scenario and the missing module; the server does not wait for other nodes."""
    s = scenario(write_rules(user_folder, "lost_rules"))
    classes, grid = identify_classes(find_import_paths(s)), create_grid(s, 3)
    grid.silent_nodes.add(grid.find_id(2))
    del sys.modules["lost_rules"]
    (user_folder / "lost_rules.py").unlink()
    start = time.monotonic()
    with pytest.raises(ScenarioError) as caught:
        FlowerRuntime(grid, 8, 3, server_classes=classes).wait_for_nodes(60.0)
    assert time.monotonic() - start < 30.0
    text = str(caught.value)
    assert re.match(
        r"node \d: cannot take part: the scenario needs lost_rules:HalfTopK, lost_rules:UserMean: \S+: "
        r"cannot import \"lost_rules\": ModuleNotFoundError: No module named 'lost_rules'",
        text,
    ), text
    assert "\n" not in text
    assert {message.metadata.message_type for message in grid.sent_messages} == {MessageType.QUERY}


def test_node_with_another_class_is_a_scenario_error_before_round_1(
    scenario: Make, user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scenario(write_rules(user_folder, "other_rules"))
    compressor, aggregator = identify_classes(find_import_paths(s))
    other = aggregator._replace(sha256="0", release="other-rules 1.0")
    monkeypatch.setattr(node, "identify_classes", lambda paths: [compressor, other])
    runtime = FlowerRuntime(create_grid(s, 2), 8, 2, server_classes=[compressor, aggregator])
    with pytest.raises(ScenarioError) as caught:
        runtime.wait_for_nodes(5.0)
    assert re.fullmatch(
        r"node \d: cannot take part: other_rules:UserMean is not the server's: the node has other-rules 1.0, source 0; "
        rf"the server has no installed release, source {aggregator.sha256}",
        str(caught.value),
    )


@pytest.mark.slow
def test_restarted_node_with_another_class_is_left_out(
    scenario: Make, user_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    s = scenario(write_rules(user_folder, "restarted_rules"))
    experiment, grid, classes = build_experiment(s), create_grid(s, 2), identify_classes(find_import_paths(s))
    runtime = FlowerRuntime(grid, 8, 2, 0.3, server_classes=classes)
    runtime.wait_for_nodes(5.0)
    grid.restart(1)
    monkeypatch.setattr(node, "identify_classes", lambda paths: [])
    errors = exchange_errors(runtime, experiment)
    assert errors[0] == errors[2] == ""
    assert errors[1].startswith("ConnectionError: node 1: ")
    assert "not among the node's classes []; the run continues without this node" in capsys.readouterr().out


def test_query_has_no_classes_for_a_scenario_of_fedsgds_classes(scenario: Make) -> None:
    grid = create_grid(scenario(), 1)
    FlowerRuntime(grid, 8, 1).wait_for_nodes(5.0)
    assert [dict(message.content["fedsgd"]) for message in grid.sent_messages] == [{"hello": ""}]


def test_missing_or_wrong_run_config_is_an_error_of_one_line(scenario: Make, tmp_path: Path) -> None:
    """A user's app may name fedsgd's apps without their run config."""
    complete = {"scenario": scenario().to_toml(), "data": "", "nodes": 2, "events": str(tmp_path / "events")}
    complete |= {"out": str(tmp_path / "out"), "start-seconds": 5, "round-seconds": 5.0}
    complete |= {"state": "", "launch": "{}", "is-resumed": False}
    purpose = "fedsgd.flower.runtime.server_app:app runs a fedsgd scenario, and `fedsgd flower SCENARIO --nodes N` submits it"
    for config, message in (
        ({}, f"run config: no {', '.join(SERVER_FIELDS)}: {purpose}"),
        ({**complete, "is-resumed": 1}, "run config: is-resumed: got 1, expected true or false: "),
        ({k: v for k, v in complete.items() if k != "events"}, f"run config: no events: {purpose}"),
        ({**complete, "nodes": "2"}, f"run config: nodes: got '2', expected a whole number from 1 on: {purpose}"),
        ({**complete, "nodes": 0}, f"run config: nodes: got 0, expected a whole number from 1 on: {purpose}"),
        ({**complete, "round-seconds": True}, "run config: round-seconds: got True, expected a positive number: "),
        ({**complete, "data": 3}, 'run config: data: got 3, expected the path of a folder, or "": '),
    ):
        with pytest.raises(ScenarioError) as caught:
            server_app.main(None, Context(77, 1, {}, RecordDict(), config))
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match=r"nowhere/events: cannot be written \(No such file or directory\)"):
        server_app.main(None, Context(77, 1, {}, RecordDict(), {**complete, "events": str(tmp_path / "nowhere" / "events")}))


def test_run_config_with_a_path_in_place_of_a_scenario_is_an_error() -> None:
    text = "run config: scenario: got 'quickstart.toml', expected the TOML text of a scenario, not a path"
    with pytest.raises(ScenarioError, match=text):
        read_scenario("quickstart.toml")


def test_error_of_a_node_without_partition_has_the_option_that_sets_it(scenario: Make) -> None:
    grid = create_grid(scenario(), 1)
    grid.nodes[grid.find_id(0)].partition = None
    expected = 'got partition-id None and num-partitions 1, .* --node-config "partition-id=I num-partitions=N"'
    with pytest.raises(RunError, match=f"a node cannot take part: its app raised an error: .*ScenarioError.*{expected}"):
        FlowerRuntime(grid, 8, 1).wait_for_nodes(5.0)


def test_query_of_a_foreign_server_app_is_answered(scenario: Make) -> None:
    grid = create_grid(scenario(), 1)
    (message,) = grid.push_messages([Message(RecordDict(), grid.find_id(0), MessageType.QUERY, group_id="0")])
    (reply,) = grid.pull_messages([message or ""])
    assert dict(reply.content["fedsgd"])["partition-id"] == 0


@pytest.mark.slow
def test_unsuitable_new_nodes_are_ignored_after_one_timeout(scenario: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One new node has a wrong number of partitions, and one does not reply."""
    monkeypatch.setattr("fedsgd.flower.runtime.grid_runtime.RESTART_TIMEOUT_SECONDS", 0.2)
    experiment, grid, runtime = start_runtime(scenario(), timeout=30.0)
    grid.nodes[5] = InProcessNode(0, 7, grid.nodes[grid.find_id(0)].settings)
    grid.nodes[6] = InProcessNode(1, 2, grid.nodes[grid.find_id(0)].settings)
    grid.silent_nodes.add(6)
    for min_seconds, max_seconds in ((0.2, 20.0), (0.0, 0.2)):
        start = time.monotonic()
        runtime._admit_restarted_nodes()
        assert min_seconds <= time.monotonic() - start < max_seconds
        assert set(exchange_errors(runtime, experiment).values()) == {""}


def test_evaluation_of_local_models_over_nodes_is_an_error(scenario: Make) -> None:
    def create_module() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))

    local = {"model.batch_norm": "local", "evaluation.clients": True, "data.held_out": 0.2, "engine.name": "sequential"}
    s = scenario({**local, "client.last_batch": "drop"})
    with pytest.raises(ScenarioError, match="local models are on the nodes alone"):
        run_over_grid(create_grid(s, 2), s, objects=PythonObjects(module=create_module()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "lost",
    nightly_unless(
        lambda lost: lost in ("memory", "an old copy of the disk"), ["memory", "disk", "both", "an old copy of the disk"]
    ),
)
@pytest.mark.parametrize("policy", nightly_unless(lambda policy: policy == "difference", ["model", "difference"]))
def test_restarted_node_is_caught_up(scenario: Make, state_folder: Path, lost: str, policy: str) -> None:
    """A node that lost client states replies RESYNC, and its clients continue with the states that are stored."""
    s = scenario({"rounds": 6, "server.cohort": 8, "downlink.policy": policy, "engine.name": "sequential"})
    simulation = fedsgd.run(s)
    grid, copy = create_grid(s, 2), state_folder.parent / "copy"

    def after_round(record: fedsgd.RoundRecord) -> None:
        if record.round == 1:
            shutil.copytree(state_folder / "run-77" / "node-1", copy)
        if record.round != 3:
            return
        if lost in ("memory", "both"):
            grid.restart(1)
        if lost in ("disk", "both"):
            shutil.rmtree(state_folder / "run-77" / "node-1")
        if lost == "an old copy of the disk":
            shutil.rmtree(state_folder / "run-77" / "node-1")
            shutil.copytree(copy, state_folder / "run-77" / "node-1")

    result = run_over_grid(grid, s, on_round=after_round)
    rows = result.ledger.table().to_pylist()
    resyncs = [(row["round"], row["client"]) for row in rows if row["kind"] == "RESYNC"]
    if lost == "memory":
        assert result.summary["ledger_sha256"] == simulation.summary["ledger_sha256"], "the disk has all states"
    else:
        assert resyncs == [(4, client) for client in (1, 3, 5, 7)]
        assert result.summary["failures"] == 0


# ------------------------------------------------------------------------------------------------------------------------- messages


PACKETS = st.lists(st.tuples(st.binary(max_size=20), st.lists(st.binary(max_size=50), max_size=4)), max_size=5)


@given(PACKETS)
def test_packets_are_unchanged_after_packing(packets: list[tuple[bytes, list[bytes]]]) -> None:
    assert [(head, list(frames)) for head, frames in protocol.unpack_packets(protocol.pack_packets(packets))] == packets


def encode_example_reply() -> bytes:
    """Return the reply of a node with two replies and three failures of clients."""
    replies = [Reply(client, (bytes([client]) * 30,), 0.1, 0.2, 3) for client in (1, 4)]
    failures = [
        ClientFailure(6, RunError(2, 6, "gone")),
        ClientFailure(8, NonFiniteError(2, 8, "nan")),
        ClientFailure(9, OSError("disk")),
    ]
    return message_content.encode_reply(12345, 0.5, [*replies, *failures])


def test_reply_of_a_node_is_unchanged_after_decoding() -> None:
    reply = message_content.decode_reply(encode_example_reply(), 2, range(10))
    assert (reply.process, reply.seconds) == (12345, 0.5)
    assert [outcome.client for outcome in reply.outcomes] == [1, 4, 6, 8, 9]
    assert message_content.count_frame_bytes(encode_example_reply()) == 60
    errors = [outcome.error for outcome in reply.outcomes if isinstance(outcome, ClientFailure)]
    assert [(type(error).__name__, str(error)) for error in errors] == [
        ("RunError", "round 2, client 6: gone"),
        ("NonFiniteError", "round 2, client 8: nan"),
        ("RunError", "round 2, client 9: OSError: disk"),
    ]
    with pytest.raises(WireError, match="an outcome of a client without a message"):
        message_content.decode_reply(encode_example_reply(), 2, range(9))
    packets = list(protocol.unpack_packets(encode_example_reply()))
    data = protocol.pack_packets([*packets, packets[1]])
    with pytest.raises(WireError, match="two outcomes of a client"):
        message_content.decode_reply(data, 2, range(10))


@examples(100)
@given(st.randoms(use_true_random=False))
def test_corrupt_reply_is_decoded_or_a_wire_error(rng: random.Random) -> None:
    data = bytearray(encode_example_reply())
    for _ in range(rng.randint(1, 4)):
        change, offset = rng.randint(0, 3), rng.randrange(len(data) or 1)
        if change == 0:
            data[offset:offset] = rng.randbytes(rng.randint(1, 9))
        elif change == 1:
            del data[offset : offset + rng.randint(1, 30)]
        elif change == 2 and data:
            data[offset] = rng.randrange(256)
        else:
            data[offset : offset + 8] = b"\xff" * 8
    try:
        reply = message_content.decode_reply(bytes(data), 2, range(10))
    except WireError:
        return
    for outcome in reply.outcomes:
        assert isinstance(outcome, Reply | ClientFailure)


def test_impossible_figure_of_a_client_is_a_wire_error() -> None:
    """The figures are written to the summary and to tables."""
    valid_figures = {
        "decode_seconds": 0.1,
        "encode_seconds": 0.2,
        "steps": 3,
        "residual_norm": float("nan"),
        "residual_norm_if_lost": 1.0,
        "rounds_missed": -1,
    }
    invalid_figures: list[dict[str, Any]] = [
        {"decode_seconds": float("nan")},
        {"encode_seconds": -1.0},
        {"steps": -5},
        {"steps": 2**40},
    ]
    invalid_figures += [{"residual_norm": float("inf")}, {"residual_norm": -3.0}]
    invalid_figures += [{"rounds_missed": 2**62}, {"rounds_missed": 2}, {"rounds_missed": -2}]
    message_content.decode_reply(message_content.encode_reply(1, 0.0, [Reply(1, (b"x",), **valid_figures)]), 2, [1])
    for figures in invalid_figures:
        reply = Reply(1, (b"x",), **{**valid_figures, **figures})
        with pytest.raises(WireError):
            message_content.decode_reply(message_content.encode_reply(1, 0.0, [reply]), 2, [1])
    for process, seconds in ((2**63, 0.0), (1, float("inf")), (1, -1.0)):
        with pytest.raises(WireError):
            message_content.decode_reply(message_content.encode_reply(process, seconds, []), 2, [])


@pytest.mark.parametrize("numbers", [[3, -2], [3, 9], [3, 1, 5], [3, 1, -1], [3]])
def test_request_with_missing_frames_is_a_wire_error(numbers: list[int]) -> None:
    head = bytes([protocol.MessageType.TRAIN]) + np.array(numbers, dtype="<i8").tobytes()
    with pytest.raises(WireError, match="not a training request"):
        message_content.decode_request(protocol.pack_packets([(head, [b"frame"])]))


def test_state_of_expired_runs_is_removed(tmp_path: Path) -> None:
    """A run that another node has just removed is no error."""
    expired_run = tmp_path / "run-1" / "node-0"
    expired_run.mkdir(parents=True)
    for path in (expired_run, expired_run.parent):
        os.utime(path, (1, 1))
    (tmp_path / "run-2" / "node-0").mkdir(parents=True)
    (tmp_path / "run-3").symlink_to(tmp_path / "missing")
    state_directory._remove_expired_runs(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"run-2", "run-3"}


def test_reply_is_decoded_without_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise AssertionError("the data was unpickled")

    monkeypatch.setattr(protocol.pickle, "loads", fail)
    test_reply_of_a_node_is_unchanged_after_decoding()
    head, frames = protocol.encode_failure(ValueError("x"), 3)
    with pytest.raises(WireError, match="not the reply of a node"):
        message_content.decode_reply(
            protocol.pack_packets([(message_content._NODE_STRUCT.pack(1, 0.0), ()), (head, frames)]), 2, range(10)
        )


def test_request_is_unchanged_after_decoding() -> None:
    shared_frame = b"model"
    messages = {1: (b"task 1", shared_frame), 4: (b"task 4", shared_frame)}
    data = message_content.encode_request(messages)
    assert message_content.decode_request(data) == messages
    assert message_content.count_frame_bytes(data) == 17
    for invalid_data in (b"", data[:-1], encode_example_reply()):
        with pytest.raises(WireError):
            message_content.decode_request(invalid_data)


def test_client_of_a_request_equals_its_number() -> None:
    assert np.int64(3) == next(iter(message_content.decode_request(message_content.encode_request({3: (b"a",)}))))
