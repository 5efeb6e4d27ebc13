"""Frames over Flower, with nodes in this process: the results of a simulation, and what becomes of nodes that fail."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

import fedsgd
from fedsgd.errors import NonFiniteError, OutputError, RunError, ScenarioError, WireError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.runner import run
from fedsgd.federation import Reply, broadcast
from fedsgd.federation.round_loop import ClientFailure
from fedsgd.flower import state_directory as place_module
from fedsgd.flower.records import MAX_CONFIG_VALUE_BYTES, read_payload, write_payload
from fedsgd.flower.runtime import message_content, node, server_app
from fedsgd.flower.runtime.client_app import app
from fedsgd.flower.runtime.grid_runtime import FlowerRuntime, MessageEvent
from fedsgd.flower.runtime.settings import read_scenario
from fedsgd.runtime.workers import protocol
from fedsgd.scenario.scenario import Scenario
from tests.flower.grid import GridHere, NodeHere, identity

Make = Callable[..., Scenario]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where nodes keep what they remember."""
    monkeypatch.setenv("FEDSGD_STATE", str(tmp_path / "state"))
    node.PREBUILT.clear()
    with identity(1):
        yield tmp_path / "state"


def grid_of(scenario: Scenario, nodes: int, data: Path | None = None) -> GridHere:
    return GridHere.of(app, nodes, scenario=scenario.to_toml(), data=str(data or ""))


def run_over(grid: GridHere, scenario: Scenario, carried: list[MessageEvent] | None = None, **given: Any) -> fedsgd.Result:
    def runtime(experiment: Any) -> FlowerRuntime:
        seen = [] if carried is None else carried
        made = FlowerRuntime(grid, len(experiment.train), len(grid.nodes), 5.0, seen.append, str(experiment.chosen))
        made.wait_for_nodes(5.0)
        return made

    return run(scenario, runtime_factory=runtime, **given)


WAYS: dict[str, dict[str, Any]] = {
    "dense": {"uplink.compressor.name": "dense", "uplink.error_feedback": "none"},
    "dgc": {"uplink.compressor.name": "dgc", "uplink.error_feedback": "none", "uplink.compressor.momentum": 0.0},
    "stc both ways": {
        "uplink.compressor.name": "stc",
        "uplink.error_feedback": "none",
        "downlink.policy": "error-feedback",
        "downlink.compressor.name": "top-k",
        "downlink.compressor.values": "ternary",
    },
    "qsgd": {"uplink.compressor.name": "qsgd", "uplink.error_feedback": "none", "downlink.policy": "difference"},
    "eden": {"uplink.compressor.name": "eden", "uplink.error_feedback": "none"},
    "scaffold": {
        "uplink.compressor.name": "scaffold",
        "uplink.error_feedback": "none",
        "client.optimizer.name": "sgd",
        "server.weighting": "uniform",
    },
    "cafe": {"uplink.compressor.name": "cafe", "uplink.error_feedback": "none"},
    "carried momentum, bfloat16 states": {"client.velocity": "carry", "state.precision": "bfloat16"},
}


@pytest.mark.parametrize(("way", "engine"), [*((way, "sequential") for way in WAYS), ("dgc", "auto"), ("eden", "stacked")])
def test_the_results_of_a_simulation(scenario: Make, way: str, engine: str) -> None:
    s = scenario({**WAYS[way], "engine.name": engine, "rounds": 4, "server.cohort": 5})
    here = fedsgd.run(s)
    over = run_over(grid_of(s, 3), s)
    for digest in ("params_sha256", "ledger_sha256"):
        assert over.summary[digest] == here.summary[digest]
    assert over.summary["residuals"] == here.summary["residuals"]
    assert [record.metrics for record in over.history] == [record.metrics for record in here.history]
    assert over.summary["states"]["place"] == "nodes"


def test_one_message_for_each_node_and_round_with_shared_frames_in_it_once(scenario: Make) -> None:
    s, carried = scenario({"rounds": 2, "server.cohort": 8, "engine.name": "sequential"}), []
    grid = grid_of(s, 3)
    result = run_over(grid, s, carried)
    assert [(c.round, c.node, c.direction) for c in carried if c.direction == "down"] == [
        (round, node, "down") for round in (1, 2) for node in range(3)
    ]
    assert [node.asked for node in grid.nodes.values()] == [3, 3, 3], "a hello, and two rounds"
    rows = result.ledger.table().to_pylist()
    model = next(row["n_bytes"] for row in rows if row["kind"] == "MODEL")
    task = next(row["n_bytes"] for row in rows if row["kind"] == "TASK")
    for c in carried:
        clients = [client for client in range(8) if client % 3 == c.node]
        if c.direction == "down":
            assert c.frame_bytes == model + task * len(clients)
        else:
            sent = [
                row["n_bytes"]
                for row in rows
                if (row["round"], row["kind"]) == (c.round, "UPDATE") and row["client"] in clients
            ]
            assert c.frame_bytes == sum(sent)
        assert c.frame_bytes < c.message_bytes < c.frame_bytes + 3000


def test_a_large_message_goes_in_pieces_and_arrives() -> None:
    for size in (0, MAX_CONFIG_VALUE_BYTES, MAX_CONFIG_VALUE_BYTES + 1):
        data = bytes(size)
        assert read_payload(write_payload(RecordDict(), data)) == data
    with pytest.raises(WireError, match='expected a record "fedsgd"'):
        read_payload(RecordDict({"other": ConfigRecord({"frames": b"x"})}))


def test_a_node_keeps_what_it_needs_and_builds_the_scenario_once(
    scenario: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scenario({"rounds": 3})
    built = []
    real = node._build_and_cache
    monkeypatch.setattr(node, "_build_and_cache", lambda *given: built.append(given) or real(*given))
    kept = run_over(grid_of(s, 2), s)
    assert len(built) == 2, "one for each node"
    shutil.rmtree(place)
    node.prebuild(node.NodeSource(s.to_toml(), ""))
    warm = run_over(grid_of(s, 2), s)
    assert len(built) == 3
    assert warm.summary["params_sha256"] == kept.summary["params_sha256"]


def test_a_node_has_the_examples_of_its_own_clients_alone(scenario: Make, place: Path) -> None:
    s = scenario({"rounds": 1})
    run_over(grid_of(s, 2), s)
    experiment, source = build_experiment(s), node.NodeSource(s.to_toml(), "")
    for partition in (0, 1):
        kept = node._load_cached(place / "run-77" / f"node-{partition}" / node.CACHE_FILE, source)
        assert kept is not None
        for client in range(8):
            here = client % 2 == partition
            assert len(kept.data.examples_of(client)) == (len(experiment.train.examples_of(client)) if here else 0)
            for mine, whole in zip(
                kept.data.examples_of(client).arrays(), experiment.train.examples_of(client).arrays(), strict=True
            ):
                assert not here or mine.tobytes() == whole.tobytes()
    assert node._load_cached(place / "run-77" / "node-0" / node.CACHE_FILE, node.NodeSource("another", "")) is None


# --------------------------------------------------------------------------------------------------------------------------- faults


def started(scenario: Scenario, nodes: int = 2, timeout: float = 0.3) -> tuple[Any, GridHere, FlowerRuntime]:
    experiment, grid = build_experiment(scenario), grid_of(scenario, nodes)
    runtime = FlowerRuntime(grid, 8, nodes, timeout)
    runtime.wait_for_nodes(5.0)
    return experiment, grid, runtime


def outcomes(runtime: FlowerRuntime, experiment: Any, cohort: Sequence[int] = range(4)) -> dict[int, str]:
    """Client → what went wrong, or nothing."""
    messages, _ = broadcast(experiment.plan, experiment.server, cohort)
    return {
        o.client: f"{type(o.error).__name__}: {o.error}" if isinstance(o, ClientFailure) else ""
        for o in runtime.exchange(messages, None)
    }


def test_a_node_that_is_gone_or_silent_or_not_connected_fails_its_clients(scenario: Make) -> None:
    experiment, grid, runtime = started(scenario())
    first = grid.id_of(1)
    for trouble, expected in (
        (grid.gone, "ConnectionError: node 1: it is gone: Node Unavailable"),
        (grid.silent, "TimeoutError: node 1: no answer within 0.3 s"),
        (grid.unsent, "ConnectionError: node 1: it is not connected"),
    ):
        trouble.add(first)
        assert outcomes(runtime, experiment) == {0: "", 1: expected, 2: "", 3: expected}
        trouble.clear()


def test_a_corrupted_reply_fails_the_clients_of_its_node(scenario: Make) -> None:
    experiment, grid, runtime = started(scenario())
    for bad in (b"", b"\0" * 40, bytes(range(200))):
        grid.altered = lambda to, content, bad=bad: write_payload(RecordDict(), bad + b"!") if to == grid.id_of(0) else content
        found = outcomes(runtime, experiment)
        assert found[1] == found[3] == ""
        assert found[0].startswith("ConnectionError: node 0: its answer cannot be read: byte")
    grid.altered = lambda to, content: RecordDict() if to == grid.id_of(0) else content
    assert 'expected a record "fedsgd" with "frames"' in outcomes(runtime, experiment)[2]


def test_an_app_that_raises_and_a_client_that_does(scenario: Make, place: Path) -> None:
    experiment, grid, runtime = started(scenario())
    (place / "run-77" / "node-1" / "client-1").mkdir()
    found = outcomes(runtime, experiment)
    assert found[0] == found[2] == found[3] == "", "one client's failure is not the others'"
    assert "client 1: OutputError" in found[1]
    assert "client state cannot be written (Is a directory)" in found[1]
    grid.nodes[grid.id_of(1)].settings = {}
    missing = outcomes(runtime, experiment)[3]
    assert "node 1: its app raised: <class 'fedsgd.errors.ScenarioError'>:<'run config: no scenario, data: " in missing


def test_what_a_client_says_went_wrong_is_what_the_server_says(scenario: Make) -> None:
    s = scenario({"client.optimizer.lr": 1e38, "client.epochs": 2})
    with pytest.raises(NonFiniteError, match=r"round 1, client \d: the update is not finite"):
        run_over(grid_of(s, 2), s)


def test_nodes_that_do_not_come_and_nodes_that_are_not_fit(scenario: Make) -> None:
    s = scenario()
    grid = grid_of(s, 3)
    grid.silent.add(grid.id_of(1))
    runtime = FlowerRuntime(grid, 8, 3)
    with pytest.raises(RunError, match=r"2 of 3 nodes are ready after 0.2 s: node 1 did not answer"):
        runtime.wait_for_nodes(0.2)
    with pytest.raises(RunError, match=r"node \d: cannot take part: its engine would be .*; the server expects another"):
        FlowerRuntime(grid_of(s, 2), 8, 2, expected_engine="another").wait_for_nodes(5.0)
    with pytest.raises(RunError, match=r"a node says that it is partition \d of 2, expected a partition-id below 3 of as many"):
        FlowerRuntime(GridHere.of(app, 2, scenario=s.to_toml(), data=""), 8, 3).wait_for_nodes(5.0)
    wrong = GridHere.of(app, 1, scenario=s.to_toml().replace('"digits"', '"mnist"'), data="/nowhere")
    with pytest.raises(RunError, match=r"node 0: cannot take part: .*/nowhere"):
        FlowerRuntime(wrong, 8, 1).wait_for_nodes(5.0)


def test_apps_without_the_settings_of_fedsgd_flower_name_them_in_one_line(scenario: Make, tmp_path: Path) -> None:
    """As in an app of somebody else that names them."""
    complete = {"scenario": scenario().to_toml(), "data": "", "nodes": 2, "events": str(tmp_path / "events")}
    complete |= {"out": str(tmp_path / "out"), "start-seconds": 5, "round-seconds": 5.0}
    purpose = "fedsgd.flower.runtime.server_app:app runs a fedsgd scenario, and `fedsgd flower SCENARIO --nodes N` submits it"
    for config, message in (
        ({}, f"run config: no scenario, data, nodes, events, out, start-seconds, round-seconds: {purpose}"),
        ({k: v for k, v in complete.items() if k != "events"}, f"run config: no events: {purpose}"),
        ({**complete, "nodes": "2"}, f"run config: nodes: got '2', expected a whole number from 1 on: {purpose}"),
        ({**complete, "nodes": 0}, f"run config: nodes: got 0, expected a whole number from 1 on: {purpose}"),
        ({**complete, "round-seconds": True}, "run config: round-seconds: got True, expected a positive number: "),
        ({**complete, "data": 3}, "run config: data: got 3, expected the path of a folder, or nothing: "),
    ):
        with pytest.raises(ScenarioError) as caught:
            server_app.main(None, Context(77, 1, {}, RecordDict(), config))
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match=r"nowhere/events: cannot be written \(No such file or directory\)"):
        server_app.main(None, Context(77, 1, {}, RecordDict(), {**complete, "events": str(tmp_path / "nowhere" / "events")}))


def test_run_config_with_a_path_in_place_of_a_scenario_is_refused() -> None:
    text = "run config: scenario: got 'quickstart.toml', expected the TOML text of a scenario, not a path"
    with pytest.raises(ScenarioError, match=text):
        read_scenario("quickstart.toml")


def test_node_without_its_partition_is_named_and_how_to_start_it(scenario: Make) -> None:
    grid = grid_of(scenario(), 1)
    grid.nodes[grid.id_of(0)].partition = None
    expected = 'got partition-id None and num-partitions 1, .* --node-config "partition-id=I num-partitions=N"'
    with pytest.raises(RunError, match=f"a node cannot take part: its app raised: .*ScenarioError.*{expected}"):
        FlowerRuntime(grid, 8, 1).wait_for_nodes(5.0)


def test_first_message_of_another_server_app_is_answered(scenario: Make) -> None:
    grid = grid_of(scenario(), 1)
    (message,) = grid.push_messages([Message(RecordDict(), grid.id_of(0), MessageType.QUERY, group_id="0")])
    (reply,) = grid.pull_messages([message or ""])
    assert dict(reply.content["fedsgd"])["partition-id"] == 0


def test_strangers_that_come_later_are_left_alone(scenario: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not fit, and one that says nothing: that one is waited for once."""
    monkeypatch.setattr("fedsgd.flower.runtime.grid_runtime.RESTART_TIMEOUT_SECONDS", 0.2)
    experiment, grid, runtime = started(scenario(), timeout=30.0)
    grid.nodes[5] = NodeHere(0, 7, grid.nodes[grid.id_of(0)].settings)
    grid.nodes[6] = NodeHere(1, 2, grid.nodes[grid.id_of(0)].settings)
    grid.silent.add(6)
    for least, most in ((0.2, 20.0), (0.0, 0.2)):
        begun = time.monotonic()
        runtime._admit_restarted_nodes()
        assert least <= time.monotonic() - begun < most
        assert set(outcomes(runtime, experiment).values()) == {""}


def test_models_that_stay_at_their_clients_cannot_be_tested_from_afar(scenario: Make) -> None:
    from torch import nn

    def module() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))

    local = {"model.batch_norm": "local", "evaluation.clients": True, "data.held_out": 0.2, "engine.name": "sequential"}
    s = scenario({**local, "client.last_batch": "drop"})
    with pytest.raises(ScenarioError, match="nowhere but at that client"):
        run_over(grid_of(s, 2), s, module=module())


@pytest.mark.parametrize("lost", ["memory", "disk", "both", "an old copy of the disk"])
@pytest.mark.parametrize("policy", ["model", "difference"])
def test_a_node_that_comes_back_is_caught_up(scenario: Make, place: Path, lost: str, policy: str) -> None:
    """What it lost is gone, and nothing is counted twice: its clients send what they hold now."""
    s = scenario({"rounds": 6, "server.cohort": 8, "downlink.policy": policy, "engine.name": "sequential"})
    here = fedsgd.run(s)
    grid, copy = grid_of(s, 2), place.parent / "copy"

    def after_round(record: fedsgd.RoundRecord) -> None:
        if record.round == 1:
            shutil.copytree(place / "run-77" / "node-1", copy)
        if record.round != 3:
            return
        if lost in ("memory", "both"):
            grid.restart(1)
        if lost in ("disk", "both"):
            shutil.rmtree(place / "run-77" / "node-1")
        if lost == "an old copy of the disk":
            shutil.rmtree(place / "run-77" / "node-1")
            shutil.copytree(copy, place / "run-77" / "node-1")

    over = run_over(grid, s, on_round=after_round)
    rows = over.ledger.table().to_pylist()
    resyncs = [(row["round"], row["client"]) for row in rows if row["kind"] == "RESYNC"]
    if lost == "memory":
        assert over.summary["ledger_sha256"] == here.summary["ledger_sha256"], "its disk has everything"
    else:
        assert resyncs == [(4, client) for client in (1, 3, 5, 7)]
        assert over.summary["failures"] == 0


# ------------------------------------------------------------------------------------------------------------ what crosses a network


SAID = st.lists(st.tuples(st.binary(max_size=20), st.lists(st.binary(max_size=50), max_size=4)), max_size=5)


@given(SAID)
def test_a_parcel_holds_what_was_put_in(parts: list[tuple[bytes, list[bytes]]]) -> None:
    assert [(head, list(frames)) for head, frames in protocol.unpack_packets(protocol.pack_packets(parts))] == parts


def answers() -> bytes:
    replies = [Reply(client, (bytes([client]) * 30,), 0.1, 0.2, 3) for client in (1, 4)]
    failures = [
        ClientFailure(6, RunError(2, 6, "gone")),
        ClientFailure(8, NonFiniteError(2, 8, "nan")),
        ClientFailure(9, OSError("disk")),
    ]
    return message_content.encode_reply(12345, 0.5, [*replies, *failures])


def test_an_answer_is_read_as_it_was_given() -> None:
    found = message_content.decode_reply(answers(), 2, range(10))
    assert (found.process, found.seconds) == (12345, 0.5)
    assert [outcome.client for outcome in found.outcomes] == [1, 4, 6, 8, 9]
    assert message_content.count_frame_bytes(answers()) == 60
    errors = [outcome.error for outcome in found.outcomes if isinstance(outcome, ClientFailure)]
    assert [(type(e).__name__, str(e)) for e in errors] == [
        ("RunError", "round 2, client 6: gone"),
        ("NonFiniteError", "round 2, client 8: nan"),
        ("RunError", "round 2, client 9: OSError: disk"),
    ]
    with pytest.raises(WireError, match="not asked for"):
        message_content.decode_reply(answers(), 2, range(9))
    twice = protocol.pack_packets([*protocol.unpack_packets(answers()), list(protocol.unpack_packets(answers()))[1]])
    with pytest.raises(WireError, match="two outcomes of a client"):
        message_content.decode_reply(twice, 2, range(10))


@settings(max_examples=300)
@given(st.randoms(use_true_random=False))
def test_whatever_comes_over_the_network_is_read_or_refused(rng: random.Random) -> None:
    data = bytearray(answers())
    for _ in range(rng.randint(1, 4)):
        change, at = rng.randint(0, 3), rng.randrange(len(data) or 1)
        if change == 0:
            data[at:at] = rng.randbytes(rng.randint(1, 9))
        elif change == 1:
            del data[at : at + rng.randint(1, 30)]
        elif change == 2 and data:
            data[at] = rng.randrange(256)
        else:
            data[at : at + 8] = b"\xff" * 8
    try:
        found = message_content.decode_reply(bytes(data), 2, range(10))
    except WireError:
        return
    for outcome in found.outcomes:
        assert isinstance(outcome, Reply | ClientFailure)


def test_figures_beside_the_frames_that_cannot_be_are_refused() -> None:
    """They end up in the summary and in tables."""
    good = {
        "decode_seconds": 0.1,
        "encode_seconds": 0.2,
        "steps": 3,
        "withheld": float("nan"),
        "withheld_if_lost": 1.0,
        "missed": -1,
    }
    bad: list[dict[str, Any]] = [{"decode_seconds": float("nan")}, {"encode_seconds": -1.0}, {"steps": -5}, {"steps": 2**40}]
    bad += [{"withheld": float("inf")}, {"withheld": -3.0}, {"missed": 2**62}, {"missed": 2}, {"missed": -2}]
    message_content.decode_reply(message_content.encode_reply(1, 0.0, [Reply(1, (b"x",), **good)]), 2, [1])
    for wrong in bad:
        with pytest.raises(WireError):
            message_content.decode_reply(message_content.encode_reply(1, 0.0, [Reply(1, (b"x",), **{**good, **wrong})]), 2, [1])
    for process, seconds in ((2**63, 0.0), (1, float("inf")), (1, -1.0)):
        with pytest.raises(WireError):
            message_content.decode_reply(message_content.encode_reply(process, seconds, []), 2, [])


@pytest.mark.parametrize("numbers", [[3, -2], [3, 9], [3, 1, 5], [3, 1, -1], [3]])
def test_a_request_for_frames_that_are_not_there_is_refused(numbers: list[int]) -> None:
    head = bytes([protocol.MessageType.TRAIN]) + np.array(numbers, dtype="<i8").tobytes()
    with pytest.raises(WireError, match="does not say what to train"):
        message_content.decode_request(protocol.pack_packets([(head, [b"frame"])]))


def test_old_runs_are_removed_by_whoever_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody minds if another node was quicker."""
    old = tmp_path / "run-1" / "node-0"
    old.mkdir(parents=True)
    for path in (old, old.parent):
        os.utime(path, (1, 1))
    (tmp_path / "run-2" / "node-0").mkdir(parents=True)
    (tmp_path / "run-3").symlink_to(tmp_path / "gone")
    place_module._remove_expired_runs(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"run-2", "run-3"}


def test_nothing_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: Any) -> Any:
        raise AssertionError("it was")

    monkeypatch.setattr(protocol.pickle, "loads", never)
    test_an_answer_is_read_as_it_was_given()
    head, frames = protocol.encode_failure(ValueError("x"), 3)
    with pytest.raises(WireError, match="not one of a node"):
        message_content.decode_reply(
            protocol.pack_packets([(message_content._NODE_STRUCT.pack(1, 0.0), ()), (head, frames)]), 2, range(10)
        )


def test_a_request_is_read_as_it_was_made() -> None:
    shared = b"model"
    messages = {1: (b"task 1", shared), 4: (b"task 4", shared)}
    data = message_content.encode_request(messages)
    assert message_content.decode_request(data) == messages
    assert message_content.count_frame_bytes(data) == 17
    for bad in (b"", data[:-1], answers()):
        with pytest.raises(WireError):
            message_content.decode_request(bad)


def test_numbers_of_clients_survive(scenario: Make) -> None:
    assert np.int64(3) == next(iter(message_content.decode_request(message_content.encode_request({3: (b"a",)}))))
