"""Error feedback: residuals by hand, and lost replies."""

from __future__ import annotations

import numpy as np

from fedsgd.compression import (
    ErrorFeedback,
)
from fedsgd.compression.operators.topk import TopK
from fedsgd.numerics.arrays import F32
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
