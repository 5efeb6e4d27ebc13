"""Arrays of Flower apps that are not float32, and replies whose arrays are not the model's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, Strategy

from fedsgd.errors import ModelError, WireError
from fedsgd.flower import CompressedStrategy, compression_mod
from fedsgd.flower.app.array_layout import ReplyArrays, build_array_layout
from fedsgd.flower.app.arrays import is_float, read_packed_shape
from fedsgd.flower.app.messages import decode_reply, encode_reply
from fedsgd.flower.app.settings import CompressionSettings
from fedsgd.flower.records import read_payload, write_payload
from fedsgd.runtime.workers import protocol
from tests.flower.grid import GridHere, identity

Values = Mapping[str, np.ndarray]
TOP_K = {"name": "top-k", "density": 0.25}
RNG = np.random.default_rng(0)
W = np.round(RNG.normal(size=(8, 5)), 2)
"""Two digits, so that a float16 differs from it."""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FEDSGD_STATE", str(tmp_path))
    with identity(1):
        yield


def record(values: Values) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in values.items()})


def plain(arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in arrays.items()}


class Seen(FedAvg):
    """FedAvg that keeps the replies that it was given, by round."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(fraction_evaluate=0.0, **settings)
        self.replies: list[list[dict[str, np.ndarray]]] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.replies.append([plain(next(iter(r.content.array_records.values()))) for r in replies if r.has_content()])
        return super().aggregate_train(server_round, replies)


def grid(reply: Callable[[int, int, dict[str, np.ndarray]], Any], mods: bool = True, nodes: int = 3) -> GridHere:
    """A grid whose nodes reply with `reply(partition, round, arrays)`: arrays, or the records of a reply."""
    app = ClientApp(mods=[compression_mod()] if mods else [])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = plain(message.content["arrays"])
        round = int(message.content["config"]["server-round"])
        out = reply(context.node_config["partition-id"], round, arrays)
        records = out if isinstance(out, RecordDict) else RecordDict({"arrays": record(out)})
        records["metrics"] = MetricRecord({"num-examples": 1})
        return Message(records, reply_to=message)

    return GridHere.of(app, nodes)


def rounds(strategy: Strategy, over: GridHere, arrays: ArrayRecord, n: int = 3) -> list[dict[str, np.ndarray]]:
    """The arrays after each round of Flower's loop."""
    made: list[dict[str, np.ndarray]] = []
    for round in range(1, n + 1):
        messages = strategy.configure_train(round, arrays, ConfigRecord(), over)
        ids = [id for id in over.push_messages(messages) if id]
        after, _ = strategy.aggregate_train(round, over.pull_messages(ids))
        arrays = arrays if after is None else after
        made.append(plain(arrays))
    return made


def compressed(over: GridHere, round: int = -1) -> list[bool]:
    """For each message of a round that was pushed, True if it has our record in place of the arrays."""
    sizes = [message.content.get("fedsgd") is not None for message in over.pushed]
    return sizes[round * len(over.nodes) :] if round < 0 else sizes


def add_one(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value + np.asarray(1).astype(value.dtype) for name, value in arrays.items()}


# ------------------------------------------------------------------------------------------------------------------ types


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ">f4", ">f8", "<f2"])
@pytest.mark.parametrize("downlink", [None, {"policy": "difference"}])
def test_floats_of_any_type_reach_app_and_strategy_in_their_own_type(dtype: str, downlink: Any) -> None:
    got: list[np.ndarray] = []

    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        got.append(arrays["w"])
        return {"w": (arrays["w"] + np.asarray(partition).astype(dtype)).astype(dtype)}

    given, inner = W.astype(dtype), Seen()
    after = rounds(CompressedStrategy(inner, "dense", downlink=downlink), grid(reply), record({"w": given}))
    alone = Seen()
    expected = rounds(alone, grid(reply, mods=False), record({"w": given}))
    assert [value.dtype for value in got[:9]] == [value.dtype for value in got[9:]], "as plain Flower"
    assert {value.dtype for value in got[:3]} == {np.dtype(dtype)}
    np.testing.assert_array_equal(got[0], given.astype(np.float32).astype(dtype), "rounded to float32, and no further")
    assert [[r["w"].dtype for r in row] for row in inner.replies] == [[r["w"].dtype for r in row] for row in alone.replies]
    # a mean in float16 has errors of 2^-11, in the others those of float32
    tolerance = 2e-3 if np.dtype(dtype).itemsize == 2 else 1e-6
    for values, wanted in zip(after, expected, strict=True):
        assert values["w"].dtype == wanted["w"].dtype
        np.testing.assert_allclose(values["w"], wanted["w"], rtol=tolerance, atol=tolerance)


def test_float64_numbers_are_rounded_to_float32_and_no_further() -> None:
    exact = np.array([1 / 3, np.pi, 1e-40, 2.0**100])
    got: list[np.ndarray] = []

    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        got.append(arrays["w"])
        return {"w": arrays["w"] + 0.1}

    (after,) = rounds(CompressedStrategy(Seen(), "dense"), grid(reply), record({"w": exact}), 1)
    assert {value.tobytes() for value in got} == {exact.astype(np.float32).astype(np.float64).tobytes()}
    assert after["w"].tobytes() == after["w"].astype(np.float32).astype(np.float64).tobytes(), "clients get what is returned"


def test_a_float16_model_is_followed_by_differences_that_add_up() -> None:
    """What clients are given is rounded to float16: the sent update starts from that, and unchanged rounds send nothing."""
    over = grid(lambda partition, round, arrays: dict(arrays), nodes=2)
    strategy = CompressedStrategy(
        Seen(), TOP_K, error_feedback="persist", downlink={"policy": "error-feedback", "compressor": TOP_K}
    )
    given = W.astype(np.float16)
    for values in rounds(strategy, over, record({"w": given}), 4):
        assert values["w"].tobytes() == given.tobytes()
    ups = [row.up for row in strategy.traffic]
    assert ups[1:] == ups[:1] * 3
    assert strategy.traffic[-1].down < strategy.traffic[0].down


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_a_lossy_downlink_of_other_types_sends_no_model_twice(dtype: str) -> None:
    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        step = np.random.default_rng([partition, round]).normal(size=arrays["w"].shape) / 8
        return {"w": (arrays["w"] + step).astype(dtype)}

    downlink = {"policy": "error-feedback", "compressor": TOP_K}
    strategy = CompressedStrategy(Seen(), TOP_K, error_feedback="persist", downlink=downlink)
    big = np.resize(W, (40, 50)).astype(dtype)
    rounds(strategy, grid(reply), record({"w": big}), 4)
    downs = [row.down for row in strategy.traffic]
    assert all(down < downs[0] / 2 for down in downs[1:]), downs


def test_a_reply_of_another_float_type_makes_a_model_of_that_type() -> None:
    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"w": arrays["w"].astype(np.float64) + 1, "b": arrays["b"] + np.float32(1)}

    given = {"w": W.astype(np.float32), "b": np.ones(3, dtype=np.float32)}
    over = grid(reply)
    strategy = CompressedStrategy(Seen(), "dense")
    after = rounds(strategy, over, record(given))
    expected = rounds(Seen(), grid(reply, mods=False), record(given))
    for values, wanted in zip(after, expected, strict=True):
        assert {name: value.dtype for name, value in values.items()} == {name: value.dtype for name, value in wanted.items()}
        np.testing.assert_allclose(values["w"], wanted["w"], rtol=1e-6)
    assert compressed(over) == [True] * 3
    assert len(strategy.traffic) == 3


def test_a_strategy_that_makes_float64_keeps_what_clients_hold_back() -> None:
    """Flower's FedAdam returns float64 for float32 arrays: no reason to begin anew."""

    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"w": arrays["w"].astype(np.float32) + np.float32(0.5)}

    strategy = CompressedStrategy(FedAdam(fraction_evaluate=0.0), TOP_K, error_feedback="persist")
    over = grid(reply)
    after = rounds(strategy, over, record({"w": W.astype(np.float32)}))
    assert [values["w"].dtype for values in after] == [np.dtype("float64")] * 3
    assert {message.content["fedsgd"] is not None for message in over.pushed} == {True}
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
def test_a_model_without_a_compressible_array_goes_as_it_is(values: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(arrays)

    class Last(Seen):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            return list(replies)[-1].content["arrays"], None

    over = grid(reply)
    after = rounds(CompressedStrategy(Last(), TOP_K), over, record(values))
    assert not any(compressed(over))
    assert {name: value.tobytes() for name, value in after[-1].items()} == {n: v.tobytes() for n, v in values.items()}
    assert "no array of the model can be compressed" in caplog.text


def test_a_model_that_appears_in_the_replies_is_compressed_from_then_on() -> None:
    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"w": (arrays["w"] if arrays else W.astype(np.float32)) + np.float32(partition)}

    over = grid(reply)
    after = rounds(CompressedStrategy(Seen(), "dense"), over, ArrayRecord({}))
    expected = rounds(Seen(), grid(reply, mods=False), ArrayRecord({}))
    for values, wanted in zip(after, expected, strict=True):
        np.testing.assert_allclose(values["w"], wanted["w"], rtol=1e-6)
    assert compressed(over, 0) == [False] * 3 + [True] * 6


@pytest.mark.parametrize("infinity", [-np.inf, np.inf])
def test_a_causal_mask_with_infinities_travels_bit_for_bit(infinity: float) -> None:
    mask = np.triu(np.full((4, 4), infinity, dtype=np.float32), 1)
    given = {"w": W.astype(np.float32), "mask": mask}
    got: list[np.ndarray] = []

    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        got.append(arrays["mask"])
        return {**arrays, "w": arrays["w"] + np.float32(partition)}

    inner, over = Seen(), grid(reply)
    after = rounds(
        CompressedStrategy(inner, TOP_K, error_feedback="persist", downlink={"policy": "difference"}), over, record(given)
    )
    assert {value.tobytes() for value in got} == {mask.tobytes()}
    assert {r["mask"].tobytes() for row in inner.replies for r in row} == {mask.tobytes()}
    np.testing.assert_array_equal(after[-1]["mask"], mask)
    assert all(compressed(over, 0))


def test_numbers_beyond_float32_travel_as_they_are() -> None:
    given = {"w": W, "huge": np.array([1e300, 1.0])}

    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"w": arrays["w"] * (1e200 if round == 2 else 1.0), "huge": arrays["huge"] * 2}

    class First(Seen):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            made = super().aggregate_train(server_round, replies)
            return made if server_round == 1 else (None, None)

    inner = First()
    rounds(CompressedStrategy(inner, "dense"), grid(reply), record(given), 2)
    assert inner.replies[0][0]["huge"].tolist() == [2e300, 2.0]
    np.testing.assert_allclose(inner.replies[1][0]["w"], W.astype(np.float32).astype(np.float64) * 1e200, rtol=1e-6)


def test_arrays_of_other_libraries_types_travel_as_they_are() -> None:
    """bfloat16 of JAX: numpy does not know the type and reads two bytes a number."""
    packed = Array("bfloat16", (3,), "numpy.ndarray", Array(np.arange(3, dtype=np.uint16).view("V2")).data)
    own = Array("bytes", (1,), "my.packing", b"\x00\x01")
    got: list[ArrayRecord] = []
    app = ClientApp(mods=[compression_mod()])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        got.append(message.content["arrays"])
        return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)

    class Last(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            return list(replies)[-1].content["arrays"], None

    given = ArrayRecord({"w": Array(W.astype(np.float32)), "bf": packed, "own": own})
    strategy, over = CompressedStrategy(Last(), "dense"), GridHere.of(app, 2)
    for round in (1, 2):
        ids = over.push_messages(strategy.configure_train(round, given, ConfigRecord(), over))
        given, _ = strategy.aggregate_train(round, over.pull_messages([id for id in ids if id]))
        assert (given["bf"], given["own"]) == (packed, own)
    assert all(arrays["bf"] == packed and arrays["own"] == own for arrays in got)


# ---------------------------------------------------------------------------------------------- replies of other arrays


SHARED = {"base": W.astype(np.float32), "head": np.ones(6, dtype=np.float32), "n": np.array(5)}
IRREGULAR: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "lacks a layer": lambda a: {"base": a["base"] + 1, "n": a["n"]},
    "lacks an exact array": lambda a: {"base": a["base"] + 1, "head": a["head"]},
    "has another layer": lambda a: {**a, "base": a["base"] + 1, "adapter": np.full(3, 7, dtype=np.float32)},
    "reshaped": lambda a: {**a, "base": a["base"] + 1, "head": np.full((2, 5), 3, dtype=np.float32)},
    "reshaped exact array": lambda a: {**a, "base": a["base"] + 1, "n": np.array([1, 2])},
    "integers for floats": lambda a: {**a, "base": a["base"] + 1, "head": np.full(6, 2)},
    "floats for integers": lambda a: {**a, "base": a["base"] + 1, "n": np.array(2.5)},
}


class Keeps(Seen):
    """A strategy that puts what the replies have into a model of its own, as one with personal layers does."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        made, metrics = super().aggregate_train(server_round, replies)
        return record({**SHARED, "base": made["base"].numpy()}), metrics


@pytest.mark.parametrize("kind", IRREGULAR)
def test_a_reply_of_other_arrays_arrives_as_it_is_and_the_rest_is_compressed(kind: str) -> None:
    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return IRREGULAR[kind](arrays)

    inner, over = Keeps(), grid(reply)
    rounds(CompressedStrategy(inner, "dense"), over, record(SHARED))
    alone = Keeps()
    rounds(alone, grid(reply, mods=False), record(SHARED))
    for row, wanted_row in zip(inner.replies, alone.replies, strict=True):
        for got, wanted in zip(row, wanted_row, strict=True):
            assert {*got} == {*wanted}
            for name, value in wanted.items():
                assert (got[name].dtype, got[name].shape) == (value.dtype, value.shape)
                np.testing.assert_allclose(got[name], value, rtol=1e-6)
    assert all(compressed(over, 0)), "one session: the model is the same in each round"


def test_personal_layers_cost_no_bytes_and_the_rest_is_followed() -> None:
    """Clients reply without their head in every round: what they hold back of the rest adds up."""
    steps = np.random.default_rng(1).normal(size=(3, 8, 5)).astype(np.float32)

    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"base": arrays["base"] + (steps[partition] if round == 1 else np.float32(0))}

    inner = Keeps()
    strategy = CompressedStrategy(inner, TOP_K, error_feedback="persist")
    *_, last = rounds(strategy, grid(reply), record(SHARED), 5)
    np.testing.assert_allclose(last["base"], SHARED["base"] + steps.mean(axis=0), atol=1e-6)
    assert all({*r} == {"base"} for row in inner.replies for r in row)


def test_a_reply_without_any_array_of_the_model_crosses_uncompressed_and_loses_nothing() -> None:
    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> Any:
        if round == 2:
            return {"other": np.ones(2, dtype=np.float32)}
        return {"w": arrays["w"] + (np.arange(40, dtype=np.float32).reshape(8, 5) if round == 1 else np.float32(0))}

    class Skips(Seen):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            made, metrics = super().aggregate_train(server_round, replies)
            return (None, None) if server_round == 2 else (made, metrics)

    inner = Skips()
    strategy = CompressedStrategy(inner, TOP_K, error_feedback="persist")
    given = {"w": np.zeros((8, 5), dtype=np.float32)}
    *_, last = rounds(strategy, grid(reply), record(given), 6)
    assert {*inner.replies[1][0]} == {"other"}
    np.testing.assert_allclose(last["w"], np.arange(40).reshape(8, 5), atol=1e-5)


def test_a_reply_of_several_records_without_the_models_name_crosses_as_it_is() -> None:
    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> RecordDict:
        return RecordDict({"a": record({"w": arrays["w"] + 1}), "b": record({"w": arrays["w"] + 2})})

    got: list[list[str]] = []

    class Several(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            got.extend(sorted(reply.content.array_records) for reply in replies)
            return None, None

    rounds(CompressedStrategy(Several(), "dense"), grid(reply), record({"w": W.astype(np.float32)}), 1)
    assert got == [["a", "b"]] * 3


def test_fewer_tied_names_in_a_reply_stay_one_tensor() -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)

    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert np.array_equal(arrays["e"], arrays["o"])
        return {"e": arrays["e"] + np.float32(1)}

    class Both(Seen):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            made, metrics = super().aggregate_train(server_round, replies)
            return record({"e": made["e"].numpy(), "o": made["e"].numpy()}), metrics

    inner, over = Both(), grid(reply)
    *_, last = rounds(CompressedStrategy(inner, "dense"), over, record({"e": table, "o": table}))
    np.testing.assert_allclose(last["o"], table + 3)
    assert all({*r} == {"e"} for row in inner.replies for r in row)
    assert all(compressed(over, 0))


MODEL = build_array_layout(record(SHARED), ())
HOSTILE = [
    (b"[", "cannot be read"),
    (b'[["nothing"], {}]', "cannot be read"),
    (b'[[], {"float99": ["base"]}]', "cannot be read"),
    (b'[[], {"int64": []}]', "cannot be read"),
    (b'[[], {"float64": ["n"]}]', "cannot be read"),
    (b'[["base"], {"float64": ["base"]}]', "cannot be read"),
    (b"[[], []]", "cannot be read"),
]


@pytest.mark.parametrize(("head", "said"), HOSTILE)
def test_differences_that_cannot_be_are_refused(head: bytes, said: str) -> None:
    assert MODEL is not None
    data = protocol.pack_packets([(b"arrays", [b"frame"]), (b"", ()), (head, ())])
    with pytest.raises(WireError, match=said):
        decode_reply(write_payload(RecordDict(), data), MODEL)


def test_differences_of_a_reply_are_read_as_they_were_written() -> None:
    assert MODEL is not None
    terms = CompressionSettings(*CompressedStrategy(FedAvg(), "dense")._link_settings, MODEL)
    aside = {"n": Array(np.array(5))}
    for given, lacks, types in [
        (SHARED, (), {}),
        ({"base": SHARED["base"]}, ("head", "n"), {}),
        ({"base": W, "head": np.ones(6), "n": np.array(1)}, (), {"base": "float64", "head": "float64"}),
        ({"base": W, "head": np.ones(6, dtype=np.float16)}, ("n",), {"base": "float64", "head": "float16"}),
        ({"base": W.astype(np.float32), "head": np.ones(6)}, ("n",), {"head": "float64"}),
    ]:
        data = encode_reply("arrays", (b"frame",), terms, ReplyArrays.from_reply(MODEL, record(given), aside))
        answer = decode_reply(write_payload(RecordDict(), data), MODEL)
        assert (answer.missing_names, answer.dtypes) == (lacks, types)


def test_an_array_that_a_reply_has_twice_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    over = grid(lambda partition, round, arrays: {**arrays, "base": arrays["base"] + np.float32(1)})
    over.altered = lambda node, content: (
        RecordDict({**content, "arrays": record({"base": W})}) if node == over.id_of(0) else content
    )
    inner = Seen()
    rounds(CompressedStrategy(inner, "dense"), over, record(SHARED), 1)
    assert len(inner.replies[0]) == 2
    assert 'the reply has the array "base" twice' in caplog.text


@pytest.mark.parametrize("name", ["fedsgd", "fedsgd-task"])
def test_a_reply_with_a_record_under_our_name_is_an_error_that_names_it(name: str, caplog: pytest.LogCaptureFixture) -> None:
    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> Any:
        return RecordDict({"arrays": record(arrays), name: ConfigRecord({"x": 1})})

    inner = Seen()
    rounds(CompressedStrategy(inner, "dense"), grid(reply), record({"w": W.astype(np.float32)}), 1)
    assert inner.replies == [[]]
    assert f'the reply has a record "{name}", but fedsgd uses this name: rename the record' in caplog.text


def test_a_message_with_a_record_under_our_name_is_refused() -> None:
    class Named(Seen):
        def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
            messages = list(super().configure_train(server_round, arrays, config, grid))
            for message in messages:
                message.content["fedsgd"] = ConfigRecord({"x": 1})
            return messages

    with pytest.raises(ModelError, match='a message of the strategy has a record "fedsgd"'):
        rounds(CompressedStrategy(Named(), "dense"), grid(add_one), record({"w": W.astype(np.float32)}), 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"compressor": TOP_K, "error_feedback": "persist"},
        {"compressor": {"name": "sign"}, "error_feedback": "persist"},
        {"compressor": {"name": "dgc", "density": 0.25, "momentum": 0.0}},
        {"compressor": "stc"},
    ],
    ids=lambda settings: str(settings["compressor"]),
)
def test_residual_of_arrays_that_are_missing_now_and_then_is_sent_later(settings: dict[str, Any]) -> None:
    """Clients reply with "head" in every second round. All that they added to it arrives in the end."""

    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        step = np.linspace(0.1, 1, 6, dtype=np.float32) if round in (1, 3, 5) else np.zeros(6, dtype=np.float32)
        out = {"base": arrays["base"] + np.float32(0.01 * (round < 7)), "head": arrays["head"] + step}
        return out if round % 2 or round > 6 else {"base": out["base"]}

    class Merges(Seen):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            made, metrics = super().aggregate_train(server_round, replies)
            self.last = {**self.last, **plain(made)}
            return record(self.last), metrics

    given = {"base": np.zeros((8, 5), dtype=np.float32), "head": np.zeros(6, dtype=np.float32)}
    inner = Merges()
    inner.last = given
    *_, last = rounds(CompressedStrategy(inner, **settings), grid(reply, nodes=2), record(given), 120)
    np.testing.assert_allclose(last["head"], 3 * np.linspace(0.1, 1, 6), atol=0.02)


def test_server_steps_of_a_float16_model_are_followed() -> None:
    """A weight decay of 1 % a round is no rounding, although a mean of twenty float16 numbers may differ by as much."""

    class Decays(Seen):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            made, metrics = super().aggregate_train(server_round, replies)
            return record({name: (value * np.float16(0.99)).astype(np.float16) for name, value in plain(made).items()}), metrics

    given = {"w": (W * 100).astype(np.float16)}

    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(arrays)

    after = rounds(CompressedStrategy(Decays(), "dense"), grid(reply, nodes=20), record(given), 5)
    expected = rounds(Decays(), grid(reply, mods=False, nodes=20), record(given), 5)
    for values, wanted in zip(after, expected, strict=True):
        np.testing.assert_allclose(values["w"], wanted["w"], rtol=2e-3)


def test_infinities_that_appear_in_a_reply_are_explained(caplog: pytest.LogCaptureFixture) -> None:
    def reply(partition: int, round: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**arrays, "mask": np.full(4, -np.inf, dtype=np.float32)}

    rounds(
        CompressedStrategy(Seen(), "dense"),
        grid(reply),
        record({"w": W.astype(np.float32), "mask": np.zeros(4, np.float32)}),
        1,
    )
    assert "first -inf at mask[0]" in caplog.text
    assert "such as a mask, set CompressedStrategy(exact=[name])" in caplog.text


@pytest.mark.parametrize("dtype", ["f4,,", "i4,(", "(a)f4,", "float33", "V2"])
def test_a_type_that_numpy_cannot_parse_is_no_type_of_floats(dtype: str) -> None:
    array = Array(dtype, (3,), "numpy.ndarray", Array(np.zeros(3, dtype=np.float32)).data)
    assert not is_float(array)
    assert read_packed_shape(array, "float32") == (3,)
    words = Array(dtype, (1,), "numpy.ndarray", Array(np.array(["a"])).data)
    assert read_packed_shape(words, "float32") is None


def test_bfloat16_of_a_library_that_registers_it_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ml_dtypes imported, numpy knows the name, and still reads two bytes a number."""
    packed = Array("bfloat16", (3,), "numpy.ndarray", Array(np.arange(3, dtype=np.uint16).view("V2")).data)
    assert read_packed_shape(packed, "bfloat16") == (3,)
    monkeypatch.setattr(
        "fedsgd.flower.app.arrays._parse_dtype", lambda dtype: np.dtype([("", "V2")]) if dtype == "bfloat16" else None
    )
    assert read_packed_shape(packed, "bfloat16") == (3,)


def test_exact_arrays_without_a_name_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    def altered(node: int, content: RecordDict) -> RecordDict:
        said, (head, frames) = protocol.unpack_packets(read_payload(content))
        data = protocol.pack_packets([said, (head.replace(b'"n"', b"null"), frames)])
        return write_payload(RecordDict(dict(content)), data) if node == over.id_of(0) else content

    over = grid(lambda partition, round, arrays: dict(arrays))
    over.altered = altered
    inner = Seen()
    rounds(CompressedStrategy(inner, "dense"), over, record(SHARED), 1)
    assert len(inner.replies[0]) == 2
    assert "the exact arrays cannot be read" in caplog.text


def test_a_late_reply_does_not_stand_in_the_way_of_the_right_one(caplog: pytest.LogCaptureFixture) -> None:
    over = grid(lambda partition, round, arrays: {"w": arrays["w"] + np.float32(1)}, nodes=2)
    inner, given = Seen(), record({"w": W.astype(np.float32)})
    strategy = CompressedStrategy(inner, "dense")
    replies = []
    for round in (1, 2):
        ids = over.push_messages(strategy.configure_train(round, given, ConfigRecord(), over))
        late = replies
        replies = over.pull_messages([id for id in ids if id])
    arrays, _ = strategy.aggregate_train(2, [*late, *replies])
    assert len(inner.replies[0]) == 2
    np.testing.assert_allclose(plain(arrays)["w"], W.astype(np.float32) + 1, rtol=1e-6)
