"""State of an app's clients: our record in Flower's Context, the last reply, the announced size, the budget, and what is removed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedsgd.flower import CompressedStrategy, compression_mod
from fedsgd.flower.app.messages import decode_reply
from fedsgd.flower.app.settings import decode_settings
from fedsgd.flower.records import RECORD_KEY, pack_records, unpack_records
from fedsgd.flower.runtime.node import CACHE_FILE, NodeSource, _load_cached
from fedsgd.numerics.kernels import FALLBACK_CACHE_VARIABLE
from fedsgd.runtime.stores.directory import FolderStore, compute_file_size
from fedsgd.storage.run_directory import write_atomically
from tests.flower.app.test_client_mod import (
    EXACT_SUMS,
    FOLLOWING,
    NODES,
    ROUNDED,
    SIZE,
    TOP_K,
    Grid,
    folder_of,
    frames_of,
    grid,
    model,
    rounds,
    step,
    trained,
)
from tests.flower.grid import RUN, carried, identity

SETTINGS: dict[str, Any] = {"compressor": TOP_K, "error_feedback": "persist", "downlink": FOLLOWING}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of all client state."""
    monkeypatch.setenv("FEDSGD_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("FEDSGD_STATE_BUDGET", raising=False)
    with identity(1):
        yield tmp_path / "state"


def small(**settings: Any) -> CompressedStrategy:
    return CompressedStrategy(
        FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1), **{**SETTINGS, **settings}
    )


def one_message(strategy: CompressedStrategy, over: Grid, arrays: ArrayRecord | None = None) -> Message:
    (message,) = strategy.configure_train(1, model() if arrays is None else arrays, ConfigRecord(), over)
    return message


def answer(over: Grid, message: Message) -> Message:
    (reply,) = over.send_and_receive([carried(message)])
    return reply


# -------------------------------------------------------------------------------------------------------- our record, their state


def looping_app(seen: list[set[str]]) -> ClientApp:
    """An app that works on all records of its state, as personal layers and running statistics do."""
    app = ClientApp(mods=[compression_mod()])

    def work(message: Message, context: Context) -> None:
        seen.append(set(context.state))
        for arrays in context.state.array_records.values():
            assert {name: array.shape for name, array in arrays.items()} == {"head": (3,)}
        for metrics in context.state.metric_records.values():
            metrics["rounds"] += 1.0
        if not context.state:
            context.state["mine"] = ArrayRecord({"head": Array(np.ones(3, dtype=np.float32))})
            context.state["counts"] = MetricRecord({"rounds": 1.0})

    @app.train()
    def train(message: Message, context: Context) -> Message:
        work(message, context)
        round = message.content.config_records["config"]["server-round"]
        return Message(trained(message.content.array_records["arrays"], step(0, int(round))), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        work(message, context)
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        work(message, context)
        return Message(RecordDict(), reply_to=message)

    return app


def test_context_state_while_the_app_runs_has_the_apps_records_alone() -> None:
    seen: list[set[str]] = []
    over = grid(nodes=NODES[:1])
    (node,) = over.nodes.values()
    node.app = looping_app(seen)
    strategy = small()
    *_, (arrays, _) = rounds(strategy, over, model(), 3)
    replies = over.send_and_receive(strategy.configure_evaluate(3, arrays, ConfigRecord(), over))
    assert not any(reply.has_error() for reply in replies)
    assert not answer(over, Message(RecordDict(), node.id, "query")).has_error()
    assert seen == [set(), *[{"mine", "counts"}] * 4]
    assert list(node.context.state) == ["mine", "counts", RECORD_KEY]
    assert isinstance(node.context.state[RECORD_KEY], ConfigRecord)
    assert len(pack_records(RecordDict({RECORD_KEY: node.context.state[RECORD_KEY]}))) < 1000, (
        "it crosses the loopback with each message"
    )
    assert node.context.state["counts"]["rounds"] == 5.0


@pytest.mark.parametrize("how", ["raises", "replaces the state", "clears the state"])
def test_record_of_ours_is_put_back_if_the_app_misbehaves(how: str) -> None:
    over = grid(nodes=NODES[:1])
    (node,) = over.nodes.values()

    def misbehave(message: Message, arrays: ArrayRecord) -> RecordDict:
        if how == "replaces the state":
            node.context.state = RecordDict({"mine": ConfigRecord({"a": 1})})
        elif how == "clears the state":
            node.context.state.clear()
        else:
            raise ZeroDivisionError("in the app")
        return trained(arrays, step(0, 2))

    strategy = small()
    ((arrays, _),) = rounds(strategy, over, model(), 1)
    before = node.context.state[RECORD_KEY]
    node.reply = misbehave
    reply = over.send_and_receive(strategy.configure_train(2, arrays, ConfigRecord(), over))[0]
    if how == "raises":
        assert "in the app" in reply.error.reason
        assert node.context.state == {RECORD_KEY: before}
    else:
        assert set(node.context.state) == ({RECORD_KEY, "mine"} if how == "replaces the state" else {RECORD_KEY})
        assert node.context.state[RECORD_KEY]["generation"] == before["generation"] + 1


@pytest.mark.parametrize("when", ["before", "in the first round", "in the second round"])
def test_record_of_the_app_under_our_name_is_refused_in_one_line(when: str) -> None:
    over = grid(nodes=NODES[:1])
    (node,) = over.nodes.values()
    theirs = MetricRecord({"a": 1.0})

    def write_theirs(message: Message, arrays: ArrayRecord) -> RecordDict:
        if (when == "in the first round") or len(node.got) == 2:
            node.context.state[RECORD_KEY] = theirs
        return trained(arrays, step(0, len(node.got)))

    node.reply = write_theirs
    if when == "before":
        node.context.state[RECORD_KEY] = theirs
    strategy, arrays = small(), model()
    for round in (1, 2):
        replies = over.send_and_receive(strategy.configure_train(round, arrays, ConfigRecord(), over))
        if replies[0].has_error():
            break
        arrays, _ = strategy.aggregate_train(round, replies)
    assert (
        'has a record "fedsgd" of the app, but compression_mod() uses this name: rename the record' in replies[0].error.reason
    )
    assert round == (2 if when == "in the second round" else 1)


def test_record_of_the_app_under_our_name_is_its_own_in_messages_of_other_strategies() -> None:
    over = grid(nodes=NODES[:1])
    (node,) = over.nodes.values()
    node.context.state[RECORD_KEY] = MetricRecord({"a": 1.0})
    list(rounds(FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1), over, model(), 1))
    assert node.context.state == {RECORD_KEY: MetricRecord({"a": 1.0})}


# ------------------------------------------------------------------------------------------------------------------- the last reply


def test_records_of_a_reply_are_unpacked_as_they_were_packed() -> None:
    values = {"a": np.arange(6, dtype=np.float64).reshape(2, 3), "b": np.array(3, dtype=np.int64), "empty": np.zeros(0)}
    content = RecordDict(
        {
            "second": ArrayRecord({name: Array(value) for name, value in values.items()}),
            "metrics": MetricRecord({"x": 1, "y": [1.5, 2.5]}),
            "config": ConfigRecord({"s": "é", "b": b"\x00\xff", "flags": [True, False]}),
        }
    )
    back = unpack_records(pack_records(content))
    assert back == content
    assert list(back) == list(content)
    assert back["second"]["a"].numpy().tobytes() == values["a"].tobytes()


def test_repeated_message_after_a_restart_is_answered_with_all_records_of_the_reply() -> None:
    over = grid(nodes=NODES[:1])
    (node,) = over.nodes.values()
    extra = ArrayRecord({"head": Array(np.full(1000, 7, dtype=np.float32))})
    node.reply = lambda message, arrays: RecordDict({**trained(arrays, step(0, 1)), "head": extra})
    message = one_message(small(), over)
    first = answer(over, message)
    assert set(node.context.state) == {RECORD_KEY}
    node.forget()
    again = answer(over, message)
    assert again.content == first.content
    assert again.content["head"] == extra
    assert len(node.got) == 1


KILLED = """
import json, os, signal, sys
from pathlib import Path
from tests.flower.test_state_directory import *
real = Path.replace

def attempt(folder, kill_at):
    "A process that answers round 2 is killed at one of its writes, and the message is delivered to another process."
    os.environ["FEDSGD_STATE"] = folder
    over, strategy = grid(nodes=NODES[:1]), small()
    (node,) = over.nodes.values()
    ((arrays, _),) = rounds(strategy, over, model(), 1)
    (message,) = strategy.configure_train(2, arrays, ConfigRecord(), over)
    if kill_at is not None:
        pid = os.fork()
        if not pid:
            calls = 0
            def replace(self, target):
                global calls
                if calls == kill_at[0] and kill_at[1] == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                real(self, target)
                if calls == kill_at[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls += 1
            globals()["calls"] = 0
            Path.replace = replace
            answer(over, message)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, "all writes are known"
    first, again = answer(over, message), answer(over, message)
    assert first.content == again.content
    trained_again = len(node.got) == 2
    arrays, _ = strategy.aggregate_train(2, [first])
    list(rounds(strategy, over, arrays, 1, first=3))
    (held,) = Path(folder).glob("run-*/node-*/")
    names = sorted(path.name for path in held.iterdir())
    return trained_again, [[f.hex() for f in frames] for way, _, frames in frames_of(over)[-1:]], names

with identity(1):
    points = [None, *((n, when) for n in range(3) for when in ("before", "after"))]
    print(json.dumps([attempt(f"{sys.argv[1]}/{i}", point) for i, point in enumerate(points)]))
"""


def test_process_killed_at_any_write_leaves_the_state_before_or_a_reply_to_repeat(tmp_path: Path) -> None:
    """The three writes of a round replace the model, the client's state with its reply, and the generation."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True, capture_output=True, text=True)
    undisturbed, *outcomes = json.loads(done.stdout)
    assert [again for again, *_ in outcomes] == [True, True, True, False, False, False]
    for _, frames, names in outcomes:
        assert frames == undisturbed[1], "nothing is lost, and nothing is sent twice"
        assert names == undisturbed[2] == ["client-0", "generation", "model-3"]


@pytest.mark.parametrize("process", ["dead", "alive"])
def test_partial_file_at_the_next_opening_is_removed_if_its_process_is_dead(tmp_path: Path, process: str) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    partial = tmp_path / f".client-0.{os.getpid() if process == 'alive' else ended.pid}"
    partial.write_bytes(b"half")
    assert not FolderStore(tmp_path).is_new
    assert partial.exists() == (process == "alive")


# -------------------------------------------------------------------------------------------------------------- announced


MARGIN = " (at most twice that while a newer version is written)"
CASES = [
    ({"error_feedback": "none", "downlink": None}, "only the number of its last round"),
    (
        {"error_feedback": "none"},
        "its model, up to 884 B (4 bytes x 221 numbers)" + MARGIN,
    ),
    (
        {"downlink": None},
        "up to 1.48 kB (6.68 bytes x 221 numbers) of state and its last reply's other records" + MARGIN,
    ),
    (
        {},
        "up to 2.36 kB (10.7 bytes x 221 numbers) of state and its last reply's other records" + MARGIN,
    ),
]


@pytest.mark.parametrize(("settings", "amount"), CASES)
def test_state_of_a_session_is_announced_once_by_each_side(
    root: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], amount: str
) -> None:
    over = grid(nodes=NODES[:2])
    with caplog.at_level(logging.INFO, "flwr"):
        list(rounds(CompressedStrategy(FedAvg(), **{**SETTINGS, **settings}), over, model(), 3))
    lines = [record.message for record in caplog.records if " stores " in record.message]
    end = "a later run removes it 7 days after its last use"
    nodes = [f"fedsgd: this client stores {amount} in {folder_of(root, node)}; {end}" for node in over.nodes.values()]
    assert [lines[0], *sorted(lines[1:])] == [f"fedsgd: each client stores {amount} on the disk of its node; {end}", *nodes]


@pytest.mark.parametrize(("settings", "downlink"), EXACT_SUMS + ROUNDED)
def test_announced_state_is_what_is_stored(root: Path, settings: dict[str, Any], downlink: dict[str, Any] | None) -> None:
    over, strategy = grid(nodes=NODES[:2]), CompressedStrategy(FedAvg(), downlink=downlink, **settings)
    list(rounds(strategy, over, model(), 4))
    assert strategy._session is not None
    terms = strategy._session.settings
    folder = folder_of(root, over.nodes[NODES[1]])
    (client,) = folder.glob("client-*")
    state = FolderStore(folder).load(int(client.name.removeprefix("client-")))
    if not terms.state_bytes:
        assert not state.state_if_accepted
        return
    assert state.uncommitted_state is not None
    assert state.uncommitted_state.reply_frame is not None
    (frame,) = decode_reply(unpack_records(state.uncommitted_state.reply_frame), terms.array_layout).frames
    stored = compute_file_size(replace(state, uncommitted_state=replace(state.uncommitted_state, reply_frame=frame)))
    assert 0.9 * terms.state_bytes <= stored <= 1.1 * terms.state_bytes, (
        "positions and values of other numbers take a few other bytes"
    )


def test_settings_with_the_size_of_states_and_the_first_session_are_read_back() -> None:
    terms = replace(small()._get_session(model()).settings, first=3)
    assert terms.state_bytes > 4 * SIZE
    assert decode_settings(terms.encode()) == terms


# --------------------------------------------------------------------------------------------------------------- budgeted


def reason(over: Grid, message: Message) -> str:
    reply = answer(over, message)
    assert reply.has_error()
    assert "\n" not in reply.error.reason
    return str(reply.error.reason)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_budget_that_a_state_does_not_fit_is_refused_before_training(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = grid(nodes=NODES[:1])
    (node,) = over.nodes.values()
    message = one_message(small(), over)
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", "4 kB")
    said = reason(over, message)
    assert f"{root}/run-{RUN}: no room for client state: 4.72 kB needed, 4 kB free in the budget of 4 kB" in said
    assert f"for all runs in {root}; increase FEDSGD_STATE_BUDGET, remove folders of finished runs, or set" in said
    assert (node.got, files(root)) == ([], [])
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", "10 kB")
    assert not answer(over, message).has_error()


def evaluate_without_state(root: Path, monkeypatch: pytest.MonkeyPatch, budget: str, **settings: Any) -> tuple[Any, ...]:
    """Return the grid, the strategy and the arrays after an evaluation within a budget, on a node that has no folder."""
    over, strategy = grid(nodes=NODES[:1]), small(**settings)
    ((arrays, _),) = rounds(strategy, over, model(), 1)
    shutil.rmtree(root / f"run-{RUN}")
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", budget)
    messages = list(strategy.configure_evaluate(1, arrays, ConfigRecord(), over))
    assert RECORD_KEY in messages[0].content, "the evaluation is compressed"
    assert strategy.aggregate_evaluate(1, over.send_and_receive(messages)) is not None
    return over, strategy, arrays


@pytest.mark.parametrize(("downlink", "budget"), [(None, "1 B"), (FOLLOWING, "2 kB")], ids=["nothing", "the model"])
def test_evaluation_needs_no_room_for_a_training_state(
    root: Path, monkeypatch: pytest.MonkeyPatch, downlink: Any, budget: str
) -> None:
    over, *_ = evaluate_without_state(root, monkeypatch, budget, downlink=downlink)
    (node,) = over.nodes.values()
    assert node.got[-1][0] == "evaluate"
    assert [name for name in files(root) if "client-" in name] == []


def test_training_after_an_evaluation_is_refused_where_its_state_has_no_room(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, strategy, arrays = evaluate_without_state(root, monkeypatch, "4 kB")
    assert [name for name in files(root) if "model-" in name]
    (message,) = strategy.configure_train(2, arrays, ConfigRecord(), over)
    assert "no room for client state" in reason(over, message)
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", "4.73 kB")  # of which the model has a part already
    assert not answer(over, message).has_error()


def test_budget_counts_the_files_of_all_runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "run-1" / "node-0").mkdir(parents=True)
    (root / "run-1" / "node-0" / "client-0").write_bytes(bytes(9000))
    over = grid(nodes=NODES[:1])
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", "10 kB")
    message = one_message(small(), over)
    assert "4.72 kB needed, 1 kB free in the budget of 10 kB" in reason(over, message)
    shutil.rmtree(root / "run-1")
    assert not answer(over, message).has_error()


def test_reply_that_exceeds_the_budget_leaves_the_state_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over, strategy = grid(nodes=NODES[:1]), small()
    (node,) = over.nodes.values()
    ((arrays, _),) = rounds(strategy, over, model(), 1)
    client = folder_of(root, node) / "client-0"
    before, used = client.read_bytes(), sum((root / name).stat().st_size for name in files(root))
    extra = ArrayRecord({"head": Array(np.zeros(10_000, dtype=np.float32))})
    node.reply = lambda message, arrays: RecordDict({**trained(arrays, step(0, 2)), "head": extra})
    (message,) = strategy.configure_train(2, arrays, ConfigRecord(), over)
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", f"{used + 20_000} B")
    assert "no room for client state: 4" in reason(over, message)
    assert client.read_bytes() == before
    assert not [name for name in files(root) if "/." in name]
    assert sum((root / name).stat().st_size for name in files(root)) <= used + 20_000
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", f"{used + 90_000} B")
    assert not answer(over, message).has_error()


def test_disk_without_room_is_refused_in_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = grid(nodes=NODES[:1])
    message = one_message(small(), over)
    usage = shutil.disk_usage(root.parent)
    monkeypatch.setattr("fedsgd.flower.state_directory.shutil.disk_usage", lambda folder: usage._replace(free=1500))
    assert "4.72 kB needed, 1.5 kB free on its disk; free disk space, remove folders of finished runs" in reason(over, message)
    assert files(root) == []


@pytest.mark.parametrize("file", ["client", "model"])
def test_disk_that_fills_up_in_a_write_leaves_no_partial_file(root: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    over = grid(nodes=NODES[:1])
    message = one_message(small(), over)
    real = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name.startswith(file):
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", full)
    assert "client state cannot be written (No space left on device)" in reason(over, message)
    assert [name for name in files(root) if file in name] == []
    monkeypatch.undo()


def test_budget_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    over = grid(nodes=NODES[:1])
    message = one_message(small(), over)
    monkeypatch.setenv("FEDSGD_STATE_BUDGET", "much")
    assert "FEDSGD_STATE_BUDGET: got 'much', expected a size such as" in reason(over, message)


# ---------------------------------------------------------------------------------------------------------------- cleaned


def sessions(root: Path) -> int:
    return len(list((root / f"run-{RUN}").glob("node-0-app-*")))


def test_folder_of_a_session_is_removed_when_the_next_one_of_its_strategy_begins(root: Path) -> None:
    over, first, second = grid(nodes=NODES[:1]), small(), small()
    ((other, _),) = rounds(second, over, model(), 1)
    list(rounds(first, over, model(), 1))
    assert sessions(root) == 2
    for names in (("more",), ("more", "most")):  # other models
        list(rounds(first, over, model(0, **dict.fromkeys(names, np.ones(4, dtype=np.float32))), 1, first=2))
        assert sessions(root) == 2, "one of each strategy"
    list(rounds(second, over, other, 1, first=2))
    kinds = [frames for way, _, frames in frames_of(over) if way == "up"]
    assert len(kinds) == 5, "the other strategy's client could follow"


def test_folder_of_a_skipped_session_is_removed(root: Path) -> None:
    """A node that was in no round of the second session gets to know of the third."""
    over, strategy = grid(nodes=NODES[:1]), small()
    list(rounds(strategy, over, model(), 1))
    strategy._get_session(model(0, more=np.ones(4, dtype=np.float32)))
    list(rounds(strategy, over, model(0, most=np.ones(5, dtype=np.float32)), 1))
    assert sessions(root) == 1


def test_late_message_of_an_earlier_session_leaves_the_later_one(root: Path) -> None:
    over, strategy = grid(nodes=NODES[:1]), small()
    (node,) = over.nodes.values()
    message = one_message(strategy, over)
    list(rounds(strategy, over, model(0, more=np.ones(4, dtype=np.float32)), 1))
    later = folder_of(root, node)
    answer(over, message)
    assert (later / "client-0").exists()


def test_other_nodes_of_the_same_root_are_left(root: Path) -> None:
    over = grid(nodes=[1, *NODES, *range(100, 108)])  # nodes 1 and 10
    strategy = CompressedStrategy(FedAvg(), **SETTINGS)
    list(rounds(strategy, over, model(), 1))
    message = next(
        m
        for m in strategy.configure_train(2, model(0, more=np.ones(4, dtype=np.float32)), ConfigRecord(), over)
        if over.nodes[m.metadata.dst_node_id].number == 1
    )
    answer(over, message)
    assert len(list((root / f"run-{RUN}").iterdir())) == len(over.nodes)


def test_folder_of_an_old_run_is_removed_when_another_run_begins(root: Path) -> None:
    for name, days in (("run-1", 8), ("run-2", 6)):
        (root / name / "node-0").mkdir(parents=True)
        for path in (root / name / "node-0", root / name):
            os.utime(path, (time.time() - days * 86400,) * 2)
    list(rounds(small(), grid(nodes=NODES[:1]), model(), 1))
    assert sorted(path.name for path in root.iterdir()) == ["run-2", f"run-{RUN}"]


# ------------------------------------------------------------------------------------------------- whose folder it is


def test_compiled_loops_have_a_fallback_folder_under_the_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FALLBACK_CACHE_VARIABLE, raising=False)
    list(rounds(small(), grid(nodes=NODES[:1]), model(), 1))
    assert os.environ[FALLBACK_CACHE_VARIABLE] == str(root / "kernels")
    monkeypatch.setenv(FALLBACK_CACHE_VARIABLE, "of the launcher")
    list(rounds(small(), grid(nodes=NODES[:1]), model(), 1))
    assert os.environ[FALLBACK_CACHE_VARIABLE] == "of the launcher"


def test_stored_scenario_in_a_folder_of_others_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert _load_cached(folder / CACHE_FILE, NodeSource("", "")) is None, "another user can put a different folder in its place"
    assert unpickled == [b"anything"]
