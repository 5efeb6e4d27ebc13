"""Rounds of a compressed session: frames, models, residuals, catch-up, and arrays that the caller or the strategy changes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    QFedAvg,
    Strategy,
)

from fedsgd.errors import NonFiniteError
from fedsgd.federation import (
    ClientTask,
    DownlinkCache,
    advance_with_external_model,
    aggregate,
    broadcast,
    decode_task,
    encode_update,
    initial_server_state,
)
from fedsgd.federation.client_state import InMemoryClientStore, InMemoryModelCache
from fedsgd.flower import CompressedStrategy
from fedsgd.flower.app.client_mod import _DUMMY_EXAMPLES
from fedsgd.flower.app.messages import payload_bytes
from fedsgd.flower.records import RECORD_KEY
from fedsgd.optim import SGD
from fedsgd.runtime.stores.directory import FolderStore
from fedsgd.training import TrainingResult
from fedsgd.wire import FrameKind, peek_kind
from tests.effort import nightly_unless
from tests.flower.app.fixed_updates import (
    DIFFERENCE,
    EXACT_SETTINGS,
    NODES,
    ROUNDED_SETTINGS,
    SIZE,
    TOP_K,
    Node,
    RecordingFedAvg,
    apply_update,
    find_client_folder,
    fixed_update,
    flatten,
    flip_bit,
    list_frames,
    lose_replies,
    make_grid,
    make_model,
    make_record,
    run_rounds,
    to_numpy,
)

pytestmark = pytest.mark.usefixtures("quick_collection")


# ------------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(
    ("settings", "downlink", "is_exact"),
    [(*case, True) for case in EXACT_SETTINGS] + [(*case, False) for case in ROUNDED_SETTINGS],
)
def test_session_sends_the_frames_of_federation_rounds(
    settings: dict[str, Any], downlink: dict[str, Any] | None, is_exact: bool
) -> None:
    """If sums are exact, fedsgd's `aggregate` also computes the same model.

    Otherwise the model is copied from the strategy, and the frames in both directions are still the same.
    """
    inner, grid = RecordingFedAvg(), make_grid()
    strategy = CompressedStrategy(inner, downlink=downlink, **settings)
    results = list(
        run_rounds(strategy, grid, make_model(), 5, before=lambda round: lose_replies(grid, NODES[:2] if round == 3 else ()))
    )
    session = strategy._session
    assert session is not None

    plan, client_ids = replace(session.plan, server_optimizer=SGD(lr=1.0)), session.client_ids
    server, store = initial_server_state(plan, flatten(make_model())), InMemoryClientStore()
    caches = {client: DownlinkCache(InMemoryModelCache()) for client in client_ids.values()}
    frames_of_app = iter(list_frames(grid))
    for round, (arrays, _) in enumerate(results, 1):
        messages, server = broadcast(plan, server, list(client_ids.values()))
        replies = []
        for _ in client_ids:
            direction, node, frames = next(frames_of_app)
            client = client_ids[node]
            assert (direction, frames) == ("down", messages[client]), "the message"
            task = decode_task(plan, client, frames, store.load(client), _DUMMY_EXAMPLES, caches[client])
            assert isinstance(task, ClientTask)
            w = task.downlink.weights
            x = (w + fixed_update(grid.nodes[node].number, round)) - w
            reply, state = encode_update(plan, task, TrainingResult(client, x, 10, 1))
            caches[client].model_cache.move_reference(store.load(client).model_round, state.model_round)
            store.save(client, state)
            assert next(frames_of_app) == ("up", node, reply.frames), "the reply"
            if not (round == 3 and node in NODES[:2]):
                replies.append(reply)
        if is_exact:
            server, _ = aggregate(plan, server, replies)
        else:
            server = advance_with_external_model(plan, server, inner.models[round - 1], [reply.client for reply in replies])
        assert np.array_equal(server.weights, flatten(arrays)), "the model"


STRATEGIES = [
    FedAvg,
    FedAvgM,
    FedProx,
    FedAdam,
    FedYogi,
    FedMedian,
    lambda: FedTrimmedAvg(beta=0.25),
    lambda: Krum(num_malicious_nodes=1),
    lambda: QFedAvg(train_loss_key="loss", client_learning_rate=0.1),
    lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 0.5, 4),
    lambda: FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "downlink", nightly_unless(lambda downlink: downlink is not None, [None, DIFFERENCE]), ids=["model", "difference"]
)
@pytest.mark.parametrize(
    "create_strategy",
    nightly_unless((FedAvgM, FedAdam, FedMedian).__contains__, STRATEGIES),
    ids=lambda create: getattr(create, "__name__", "settings"),
)
def test_strategy_with_lossless_compression_computes_the_same_models(
    create_strategy: Callable[[], Strategy], downlink: dict[str, Any] | None
) -> None:
    """FedAdam and FedYogi return float64 and clients have float32, so the comparison has a tolerance."""
    plain_grid, grid = make_grid(mods=False), make_grid()
    expected_results = list(run_rounds(create_strategy(), plain_grid, make_model(), 4))
    random.seed(0)  # Krum breaks ties by the order of replies
    strategy = CompressedStrategy(create_strategy(), "dense", downlink=downlink)
    results = run_rounds(strategy, grid, make_model(), 4)
    for (arrays, metrics), (expected, expected_metrics) in zip(results, expected_results, strict=True):
        np.testing.assert_allclose(flatten(arrays), flatten(expected), rtol=2e-6, atol=2e-7)
        assert metrics == expected_metrics
        assert {name: array.dtype for name, array in arrays.items()} == {name: array.dtype for name, array in expected.items()}
    assert not np.array_equal(flatten(make_model()), flatten(arrays))


@pytest.mark.slow
@pytest.mark.parametrize("policy", nightly_unless("shift".__ne__, ["error-feedback", "shift"]))
def test_strategy_that_stores_its_model_continues_from_the_published_model(policy: str) -> None:
    """FedAvgM continues from the record that it returned.

    If this record was not the model that clients have, the downlink's residual would be added again in each round, and grow.
    """
    grid = make_grid()
    strategy = CompressedStrategy(
        FedAvgM(server_momentum=0.5), "dense", downlink={"policy": policy, "compressor": {"name": "top-k", "density": 0.1}}
    )
    plain_strategy, plain_grid = FedAvgM(server_momentum=0.5), make_grid(mods=False)
    n = 30
    list(run_rounds(strategy, grid, make_model(), n))
    *_, (expected, _) = run_rounds(plain_strategy, plain_grid, make_model(), n)
    session = strategy._session
    assert session is not None
    public_model = session.server.public_model
    residual = session.server.weights - public_model.weights if public_model.residual is None else public_model.residual
    np.testing.assert_allclose(public_model.weights + residual, flatten(expected), atol=1e-4)
    assert np.linalg.norm(residual) < np.linalg.norm(flatten(expected) - flatten(make_model()))


# ---------------------------------------------------------------------------------------------------------------- residuals


def load_residual(state_root: Path, node: Node) -> np.ndarray:
    """Return a node's residual [P], for the case that its last reply was aggregated."""
    folder = find_client_folder(state_root, node)
    (client,) = [int(path.name.removeprefix("client-")) for path in folder.glob("client-*")]
    return FolderStore(folder).load(client).state_if_accepted["scheme/residual"]


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["nothing", "lost replies", "corrupted replies"])
def test_decoded_updates_and_residual_add_up_to_the_updates(state_root: Path, trouble: str) -> None:
    inner, grid = RecordingFedAvg(), make_grid()
    strategy = CompressedStrategy(inner, TOP_K, error_feedback="persist")
    troubled_nodes = {2: NODES[:2], 4: NODES[1:3], 5: NODES[1:3]}

    def before(round: int) -> None:
        nodes = troubled_nodes.get(round, ())
        if trouble == "lost replies":
            lose_replies(grid, nodes)
        elif trouble == "corrupted replies":
            grid.alter_reply = lambda node, content: flip_bit(content, 60) if node in nodes else content

    model, sums = flatten(make_model()), {node: np.zeros(SIZE) for node in NODES}
    for round, (arrays, _) in enumerate(run_rounds(strategy, grid, make_model(), 7, before=before)):
        for node, local_model in inner.replies[round].items():
            sums[node] += local_model - model
        model = flatten(arrays)
    n_replies = 4 if trouble == "nothing" else 2
    assert [len(replies) for replies in inner.replies] == [4, n_replies, 4, n_replies, n_replies, 4, 4]
    for node in grid.nodes.values():
        updates = sum(fixed_update(node.number, round).astype(np.float64) for round in range(1, 8))
        residual = load_residual(state_root, node)
        assert np.array_equal(sums[node.id] + residual, updates)
        assert np.any(residual)


# ----------------------------------------------------------------------------------------------------------------- catch-up


@pytest.mark.slow
def test_node_with_a_deleted_state_folder_is_caught_up(state_root: Path) -> None:
    grid = make_grid()
    strategy = CompressedStrategy(FedAvg(), TOP_K, error_feedback="persist", downlink=DIFFERENCE)

    def before(round: int) -> None:
        if round == 3:
            shutil.rmtree(find_client_folder(state_root, grid.nodes[NODES[2]]))

    results = list(run_rounds(strategy, grid, make_model(), 4, before=before))
    replies = [(node, peek_kind(frames[0])) for direction, node, frames in list_frames(grid) if direction == "up"]
    kinds = [kind for node, kind in replies if node == NODES[2]]
    assert kinds == [FrameKind.UPDATE, FrameKind.UPDATE, FrameKind.RESYNC, FrameKind.UPDATE, FrameKind.UPDATE]
    assert {kind for node, kind in replies if node != NODES[2]} == {FrameKind.UPDATE}
    for node in grid.nodes.values():
        assert len(node.received) == 4, "the app is called once a round"
        for (_, received, _), (arrays, _) in zip(node.received[1:], results, strict=False):
            assert np.array_equal(flatten(received), flatten(arrays)), "all nodes train the same model"
    for direction in ("down", "up"):
        n_bytes = sum(payload_bytes(content) for way, _, content in grid.contents if way == direction)
        assert sum(getattr(traffic, direction) for traffic in strategy.traffic) == n_bytes


@pytest.mark.slow
def test_restarted_node_continues_from_its_disk(state_root: Path) -> None:
    """With node authentication, Flower identifies the node; its memory is empty."""
    inner, grid = RecordingFedAvg(), make_grid()
    strategy = CompressedStrategy(inner, TOP_K, error_feedback="persist", downlink=DIFFERENCE)
    node = grid.nodes[NODES[0]]
    list(run_rounds(strategy, grid, make_model(), 4, before=lambda round: node.restart() if round == 3 else None))
    assert {peek_kind(frames[0]) for way, _, frames in list_frames(grid) if way == "up"} == {FrameKind.UPDATE}
    residual = load_residual(state_root, node)
    total = sum(fixed_update(0, round).astype(np.float64) for round in range(1, 5))
    assert 0 < np.linalg.norm(residual) < np.linalg.norm(total)
    undisturbed_grid = make_grid()
    undisturbed = CompressedStrategy(RecordingFedAvg(), TOP_K, error_feedback="persist", downlink=DIFFERENCE)
    list(run_rounds(undisturbed, undisturbed_grid, make_model(), 4))
    replies, expected_replies = (
        [frames for way, id, frames in list_frames(each_grid) if way == "up" and id == NODES[0]]
        for each_grid in (grid, undisturbed_grid)
    )
    assert replies == expected_replies


@pytest.mark.slow
def test_federations_of_one_run_have_separate_states(state_root: Path) -> None:
    """Two strategies that share all nodes and begin at round 1 compute the same models as alone."""
    settings: dict[str, Any] = {"compressor": TOP_K, "error_feedback": "persist", "downlink": DIFFERENCE}
    expected_results = [
        list(run_rounds(CompressedStrategy(FedAvg(), **settings), make_grid(), make_model(seed), 4)) for seed in (1, 2)
    ]
    shutil.rmtree(state_root)
    grid = make_grid()
    runs = [run_rounds(CompressedStrategy(FedAvg(), **settings), grid, make_model(seed), 4) for seed in (1, 2)]
    for _ in range(4):
        for run, expected in zip(runs, expected_results, strict=True):
            assert np.array_equal(flatten(next(run)[0]), flatten(expected.pop(0)[0]))


@pytest.mark.slow
def test_node_without_the_model_is_caught_up_before_its_evaluation(state_root: Path) -> None:
    grid = make_grid()
    strategy = CompressedStrategy(FedAvg(), TOP_K, error_feedback="persist", downlink=DIFFERENCE)
    *_, (arrays, _) = run_rounds(strategy, grid, make_model(), 2)
    shutil.rmtree(find_client_folder(state_root, grid.nodes[7]))
    folders = [find_client_folder(state_root, grid.nodes[node]) for node in NODES if node != 7]

    def read_states() -> list[list[tuple[str, bytes]]]:
        return [sorted((path.name, path.read_bytes()) for path in folder.glob("client-*")) for folder in folders]

    states = read_states()
    messages = strategy.configure_evaluate(2, arrays, ConfigRecord(), grid)
    metrics = strategy.aggregate_evaluate(2, grid.send_and_receive(messages))
    assert metrics is not None
    assert all(
        kind == "evaluate" and np.array_equal(flatten(received), flatten(arrays))
        for kind, received, _ in (node.received[-1] for node in grid.nodes.values())
    )
    assert [peek_kind(frames[0]) for way, _, frames in list_frames(grid)[-3:] if way == "up"] == [FrameKind.RESYNC]
    assert read_states() == states, "an evaluation changes no client's state"
    list(run_rounds(strategy, grid, arrays, 1, first=3))


def test_message_parts_for_several_nodes_are_one_object() -> None:
    """Flower stores equal objects once."""
    grid = make_grid()
    list(run_rounds(CompressedStrategy(FedAvg(), TOP_K, downlink=DIFFERENCE), grid, make_model(), 2))
    messages = [content for way, _, content in grid.contents if way == "down"]
    for contents in (messages[:4], messages[4:]):
        assert len({id(content[RECORD_KEY]) for content in contents}) == 1
        assert len({content["fedsgd-task"].object_id for content in contents}) == 4
        assert all("arrays" not in content and "config" in content for content in contents)


# ---------------------------------------------------------------------------------------------------------- changes of arrays


@pytest.mark.slow
def test_arrays_that_the_caller_changes_are_sent_whole() -> None:
    grid = make_grid()
    lossy = {"policy": "error-feedback", "compressor": TOP_K}
    strategy = CompressedStrategy(FedAvg(), TOP_K, error_feedback="persist", downlink=lossy)
    list(run_rounds(strategy, grid, make_model(), 2))
    changed = make_model(9)
    *_, (arrays, _) = run_rounds(strategy, grid, changed, 2, first=3)
    for node in grid.nodes.values():
        assert np.array_equal(flatten(node.received[2][1]), flatten(changed))
    assert not np.array_equal(flatten(arrays), flatten(changed))
    assert strategy.traffic[2].down > strategy.traffic[1].down


def test_round_without_aggregation_ends_when_the_next_round_begins() -> None:
    grid = make_grid()
    strategy = CompressedStrategy(FedAvg(), TOP_K, error_feedback="persist", downlink=DIFFERENCE)
    grid.send_and_receive(strategy.configure_train(1, make_model(), ConfigRecord(), grid))
    list(run_rounds(strategy, grid, make_model(), 2))
    assert [len(node.received) for node in grid.nodes.values()] == [3] * 4
    assert {peek_kind(frames[0]) for way, _, frames in list_frames(grid) if way == "up"} == {FrameKind.UPDATE}


def test_rounding_of_a_mean_is_not_sent() -> None:
    """With unequal weights, Flower's mean of equal numbers differs from the number, at coordinates that no client changed."""
    grid = make_grid()
    for i, node in enumerate(grid.nodes.values()):
        node.examples = 7 + 3 * i
    inner = RecordingFedAvg()
    strategy = CompressedStrategy(inner, {"name": "top-k", "density": 0.02}, error_feedback="persist", downlink=DIFFERENCE)
    model = flatten(make_model())
    for round, (arrays, _) in enumerate(run_rounds(strategy, grid, make_model(), 3)):
        is_changed = np.any([local_model != model for local_model in inner.replies[round].values()], axis=0)
        assert is_changed.sum() <= 4 * 4
        assert np.array_equal(flatten(arrays)[~is_changed], model[~is_changed])
        assert np.array_equal(flatten(arrays)[is_changed], inner.models[round][is_changed])
        is_noise = inner.models[round][~is_changed] != model[~is_changed]
        assert is_noise.mean() > 0.1, "Flower's own mean"
        model = flatten(arrays)
    assert strategy.traffic[-1].down < 4 * 450


@pytest.mark.parametrize("mods", [True, False], ids=["compressed", "plain"])
def test_smallest_change_of_a_client_is_sent(mods: bool) -> None:
    grid, initial = make_grid(mods), make_model()
    changed = make_record({name: np.nextafter(value, np.float32(2)) for name, value in to_numpy(initial).items()})
    for node in grid.nodes.values():
        node.initial_arrays = None if mods else initial
        node.reply = lambda message, arrays: RecordDict(
            {"arrays": changed.copy(), "metrics": MetricRecord({"num-examples": 8})}
        )
    ((arrays, _),) = run_rounds(CompressedStrategy(FedAvg(), "dense"), grid, initial, 1)
    assert np.array_equal(flatten(arrays), flatten(changed))


@pytest.mark.slow
def test_server_momentum_of_unchanged_coordinates_is_sent() -> None:
    """A step of the server's momentum is larger than the rounding of a mean."""
    grid, plain_grid = make_grid(), make_grid(mods=False)
    strategy = CompressedStrategy(FedAvgM(server_momentum=0.9), {"name": "top-k", "density": 0.02}, downlink=DIFFERENCE)
    for node in plain_grid.nodes.values():  # the same updates, without any compression
        node.reply = lambda message, arrays, node=node: apply_update(
            arrays, keep_largest(fixed_update(node.number, int(message.content["config"]["server-round"])))
        )
    results = list(run_rounds(strategy, grid, make_model(), 4))
    expected_results = list(run_rounds(FedAvgM(server_momentum=0.9), plain_grid, make_model(), 4))
    for (arrays, _), (expected, _) in zip(results, expected_results, strict=True):
        np.testing.assert_allclose(flatten(arrays), flatten(expected), rtol=2e-6, atol=2e-7)


def keep_largest(x: np.ndarray, k: int = 4) -> np.ndarray:
    """Return x with the k entries of largest magnitude, the first of equal entries, and zeros elsewhere [P]."""
    largest_values = np.zeros_like(x)
    positions = np.argsort(-np.abs(x), kind="stable")[:k]
    largest_values[positions] = x[positions]
    return largest_values


def test_round_without_replies_leaves_the_model_unchanged() -> None:
    grid = make_grid()
    strategy = CompressedStrategy(FedAvg(), TOP_K, error_feedback="persist", downlink=DIFFERENCE)
    initial = make_model()
    results = list(run_rounds(strategy, grid, initial, 3, before=lambda round: lose_replies(grid, NODES if round == 1 else ())))
    assert results[0][0] is initial
    assert not np.array_equal(flatten(results[2][0]), flatten(initial))
    assert [len(node.received) for node in grid.nodes.values()] == [3] * 4


def test_strategy_that_returns_another_layout_starts_a_new_session(caplog: pytest.LogCaptureFixture) -> None:
    class GrowingFedAvg(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            assert arrays is not None
            arrays["more"] = Array(np.zeros(3, dtype=np.float32))
            return arrays, metrics

    grid = make_grid()
    strategy = CompressedStrategy(GrowingFedAvg(), TOP_K)
    ((arrays, _),) = run_rounds(strategy, grid, make_model(), 1)
    assert "more" in arrays
    assert 'got an array "more", which the model does not have' in caplog.text
    ((arrays, _),) = run_rounds(strategy, grid, arrays, 1, first=2)
    assert list(grid.nodes[7].received[1][1]) == [*make_model(), "more"]


def test_strategy_that_returns_a_nonfinite_model_ends_the_run() -> None:
    class NonFiniteFedAvg(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            return make_model(0, scale=np.array(np.inf, dtype=np.float32)), None

    with pytest.raises(NonFiniteError, match="round 1, server: after the server's step is not finite in 1"):
        list(run_rounds(CompressedStrategy(NonFiniteFedAvg()), make_grid(), make_model(), 1))


def test_evaluation_of_other_arrays_is_sent_uncompressed() -> None:
    grid = make_grid()
    strategy = CompressedStrategy(FedAvg(), TOP_K)
    list(run_rounds(strategy, grid, make_model(), 1))
    other_model: ArrayRecord = make_model(5)
    messages = list(strategy.configure_evaluate(1, other_model, ConfigRecord(), grid))
    assert all(message.content.array_records["arrays"] == other_model for message in messages)
    strategy.aggregate_evaluate(1, grid.send_and_receive(messages))
    assert np.array_equal(flatten(grid.nodes[7].received[-1][1]), flatten(other_model))
    assert [(row.what, row.down, row.compression_ratios["bidirectional_ratio"]) for row in strategy.traffic[1:]] == [
        ("evaluate", 0, 1.0)
    ]
