"""Operators for groups of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsgd.compression import (
    CodecContext,
)
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.per_layer import LayerRule, PerLayer
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.operators.topk import TopK
from fedsgd.errors import ScenarioError
from fedsgd.numerics.parameter_layout import ParameterLayout
from tests.compression.helpers import (
    draw_gaussian,
    encode_and_decode,
)


def test_per_layer_applies_each_operator_to_its_tensors() -> None:
    layout = ParameterLayout(("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"), ((8, 10), (8,), (5, 8), (5,)))
    op = PerLayer(TopK(0.1), biases=Dense(), rules=(LayerRule("fc2.w*", Sign()),))
    x = draw_gaussian(layout.size)
    decoded = encode_and_decode(op, x, CodecContext(0, 1, 0, layout))
    assert np.flatnonzero(decoded[:80]).tolist() == sorted(np.argsort(-np.abs(x[:80]))[:8].tolist())
    assert decoded[80:88].tolist() == x[80:88].tolist()
    assert set(np.round(np.abs(decoded[88:128]), 6)) == {round(float(np.abs(x[88:128]).mean()), 6)}
    assert decoded[128:].tolist() == x[128:].tolist()


@pytest.mark.parametrize(
    ("key", "value"), [("op", PerLayer()), ("biases", PerLayer()), ("rules", (LayerRule("*", PerLayer()),))]
)
def test_per_layer_nested_in_per_layer_is_rejected_with_its_key(key: str, value: Any) -> None:
    with pytest.raises(ScenarioError, match=rf"per-layer\.{key}: per-layer cannot be nested in per-layer"):
        PerLayer(**{key: value})


def test_per_layer_with_separate_tensors_has_a_k_for_each_tensor() -> None:
    layout = ParameterLayout(("a", "b"), ((10, 10), (10, 10)))
    x = np.concatenate([draw_gaussian(100), 1000 * draw_gaussian(100, 1)]).astype(np.float32)
    joint, separate_tensors = (
        encode_and_decode(PerLayer(TopK(0.1), separate=s), x, CodecContext(0, 1, 0, layout)) for s in (False, True)
    )
    assert [np.count_nonzero(v[:100]) for v in (joint, separate_tensors)] == [0, 10]
    assert np.count_nonzero(joint) == np.count_nonzero(separate_tensors) == 20


def test_per_layer_groups_of_equal_size_have_independent_randomness() -> None:
    layout = ParameterLayout(("a", "b"), ((20, 20), (20, 20)))
    decoded = encode_and_decode(
        PerLayer(RandK(0.1), separate=True), np.ones(800, dtype=np.float32), CodecContext(0, 1, 0, layout)
    )
    assert np.flatnonzero(decoded[:400]).tolist() != np.flatnonzero(decoded[400:]).tolist()
