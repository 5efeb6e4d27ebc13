"""Arrays of Flower apps with other types than float32, and replies with missing, additional or other arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, Strategy

from fedsgd.errors import ModelError
from fedsgd.flower import CompressedStrategy, compression_mod
from fedsgd.flower.app.arrays import is_float, read_packed_shape
from fedsgd.flower.records import read_payload, write_payload
from fedsgd.runtime.workers import protocol
from tests.flower.app.fixed_updates import make_record, to_numpy
from tests.flower.grid import InProcessGrid

Values = dict[str, np.ndarray]
TOP_K = {"name": "top-k", "density": 0.25}
RNG = np.random.default_rng(0)
W = np.round(RNG.normal(size=(8, 5)), 2)
"""Weights [8, 5] with two decimal digits, which float16 cannot represent exactly."""


class RecordingFedAvg(FedAvg):
    """FedAvg that records the arrays of the replies.

    Attributes:
        replies: arrays of each reply, for each round.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(fraction_evaluate=0.0, **settings)
        self.replies: list[list[Values]] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.replies.append([to_numpy(next(iter(r.content.array_records.values()))) for r in replies if r.has_content()])
        return super().aggregate_train(server_round, replies)


class LastReplyFedAvg(RecordingFedAvg):
    """Strategy that returns the arrays of the last reply."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        return list(replies)[-1].content["arrays"], None


def make_grid(reply: Callable[[int, int, Values], Any], mods: bool = True, nodes: int = 3) -> InProcessGrid:
    """Return a grid of nodes that reply with `reply(partition, round, arrays)`, which returns arrays or all records."""
    app = ClientApp(mods=[compression_mod()] if mods else [])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = to_numpy(message.content["arrays"])
        round = int(message.content["config"]["server-round"])
        result = reply(context.node_config["partition-id"], round, arrays)
        content = result if isinstance(result, RecordDict) else RecordDict({"arrays": make_record(result)})
        content["metrics"] = MetricRecord({"num-examples": 1})
        return Message(content, reply_to=message)

    return InProcessGrid.of(app, nodes)


def run_rounds(strategy: Strategy, grid: InProcessGrid, arrays: ArrayRecord, n: int = 3) -> list[Values]:
    """Return the arrays after each of n rounds."""
    results: list[Values] = []
    for round in range(1, n + 1):
        messages = strategy.configure_train(round, arrays, ConfigRecord(), grid)
        ids = [id for id in grid.push_messages(messages) if id]
        aggregate, _ = strategy.aggregate_train(round, grid.pull_messages(ids))
        arrays = arrays if aggregate is None else aggregate
        results.append(to_numpy(arrays))
    return results


def list_compressed(grid: InProcessGrid) -> list[bool]:
    """Return True for each message with fedsgd's record instead of the arrays."""
    return [message.content.get("fedsgd") is not None for message in grid.sent_messages]


def add_one(partition: int, round: int, arrays: Values) -> Values:
    return {name: value + np.asarray(1).astype(value.dtype) for name, value in arrays.items()}


# ------------------------------------------------------------------------------------------------------------------ types


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ">f4", ">f8", "<f2"])
@pytest.mark.parametrize("downlink", [None, {"policy": "difference"}])
def test_floats_of_any_type_reach_app_and_strategy_in_their_own_type(dtype: str, downlink: Any) -> None:
    received: list[np.ndarray] = []

    def reply(partition: int, round: int, arrays: Values) -> Values:
        received.append(arrays["w"])
        return {"w": (arrays["w"] + np.asarray(partition).astype(dtype)).astype(dtype)}

    w, inner, plain = W.astype(dtype), RecordingFedAvg(), RecordingFedAvg()
    results = run_rounds(CompressedStrategy(inner, "dense", downlink=downlink), make_grid(reply), make_record({"w": w}))
    expected_results = run_rounds(plain, make_grid(reply, mods=False), make_record({"w": w}))
    assert [value.dtype for value in received[:9]] == [value.dtype for value in received[9:]], "as without compression"
    assert {value.dtype for value in received[:3]} == {np.dtype(dtype)}
    np.testing.assert_array_equal(received[0], w.astype(np.float32).astype(dtype), "rounded to float32, and no further")
    dtypes, expected_dtypes = (
        [[reply["w"].dtype for reply in replies] for replies in strategy.replies] for strategy in (inner, plain)
    )
    assert dtypes == expected_dtypes
    # a mean in float16 has errors of 2⁻¹¹; in the other types it has the errors of float32
    tolerance = 2e-3 if np.dtype(dtype).itemsize == 2 else 1e-6
    for values, expected in zip(results, expected_results, strict=True):
        assert values["w"].dtype == expected["w"].dtype
        np.testing.assert_allclose(values["w"], expected["w"], rtol=tolerance, atol=tolerance)


def test_float64_numbers_are_rounded_to_float32_and_no_further() -> None:
    w = np.array([1 / 3, np.pi, 1e-40, 2.0**100])
    received: list[np.ndarray] = []

    def reply(partition: int, round: int, arrays: Values) -> Values:
        received.append(arrays["w"])
        return {"w": arrays["w"] + 0.1}

    (values,) = run_rounds(CompressedStrategy(RecordingFedAvg(), "dense"), make_grid(reply), make_record({"w": w}), 1)
    assert {value.tobytes() for value in received} == {w.astype(np.float32).astype(np.float64).tobytes()}
    rounded = values["w"].astype(np.float32).astype(np.float64)
    assert values["w"].tobytes() == rounded.tobytes(), "clients get the returned model"


def test_unchanged_float16_model_sends_empty_updates() -> None:
    """Clients get the model rounded to float16, and the update is the difference from the rounded model."""
    grid = make_grid(lambda partition, round, arrays: dict(arrays), nodes=2)
    strategy = CompressedStrategy(
        RecordingFedAvg(), TOP_K, error_feedback="persist", downlink={"policy": "error-feedback", "compressor": TOP_K}
    )
    w = W.astype(np.float16)
    for values in run_rounds(strategy, grid, make_record({"w": w}), 4):
        assert values["w"].tobytes() == w.tobytes()
    bytes_up = [row.up for row in strategy.traffic]
    assert bytes_up[1:] == bytes_up[:1] * 3
    assert strategy.traffic[-1].down < strategy.traffic[0].down


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_lossy_downlink_of_other_types_sends_the_model_once(dtype: str) -> None:
    def reply(partition: int, round: int, arrays: Values) -> Values:
        update = np.random.default_rng([partition, round]).normal(size=arrays["w"].shape) / 8
        return {"w": (arrays["w"] + update).astype(dtype)}

    downlink = {"policy": "error-feedback", "compressor": TOP_K}
    strategy = CompressedStrategy(RecordingFedAvg(), TOP_K, error_feedback="persist", downlink=downlink)
    run_rounds(strategy, make_grid(reply), make_record({"w": np.resize(W, (40, 50)).astype(dtype)}), 4)
    bytes_down = [row.down for row in strategy.traffic]
    assert all(n_bytes < bytes_down[0] / 2 for n_bytes in bytes_down[1:]), bytes_down


def test_replies_of_another_float_type_change_the_type_of_the_model() -> None:
    def reply(partition: int, round: int, arrays: Values) -> Values:
        return {"w": arrays["w"].astype(np.float64) + 1, "b": arrays["b"] + np.float32(1)}

    initial = make_record({"w": W.astype(np.float32), "b": np.ones(3, dtype=np.float32)})
    grid = make_grid(reply)
    strategy = CompressedStrategy(RecordingFedAvg(), "dense")
    results = run_rounds(strategy, grid, initial)
    expected_results = run_rounds(RecordingFedAvg(), make_grid(reply, mods=False), initial)
    for values, expected in zip(results, expected_results, strict=True):
        assert {name: value.dtype for name, value in values.items()} == {name: value.dtype for name, value in expected.items()}
        np.testing.assert_allclose(values["w"], expected["w"], rtol=1e-6)
    assert list_compressed(grid)[-3:] == [True] * 3
    assert len(strategy.traffic) == 3


def test_strategy_that_returns_float64_continues_the_session() -> None:
    """Flower's FedAdam returns float64 for float32 arrays. Clients keep their residuals."""

    def reply(partition: int, round: int, arrays: Values) -> Values:
        return {"w": arrays["w"].astype(np.float32) + np.float32(0.5)}

    strategy = CompressedStrategy(FedAdam(fraction_evaluate=0.0), TOP_K, error_feedback="persist")
    grid = make_grid(reply)
    results = run_rounds(strategy, grid, make_record({"w": W.astype(np.float32)}))
    assert [values["w"].dtype for values in results] == [np.dtype("float64")] * 3
    assert {message.content["fedsgd"] is not None for message in grid.sent_messages} == {True}
    assert strategy._session is not None
    assert strategy._session.server.round == 4, "one session"


@pytest.mark.parametrize(
    "values",
    [
        {"tree": np.frombuffer(b"a model of XGBoost", dtype=np.uint8)},
        {},
        {"e": np.zeros((0, 4), dtype=np.float32)},
        {"w": np.array([np.nan, 1.0], dtype=np.float32)},
        {"z": np.zeros(2, dtype=np.complex64)},
        {"name": np.array(["a", "bc"])},
    ],
    ids=["uint8", "none", "empty", "not finite", "complex", "text"],
)
def test_model_without_a_compressible_array_is_sent_uncompressed(values: Values, caplog: pytest.LogCaptureFixture) -> None:
    def reply(partition: int, round: int, arrays: Values) -> Values:
        return dict(arrays)

    grid = make_grid(reply)
    results = run_rounds(CompressedStrategy(LastReplyFedAvg(), TOP_K), grid, make_record(values))
    assert not any(list_compressed(grid))
    assert {name: value.tobytes() for name, value in results[-1].items()} == {n: v.tobytes() for n, v in values.items()}
    assert "no array of the model can be compressed" in caplog.text


def test_model_that_appears_in_the_replies_is_compressed_in_later_rounds() -> None:
    def reply(partition: int, round: int, arrays: Values) -> Values:
        return {"w": (arrays["w"] if arrays else W.astype(np.float32)) + np.float32(partition)}

    grid = make_grid(reply)
    results = run_rounds(CompressedStrategy(RecordingFedAvg(), "dense"), grid, ArrayRecord({}))
    expected_results = run_rounds(RecordingFedAvg(), make_grid(reply, mods=False), ArrayRecord({}))
    for values, expected in zip(results, expected_results, strict=True):
        np.testing.assert_allclose(values["w"], expected["w"], rtol=1e-6)
    assert list_compressed(grid) == [False] * 3 + [True] * 6


@pytest.mark.parametrize("infinity", [-np.inf, np.inf])
def test_mask_with_infinities_is_sent_bit_for_bit(infinity: float) -> None:
    mask = np.triu(np.full((4, 4), infinity, dtype=np.float32), 1)
    initial = make_record({"w": W.astype(np.float32), "mask": mask})
    received: list[np.ndarray] = []

    def reply(partition: int, round: int, arrays: Values) -> Values:
        received.append(arrays["mask"])
        return {**arrays, "w": arrays["w"] + np.float32(partition)}

    inner, grid = RecordingFedAvg(), make_grid(reply)
    strategy = CompressedStrategy(inner, TOP_K, error_feedback="persist", downlink={"policy": "difference"})
    results = run_rounds(strategy, grid, initial)
    assert {value.tobytes() for value in received} == {mask.tobytes()}
    assert {reply["mask"].tobytes() for replies in inner.replies for reply in replies} == {mask.tobytes()}
    np.testing.assert_array_equal(results[-1]["mask"], mask)
    assert all(list_compressed(grid))


def test_numbers_outside_float32_are_sent_uncompressed() -> None:
    initial = make_record({"w": W, "huge": np.array([1e300, 1.0])})

    def reply(partition: int, round: int, arrays: Values) -> Values:
        return {"w": arrays["w"] * (1e200 if round == 2 else 1.0), "huge": arrays["huge"] * 2}

    class FirstRoundFedAvg(RecordingFedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            result = super().aggregate_train(server_round, replies)
            return result if server_round == 1 else (None, None)

    inner = FirstRoundFedAvg()
    run_rounds(CompressedStrategy(inner, "dense"), make_grid(reply), initial, 2)
    assert inner.replies[0][0]["huge"].tolist() == [2e300, 2.0]
    np.testing.assert_allclose(inner.replies[1][0]["w"], W.astype(np.float32).astype(np.float64) * 1e200, rtol=1e-6)


def test_arrays_of_other_libraries_types_are_sent_uncompressed() -> None:
    """Numpy does not know JAX's bfloat16 and reads two raw bytes a number."""
    bfloat16 = Array("bfloat16", (3,), "numpy.ndarray", Array(np.arange(3, dtype=np.uint16).view("V2")).data)
    other_packing = Array("bytes", (1,), "my.packing", b"\x00\x01")
    received: list[ArrayRecord] = []
    app = ClientApp(mods=[compression_mod()])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        received.append(message.content["arrays"])
        return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)

    model = ArrayRecord({"w": Array(W.astype(np.float32)), "bf": bfloat16, "own": other_packing})
    strategy, grid = CompressedStrategy(LastReplyFedAvg(), "dense"), InProcessGrid.of(app, 2)
    for round in (1, 2):
        ids = grid.push_messages(strategy.configure_train(round, model, ConfigRecord(), grid))
        model, _ = strategy.aggregate_train(round, grid.pull_messages([id for id in ids if id]))
        assert (model["bf"], model["own"]) == (bfloat16, other_packing)
    assert all(arrays["bf"] == bfloat16 and arrays["own"] == other_packing for arrays in received)


# ------------------------------------------------------------------------------------------------ replies with other arrays


MODEL = {"base": W.astype(np.float32), "head": np.ones(6, dtype=np.float32), "n": np.array(5)}
REPLY_CHANGES: dict[str, Callable[[Values], Values]] = {
    "missing layer": lambda a: {"base": a["base"] + 1, "n": a["n"]},
    "missing exact array": lambda a: {"base": a["base"] + 1, "head": a["head"]},
    "additional layer": lambda a: {**a, "base": a["base"] + 1, "adapter": np.full(3, 7, dtype=np.float32)},
    "reshaped": lambda a: {**a, "base": a["base"] + 1, "head": np.full((2, 5), 3, dtype=np.float32)},
    "reshaped exact array": lambda a: {**a, "base": a["base"] + 1, "n": np.array([1, 2])},
    "integers for floats": lambda a: {**a, "base": a["base"] + 1, "head": np.full(6, 2)},
    "floats for integers": lambda a: {**a, "base": a["base"] + 1, "n": np.array(2.5)},
}


class PersonalFedAvg(RecordingFedAvg):
    """FedAvg that averages "base" and never changes the other arrays, as for personal layers."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        return make_record({**MODEL, "base": arrays["base"].numpy()}), metrics


@pytest.mark.sampled
@pytest.mark.parametrize("change", REPLY_CHANGES)
def test_reply_with_other_arrays_reaches_the_strategy_as_without_compression(change: str) -> None:
    def reply(partition: int, round: int, arrays: Values) -> Values:
        return REPLY_CHANGES[change](arrays)

    inner, plain, grid = PersonalFedAvg(), PersonalFedAvg(), make_grid(reply)
    run_rounds(CompressedStrategy(inner, "dense"), grid, make_record(MODEL))
    run_rounds(plain, make_grid(reply, mods=False), make_record(MODEL))
    for replies, expected_replies in zip(inner.replies, plain.replies, strict=True):
        for values, expected in zip(replies, expected_replies, strict=True):
            assert {*values} == {*expected}
            for name, value in expected.items():
                assert (values[name].dtype, values[name].shape) == (value.dtype, value.shape)
                np.testing.assert_allclose(values[name], value, rtol=1e-6)
    assert all(list_compressed(grid)), "one session: the layout is the same in each round"


def test_replies_without_personal_layers_add_up_to_the_updates() -> None:
    """Clients reply without their head in every round. The residuals of the other arrays add up."""
    updates = np.random.default_rng(1).normal(size=(3, 8, 5)).astype(np.float32)

    def reply(partition: int, round: int, arrays: Values) -> Values:
        return {"base": arrays["base"] + (updates[partition] if round == 1 else np.float32(0))}

    inner = PersonalFedAvg()
    strategy = CompressedStrategy(inner, TOP_K, error_feedback="persist")
    *_, values = run_rounds(strategy, make_grid(reply), make_record(MODEL), 5)
    np.testing.assert_allclose(values["base"], MODEL["base"] + updates.mean(axis=0), atol=1e-6)
    assert all({*reply} == {"base"} for replies in inner.replies for reply in replies)


def test_reply_without_arrays_of_the_model_leaves_the_residual_unchanged() -> None:
    def reply(partition: int, round: int, arrays: Values) -> Values:
        if round == 2:
            return {"other": np.ones(2, dtype=np.float32)}
        return {"w": arrays["w"] + (np.arange(40, dtype=np.float32).reshape(8, 5) if round == 1 else np.float32(0))}

    class SkippingFedAvg(RecordingFedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            result = super().aggregate_train(server_round, replies)
            return (None, None) if server_round == 2 else result

    inner = SkippingFedAvg()
    strategy = CompressedStrategy(inner, TOP_K, error_feedback="persist")
    *_, values = run_rounds(strategy, make_grid(reply), make_record({"w": np.zeros((8, 5), dtype=np.float32)}), 6)
    assert {*inner.replies[1][0]} == {"other"}
    np.testing.assert_allclose(values["w"], np.arange(40).reshape(8, 5), atol=1e-5)


def test_reply_with_several_records_of_other_names_is_sent_uncompressed() -> None:
    def reply(partition: int, round: int, arrays: Values) -> RecordDict:
        return RecordDict({"a": make_record({"w": arrays["w"] + 1}), "b": make_record({"w": arrays["w"] + 2})})

    record_names: list[list[str]] = []

    class NamesFedAvg(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            record_names.extend(sorted(reply.content.array_records) for reply in replies)
            return None, None

    run_rounds(CompressedStrategy(NamesFedAvg(), "dense"), make_grid(reply), make_record({"w": W.astype(np.float32)}), 1)
    assert record_names == [["a", "b"]] * 3


def test_reply_with_one_of_two_tied_names_leaves_the_names_tied() -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)

    def reply(partition: int, round: int, arrays: Values) -> Values:
        assert np.array_equal(arrays["e"], arrays["o"])
        return {"e": arrays["e"] + np.float32(1)}

    class TiedFedAvg(RecordingFedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            return make_record({"e": arrays["e"].numpy(), "o": arrays["e"].numpy()}), metrics

    inner, grid = TiedFedAvg(), make_grid(reply)
    *_, values = run_rounds(CompressedStrategy(inner, "dense"), grid, make_record({"e": table, "o": table}))
    np.testing.assert_allclose(values["o"], table + 3)
    assert all({*reply} == {"e"} for replies in inner.replies for reply in replies)
    assert all(list_compressed(grid))


def test_reply_with_a_compressed_and_an_uncompressed_array_of_one_name_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    grid = make_grid(lambda partition, round, arrays: {**arrays, "base": arrays["base"] + np.float32(1)})
    grid.alter_reply = lambda node, content: (
        RecordDict({**content, "arrays": make_record({"base": W})}) if node == grid.find_id(0) else content
    )
    inner = RecordingFedAvg()
    run_rounds(CompressedStrategy(inner, "dense"), grid, make_record(MODEL), 1)
    assert len(inner.replies[0]) == 2
    assert 'the reply has the array "base" twice' in caplog.text


@pytest.mark.parametrize("name", ["fedsgd", "fedsgd-task"])
def test_reply_with_a_record_of_fedsgds_name_is_refused(name: str, caplog: pytest.LogCaptureFixture) -> None:
    def reply(partition: int, round: int, arrays: Values) -> RecordDict:
        return RecordDict({"arrays": make_record(arrays), name: ConfigRecord({"x": 1})})

    inner = RecordingFedAvg()
    run_rounds(CompressedStrategy(inner, "dense"), make_grid(reply), make_record({"w": W.astype(np.float32)}), 1)
    assert inner.replies == [[]]
    assert f'the reply has a record "{name}", but fedsgd uses this name: rename the record' in caplog.text


def test_message_with_a_record_of_fedsgds_name_is_refused() -> None:
    class FedsgdRecordFedAvg(RecordingFedAvg):
        def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
            messages = list(super().configure_train(server_round, arrays, config, grid))
            for message in messages:
                message.content["fedsgd"] = ConfigRecord({"x": 1})
            return messages

    with pytest.raises(ModelError, match='a message of the strategy has a record "fedsgd"'):
        run_rounds(
            CompressedStrategy(FedsgdRecordFedAvg(), "dense"), make_grid(add_one), make_record({"w": W.astype(np.float32)}), 1
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"compressor": TOP_K, "error_feedback": "persist"},
        pytest.param({"compressor": {"name": "sign"}, "error_feedback": "persist"}, marks=pytest.mark.nightly),
        pytest.param({"compressor": {"name": "dgc", "density": 0.25, "momentum": 0.0}}, marks=pytest.mark.nightly),
        pytest.param({"compressor": "stc"}, marks=pytest.mark.nightly),
    ],
    ids=lambda settings: str(settings["compressor"]),
)
def test_residual_of_arrays_that_some_replies_lack_is_sent_later(settings: dict[str, Any]) -> None:
    """Clients reply with "head" in every second round. The server receives all its updates in the end."""

    def reply(partition: int, round: int, arrays: Values) -> Values:
        update = np.linspace(0.1, 1, 6, dtype=np.float32) if round in (1, 3, 5) else np.zeros(6, dtype=np.float32)
        values = {"base": arrays["base"] + np.float32(0.01 * (round < 7)), "head": arrays["head"] + update}
        return values if round % 2 or round > 6 else {"base": values["base"]}

    class MergingFedAvg(RecordingFedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            self.model = {**self.model, **to_numpy(arrays)}
            return make_record(self.model), metrics

    initial = {"base": np.zeros((8, 5), dtype=np.float32), "head": np.zeros(6, dtype=np.float32)}
    inner = MergingFedAvg()
    inner.model = initial
    *_, values = run_rounds(CompressedStrategy(inner, **settings), make_grid(reply, nodes=2), make_record(initial), 120)
    np.testing.assert_allclose(values["head"], 3 * np.linspace(0.1, 1, 6), atol=0.02)


@pytest.mark.slow
def test_server_steps_of_a_float16_model_are_sent() -> None:
    """A weight decay of 1 % a round is no rounding, although a mean of twenty float16 numbers may differ by as much."""

    class DecayFedAvg(RecordingFedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            decayed = {name: (value * np.float16(0.99)).astype(np.float16) for name, value in to_numpy(arrays).items()}
            return make_record(decayed), metrics

    initial = make_record({"w": (W * 100).astype(np.float16)})

    def reply(partition: int, round: int, arrays: Values) -> Values:
        return dict(arrays)

    results = run_rounds(CompressedStrategy(DecayFedAvg(), "dense"), make_grid(reply, nodes=20), initial, 5)
    expected_results = run_rounds(DecayFedAvg(), make_grid(reply, mods=False, nodes=20), initial, 5)
    for values, expected in zip(results, expected_results, strict=True):
        np.testing.assert_allclose(values["w"], expected["w"], rtol=2e-3)


def test_new_infinities_in_a_reply_are_explained(caplog: pytest.LogCaptureFixture) -> None:
    def reply(partition: int, round: int, arrays: Values) -> Values:
        return {**arrays, "mask": np.full(4, -np.inf, dtype=np.float32)}

    initial = make_record({"w": W.astype(np.float32), "mask": np.zeros(4, np.float32)})
    run_rounds(CompressedStrategy(RecordingFedAvg(), "dense"), make_grid(reply), initial, 1)
    assert "first -inf at mask[0]" in caplog.text
    assert "such as a mask, set CompressedStrategy(exact=[name])" in caplog.text


@pytest.mark.parametrize("dtype", ["f4,,", "i4,(", "(a)f4,", "float33", "V2"])
def test_type_that_numpy_cannot_parse_is_no_float_type(dtype: str) -> None:
    array = Array(dtype, (3,), "numpy.ndarray", Array(np.zeros(3, dtype=np.float32)).data)
    assert not is_float(array)
    assert read_packed_shape(array, "float32") == (3,)
    text_array = Array(dtype, (1,), "numpy.ndarray", Array(np.array(["a"])).data)
    assert read_packed_shape(text_array, "float32") is None


def test_bfloat16_that_a_library_registers_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ml_dtypes imported, numpy knows the name, and still reads two raw bytes a number."""
    packed = Array("bfloat16", (3,), "numpy.ndarray", Array(np.arange(3, dtype=np.uint16).view("V2")).data)
    assert read_packed_shape(packed, "bfloat16") == (3,)
    monkeypatch.setattr(
        "fedsgd.flower.app.arrays._parse_dtype", lambda dtype: np.dtype([("", "V2")]) if dtype == "bfloat16" else None
    )
    assert read_packed_shape(packed, "bfloat16") == (3,)


def test_exact_arrays_without_a_name_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    def replace_name(node: int, content: RecordDict) -> RecordDict:
        update_packet, (head, frames) = protocol.unpack_packets(read_payload(content))
        data = protocol.pack_packets([update_packet, (head.replace(b'"n"', b"null"), frames)])
        return write_payload(RecordDict(dict(content)), data) if node == grid.find_id(0) else content

    grid = make_grid(lambda partition, round, arrays: dict(arrays))
    grid.alter_reply = replace_name
    inner = RecordingFedAvg()
    run_rounds(CompressedStrategy(inner, "dense"), grid, make_record(MODEL), 1)
    assert len(inner.replies[0]) == 2
    assert "the exact arrays cannot be read" in caplog.text


def test_reply_after_a_late_reply_of_another_round_is_accepted() -> None:
    grid = make_grid(lambda partition, round, arrays: {"w": arrays["w"] + np.float32(1)}, nodes=2)
    inner, initial = RecordingFedAvg(), make_record({"w": W.astype(np.float32)})
    strategy = CompressedStrategy(inner, "dense")
    replies = []
    for round in (1, 2):
        ids = grid.push_messages(strategy.configure_train(round, initial, ConfigRecord(), grid))
        late_replies = replies
        replies = grid.pull_messages([id for id in ids if id])
    arrays, _ = strategy.aggregate_train(2, [*late_replies, *replies])
    assert len(inner.replies[0]) == 2
    np.testing.assert_allclose(to_numpy(arrays)["w"], W.astype(np.float32) + 1, rtol=1e-6)
