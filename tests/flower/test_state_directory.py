"""Stored client state of an app: fedsgd's record in the Context, the stored reply, the budget, and removed folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedsgd.flower import CompressedStrategy, compression_mod
from fedsgd.flower.records import RECORD_KEY, pack_records
from fedsgd.flower.runtime.node import CACHE_FILE, NodeSource, _load_cached
from fedsgd.numerics.kernels import FALLBACK_CACHE_VARIABLE
from fedsgd.runtime.stores.directory import FolderStore
from fedsgd.storage.run_directory import write_atomically
from tests.flower.app.fixed_updates import (
    DIFFERENCE,
    NODES,
    SETTINGS,
    Node,
    RecordingGrid,
    apply_update,
    create_strategy,
    find_client_folder,
    fixed_update,
    list_frames,
    make_grid,
    make_model,
    run_rounds,
)
from tests.flower.grid import RUN, transfer_message

pytestmark = pytest.mark.usefixtures("state_root")


def create_message(strategy: CompressedStrategy, grid: RecordingGrid, arrays: ArrayRecord | None = None) -> Message:
    """Return the message of the first round to the only node."""
    (message,) = strategy.configure_train(1, make_model() if arrays is None else arrays, ConfigRecord(), grid)
    return message


def send_message(grid: RecordingGrid, message: Message) -> Message:
    """Return the reply to a copy of a message."""
    (reply,) = grid.send_and_receive([transfer_message(message)])
    return reply


# ------------------------------------------------------------------------------------------ fedsgd's record in `context.state`


def make_stateful_app(state_names: list[set[str]]) -> ClientApp:
    """Return an app that changes all records of its state, as apps with personal layers or running statistics do.

    Args:
        state_names: list to which the names of the state's records are appended at each message.
    """
    app = ClientApp(mods=[compression_mod()])

    def update_state(context: Context) -> None:
        state_names.append(set(context.state))
        for arrays in context.state.array_records.values():
            assert {name: array.shape for name, array in arrays.items()} == {"head": (3,)}
        for metrics in context.state.metric_records.values():
            metrics["rounds"] += 1.0
        if not context.state:
            context.state["mine"] = ArrayRecord({"head": Array(np.ones(3, dtype=np.float32))})
            context.state["counts"] = MetricRecord({"rounds": 1.0})

    @app.train()
    def train(message: Message, context: Context) -> Message:
        update_state(context)
        round = message.content.config_records["config"]["server-round"]
        return Message(apply_update(message.content.array_records["arrays"], fixed_update(0, int(round))), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        update_state(context)
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        update_state(context)
        return Message(RecordDict(), reply_to=message)

    return app


def test_context_state_while_the_app_runs_has_only_the_apps_records() -> None:
    state_names: list[set[str]] = []
    grid = make_grid(nodes=NODES[:1])
    (node,) = grid.nodes.values()
    node.app = make_stateful_app(state_names)
    strategy = create_strategy()
    *_, (arrays, _) = run_rounds(strategy, grid, make_model(), 3)
    replies = grid.send_and_receive(strategy.configure_evaluate(3, arrays, ConfigRecord(), grid))
    assert not any(reply.has_error() for reply in replies)
    assert not send_message(grid, Message(RecordDict(), node.id, "query")).has_error()
    assert state_names == [set(), *[{"mine", "counts"}] * 4]
    assert list(node.context.state) == ["mine", "counts", RECORD_KEY]
    assert isinstance(node.context.state[RECORD_KEY], ConfigRecord)
    assert len(pack_records(RecordDict({RECORD_KEY: node.context.state[RECORD_KEY]}))) < 1000, (
        "Flower sends it over the loopback with each message"
    )
    assert node.context.state["counts"]["rounds"] == 5.0


@pytest.mark.parametrize("action", ["raises", "replaces the state", "clears the state"])
def test_record_of_fedsgd_is_restored_after_the_app_changes_the_state(action: str) -> None:
    grid = make_grid(nodes=NODES[:1])
    (node,) = grid.nodes.values()

    def change_state(message: Message, arrays: ArrayRecord) -> RecordDict:
        if action == "replaces the state":
            node.context.state = RecordDict({"mine": ConfigRecord({"a": 1})})
        elif action == "clears the state":
            node.context.state.clear()
        else:
            raise ZeroDivisionError("in the app")
        return apply_update(arrays, fixed_update(0, 2))

    strategy = create_strategy()
    ((arrays, _),) = run_rounds(strategy, grid, make_model(), 1)
    record = node.context.state[RECORD_KEY]
    node.reply = change_state
    reply = grid.send_and_receive(strategy.configure_train(2, arrays, ConfigRecord(), grid))[0]
    if action == "raises":
        assert "in the app" in reply.error.reason
        assert node.context.state == {RECORD_KEY: record}
    else:
        assert set(node.context.state) == ({RECORD_KEY, "mine"} if action == "replaces the state" else {RECORD_KEY})
        assert node.context.state[RECORD_KEY]["generation"] == record["generation"] + 1


@pytest.mark.parametrize("moment", ["before", "in the first round", "in the second round"])
def test_record_of_the_app_with_fedsgds_name_is_refused_in_one_line(moment: str) -> None:
    grid = make_grid(nodes=NODES[:1])
    (node,) = grid.nodes.values()
    app_record = MetricRecord({"a": 1.0})

    def write_record(message: Message, arrays: ArrayRecord) -> RecordDict:
        if (moment == "in the first round") or len(node.received) == 2:
            node.context.state[RECORD_KEY] = app_record
        return apply_update(arrays, fixed_update(0, len(node.received)))

    node.reply = write_record
    if moment == "before":
        node.context.state[RECORD_KEY] = app_record
    strategy, arrays = create_strategy(), make_model()
    for round in (1, 2):
        replies = grid.send_and_receive(strategy.configure_train(round, arrays, ConfigRecord(), grid))
        if replies[0].has_error():
            break
        arrays, _ = strategy.aggregate_train(round, replies)
    assert (
        'has a record "fedsgd" of the app, but compression_mod() uses this name: rename the record' in replies[0].error.reason
    )
    assert round == (2 if moment == "in the second round" else 1)


def test_record_of_the_app_with_fedsgds_name_is_allowed_for_other_strategies() -> None:
    grid = make_grid(nodes=NODES[:1])
    (node,) = grid.nodes.values()
    node.context.state[RECORD_KEY] = MetricRecord({"a": 1.0})
    list(run_rounds(FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1), grid, make_model(), 1))
    assert node.context.state == {RECORD_KEY: MetricRecord({"a": 1.0})}


# ------------------------------------------------------------------------------------------------------------ the stored reply


def test_repeated_message_after_a_restart_gets_all_records_of_the_stored_reply() -> None:
    grid = make_grid(nodes=NODES[:1])
    (node,) = grid.nodes.values()
    head = ArrayRecord({"head": Array(np.full(1000, 7, dtype=np.float32))})
    node.reply = lambda message, arrays: RecordDict({**apply_update(arrays, fixed_update(0, 1)), "head": head})
    message = create_message(create_strategy(), grid)
    first = send_message(grid, message)
    assert set(node.context.state) == {RECORD_KEY}
    node.restart()
    second = send_message(grid, message)
    assert second.content == first.content
    assert second.content["head"] == head
    assert len(node.received) == 1


KILL_SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from tests.flower.grid import identity
from tests.flower.test_state_directory import *
original_replace = Path.replace

def run_with_kill(folder, kill_point):
    "Kill a process at one of its writes in round 2, and deliver the message to another process."
    os.environ["FEDSGD_STATE"] = folder
    grid, strategy = make_grid(nodes=NODES[:1]), create_strategy()
    (node,) = grid.nodes.values()
    ((arrays, _),) = run_rounds(strategy, grid, make_model(), 1)
    (message,) = strategy.configure_train(2, arrays, ConfigRecord(), grid)
    if kill_point is not None:
        pid = os.fork()
        if not pid:
            calls = 0
            def replace(self, target):
                global calls
                if calls == kill_point[0] and kill_point[1] == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                original_replace(self, target)
                if calls == kill_point[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls += 1
            globals()["calls"] = 0
            Path.replace = replace
            send_message(grid, message)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, "the round has this write"
    first, second = send_message(grid, message), send_message(grid, message)
    assert first.content == second.content
    has_trained = len(node.received) == 2
    arrays, _ = strategy.aggregate_train(2, [first])
    list(run_rounds(strategy, grid, arrays, 1, first=3))
    (client_folder,) = Path(folder).glob("run-*/node-*/")
    names = sorted(path.name for path in client_folder.iterdir())
    return has_trained, [[frame.hex() for frame in frames] for _, _, frames in list_frames(grid)[-1:]], names

with identity(1):
    kill_points = [None, *((n, moment) for n in range(3) for moment in ("before", "after"))]
    print(json.dumps([run_with_kill(f"{sys.argv[1]}/{i}", point) for i, point in enumerate(kill_points)]))
"""


@pytest.mark.slow
@pytest.mark.nightly
def test_process_killed_at_any_write_leaves_the_old_state_or_a_complete_reply(tmp_path: Path) -> None:
    """The three writes of a round replace the model, the client's state with its reply, and the generation."""
    process = subprocess.run([sys.executable, "-c", KILL_SCRIPT, str(tmp_path)], check=True, capture_output=True, text=True)
    undisturbed, *outcomes = json.loads(process.stdout)
    assert [has_trained for has_trained, *_ in outcomes] == [True, True, True, False, False, False]
    for _, frames, names in outcomes:
        assert frames == undisturbed[1], "nothing is lost, and nothing is sent twice"
        assert names == undisturbed[2] == ["client-0", "generation", "model-3"]


@pytest.mark.parametrize("process", ["dead", "alive"])
def test_partial_file_of_a_dead_process_is_removed_when_the_folder_is_opened(tmp_path: Path, process: str) -> None:
    dead_process = subprocess.Popen([sys.executable, "-c", ""])
    dead_process.wait()
    partial_file = tmp_path / f".client-0.{os.getpid() if process == 'alive' else dead_process.pid}"
    partial_file.write_bytes(b"half")
    assert not FolderStore(tmp_path).is_new
    assert partial_file.exists() == (process == "alive")


# -------------------------------------------------------------------------------------------------------------- disk space


def send_for_error(grid: RecordingGrid, message: Message) -> str:
    """Return the reason of the error in reply to a message, which has one line."""
    reply = send_message(grid, message)
    assert reply.has_error()
    assert "\n" not in reply.error.reason
    return str(reply.error.reason)


def list_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_state_that_exceeds_the_budget_is_refused_before_training(state_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = make_grid(nodes=NODES[:1])
    (node,) = grid.nodes.values()
    message = create_message(create_strategy(), grid)
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", "4 kB")
    reason = send_for_error(grid, message)
    assert f"{state_root}/run-{RUN}: no room for client state: 4.72 kB needed, 4 kB free in the budget of 4 kB" in reason
    assert f"for all runs in {state_root}; increase FEDSGD_STATE_BUDGET, remove folders of finished runs, or set" in reason
    assert (node.received, list_files(state_root)) == ([], [])
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", "10 kB")
    assert not send_message(grid, message).has_error()


def evaluate_without_state(
    state_root: Path, monkeypatch: pytest.MonkeyPatch, budget: str, **settings: Any
) -> tuple[RecordingGrid, CompressedStrategy, ArrayRecord]:
    """Evaluate within a budget on a node without a state folder, and return the grid, the strategy and the model."""
    grid, strategy = make_grid(nodes=NODES[:1]), create_strategy(**settings)
    ((arrays, _),) = run_rounds(strategy, grid, make_model(), 1)
    shutil.rmtree(state_root / f"run-{RUN}")
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", budget)
    messages = list(strategy.configure_evaluate(1, arrays, ConfigRecord(), grid))
    assert RECORD_KEY in messages[0].content, "the evaluation is compressed"
    assert strategy.aggregate_evaluate(1, grid.send_and_receive(messages)) is not None
    return grid, strategy, arrays


@pytest.mark.parametrize(("downlink", "budget"), [(None, "1 B"), (DIFFERENCE, "2 kB")], ids=["nothing", "the model"])
def test_evaluation_reserves_no_space_for_a_training_state(
    state_root: Path, monkeypatch: pytest.MonkeyPatch, downlink: Any, budget: str
) -> None:
    grid, *_ = evaluate_without_state(state_root, monkeypatch, budget, downlink=downlink)
    (node,) = grid.nodes.values()
    assert node.received[-1][0] == "evaluate"
    assert [name for name in list_files(state_root) if "client-" in name] == []


def test_training_after_an_evaluation_is_refused_if_its_state_exceeds_the_budget(
    state_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, strategy, arrays = evaluate_without_state(state_root, monkeypatch, "4 kB")
    assert [name for name in list_files(state_root) if "model-" in name]
    (message,) = strategy.configure_train(2, arrays, ConfigRecord(), grid)
    assert "no room for client state" in send_for_error(grid, message)
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", "4.73 kB")  # the model has a part of the state's size already
    assert not send_message(grid, message).has_error()


def test_budget_counts_the_files_of_all_runs(state_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (state_root / "run-1" / "node-0").mkdir(parents=True)
    (state_root / "run-1" / "node-0" / "client-0").write_bytes(bytes(9000))
    grid = make_grid(nodes=NODES[:1])
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", "10 kB")
    message = create_message(create_strategy(), grid)
    assert "4.72 kB needed, 1 kB free in the budget of 10 kB" in send_for_error(grid, message)
    shutil.rmtree(state_root / "run-1")
    assert not send_message(grid, message).has_error()


def test_reply_that_exceeds_the_budget_leaves_the_state_unchanged(state_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def count_bytes() -> int:
        return sum((state_root / name).stat().st_size for name in list_files(state_root))

    grid, strategy = make_grid(nodes=NODES[:1]), create_strategy()
    (node,) = grid.nodes.values()
    ((arrays, _),) = run_rounds(strategy, grid, make_model(), 1)
    client_file = find_client_folder(state_root, node) / "client-0"
    data, n_bytes = client_file.read_bytes(), count_bytes()
    head = ArrayRecord({"head": Array(np.zeros(10_000, dtype=np.float32))})
    node.reply = lambda message, arrays: RecordDict({**apply_update(arrays, fixed_update(0, 2)), "head": head})
    (message,) = strategy.configure_train(2, arrays, ConfigRecord(), grid)
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", f"{n_bytes + 20_000} B")
    assert "no room for client state: 4" in send_for_error(grid, message)
    assert client_file.read_bytes() == data
    assert not [name for name in list_files(state_root) if "/." in name]
    assert count_bytes() <= n_bytes + 20_000
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", f"{n_bytes + 90_000} B")
    assert not send_message(grid, message).has_error()


def test_state_that_exceeds_the_disk_is_refused_in_one_line(state_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = make_grid(nodes=NODES[:1])
    message = create_message(create_strategy(), grid)
    usage = shutil.disk_usage(state_root.parent)
    monkeypatch.setattr("fedsgd.flower.state_directory.shutil.disk_usage", lambda folder: usage._replace(free=1500))
    reason = send_for_error(grid, message)
    assert "4.72 kB needed, 1.5 kB free on its disk; free disk space, remove folders of finished runs" in reason
    assert list_files(state_root) == []


@pytest.mark.parametrize("file", ["client", "model"])
def test_write_to_a_full_disk_leaves_no_partial_file(state_root: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    grid = make_grid(nodes=NODES[:1])
    message = create_message(create_strategy(), grid)
    original_replace = Path.replace

    def fail_at_file(self: Path, target: Path) -> Path:
        if target.name.startswith(file):
            raise OSError(28, "No space left on device")
        return original_replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_at_file)
    assert "client state cannot be written (No space left on device)" in send_for_error(grid, message)
    assert [name for name in list_files(state_root) if file in name] == []
    monkeypatch.undo()


def test_budget_that_is_no_size_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = make_grid(nodes=NODES[:1])
    message = create_message(create_strategy(), grid)
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", "much")
    assert "FEDSGD_STATE_BUDGET: got 'much', expected a size such as" in send_for_error(grid, message)


# --------------------------------------------------------------------------------------------------------- removed folders


def test_nodes_of_the_same_partition_have_their_own_states(state_root: Path) -> None:
    """The second node trains and replies while the first one trains."""
    first, second = (Node(id, 0) for id in NODES[:2])
    grid, strategy, arrays = RecordingGrid([first, second]), create_strategy(), make_model()
    replies: dict[int, Message] = {}

    def reply_after_the_second(message: Message, arrays: ArrayRecord) -> RecordDict:
        (replies[second.id],) = grid.send_and_receive([messages[second.id]])
        return apply_update(arrays, fixed_update(0, 1))

    first.reply = reply_after_the_second
    for round in range(1, 4):
        sent = strategy.configure_train(round, arrays, ConfigRecord(), grid)
        messages = {message.metadata.dst_node_id: message for message in sent}
        (replies[first.id],) = grid.send_and_receive([messages[first.id]])
        assert [reply.has_error() for reply in replies.values()] == [False, False]
        aggregate, _ = strategy.aggregate_train(round, list(replies.values()))
        assert aggregate is not None
        arrays = aggregate
    assert find_client_folder(state_root, first) != find_client_folder(state_root, second)


def count_sessions(state_root: Path) -> int:
    return len(list((state_root / f"run-{RUN}").glob(f"node-{NODES[0]}-app-*")))


def test_folder_of_a_session_is_removed_when_the_strategys_next_session_begins(state_root: Path) -> None:
    grid, first, second = make_grid(nodes=NODES[:1]), create_strategy(), create_strategy()
    ((second_model, _),) = run_rounds(second, grid, make_model(), 1)
    list(run_rounds(first, grid, make_model(), 1))
    assert count_sessions(state_root) == 2
    for names in (("more",), ("more", "most")):  # models with other layouts
        model = make_model(0, **dict.fromkeys(names, np.ones(4, dtype=np.float32)))
        list(run_rounds(first, grid, model, 1, first=2))
        assert count_sessions(state_root) == 2, "one session of each strategy"
    list(run_rounds(second, grid, second_model, 1, first=2))
    replies = [frames for direction, _, frames in list_frames(grid) if direction == "up"]
    assert len(replies) == 5, "no RESYNC: the second strategy's client still has its model"


def test_folder_of_a_session_is_removed_if_the_node_missed_the_next_session(state_root: Path) -> None:
    grid, strategy = make_grid(nodes=NODES[:1]), create_strategy()
    list(run_rounds(strategy, grid, make_model(), 1))
    strategy._get_session(make_model(0, more=np.ones(4, dtype=np.float32)))
    list(run_rounds(strategy, grid, make_model(0, most=np.ones(5, dtype=np.float32)), 1))
    assert count_sessions(state_root) == 1


def test_late_message_of_an_earlier_session_leaves_the_later_session(state_root: Path) -> None:
    grid, strategy = make_grid(nodes=NODES[:1]), create_strategy()
    (node,) = grid.nodes.values()
    message = create_message(strategy, grid)
    list(run_rounds(strategy, grid, make_model(0, more=np.ones(4, dtype=np.float32)), 1))
    later_folder = find_client_folder(state_root, node)
    send_message(grid, message)
    assert (later_folder / "client-0").exists()


def test_new_session_of_a_node_leaves_the_folders_of_other_nodes(state_root: Path) -> None:
    grid = make_grid(nodes=[1, *NODES, *range(100, 108)])  # the numbers of nodes include 1 and 10
    strategy = CompressedStrategy(FedAvg(), **SETTINGS)
    list(run_rounds(strategy, grid, make_model(), 1))
    messages = strategy.configure_train(2, make_model(0, more=np.ones(4, dtype=np.float32)), ConfigRecord(), grid)
    send_message(grid, next(message for message in messages if grid.nodes[message.metadata.dst_node_id].number == 1))
    assert len(list((state_root / f"run-{RUN}").iterdir())) == len(grid.nodes)


def test_folder_of_an_expired_run_is_removed_when_another_run_begins(state_root: Path) -> None:
    for name, days in (("run-1", 8), ("run-2", 6)):
        (state_root / name / "node-0").mkdir(parents=True)
        for path in (state_root / name / "node-0", state_root / name):
            os.utime(path, (time.time() - days * 86400,) * 2)
    list(run_rounds(create_strategy(), make_grid(nodes=NODES[:1]), make_model(), 1))
    assert sorted(path.name for path in state_root.iterdir()) == ["run-2", f"run-{RUN}"]


# ----------------------------------------------------------------------------------------------- other folders, permissions


def test_compiled_loops_have_a_fallback_folder_under_the_root(state_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FALLBACK_CACHE_VARIABLE, raising=False)
    list(run_rounds(create_strategy(), make_grid(nodes=NODES[:1]), make_model(), 1))
    assert os.environ[FALLBACK_CACHE_VARIABLE] == str(state_root / "kernels")
    monkeypatch.setenv(FALLBACK_CACHE_VARIABLE, "folder of the launcher")
    list(run_rounds(create_strategy(), make_grid(nodes=NODES[:1]), make_model(), 1))
    assert os.environ[FALLBACK_CACHE_VARIABLE] == "folder of the launcher"


def test_stored_scenario_in_a_folder_with_open_permissions_is_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "node-0"
    folder.mkdir(mode=0o700)
    write_atomically(folder / CACHE_FILE, b"anything")
    unpickled: list[bytes] = []

    def loads(data: bytes) -> Any:
        unpickled.append(data)
        raise ValueError

    monkeypatch.setattr("fedsgd.flower.runtime.node.pickle.loads", loads)
    assert _load_cached(folder / CACHE_FILE, NodeSource("", "")) is None
    assert unpickled == [b"anything"]
    folder.chmod(0o777)
    assert _load_cached(folder / CACHE_FILE, NodeSource("", "")) is None
    folder.chmod(0o700)
    tmp_path.chmod(0o777)
    assert _load_cached(folder / CACHE_FILE, NodeSource("", "")) is None, "another user can replace the folder"
    assert unpickled == [b"anything"]
