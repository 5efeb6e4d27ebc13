"""Error feedback: residuals by hand, and lost replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from fedsgd.compression import CodecContext, CompressionOperator, ErrorFeedback, SparseUpdate, StaleResidualPolicy, Update
from fedsgd.compression.base import OperatorKind
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes import error_feedback
from fedsgd.compression.schemes.dgc import DGC
from fedsgd.config.component import FieldError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.scenario.resolution import build_scheme
from fedsgd.scenario.sections import UplinkConfig
from fedsgd.wire import Section, SectionKind, Sections
from tests.compression.helpers import (
    make_context,
)


def f32(*values: float) -> F32:
    return np.array(values, dtype=np.float32)


def test_error_feedback_sends_dropped_coordinates_later() -> None:
    """k = 1 of 3 coordinates, in exact binary fractions."""
    scheme, state = ErrorFeedback(TopK(1 / 3)), {}
    decoded = []
    for x in (f32(4, 2, 1), f32(0, 1, 0), f32(0, 0, 1.5)):
        update = scheme.send(x, state, make_context(3))
        decoded.append(scheme.decode(update.sections, make_context(3)).to_dense().tolist())
        state = dict(update.state)
    assert decoded == [[4, 0, 0], [0, 3, 0], [0, 0, 2.5]]
    assert state["residual"].tolist() == [0, 0, 0]


def test_lost_reply_leaves_the_whole_update_in_the_residual() -> None:
    scheme = ErrorFeedback(TopK(1 / 3))
    first = scheme.send(f32(4, 2, 1), {}, make_context(3))
    assert first.state_if_lost["residual"].tolist() == [4, 2, 1]
    assert first.state["residual"].tolist() == [0, 2, 1]
    second = scheme.send(f32(1, 0, 0), first.state_if_lost, make_context(3))
    assert scheme.decode(second.sections, make_context(3)).to_dense().tolist() == [5, 0, 0]


def test_send_does_not_write_to_its_arguments() -> None:
    x, residual = f32(4, 2, 1), f32(1, 1, 1)
    ErrorFeedback(TopK(1 / 3)).send(x, {"residual": residual}, make_context(3))
    assert x.tolist() == [4, 2, 1]
    assert residual.tolist() == [1, 1, 1]


@dataclass(frozen=True)
class FirstHalf(CompressionOperator):
    """Operator that sends the first half of a vector, as a view of the vector."""

    name: ClassVar[str] = "first-half"
    kind: ClassVar[OperatorKind] = "contractive"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        part = x[: len(x) // 2]
        return (Section(SectionKind.VALUE, part.data.cast("B")),), SparseUpdate(np.arange(len(part)), part, len(x))

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        part = np.frombuffer(sections[0].data, dtype=np.float32)
        return SparseUpdate(np.arange(len(part)), part, ctx.layout.size)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return 4 * layout.size

    def contraction(self, layout: ParameterLayout) -> float:
        return 1 / layout.size


@pytest.mark.parametrize("op", [TopK(0.1), TopK(0.1, "bfloat16"), RandK(0.1, scaled=False), Dense(), FirstHalf()], ids=repr)
def test_residual_in_the_memory_of_the_sum_equals_the_residual_in_new_memory(
    monkeypatch: pytest.MonkeyPatch, op: CompressionOperator
) -> None:
    rng = np.random.default_rng(0)
    x, residual = (rng.standard_normal(500, dtype=np.float32) for _ in range(2))
    copies, results = (x.copy(), residual.copy()), []
    for limit in (10**9, 0):
        monkeypatch.setattr(error_feedback, "MAX_COPIED", limit)
        update = ErrorFeedback(op).send(x, {"residual": residual}, make_context(500))
        arrays = update.state["residual"], update.state_if_lost["residual"]
        results.append(([bytes(section.data) for section in update.sections], *(array.tobytes() for array in arrays)))
    assert results[0] == results[1]
    assert np.array_equal(x, copies[0])
    assert np.array_equal(residual, copies[1])


# -------------------------------------------------------------------------------------------------------------------- decay


def test_residual_decays_before_the_update_is_added() -> None:
    scheme = ErrorFeedback(TopK(1 / 3), decay=0.5)
    first = scheme.send(f32(4, 2, 1), {}, make_context(3))
    second = scheme.send(f32(0, 0.25, 0), first.state, make_context(3))
    assert scheme.decode(second.sections, make_context(3)).to_dense().tolist() == [0, 1.25, 0]
    assert second.state["residual"].tolist() == [0, 0, 0.5]
    assert second.state_if_lost["residual"].tolist() == [0, 1.25, 0.5]


@pytest.mark.sampled
@pytest.mark.parametrize("op", [TopK(0.1), TopK(0.1, "2bit", chunk=100, scales="chunk"), RandK(0.2, scaled=False)], ids=repr)
@pytest.mark.parametrize("decay", [0.95, 0.5])
def test_weighted_sum_of_updates_is_delivered_or_in_the_residual(op: CompressionOperator, decay: float) -> None:
    """Σ β^(T − t) x_t = Σ β^(T − t) delivered_t + residual, also with lost replies."""
    scheme, state, rng = ErrorFeedback(op, decay), {}, np.random.default_rng(0)
    updates, delivered = np.zeros(400), np.zeros(400)
    for t in range(40):
        x, ctx = rng.standard_normal(400).astype(np.float32), make_context(400, round=t + 1)
        sent = scheme.send(x, state, ctx)
        is_lost = t % 4 == 3
        state = dict(sent.state_if_lost if is_lost else sent.state)
        updates, delivered = decay * updates + x, decay * delivered
        if not is_lost:
            delivered += scheme.decode(sent.sections, ctx).to_dense()
        assert updates == pytest.approx(delivered + state["residual"], abs=1e-4)
    assert scheme.undelivered_update(state, ParameterLayout.from_size(400)) is None


def test_decay_of_one_sends_the_bytes_of_plain_error_feedback() -> None:
    x, state = f32(4, 2, 1), {"residual": f32(0.1, -3, 1)}
    results = [scheme.send(x, state, make_context(3)) for scheme in (ErrorFeedback(TopK(0.5)), ErrorFeedback(TopK(0.5), 1.0))]
    assert [bytes(s.data) for s in results[0].sections] == [bytes(s.data) for s in results[1].sections]
    assert results[0].state["residual"].tobytes() == results[1].state["residual"].tobytes()


def test_decayed_residual_without_updates_becomes_zero_and_never_subnormal() -> None:
    scheme, state = ErrorFeedback(TopK(0.25), decay=0.5), {"residual": f32(1, 2, 3, 2.0**-120)}
    for t in range(140):
        state = dict(scheme.send(f32(8, 0, 0, 0), state, make_context(4, round=t + 1)).state)
        residual = np.abs(state["residual"])
        assert ((residual == 0) | (residual >= 2.0**-126)).all()
    assert state["residual"][1:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("decay", [0.0, 1.5, "fast"])
def test_invalid_decay_is_rejected(decay: object) -> None:
    with pytest.raises(FieldError, match=r"^error-feedback\.decay: expected a number above 0 and at most 1"):
        ErrorFeedback(TopK(), decay)


def test_feedback_decay_of_a_scenario_is_that_of_error_feedback() -> None:
    scheme = build_scheme(UplinkConfig(TopK(), "persist", feedback_decay=0.95))
    assert scheme == ErrorFeedback(TopK(), 0.95)
    ageing = build_scheme(UplinkConfig(TopK(), "decay", feedback_decay=0.95, residual_factor=0.5))
    assert ageing == StaleResidualPolicy(ErrorFeedback(TopK(), 0.95), "decay", 0.5)


@pytest.mark.parametrize(
    ("uplink", "message"),
    [
        (UplinkConfig(TopK(), feedback_decay=0.95), 'got 0.95 with error_feedback = "none", expected 1'),
        (
            UplinkConfig(DGC(), "persist", feedback_decay=0.9),
            "got 0.9 with dgc, which has a residual rule of its own, expected 1",
        ),
    ],
)
def test_feedback_decay_without_error_feedback_is_rejected(uplink: UplinkConfig, message: str) -> None:
    with pytest.raises(FieldError, match=rf"^uplink\.feedback_decay: {message}"):
        build_scheme(uplink)
