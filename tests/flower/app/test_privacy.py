"""Differential privacy with compressed updates: norms of the updates that the inner strategy gets, and refused settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from tests.effort import nightly_unless
from tests.flower.regression import NODES, WIDTH, make_grid, make_zeros, measure_final_mse

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
EXPANSIVE = {"rand-k", "qsgd", "terngrad", "eden", "drive", "natural"}
"""Compressors that may increase the norm of an update."""


pytestmark = pytest.mark.usefixtures("quick_collection")


@pytest.fixture(autouse=True)
def _capture_warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="flwr")


class NormFedAvg(FedAvg):
    """FedAvg that records the norm over all arrays of each update that it averages."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.norms: list[float] = []

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Iterable[Message]:
        self.sent = {name: array.numpy().astype(np.float64) for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        for reply in replies:
            if reply.has_content():
                (arrays,) = reply.content.array_records.values()
                self.norms.append(measure_distance(self.sent, arrays))
        return super().aggregate_train(server_round, replies)


class ClippingNormFedAvg(NormFedAvg):
    """Strategy that sends a clipping norm without one of Flower's wrappers."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Iterable[Message]:
        config["clipping_norm"] = NORM
        return super().configure_train(server_round, arrays, config, grid)


def measure_distance(sent: Mapping[str, np.ndarray], arrays: ArrayRecord) -> float:
    """Return the Euclidean distance of arrays from the sent values."""
    return float(np.sqrt(sum(((arrays[name].numpy().astype(np.float64) - sent[name]) ** 2).sum() for name in sent)))


def wrap_fixed_clipping(inner: Strategy, norm: float = NORM) -> Strategy:
    return DifferentialPrivacyClientSideFixedClipping(inner, 0.01, norm, NODES)


def wrap_adaptive_clipping(inner: Strategy) -> Strategy:
    return DifferentialPrivacyClientSideAdaptiveClipping(inner, 0.01, NODES, initial_clipping_norm=0.5)


# ------------------------------------------------------------------------------------------------------- client-side clipping


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("compressor", nightly_unless(("bfloat16", "sign", "rand-k", "qsgd").__contains__, COMPRESSORS))
def test_norm_of_each_decoded_update_is_at_most_the_clipping_norm(compressor: str, caplog: pytest.LogCaptureFixture) -> None:
    inner = NormFedAvg()
    strategy = CompressedStrategy(wrap_fixed_clipping(inner), COMPRESSORS[compressor])
    strategy.start(make_grid(None, [fixedclipping_mod]), make_zeros(), num_rounds=4)
    assert len(inner.norms) == 4 * NODES
    assert max(inner.norms) <= NORM * (1 + 1e-6)
    assert "set error_feedback" not in caplog.text, "it would be refused"
    lines = [record.message for record in caplog.records if "clipped on the server" in record.message]
    assert len(lines) == (compressor in EXPANSIVE)
    assert all("of 7 decoded updates" in line and '"dense", "sign", "top-k" do not increase the norm' in line for line in lines)


@pytest.mark.parametrize("compressor", ["dense", "eden"])
def test_updates_that_clients_do_not_clip_are_clipped_with_a_warning(compressor: str, caplog: pytest.LogCaptureFixture) -> None:
    inner = NormFedAvg()
    CompressedStrategy(wrap_fixed_clipping(inner), compressor).start(make_grid(), make_zeros(), num_rounds=1)
    assert max(inner.norms) <= NORM * (1 + 1e-6)
    (line,) = [record.message for record in caplog.records if "clipped on the server" in record.message]
    assert "clients do not clip (put Flower's clipping mods behind compression_mod())" in line
    assert ('"eden" increases the norm of updates' in line) == (compressor == "eden")


def test_array_without_dimensions_does_not_count_in_the_norm() -> None:
    """Flower's mod does not clip such arrays, for example the batch counter of batch norm."""
    before = ArrayRecord({"w": Array(np.zeros(4, dtype=np.float32)), "n": Array(np.array(5))})
    after = ArrayRecord({"w": Array(np.full(4, 0.25, dtype=np.float32)), "n": Array(np.array(50))})
    content, sent = RecordDict({"arrays": after}), RecordDict({"arrays": before})
    message = Message(RecordDict(), 1, "train")
    assert ClippingNorm(NORM, message, sent).clip_update(content) == pytest.approx(0.5)
    assert content["arrays"] is after
    assert ClippingNorm(0.25, message, sent).clip_update(content) == pytest.approx(2.0)
    np.testing.assert_allclose(content["arrays"]["w"].numpy(), np.full(4, 0.125))
    assert content["arrays"]["n"].numpy() == 50


@pytest.mark.slow
@pytest.mark.parametrize("compressor", ["dense", "rand-k", "eden"])
def test_norm_of_each_update_is_at_most_the_adaptive_clipping_norm_of_its_round(compressor: str) -> None:
    class RecordingNormFedAvg(NormFedAvg):
        def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
            norm = config["clipping_norm"]
            assert isinstance(norm, float)
            limits.append(norm)
            return super().configure_train(server_round, arrays, config, grid)

    limits: list[float] = []
    inner = RecordingNormFedAvg()
    strategy = CompressedStrategy(wrap_adaptive_clipping(inner), COMPRESSORS[compressor])
    strategy.start(make_grid(None, [adaptiveclipping_mod]), make_zeros(), num_rounds=4)
    assert len(set(limits)) == 4
    norms = np.reshape(inner.norms, (4, NODES)).max(axis=1)
    assert (norms <= np.array(limits) * (1 + 1e-6)).all()


def test_uncompressed_update_is_clipped() -> None:
    """Two separate arrays are equal initially, so each node replies uncompressed in the first round."""
    arrays = make_zeros()
    arrays["w"] = arrays["frozen"] = Array(np.arange(WIDTH, dtype=np.float32) / WIDTH)
    inner = NormFedAvg()
    strategy = CompressedStrategy(wrap_fixed_clipping(inner), "dense")
    strategy.start(make_grid(), arrays, num_rounds=1)
    assert strategy.traffic[0].message_up > NODES * WIDTH * 8
    assert len(inner.norms) == NODES
    assert max(inner.norms) <= NORM


@pytest.mark.slow
def test_dense_compressor_with_client_side_clipping_learns_as_without_compression() -> None:
    """The results are not equal bit for bit: in float32, w + (v − w) is v up to one rounding."""
    wrappers = [DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.0, 4.0, NODES) for _ in range(2)]
    plain_mse = measure_final_mse(wrappers[0], [], [fixedclipping_mod])
    compressed_mse = measure_final_mse(CompressedStrategy(wrappers[1], "dense"), None, [fixedclipping_mod])
    assert compressed_mse == pytest.approx(plain_mse, rel=1e-5)


@pytest.mark.slow
def test_exact_arrays_count_in_the_norm() -> None:
    """Statistics of batch norm and integers change more than the weights."""

    def change_statistics(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        before = message.content["arrays"]
        reply = call_next(message, context)
        reply.content["arrays"]["bn.running_var"] = Array(before["bn.running_var"].numpy() + np.float32(2))
        reply.content["arrays"]["bn.num_batches_tracked"] = Array(np.asarray(before["bn.num_batches_tracked"].numpy() + 3))
        return reply

    arrays = make_zeros()
    arrays["bn.running_var"] = Array(np.ones(3, np.float32))
    arrays["bn.num_batches_tracked"] = Array(np.asarray([10]))
    inner = NormFedAvg()
    strategy = CompressedStrategy(wrap_fixed_clipping(inner, 5.0), "dense")
    strategy.start(make_grid(None, [change_statistics]), arrays, num_rounds=1)
    assert len(inner.norms) == NODES
    assert min(inner.norms) > 4.5
    assert max(inner.norms) <= 5


def test_reply_that_cannot_be_clipped_is_an_error_of_its_node(caplog: pytest.LogCaptureFixture) -> None:
    def add_record(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        reply = call_next(message, context)
        if context.node_config["partition-id"] == 2:
            reply.content["more"] = ArrayRecord({"x": Array(np.ones(2, np.float32))})
        return reply

    class ErrorRecordingFedAvg(ClippingNormFedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            replies = list(replies)
            errors.append([reply.error.reason for reply in replies if reply.has_error()])
            return super().aggregate_train(server_round, replies)

    errors: list[list[str]] = []
    inner = ErrorRecordingFedAvg()
    strategy = CompressedStrategy(inner, "dense")
    strategy.start(make_grid(None, [add_record]), make_zeros(), num_rounds=1)
    assert len(inner.norms) == NODES - 1
    assert len(errors[0]) == 1
    assert "expected one ArrayRecord to clip" in errors[0][0]
    assert "is discarded: got the ArrayRecords" in caplog.text
    rounds = [strategy._session.server.acknowledged_rounds.get(client) for client in range(NODES)]
    assert sorted(rounds) == [0] + [1] * (NODES - 1)


def make_clipping_norm(norm: float, arrays: ArrayRecord) -> ClippingNorm:
    """Return the clipping norm of a message with these arrays."""
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"clipping_norm": norm})})
    (clipping_norm,) = find_clipping_norms([Message(content, 7, "train")]).values()
    return clipping_norm


@pytest.mark.slow
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["float16", "float32", "float64", "int64", "uint8", "bool"]),
    st.sampled_from([1e-3, 1.0, 50.0]),
    st.sampled_from([1e-3, 1.0, 100.0]),
)
def test_clipped_update_of_any_type_has_at_most_the_clipping_norm(seed: int, dtype: str, norm: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    before = (rng.normal(size=(2, 9)) * 30).astype(dtype)
    after = (before + rng.normal(size=(2, 9)) * scale).astype(dtype)
    weights = rng.normal(size=5).astype(np.float32)
    sent = ArrayRecord({"x": Array(before), "w": Array(weights)})
    sent_values = {name: array.numpy().astype(np.float64) for name, array in sent.items()}
    reply = ArrayRecord({"x": Array(after), "w": Array((weights + rng.normal(size=5)).astype(np.float32))})
    content = RecordDict({"model": reply})
    update_norm = measure_distance(sent_values, reply)
    ratio = make_clipping_norm(norm, sent).clip_update(content)

    assert ratio == pytest.approx(update_norm / norm)
    clipped = content.array_records["model"]
    assert [array.dtype for array in clipped.values()] == [dtype, "float32"]
    if update_norm <= norm:
        assert clipped is reply
    else:
        assert measure_distance(sent_values, clipped) <= norm * (1 + 1e-12)


def test_unchanged_infinities_do_not_count_and_new_infinities_are_refused() -> None:
    mask = np.array([0, -np.inf, np.nan], np.float32)
    sent = ArrayRecord({"mask": Array(mask), "w": Array(np.zeros(2, np.float32))})
    content = RecordDict({"arrays": ArrayRecord({"mask": Array(mask), "w": Array(np.array([3, 4], np.float32))})})
    assert make_clipping_norm(1.0, sent).clip_update(content) == 5
    assert content["arrays"]["mask"].numpy().tobytes() == mask.tobytes()
    np.testing.assert_allclose(content["arrays"]["w"].numpy(), [0.6, 0.8], rtol=1e-6)
    content["arrays"]["w"] = Array(np.array([np.inf, 0], np.float32))
    with pytest.raises(ModelError, match="not finite"):
        make_clipping_norm(1.0, sent).clip_update(content)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"w": np.zeros(3, np.float32)}, "expected"),
        ({"v": np.zeros(2, np.float32)}, "expected"),
        ({"w": np.zeros(2, np.float32), "v": np.zeros(1, np.float32)}, "expected"),
    ],
)
def test_arrays_that_differ_from_the_sent_arrays_are_refused(arrays: dict[str, np.ndarray], reason: str) -> None:
    sent = ArrayRecord({"w": Array(np.zeros(2, np.float32))})
    content = RecordDict({"arrays": ArrayRecord({name: Array(value) for name, value in arrays.items()})})
    with pytest.raises(ModelError, match=reason):
        make_clipping_norm(1.0, sent).clip_update(content)


@pytest.mark.parametrize("value", [True, "1.0", -1.0, float("nan"), None])
def test_config_value_that_is_no_norm_is_ignored(value: Any) -> None:
    config = ConfigRecord({} if value is None else {"clipping_norm": value})
    assert not find_clipping_norms([Message(RecordDict({"config": config}), 7, "train")])


# -------------------------------------------------------------------------------------------- wrappers inside and around, noise


@pytest.mark.slow
@pytest.mark.parametrize("compressor", ["dense", "rand-k", "eden"])
def test_server_side_wrapper_inside_clips_decoded_updates(compressor: str) -> None:
    inner = NormFedAvg()
    wrapper = DifferentialPrivacyServerSideFixedClipping(inner, 0.01, NORM, NODES)
    CompressedStrategy(wrapper, COMPRESSORS[compressor]).start(make_grid(), make_zeros(), num_rounds=2)
    assert max(inner.norms) == pytest.approx(NORM, rel=1e-4)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: DifferentialPrivacyServerSideFixedClipping(inner, 0.01, NORM, NODES),
        lambda inner: DifferentialPrivacyServerSideAdaptiveClipping(inner, 0.01, NODES),
        wrap_fixed_clipping,
        wrap_adaptive_clipping,
    ],
)
def test_wrapper_around_a_compressed_strategy_is_refused(wrap: Callable[[Strategy], Strategy]) -> None:
    outer = wrap(CompressedStrategy(FedAvg(), "dense"))
    with pytest.raises(ScenarioError) as raised:
        outer.start(make_grid(), make_zeros(), num_rounds=1)
    name = type(outer).__name__
    assert f"got {name}(CompressedStrategy(FedAvg))" in str(raised.value)
    assert f"expected CompressedStrategy({name}(FedAvg(...), ...), ...)" in str(raised.value)


class OuterFedAvg(FedAvg):
    """Strategy around another strategy, in an attribute that Flower's wrappers do not have."""

    def __init__(self, wrapped: Any) -> None:
        super().__init__()
        self.wrapped = wrapped

    def configure_train(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped.configure_train(*args, **kwargs)

    def aggregate_train(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped.aggregate_train(*args, **kwargs)


class ListOuterFedAvg(OuterFedAvg):
    """Strategy around the first strategy of a list."""

    def __init__(self, strategies: list[Strategy]) -> None:
        FedAvg.__init__(self)
        self.strategies = strategies

    @property
    def wrapped(self) -> Strategy:
        return self.strategies[0]


class LazyOuterFedAvg(OuterFedAvg):
    """Strategy around another strategy, with a generator that runs after the methods of the strategies around it."""

    def configure_train(self, *args: Any, **kwargs: Any) -> Iterator[Message]:
        yield from self.wrapped.configure_train(*args, **kwargs)


def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return call


class DecoratedStrategy(CompressedStrategy):
    configure_train = decorate(CompressedStrategy.configure_train)


@pytest.mark.parametrize(
    ("create_strategy", "got", "expected"),
    [
        (lambda: DecoratedStrategy(FedAvg(), "dense"), "{}(CompressedStrategy(FedAvg))", "{}(FedAvg(...), ...)"),
        (
            lambda: OuterFedAvg(CompressedStrategy(FedAvg(), "dense")),
            "{}(OuterFedAvg(CompressedStrategy(FedAvg)))",
            "{}(OuterFedAvg(FedAvg(...), ...), ...)",
        ),
    ],
)
@pytest.mark.parametrize(
    "wrap", [wrap_fixed_clipping, lambda inner: DifferentialPrivacyServerSideFixedClipping(inner, 0.01, NORM, NODES)]
)
def test_wrapper_around_a_strategy_around_a_compressed_strategy_is_refused(
    wrap: Callable[[Strategy], Strategy], create_strategy: Callable[[], Strategy], got: str, expected: str
) -> None:
    outer = wrap(create_strategy())
    name = type(outer).__name__
    with pytest.raises(ScenarioError) as raised:
        outer.start(make_grid(), make_zeros(), num_rounds=1)
    assert f"got {got.format(name)}, expected CompressedStrategy({expected.format(name)}, ...)" in str(raised.value)


def test_wrapper_that_only_aggregates_around_a_compressed_strategy_is_refused() -> None:
    grid, wrapped = make_grid(), LazyOuterFedAvg(CompressedStrategy(FedAvg(), "dense"))
    outer = DifferentialPrivacyServerSideFixedClipping(wrapped, 0.01, NORM, NODES)
    replies = grid.send_and_receive(outer.configure_train(1, make_zeros(), ConfigRecord(), grid))
    with pytest.raises(ScenarioError, match="and clips no update"):
        outer.aggregate_train(1, replies)


@pytest.mark.parametrize(
    "wrap", [OuterFedAvg, lambda inner: OuterFedAvg(OuterFedAvg(inner)), lambda inner: ListOuterFedAvg([inner])]
)
def test_wrapper_in_any_attribute_is_detected(wrap: Callable[[Strategy], Strategy]) -> None:
    inner = NormFedAvg()
    strategy = wrap(DifferentialPrivacyServerSideFixedClipping(inner, 0.01, NORM, NODES))
    with pytest.raises(ScenarioError, match='error_feedback: got "persist"'):
        CompressedStrategy(strategy, "top-k", error_feedback="persist")
    CompressedStrategy(strategy, "dense").start(make_grid(), make_zeros(), num_rounds=1)
    assert max(inner.norms) == pytest.approx(NORM, rel=1e-4)


def test_noise_of_coordinates_that_no_client_changed_is_sent() -> None:
    """If noise below the rounding of a mean was not sent, the others would see which coordinates clients did not change."""

    def restore_weights(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        before = message.content["arrays"]
        reply = call_next(message, context)
        reply.content["arrays"]["w"] = before["w"]
        return reply

    arrays = make_zeros()
    arrays["w"] = Array(np.full(WIDTH, 64, np.float32))
    strategy = CompressedStrategy(DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1e-4, NORM, NODES), "dense")
    result = strategy.start(make_grid(None, [restore_weights]), arrays, num_rounds=1)
    assert np.mean(result.arrays["w"].numpy() != 64) > 0.5, "the noise is about 2 units in the last place"


# ------------------------------------------------------------------------------------------------------------- error feedback


@pytest.mark.parametrize(
    ("compressor", "feedback", "problem"),
    [
        ("top-k", "persist", 'error_feedback: got "persist"'),
        ("top-k", "decay", 'error_feedback: got "decay"'),
        ("dgc", "none", 'compressor.name: got "dgc"'),
        ("stc", "none", 'compressor.name: got "stc"'),
        ("power-sgd", "none", 'compressor.name: got "power-sgd"'),
    ],
)
def test_memory_with_differential_privacy_is_refused_unless_allowed(compressor: str, feedback: str, problem: str) -> None:
    server_side = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.01, NORM, NODES)
    for wrapper in (server_side, wrap_fixed_clipping(FedAvg()), wrap_adaptive_clipping(FedAvg())):
        with pytest.raises(ScenarioError) as raised:
            CompressedStrategy(wrapper, compressor, error_feedback=feedback)
        assert str(raised.value).startswith(problem)
        assert "dp_error_feedback=True" in str(raised.value)
        assert "data of earlier rounds" in str(raised.value)
        CompressedStrategy(wrapper, compressor, error_feedback=feedback, dp_error_feedback=True)
        CompressedStrategy(wrapper, "top-k")


def test_memory_with_a_strategy_that_sends_a_clipping_norm_is_refused() -> None:
    strategy = CompressedStrategy(ClippingNormFedAvg(), "top-k", error_feedback="persist")
    with pytest.raises(ScenarioError, match='error_feedback: got "persist"'):
        strategy.start(make_grid(), make_zeros(), num_rounds=1)


@pytest.mark.slow
def test_norm_of_each_update_with_allowed_error_feedback_is_at_most_the_clipping_norm() -> None:
    inner = NormFedAvg()
    strategy = CompressedStrategy(wrap_fixed_clipping(inner), "top-k", error_feedback="persist", dp_error_feedback=True)
    strategy.start(make_grid(None, [fixedclipping_mod]), make_zeros(), num_rounds=4)
    assert len(inner.norms) == 4 * NODES
    assert max(inner.norms) <= NORM * (1 + 1e-6)


def test_dp_error_feedback_of_another_type_is_refused() -> None:
    settings: dict[str, Any] = {"dp_error_feedback": "yes"}
    with pytest.raises(ScenarioError, match='dp_error_feedback: got "yes", expected True or False'):
        CompressedStrategy(FedAvg(), **settings)


# ----------------------------------------------------------------------------------------------------------------------- mods


def test_noise_of_a_mod_behind_compression_mod_reaches_the_strategy() -> None:
    inner = NormFedAvg()
    noise_mod = LocalDpMod(clipping_norm=NORM, sensitivity=1.0, epsilon=10.0, delta=1e-5)
    CompressedStrategy(inner, "dense").start(make_grid(None, [noise_mod]), make_zeros(), num_rounds=1)
    sigma = np.sqrt(2 * np.log(1.25e5)) / 10
    expected = np.sqrt(NORM + sigma**2 * (WIDTH + 1))
    assert np.mean(inner.norms) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("mod", [secagg_mod, secaggplus_mod])
def test_secure_aggregation_behind_compression_mod_is_refused(mod: Any, caplog: pytest.LogCaptureFixture) -> None:
    result = CompressedStrategy(FedAvg(), "dense").start(make_grid(None, [mod]), make_zeros(), num_rounds=1)
    assert not result.train_metrics_clientapp
    assert f"got {mod.__name__} behind compression_mod(), expected no secure aggregation" in caplog.text
