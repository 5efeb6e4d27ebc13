"""Layouts of parameters in flat vectors."""

from __future__ import annotations

import pytest

from fedsgd.errors import ModelError
from fedsgd.numerics.parameter_layout import ParameterLayout


def test_parameter_layout_describes_positions_and_rejects_bad_names() -> None:
    layout = ParameterLayout(("a", "b", "c"), ((2, 3), (4,), ()))
    assert layout.size == 11
    assert layout.offsets == (0, 6, 10, 11)
    assert [layout.describe_position(i) for i in (0, 5, 6, 10)] == ["a[0, 0]", "a[1, 2]", "b[0]", "c[0]"]
    with pytest.raises(ModelError, match="two tensors have the name"):
        ParameterLayout(("a", "a"), ((1,), (1,)))
    with pytest.raises(ModelError, match="0 trainable parameters"):
        ParameterLayout((), ())
