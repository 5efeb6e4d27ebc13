"""Schedules of densities."""

from __future__ import annotations

import numpy as np
import pytest

from fedsgd.compression.operators.scheduled import Scheduled
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.operators.topk import TopK
from fedsgd.errors import ScenarioError
from tests.compression.helpers import (
    draw_gaussian,
    encode_and_decode,
    make_context,
)


def test_scheduled_operator_has_the_density_of_the_round() -> None:
    op = Scheduled(TopK(0.01), (0.5, 0.1), rounds=3)
    counts = [np.count_nonzero(encode_and_decode(op, draw_gaussian(1000), make_context(1000, r))) for r in range(1, 9)]
    assert counts == [500, 500, 500, 100, 100, 100, 10, 10]
    with pytest.raises(ScenarioError, match=r"scheduled\.op: got sign, expected an operator with a density"):
        Scheduled(Sign())
