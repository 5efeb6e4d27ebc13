"""Differential privacy of an app whose updates are compressed: norms as the inner strategy gets them, and refusals."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secagg_mod, secaggplus_mod
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.errors import ModelError, ScenarioError
from fedsgd.flower import CompressedStrategy
from fedsgd.flower.app.privacy import ClippingNorm, find_clipping_norms
from tests.flower.grid import identity
from tests.flower.regression import NODES, WIDTH, grid, last_mse, zeros

NORM = 1.0
COMPRESSORS: dict[str, Any] = {
    "dense": "dense",
    "bfloat16": {"name": "dense", "values": "bfloat16"},
    "sign": "sign",
    "top-k": {"name": "top-k", "density": 0.1},
    "rand-k": {"name": "rand-k", "density": 0.05},
    "qsgd": {"name": "qsgd", "levels": 1},
    "terngrad": "terngrad",
    "eden": "eden",
    "natural": "natural",
    "drive": "drive",
}
LENGTHENING = {"rand-k", "qsgd", "terngrad", "eden", "drive", "natural"}


pytestmark = pytest.mark.usefixtures("quick_collection")


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    monkeypatch.setenv("FEDSGD_STATE", str(tmp_path / "state"))
    caplog.set_level(logging.WARNING, logger="flwr")
    with identity(1):
        yield


class Measuring(FedAvg):
    """FedAvg that measures the norms of the updates that it averages, over all arrays."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.norms: list[float] = []
        self.bits: list[float] = []

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Iterable[Message]:
        self.sent = {name: array.numpy().astype(np.float64) for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        for reply in replies:
            if reply.has_content():
                (arrays,) = reply.content.array_records.values()
                self.norms.append(distance(self.sent, arrays))
        return super().aggregate_train(server_round, replies)


class Sending(Measuring):
    """A strategy that sends a clipping norm without one of Flower's wrappers."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Iterable[Message]:
        config["clipping_norm"] = NORM
        return super().configure_train(server_round, arrays, config, grid)


def distance(sent: Mapping[str, np.ndarray], arrays: ArrayRecord) -> float:
    return float(np.sqrt(sum(((arrays[name].numpy().astype(np.float64) - sent[name]) ** 2).sum() for name in sent)))


def fixed(inner: Strategy, norm: float = NORM) -> Strategy:
    return DifferentialPrivacyClientSideFixedClipping(inner, 0.01, norm, NODES)


def adaptive(inner: Strategy) -> Strategy:
    return DifferentialPrivacyClientSideAdaptiveClipping(inner, 0.01, NODES, initial_clipping_norm=0.5)


# ------------------------------------------------------------------------------------------------------- client-side clipping


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_norm_of_each_decoded_update_is_the_clipping_norm_at_most(compressor: str, caplog: pytest.LogCaptureFixture) -> None:
    inner = Measuring()
    strategy = CompressedStrategy(fixed(inner), COMPRESSORS[compressor])
    strategy.start(grid(None, [fixedclipping_mod]), zeros(), num_rounds=4)
    assert len(inner.norms) == 4 * NODES
    assert max(inner.norms) <= NORM * (1 + 1e-6)
    assert "set error_feedback" not in caplog.text, "it would be refused"
    lines = [record.message for record in caplog.records if "clipped on the server" in record.message]
    assert len(lines) == (compressor in LENGTHENING)
    assert all("of 7 decoded updates" in line and '"dense", "sign", "top-k" do not increase the norm' in line for line in lines)


@pytest.mark.parametrize("compressor", ["dense", "eden"])
def test_updates_that_clients_do_not_clip_are_clipped_and_explained(compressor: str, caplog: pytest.LogCaptureFixture) -> None:
    inner = Measuring()
    CompressedStrategy(fixed(inner), compressor).start(grid(), zeros(), num_rounds=1)
    assert max(inner.norms) <= NORM * (1 + 1e-6)
    (line,) = [record.message for record in caplog.records if "clipped on the server" in record.message]
    assert "clients do not clip (put Flower's clipping mods behind compression_mod())" in line
    assert ('"eden" increases the norm of updates' in line) == (compressor == "eden")


def test_batch_counter_does_not_shorten_the_update_a_second_time() -> None:
    """Flower's mod leaves arrays without dimensions as they are, and so does the second clipping."""
    before = ArrayRecord({"w": Array(np.zeros(4, dtype=np.float32)), "n": Array(np.array(5))})
    after = ArrayRecord({"w": Array(np.full(4, 0.25, dtype=np.float32)), "n": Array(np.array(50))})
    content, sent = RecordDict({"arrays": after}), RecordDict({"arrays": before})
    message = Message(RecordDict(), 1, "train")
    assert ClippingNorm(NORM, message, sent).clip_update(content) == pytest.approx(0.5)
    assert content["arrays"] is after
    assert ClippingNorm(0.25, message, sent).clip_update(content) == pytest.approx(2.0)
    np.testing.assert_allclose(content["arrays"]["w"].numpy(), np.full(4, 0.125))
    assert content["arrays"]["n"].numpy() == 50


@pytest.mark.parametrize("compressor", ["dense", "rand-k", "eden"])
def test_adaptive_clipping_norm_of_each_round_holds(compressor: str) -> None:
    class Following(Measuring):
        def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
            norm = config["clipping_norm"]
            assert isinstance(norm, float)
            limits.append(norm)
            return super().configure_train(server_round, arrays, config, grid)

    limits: list[float] = []
    inner = Following()
    strategy = CompressedStrategy(adaptive(inner), COMPRESSORS[compressor])
    strategy.start(grid(None, [adaptiveclipping_mod]), zeros(), num_rounds=4)
    assert len(set(limits)) == 4
    norms = np.reshape(inner.norms, (4, NODES)).max(axis=1)
    assert (norms <= np.array(limits) * (1 + 1e-6)).all()


def test_an_update_that_came_uncompressed_is_clipped() -> None:
    """Two arrays begin equal, so each node finds in the first round that they are not one tensor, and replies uncompressed."""
    arrays = zeros()
    arrays["w"] = arrays["frozen"] = Array(np.arange(WIDTH, dtype=np.float32) / WIDTH)
    inner = Measuring()
    strategy = CompressedStrategy(fixed(inner), "dense")
    strategy.start(grid(), arrays, num_rounds=1)
    assert strategy.traffic[0].message_up > NODES * WIDTH * 8
    assert len(inner.norms) == NODES
    assert max(inner.norms) <= NORM


def test_dense_under_client_side_clipping_learns_as_plain_flower() -> None:
    """Not to the last bit: w + (v - w) is v up to one rounding in float32."""
    wrapped = [DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.0, 4.0, NODES) for _ in range(2)]
    plain = last_mse(wrapped[0], [], [fixedclipping_mod])
    compressed = last_mse(CompressedStrategy(wrapped[1], "dense"), None, [fixedclipping_mod])
    assert compressed == pytest.approx(plain, rel=1e-5)


def test_exact_arrays_count_in_the_norm() -> None:
    """Statistics of batch norm, and integers, move by more than the weights."""

    def counting(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        before = message.content["arrays"]
        reply = call_next(message, context)
        reply.content["arrays"]["bn.running_var"] = Array(before["bn.running_var"].numpy() + np.float32(2))
        reply.content["arrays"]["bn.num_batches_tracked"] = Array(np.asarray(before["bn.num_batches_tracked"].numpy() + 3))
        return reply

    arrays = zeros()
    arrays["bn.running_var"] = Array(np.ones(3, np.float32))
    arrays["bn.num_batches_tracked"] = Array(np.asarray([10]))
    inner = Measuring()
    strategy = CompressedStrategy(fixed(inner, 5.0), "dense")
    strategy.start(grid(None, [counting]), arrays, num_rounds=1)
    assert len(inner.norms) == NODES
    assert min(inner.norms) > 4.5
    assert max(inner.norms) <= 5


def test_a_reply_without_a_norm_is_an_error_of_its_node(caplog: pytest.LogCaptureFixture) -> None:
    def second_record(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        reply = call_next(message, context)
        if context.node_config["partition-id"] == 2:
            reply.content["more"] = ArrayRecord({"x": Array(np.ones(2, np.float32))})
        return reply

    class Counting(Sending):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            replies = list(replies)
            errors.append([reply.error.reason for reply in replies if reply.has_error()])
            return super().aggregate_train(server_round, replies)

    errors: list[list[str]] = []
    inner = Counting()
    strategy = CompressedStrategy(inner, "dense")
    strategy.start(grid(None, [second_record]), zeros(), num_rounds=1)
    assert len(inner.norms) == NODES - 1
    assert len(errors[0]) == 1
    assert "expected one ArrayRecord to clip" in errors[0][0]
    assert "is discarded: got the ArrayRecords" in caplog.text
    rounds = [strategy._session.server.acknowledged_rounds.get(client) for client in range(NODES)]
    assert sorted(rounds) == [0] + [1] * (NODES - 1)


def clipping(norm: float, arrays: ArrayRecord) -> ClippingNorm:
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"clipping_norm": norm})})
    (found,) = find_clipping_norms([Message(content, 7, "train")]).values()
    return found


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["float16", "float32", "float64", "int64", "uint8", "bool"]),
    st.sampled_from([1e-3, 1.0, 50.0]),
    st.sampled_from([1e-3, 1.0, 100.0]),
)
def test_shortened_update_has_the_norm_in_every_type(seed: int, dtype: str, norm: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    before = (rng.normal(size=(2, 9)) * 30).astype(dtype)
    after = (before + rng.normal(size=(2, 9)) * scale).astype(dtype)
    weights = rng.normal(size=5).astype(np.float32)
    sent = ArrayRecord({"x": Array(before), "w": Array(weights)})
    reply = ArrayRecord({"x": Array(after), "w": Array((weights + rng.normal(size=5)).astype(np.float32))})
    content = RecordDict({"model": reply})
    was = distance({name: array.numpy().astype(np.float64) for name, array in sent.items()}, reply)
    ratio = clipping(norm, sent).clip_update(content)

    assert ratio == pytest.approx(was / norm)
    got = content.array_records["model"]
    assert [array.dtype for array in got.values()] == [dtype, "float32"]
    if was <= norm:
        assert got is reply
    else:
        assert distance({name: array.numpy().astype(np.float64) for name, array in sent.items()}, got) <= norm * (1 + 1e-12)


def test_unchanged_infinities_add_nothing_and_new_ones_are_refused() -> None:
    mask = np.array([0, -np.inf, np.nan], np.float32)
    sent = ArrayRecord({"mask": Array(mask), "w": Array(np.zeros(2, np.float32))})
    content = RecordDict({"arrays": ArrayRecord({"mask": Array(mask), "w": Array(np.array([3, 4], np.float32))})})
    assert clipping(1.0, sent).clip_update(content) == 5
    assert content["arrays"]["mask"].numpy().tobytes() == mask.tobytes()
    np.testing.assert_allclose(content["arrays"]["w"].numpy(), [0.6, 0.8], rtol=1e-6)
    content["arrays"]["w"] = Array(np.array([np.inf, 0], np.float32))
    with pytest.raises(ModelError, match="not finite"):
        clipping(1.0, sent).clip_update(content)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"w": np.zeros(3, np.float32)}, "expected"),
        ({"v": np.zeros(2, np.float32)}, "expected"),
        ({"w": np.zeros(2, np.float32), "v": np.zeros(1, np.float32)}, "expected"),
    ],
)
def test_other_arrays_than_those_sent_are_refused(arrays: dict[str, np.ndarray], reason: str) -> None:
    sent = ArrayRecord({"w": Array(np.zeros(2, np.float32))})
    content = RecordDict({"arrays": ArrayRecord({name: Array(value) for name, value in arrays.items()})})
    with pytest.raises(ModelError, match=reason):
        clipping(1.0, sent).clip_update(content)


@pytest.mark.parametrize("value", [True, "1.0", -1.0, float("nan"), None])
def test_what_is_no_norm_is_not_in_force(value: Any) -> None:
    config = ConfigRecord({} if value is None else {"clipping_norm": value})
    assert not find_clipping_norms([Message(RecordDict({"config": config}), 7, "train")])


# -------------------------------------------------------------------------------------------- wrappers inside and around, noise


@pytest.mark.parametrize("compressor", ["dense", "rand-k", "eden"])
def test_server_side_clipping_inside_holds(compressor: str) -> None:
    inner = Measuring()
    wrapped = DifferentialPrivacyServerSideFixedClipping(inner, 0.01, NORM, NODES)
    CompressedStrategy(wrapped, COMPRESSORS[compressor]).start(grid(), zeros(), num_rounds=2)
    assert max(inner.norms) == pytest.approx(NORM, rel=1e-4)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: DifferentialPrivacyServerSideFixedClipping(inner, 0.01, NORM, NODES),
        lambda inner: DifferentialPrivacyServerSideAdaptiveClipping(inner, 0.01, NODES),
        fixed,
        adaptive,
    ],
)
def test_a_wrapper_around_a_compressed_strategy_is_refused(wrap: Callable[[Strategy], Strategy]) -> None:
    outer = wrap(CompressedStrategy(FedAvg(), "dense"))
    with pytest.raises(ScenarioError) as refused:
        outer.start(grid(), zeros(), num_rounds=1)
    name = type(outer).__name__
    assert f"got {name}(CompressedStrategy(FedAvg))" in str(refused.value)
    assert f"expected CompressedStrategy({name}(FedAvg(...), ...), ...)" in str(refused.value)


class Passing(FedAvg):
    """A strategy around another one, in an attribute that Flower's wrappers do not have."""

    def __init__(self, wrapped: Any) -> None:
        super().__init__()
        self.wrapped = wrapped

    def configure_train(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped.configure_train(*args, **kwargs)

    def aggregate_train(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped.aggregate_train(*args, **kwargs)


class Holding(Passing):
    """A strategy around the first of several."""

    def __init__(self, held: list[Strategy]) -> None:
        FedAvg.__init__(self)
        self.held = held

    @property
    def wrapped(self) -> Strategy:
        return self.held[0]


class Late(Passing):
    """A strategy around another one, whose method runs after those of the strategies around it."""

    def configure_train(self, *args: Any, **kwargs: Any) -> Iterator[Message]:
        yield from self.wrapped.configure_train(*args, **kwargs)


def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return call


class Decorated(CompressedStrategy):
    configure_train = decorate(CompressedStrategy.configure_train)


@pytest.mark.parametrize(
    ("compressed", "got", "expected"),
    [
        (lambda: Decorated(FedAvg(), "dense"), "{}(CompressedStrategy(FedAvg))", "{}(FedAvg(...), ...)"),
        (
            lambda: Passing(CompressedStrategy(FedAvg(), "dense")),
            "{}(Passing(CompressedStrategy(FedAvg)))",
            "{}(Passing(FedAvg(...), ...), ...)",
        ),
    ],
)
@pytest.mark.parametrize("wrap", [fixed, lambda inner: DifferentialPrivacyServerSideFixedClipping(inner, 0.01, NORM, NODES)])
def test_a_wrapper_around_what_is_around_a_compressed_strategy_is_refused(
    wrap: Callable[[Strategy], Strategy], compressed: Callable[[], Strategy], got: str, expected: str
) -> None:
    outer = wrap(compressed())
    name = type(outer).__name__
    with pytest.raises(ScenarioError) as refused:
        outer.start(grid(), zeros(), num_rounds=1)
    assert f"got {got.format(name)}, expected CompressedStrategy({expected.format(name)}, ...)" in str(refused.value)


def test_a_wrapper_that_only_aggregates_around_a_compressed_strategy_is_refused() -> None:
    over = grid()
    outer = DifferentialPrivacyServerSideFixedClipping(Late(CompressedStrategy(FedAvg(), "dense")), 0.01, NORM, NODES)
    replies = over.send_and_receive(outer.configure_train(1, zeros(), ConfigRecord(), over))
    with pytest.raises(ScenarioError, match="and clips no update"):
        outer.aggregate_train(1, replies)


@pytest.mark.parametrize("around", [Passing, lambda inner: Passing(Passing(inner)), lambda inner: Holding([inner])])
def test_a_wrapper_in_any_attribute_is_found(around: Callable[[Strategy], Strategy]) -> None:
    inner = Measuring()
    wrapped = around(DifferentialPrivacyServerSideFixedClipping(inner, 0.01, NORM, NODES))
    with pytest.raises(ScenarioError, match='error_feedback: got "persist"'):
        CompressedStrategy(wrapped, "top-k", error_feedback="persist")
    CompressedStrategy(wrapped, "dense").start(grid(), zeros(), num_rounds=1)
    assert max(inner.norms) == pytest.approx(NORM, rel=1e-4)


def test_noise_on_coordinates_that_no_client_changes_is_published() -> None:
    """Noise below the rounding of a mean would otherwise show the coordinates that clients left alone."""

    def restoring(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        before = message.content["arrays"]
        reply = call_next(message, context)
        reply.content["arrays"]["w"] = before["w"]
        return reply

    arrays = zeros()
    arrays["w"] = Array(np.full(WIDTH, 64, np.float32))
    strategy = CompressedStrategy(DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1e-4, NORM, NODES), "dense")
    result = strategy.start(grid(None, [restoring]), arrays, num_rounds=1)
    assert np.mean(result.arrays["w"].numpy() != 64) > 0.5, "the noise has 2 units of the last place"


# ------------------------------------------------------------------------------------------------------------- error feedback


@pytest.mark.parametrize(
    ("compressor", "feedback", "named"),
    [
        ("top-k", "persist", 'error_feedback: got "persist"'),
        ("top-k", "decay", 'error_feedback: got "decay"'),
        ("dgc", "none", 'compressor.name: got "dgc"'),
        ("stc", "none", 'compressor.name: got "stc"'),
        ("power-sgd", "none", 'compressor.name: got "power-sgd"'),
    ],
)
def test_memory_under_differential_privacy_is_refused_unless_named(compressor: str, feedback: str, named: str) -> None:
    server_side = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.01, NORM, NODES)
    for wrapped in (server_side, fixed(FedAvg()), adaptive(FedAvg())):
        with pytest.raises(ScenarioError) as refused:
            CompressedStrategy(wrapped, compressor, error_feedback=feedback)
        assert str(refused.value).startswith(named)
        assert "dp_error_feedback=True" in str(refused.value)
        assert "data of earlier rounds" in str(refused.value)
        CompressedStrategy(wrapped, compressor, error_feedback=feedback, dp_error_feedback=True)
        CompressedStrategy(wrapped, "top-k")


def test_memory_is_refused_where_a_strategy_of_its_own_sends_a_norm() -> None:
    with pytest.raises(ScenarioError, match='error_feedback: got "persist"'):
        CompressedStrategy(Sending(), "top-k", error_feedback="persist").start(grid(), zeros(), num_rounds=1)


def test_norm_holds_with_error_feedback_that_is_named() -> None:
    inner = Measuring()
    strategy = CompressedStrategy(fixed(inner), "top-k", error_feedback="persist", dp_error_feedback=True)
    strategy.start(grid(None, [fixedclipping_mod]), zeros(), num_rounds=4)
    assert len(inner.norms) == 4 * NODES
    assert max(inner.norms) <= NORM * (1 + 1e-6)


def test_dp_error_feedback_of_another_type_is_refused() -> None:
    settings: dict[str, Any] = {"dp_error_feedback": "yes"}
    with pytest.raises(ScenarioError, match="dp_error_feedback: got 'yes', expected True or False"):
        CompressedStrategy(FedAvg(), **settings)


# ----------------------------------------------------------------------------------------------------------------------- mods


def test_local_noise_behind_compression_reaches_the_strategy() -> None:
    inner = Measuring()
    noisy = LocalDpMod(clipping_norm=NORM, sensitivity=1.0, epsilon=10.0, delta=1e-5)
    CompressedStrategy(inner, "dense").start(grid(None, [noisy]), zeros(), num_rounds=1)
    sigma = np.sqrt(2 * np.log(1.25e5)) / 10
    expected = np.sqrt(NORM + sigma**2 * (WIDTH + 1))
    assert np.mean(inner.norms) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("mod", [secagg_mod, secaggplus_mod])
def test_secure_aggregation_behind_compression_is_refused(mod: Any, caplog: pytest.LogCaptureFixture) -> None:
    result = CompressedStrategy(FedAvg(), "dense").start(grid(None, [mod]), zeros(), num_rounds=1)
    assert not result.train_metrics_clientapp
    assert f"got {mod.__name__} behind compression_mod(), expected no secure aggregation" in caplog.text
