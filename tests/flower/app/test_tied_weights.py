"""Tensors with several names: detection in the model and in replies, the setting `tied`, and models of PyTorch."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, Strategy

from fedsgd.errors import ModelError, NonFiniteError, ScenarioError, WireError
from fedsgd.flower import CompressedStrategy, tied_names
from fedsgd.flower.app.messages import decode_reply, encode_uncompressed_reply
from fedsgd.flower.records import write_payload
from fedsgd.runtime.workers import protocol
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.torch_threads import use_single_thread
from tests.flower.app.fixed_updates import (
    DIFFERENCE,
    NODES,
    RAND_K,
    TABLE,
    TIED_VALUES,
    TOP_K,
    Node,
    RecordingGrid,
    list_frames,
    make_grid,
    make_record,
    run_rounds,
    to_numpy,
)

ZEROS = np.zeros(8, dtype=np.float32)
SINGLE_VALUES = {name: value for name, value in TIED_VALUES.items() if name != "o"}
Values = Mapping[str, np.ndarray]
ReplyFunction = Callable[[Message, ArrayRecord], RecordDict]

pytestmark = pytest.mark.usefixtures("quick_collection")


def make_reply_function(*tensors: tuple[str, ...], untrained: Iterable[str] = ()) -> ReplyFunction:
    """Return an app that adds a random update to each tensor of its module.

    Args:
        tensors: groups of names that are one tensor each. As in PyTorch, the value of the last name is loaded last.
        untrained: names that the app does not train.
    """
    first_name = {name: group[0] for group in tensors for name in group}
    last_name = {name: group[-1] for group in tensors for name in group}

    def reply(message: Message, arrays: ArrayRecord) -> RecordDict:
        node, round = message.metadata.dst_node_id, int(message.content.config_records["config"]["server-round"])
        values, trained_values = to_numpy(arrays), {}
        for name, value in values.items():
            loaded = values[last_name.get(name, name)]
            update = 0 if name in untrained else draw_update(node, round, first_name.get(name, name), loaded.shape)
            trained_values[name] = (loaded + update).astype(np.float32).reshape(value.shape)
        return RecordDict({"arrays": make_record(trained_values), "metrics": MetricRecord({"num-examples": 10})})

    return reply


def draw_update(node: int, round: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the update of a tensor in a round, multiples of 2⁻¹⁰."""
    return np.random.default_rng([node % 1000, round, *name.encode()]).integers(-64, 64, shape) / 1024


def make_app_grid(reply: ReplyFunction, n: int = 3) -> RecordingGrid:
    """Return a grid of n nodes with `compression_mod` and this app."""
    grid = make_grid(nodes=NODES[:n])
    for node in grid.nodes.values():
        node.reply = reply
    return grid


def run_values(strategy: Strategy, grid: RecordingGrid, initial: Values, n: int) -> list[dict[str, np.ndarray]]:
    """Return the arrays after each of n rounds."""
    rounds = run_rounds(strategy, grid, make_record(initial), n)
    return [{name: value.copy() for name, value in to_numpy(arrays).items()} for arrays, _ in rounds]


def list_uncompressed(grid: RecordingGrid) -> list[bool]:
    """Return True for each reply with uncompressed arrays."""
    return ["arrays" in content for direction, _, content in grid.contents if direction == "up"]


# ---------------------------------------------------------------------------------------------------------------- detection


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(
    ("compressor", "downlink", "create_strategy"),
    [
        (RAND_K, None, FedAvg),
        (RAND_K, {"policy": "difference"}, FedAdam),
        ("qsgd", {"policy": "error-feedback", "compressor": TOP_K}, FedMedian),
        ("sign", {"policy": "plain", "compressor": RAND_K}, FedAvgM),
    ],
)
def test_tied_tensor_is_sent_and_trained_like_a_tensor_of_one_name(
    state_root: Path, compressor: Any, downlink: Any, create_strategy: Callable[[], Strategy]
) -> None:
    tied, single = (CompressedStrategy(create_strategy(), compressor, downlink=downlink) for _ in range(2))
    tied_grid, single_grid = make_app_grid(make_reply_function(("e", "o"))), make_app_grid(make_reply_function())
    tied_results = run_values(tied, tied_grid, TIED_VALUES, 6)
    shutil.rmtree(state_root)
    random.seed(0)  # the order of the cohort
    single_results = run_values(single, single_grid, SINGLE_VALUES, 6)
    for tied_values, single_values in zip(tied_results, single_results, strict=True):
        assert tied_values["e"].tobytes() == tied_values["o"].tobytes() == single_values["e"].tobytes()
        assert tied_values["mid"].tobytes() == single_values["mid"].tobytes()
    assert not np.array_equal(tied_results[-1]["e"], TABLE)
    assert list_frames(tied_grid) == list_frames(single_grid), "each tensor is sent once"
    for tied_row, single_row in zip(tied.traffic, single.traffic, strict=True):
        assert tied_row.up == single_row.up
        assert 0 < tied_row.down - single_row.down < 3 * 40, "one additional name in the settings"
        for direction in ("plain_up", "plain_down"):
            difference = abs(getattr(tied_row, direction) - getattr(single_row, direction))
            assert difference < 3 * 100, "Flower sends equal arrays once"


def test_tied_tensor_with_two_shapes_is_compressed_once() -> None:
    grid = make_app_grid(make_reply_function(("e", "o")))
    results = run_values(CompressedStrategy(FedAvg(), RAND_K), grid, {**TIED_VALUES, "o": TABLE.reshape(-1)}, 4)
    assert all(values["e"].tobytes() == values["o"].tobytes() and values["o"].shape == (240,) for values in results)
    assert list_uncompressed(grid) == [False] * 12


def test_three_equal_names_with_one_tied_pair_are_separated(caplog: pytest.LogCaptureFixture) -> None:
    grid = make_app_grid(make_reply_function(("a", "c")))
    strategy = CompressedStrategy(FedAvg(), RAND_K)
    results = run_values(strategy, grid, {"a": TABLE, "b": TABLE, "c": TABLE}, 4)
    assert all(values["a"].tobytes() == values["c"].tobytes() for values in results)
    assert not np.array_equal(results[-1]["a"], results[-1]["b"])
    assert strategy._session is not None
    assert strategy._session.array_layout.tied_groups == (("a", "c"),)
    assert '"a" and "b" (and 1 more) were assumed to be one tensor and differ in a reply' in caplog.text


@pytest.mark.parametrize("tied", [None, []])
def test_nonfinite_model_in_a_round_that_changes_ties_ends_the_run(tied: Any) -> None:
    class NonFiniteFedAvg(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            return make_record({**to_numpy(arrays), "mid": TIED_VALUES["mid"] * np.float32(np.inf)}), metrics

    grid = make_app_grid(make_reply_function() if tied is None else make_reply_function(("e", "o")))
    with pytest.raises(NonFiniteError, match=r"round 1, server: .* not finite"):
        list(run_rounds(CompressedStrategy(NonFiniteFedAvg(), RAND_K, tied=tied), grid, make_record(TIED_VALUES), 1))


@pytest.mark.slow
def test_evaluation_after_a_change_of_ties_uses_the_final_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.flower.app.fixed_updates.flatten", lambda arrays: arrays["e"].numpy())
    grid = make_app_grid(make_reply_function())
    strategy = CompressedStrategy(FedAvg(), RAND_K, downlink=DIFFERENCE)
    result = strategy.start(grid, make_record(TIED_VALUES), num_rounds=3)
    for node in grid.nodes.values():
        evaluated = [to_numpy(arrays) for kind, arrays, _ in node.received if kind == "evaluate"]
        assert len(evaluated) == 3
        assert [evaluated[-1][name].tobytes() for name in TIED_VALUES] == [
            value.tobytes() for value in to_numpy(result.arrays).values()
        ]
    assert [(row.what, row.round) for row in strategy.traffic] == [
        (phase, round) for round in (1, 2, 3) for phase in ("train", "evaluate")
    ]


@pytest.mark.slow
def test_layers_with_equal_initial_values_are_separated_by_the_first_replies(caplog: pytest.LogCaptureFixture) -> None:
    """The layers of torch.nn.TransformerEncoder are such layers, and so are a teacher and its student."""
    initial = {"layers.0.w": TABLE, "layers.0.b": ZEROS, "layers.1.w": TABLE, "layers.1.b": ZEROS}
    grid, plain_grid = make_app_grid(make_reply_function()), make_app_grid(make_reply_function())
    for node in plain_grid.nodes.values():
        node.app = Node(node.id, node.number, [], make_reply_function()).app
    strategy = CompressedStrategy(FedAvg(), "dense")
    results = run_values(strategy, grid, initial, 3)
    expected_results = run_values(FedAvg(), plain_grid, initial, 3)
    for values, expected in zip(results, expected_results, strict=True):
        for name, value in values.items():
            np.testing.assert_allclose(value, expected[name], atol=1e-6)
    assert list_uncompressed(grid) == [True] * 3 + [False] * 6
    assert '"layers.0.w" and "layers.1.w" were assumed to be one tensor and differ in a reply' in caplog.text
    assert "tied=tied_names(module)" in caplog.text
    array_bytes = 3 * sum(len(Array(value).data) for value in initial.values())
    row = strategy.traffic[0]
    assert row.up < 600
    assert array_bytes < row.plain_up < row.message_up < row.plain_up + 2000, "uncompressed arrays are counted"


@pytest.mark.slow
def test_arrays_that_are_equal_by_chance_are_separate() -> None:
    """Biases of zeros and scales of ones are constant, so they are not grouped."""
    initial = {"a.bias": ZEROS, "b.bias": ZEROS, "a.scale": ZEROS + 1, "b.scale": ZEROS + 1, "w": TABLE}
    grid = make_app_grid(make_reply_function())
    strategy = CompressedStrategy(FedAvg(), "dense")
    results = run_values(strategy, grid, initial, 4)
    assert strategy._session is not None
    assert strategy._session.array_layout.layout.names == tuple(initial)
    assert list_uncompressed(grid) == [False] * 12
    np.testing.assert_allclose(results[-1]["b.bias"], sum_mean_updates("b.bias", ZEROS.shape, 4), atol=1e-6)
    assert not np.array_equal(results[-1]["a.bias"], results[-1]["b.bias"])


def sum_mean_updates(name: str, shape: tuple[int, ...], n_rounds: int) -> np.ndarray:
    """Return the sum over rounds of the mean update of three nodes."""
    rounds = range(1, n_rounds + 1)
    return sum(np.mean([draw_update(node, round, name, shape) for node in NODES[:3]], axis=0) for round in rounds)


@pytest.mark.slow
def test_tied_bias_of_zeros_is_detected_in_the_first_replies(caplog: pytest.LogCaptureFixture) -> None:
    """The weights of a module with two names are detected in the initial model, the constant biases in the replies."""
    initial = {"a.w": TABLE, "a.b": ZEROS, "a.s": np.float32(1), "b.w": TABLE, "b.b": ZEROS, "b.s": np.float32(1)}
    grid = make_app_grid(make_reply_function(("a.w", "b.w"), ("a.b", "b.b"), ("a.s", "b.s")))
    strategy = CompressedStrategy(FedAvg(), RAND_K)
    for values in run_values(strategy, grid, initial, 6):
        assert all(values[f"a.{part}"].tobytes() == values[f"b.{part}"].tobytes() for part in "wbs")
    assert list_uncompressed(grid) == [True] * 3 + [False] * 15
    assert '"a.b" and "b.b" (and 1 more) were assumed to be two tensors and are one tensor in a reply' in caplog.text
    assert strategy._session is not None
    assert strategy._session.array_layout.layout.names == ("a.w", "a.b", "a.s")


def test_untrained_tied_tensor_stays_equal_under_both_names() -> None:
    initial = {"a": TABLE, "b": TABLE, "w": TABLE * 3}
    grid = make_app_grid(make_reply_function(("a", "b"), untrained=("a", "b")))
    results = run_values(CompressedStrategy(FedAvg(), "sign"), grid, initial, 4)
    assert all(values["a"].tobytes() == values["b"].tobytes() for values in results)


def test_nodes_that_disagree_on_tied_names_reply_uncompressed(caplog: pytest.LogCaptureFixture) -> None:
    grid = make_app_grid(make_reply_function(("e", "o")))
    grid.nodes[7].reply = make_reply_function()
    results = run_values(CompressedStrategy(FedAvg(), "dense"), grid, TIED_VALUES, 4)
    plain_grid = make_app_grid(make_reply_function(("e", "o")))
    for node in plain_grid.nodes.values():
        reply = make_reply_function() if node.id == 7 else make_reply_function(("e", "o"))
        node.app = Node(node.id, node.number, [], reply).app
    expected_results = run_rounds(FedAvg(), plain_grid, make_record(TIED_VALUES), 4)
    for values, (expected, _) in zip(results, expected_results, strict=True):
        for name in TIED_VALUES:
            np.testing.assert_allclose(values[name], expected[name].numpy(), atol=1e-6)
    replies = [(node == 7, "arrays" in content) for direction, node, content in grid.contents if direction == "up"]
    assert sorted(replies[:3]) == [(False, False), (False, False), (True, True)], "the node with separate names"
    assert sorted(replies[3:]) == [(False, True)] * 6 + [(True, False)] * 3, "the nodes with tied names"
    assert "reply uncompressed: the tied names of other nodes differ" in caplog.text


def test_tied_names_of_another_object_are_refused() -> None:
    with pytest.raises(ModelError, match=r"module: got \{\}, expected an instance of torch.nn.Module"):
        tied_names({})


def test_tied_names_with_values_that_the_caller_separates_are_sent_as_two_tensors() -> None:
    grid = make_app_grid(make_reply_function())
    strategy = CompressedStrategy(FedAvg(), "dense")
    session = strategy._get_session(make_record(TIED_VALUES))
    assert session.array_layout.tied_groups == (("e", "o"),)
    separated = make_record({**TIED_VALUES, "o": TABLE * 2})
    assert not session.matches(separated)
    list(run_rounds(strategy, grid, separated, 1))
    for node in grid.nodes.values():
        received = to_numpy(node.received[0][1])
        assert np.array_equal(received["e"], TABLE)
        assert np.array_equal(received["o"], TABLE * 2)


def test_strategy_that_separates_tied_values_is_named_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Noise for differential privacy separates them. A module of PyTorch trains the copy that it loads last."""

    class NoisyFedAvg(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            assert arrays is not None
            return make_record({name: value + i for i, (name, value) in enumerate(to_numpy(arrays).items())}), metrics

    grid = make_app_grid(make_reply_function(("e", "o")))
    (values,) = run_values(CompressedStrategy(NoisyFedAvg(), "dense"), grid, TIED_VALUES, 1)
    np.testing.assert_allclose(values["o"], TABLE + sum_mean_updates("e", TABLE.shape, 1) + 2, atol=1e-6)
    assert values["e"].tobytes() == values["o"].tobytes()
    assert '"e" and "o" are one tensor, but the strategy returned different values' in caplog.text


@pytest.mark.parametrize(
    ("view", "relation"), [(TABLE.T.copy(), '"e" is the transpose of "o"'), (TABLE[4:19].copy(), '"o" is a part of "e"')]
)
def test_view_of_another_array_is_refused_unless_both_are_exact(
    view: np.ndarray, relation: str, caplog: pytest.LogCaptureFixture
) -> None:
    def reply(message: Message, arrays: ArrayRecord) -> RecordDict:
        table = to_numpy(arrays)["e"] + np.float32(0.5)
        trained_view = table.T.copy() if view.shape == TABLE.T.shape else table[4:19]
        return RecordDict(
            {"arrays": make_record({"e": table, "o": trained_view, "w": TABLE}), "metrics": MetricRecord({"num-examples": 1})}
        )

    initial = {"e": TABLE, "o": view, "w": TABLE * 2}
    grid = make_app_grid(reply)
    run_values(CompressedStrategy(FedAvg(), RAND_K), grid, initial, 1)
    consequence = "compression would make the two arrays differ: put both names into"
    assert f"ClientAppError'>:<'compression_mod(): in the reply, {relation}; {consequence}" in caplog.text
    assert list_uncompressed(grid) == []

    grid = make_app_grid(reply)
    strategy = CompressedStrategy(FedAvg(), RAND_K, exact=["e", "o"])
    *_, values = run_values(strategy, grid, initial, 3)
    np.testing.assert_allclose(values["e"], TABLE + 1.5, atol=1e-6)
    np.testing.assert_allclose(values["o"], view + 1.5, atol=1e-6)


def test_tied_tensor_that_is_exact_under_one_name_is_exact_under_both_names() -> None:
    grid = make_app_grid(make_reply_function(("e", "o")))
    results = run_values(CompressedStrategy(FedAvg(), RAND_K, exact=["e"]), grid, TIED_VALUES, 4)
    for round, values in enumerate(results, 1):
        np.testing.assert_allclose(values["o"], TABLE + sum_mean_updates("e", TABLE.shape, round), atol=1e-6)
        assert values["e"].tobytes() == values["o"].tobytes()
    assert list_uncompressed(grid) == [True] * 3 + [False] * 9


def test_reply_with_wrong_tied_names_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    messages = {
        b'[["e", "mid"]]': "it reports as tied names",
        b'[["e", 3]]': "contain something other than text",
        b"[4]": "cannot be read",
        b"": "cannot be read",
    }
    for groups, message in messages.items():
        data = protocol.pack_packets([(b"arrays", ()), (groups, ())])
        grid = make_app_grid(make_reply_function())
        grid.alter_reply = lambda node, content, data=data: (
            write_payload(RecordDict(dict(content)), data) if node == 7 else content
        )
        strategy = CompressedStrategy(FedAvg(), "dense", tied=[])
        list(run_rounds(strategy, grid, make_record(SINGLE_VALUES), 1))
        assert strategy._session is not None
        assert strategy._session.array_layout.tied_groups == ()
        assert "the reply has neither an update nor a record" in caplog.text
        reply = Message(RecordDict({"arrays": make_record(SINGLE_VALUES)}), 7, "train")
        reply.metadata.__dict__["_src_node_id"] = 7
        reply.content = write_payload(reply.content, data)
        with pytest.raises(WireError, match=message):
            strategy._session.decompress_reply(reply)
    content = write_payload(RecordDict(), encode_uncompressed_reply("arrays", (("a", "b"),)))
    assert decode_reply(content, strategy._session.array_layout).frames == ()


# ------------------------------------------------------------------------------------------------------------ the setting `tied`


def test_layers_with_equal_initial_values_are_compressed_at_once_if_tied_is_empty() -> None:
    grid = make_app_grid(make_reply_function())
    strategy = CompressedStrategy(FedAvg(), RAND_K, tied=[])
    run_values(strategy, grid, {"a.w": TABLE, "b.w": TABLE}, 3)
    assert list_uncompressed(grid) == [False] * 9


def test_tied_names_of_the_caller_apply_from_the_first_round() -> None:
    initial = {"a.w": TABLE, "a.b": ZEROS, "b.w": TABLE, "b.b": ZEROS}
    grid = make_app_grid(make_reply_function(("a.w", "b.w"), ("a.b", "b.b")))
    strategy = CompressedStrategy(FedAvg(), RAND_K, tied=[["b.b", "a.b"], ("a.w", "b.w")])
    results = run_values(strategy, grid, initial, 5)
    assert all(values[f"a.{part}"].tobytes() == values[f"b.{part}"].tobytes() for values in results for part in "wb")
    assert list_uncompressed(grid) == [False] * 15


def test_tied_tensor_that_the_caller_denies_is_detected_in_the_replies() -> None:
    """The values are those of the app's module in every round, independent of the server's groups."""
    grid = make_app_grid(make_reply_function(("e", "o")))
    results = run_values(CompressedStrategy(FedAvg(), RAND_K, tied=[]), grid, TIED_VALUES, 5)
    assert all(values["e"].tobytes() == values["o"].tobytes() for values in results)
    assert list_uncompressed(grid) == [True] * 3 + [False] * 12


WRONG_TIES = [
    ("e", "tied: got 'e', expected groups"),
    (["e", "o"], "tied: got 'e', expected groups of two or more names"),
    ([("e",)], r"tied: got \('e',\), expected groups of two or more names"),
    ([("e", "o"), ("o", "mid")], 'tied: got "o" in two groups'),
    ([("e", "oo")], 'tied: got "oo", which the model does not have, did you mean "o"'),
    ([("e", "mid")], 'tied: got "e" and "mid", whose initial values differ'),
]


@pytest.mark.parametrize(("tied", "message"), WRONG_TIES, ids=[message[:30] for _, message in WRONG_TIES])
def test_wrong_tied_names_of_the_caller_are_refused_in_one_line(tied: Any, message: str) -> None:
    grid = make_app_grid(make_reply_function())
    with pytest.raises(ScenarioError, match=message) as raised:
        list(run_rounds(CompressedStrategy(FedAvg(), RAND_K, tied=tied), grid, make_record(TIED_VALUES), 1))
    assert "\n" not in str(raised.value)


def test_tied_names_of_a_module_are_the_names_of_one_tensor() -> None:
    shared, norm = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)
    net = torch.nn.Sequential(shared, norm, torch.nn.ReLU(), shared, norm, torch.nn.Linear(4, 4))
    groups = {frozenset(group) for group in tied_names(net)}
    tensors = {"0": ("weight", "bias"), "1": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert groups == {
        frozenset((f"{layer}.{name}", f"{int(layer) + 3}.{name}")) for layer, names in tensors.items() for name in names
    }
    assert tied_names(torch.nn.TransformerEncoderLayer(8, 2, 16)) == []
    session = CompressedStrategy(FedAvg(), TOP_K, tied=tied_names(net))._get_session(ArrayRecord(net.state_dict()))
    assert session.array_layout.layout.names == ("0.weight", "0.bias", "1.weight", "1.bias", "5.weight", "5.bias")


@pytest.mark.parametrize("view", [lambda w: w[:2], lambda w: w.t(), lambda w: w[:, 1]])
def test_tied_names_of_overlapping_parameters_are_refused(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    net = torch.nn.Linear(4, 4, bias=False)
    net.other = torch.nn.Parameter(view(net.weight.detach()))
    with pytest.raises(ModelError, match="share memory with different views"):
        tied_names(net)


@pytest.mark.slow
def test_embedding_that_is_also_the_output_layer_stays_one_tensor() -> None:
    class TiedModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50, bias=False)
            self.o.weight = self.e.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.o(self.e(x))
            return scores

    def train(message: Message, arrays: ArrayRecord) -> RecordDict:
        net = TiedModel()
        net.load_state_dict(arrays.to_torch_state_dict())
        x = torch.randint(0, 50, (64,), generator=torch.Generator().manual_seed(message.metadata.dst_node_id % 1000))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for batch in x.split(16):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(batch), (batch + 1) % 50).backward()
            optimizer.step()
        return RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": 64})})

    with use_single_thread(), isolate_generators(0):
        initial = {name: value.numpy() for name, value in TiedModel().state_dict().items()}
        results = run_values(CompressedStrategy(FedAvg(), RAND_K), make_app_grid(train), initial, 5)
        (dense_values,) = run_values(CompressedStrategy(FedAvg(), "dense"), make_app_grid(train), initial, 1)
    assert all(values["e.weight"].tobytes() == values["o.weight"].tobytes() for values in results)
    assert not np.array_equal(results[-1]["e.weight"], initial["e.weight"])
    replies = [
        to_numpy(train(Message(RecordDict(), node, "train"), make_record(initial))["arrays"])["e.weight"] for node in NODES[:3]
    ]
    np.testing.assert_allclose(dense_values["o.weight"], np.mean(replies, axis=0), atol=1e-6)
