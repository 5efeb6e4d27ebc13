"""Sparsifiers: k of a density, and value formats."""

from __future__ import annotations

import itertools

from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.sparsifier import top_k_size
from fedsgd.compression.operators.threshold import Threshold
from fedsgd.compression.operators.topk import TopK
from tests.compression.helpers import (
    draw_gaussian,
    make_context,
    relative_error,
)


def test_top_k_size_is_rounded_for_the_whole_vector_and_at_least_one() -> None:
    assert [top_k_size(d, 199_210) for d in (0.01, 1e-9, 1.0)] == [1992, 1, 199_210]


def test_sparsifier_with_any_value_format_encodes_coordinates() -> None:
    x = draw_gaussian(400)
    for value_format, operator_class in itertools.product(
        ("float32", "bfloat16", "float16", "natural", "int8", "int4"),
        (TopK, RandK, lambda **options: Threshold(1.0, **options)),
    ):
        op = operator_class(values=value_format)
        assert relative_error(op, x, make_context(400)) >= 0
        assert op.decode(op.encode(x, make_context(400))[0], make_context(400)).n_coordinates > 0
