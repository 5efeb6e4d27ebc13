"""Error feedback: residuals by hand, and lost replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from fedsgd.compression import CodecContext, CompressionOperator, ErrorFeedback, SparseUpdate, Update
from fedsgd.compression.base import OperatorKind
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes import error_feedback
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
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
