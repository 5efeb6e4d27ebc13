"""Policies for the residuals of absent clients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsgd.compression import (
    ErrorFeedback,
    StaleResidualPolicy,
)
from fedsgd.compression.operators.topk import TopK
from tests.compression.helpers import (
    make_context,
)


@pytest.mark.parametrize(("policy", "expected"), [("persist", 2.0), ("decay", 0.5), ("reset", 0.0)])
def test_residual_of_an_absent_client_follows_the_policy(policy: Any, expected: float) -> None:
    """The residual is 2 after round 1; the client returns in round 4, after two missed rounds, with an update of 0."""
    feedback = ErrorFeedback(TopK(1 / 2))
    scheme = feedback if policy == "persist" else StaleResidualPolicy(feedback, policy, factor=0.5, rounds=1)
    first = scheme.send(np.array([3, 2], dtype=np.float32), {}, make_context(2, 1))
    returned = scheme.send(np.zeros(2, dtype=np.float32), first.state, make_context(2, 4))
    assert scheme.decode(returned.sections, make_context(2, 4)).to_dense().tolist() == [0, expected]
    next_round = scheme.send(np.zeros(2, dtype=np.float32), first.state, make_context(2, 2))
    assert scheme.decode(next_round.sections, make_context(2, 2)).to_dense().tolist() == [0, 2], "no round was missed"
