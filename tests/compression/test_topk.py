"""Top-k: exact selection, ties, energy of Gaussian vectors, ternary values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsgd.compression import COMPRESSORS, ErrorFeedback, SparseUpdate
from fedsgd.compression.kernels.top_k import top_k
from fedsgd.compression.operators.per_layer import PerLayer
from fedsgd.compression.operators.scheduled import Scheduled
from fedsgd.compression.operators.topk import TopK
from fedsgd.config.component import FieldError
from fedsgd.errors import ScenarioError, WireError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from tests.compression.helpers import draw_gaussian, make_context
from tests.effort import examples


@examples(100)
@given(
    x=hnp.arrays(np.float32, st.integers(1, 200), elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 2.5, -3.0, 1e-40])),
    k=st.integers(1, 250),
)
def test_top_k_equals_a_stable_sort(x: F32, k: int) -> None:
    order = sorted(range(len(x)), key=lambda i: (-abs(float(x[i])), i))
    expected = sorted(i for i in order[:k] if x[i] != 0)
    indices, values = top_k(x, k)
    assert indices.tolist() == expected
    assert values.tobytes() == x[indices].tobytes()


@pytest.mark.parametrize(("density", "energy"), [(0.001, 0.01270), (0.01, 0.08449), (0.1, 0.43929)])
def test_top_k_of_gaussian_vector_keeps_the_expected_energy(density: float, energy: float) -> None:
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    decoded = TopK(density).encode(x, make_context(len(x)))[1].to_dense()
    assert np.square(decoded, dtype=np.float64).sum() / np.square(x, dtype=np.float64).sum() == pytest.approx(energy, rel=0.01)


def test_ternary_top_k_error_equals_the_formula_of_the_docstring() -> None:
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    update = TopK(0.05, "ternary").encode(x, make_context(1000))[1]
    top = np.sort(np.abs(x).astype(np.float64))[-50:]
    expected = np.square(x, dtype=np.float64).sum() - top.sum() ** 2 / 50
    assert np.square(x - update.to_dense().astype(np.float64)).sum() == pytest.approx(expected, rel=1e-6)


def test_ternary_top_k_with_fewer_non_zeros_than_k_sends_no_zeros() -> None:
    update = TopK(0.5, "ternary").encode(np.array([0, 4, 0, -2, 0, 0], dtype=np.float32), make_context(6))[1]
    assert update.to_dense().tolist() == [0, 3, 0, -3, 0, 0]
    assert update.n_coordinates == 2


def test_decoder_rejects_more_coordinates_than_k() -> None:
    sections, _ = TopK(0.5).encode(np.ones(10, np.float32), make_context(10))
    with pytest.raises(WireError, match="5 indices, expected 0 to 2"):
        TopK(0.2).decode(sections, make_context(10))


@pytest.mark.parametrize(
    "options", [{"density": 0.0}, {"density": 1.5}, {"density": "x"}, {"values": "float64"}, {"density": float("nan")}]
)
def test_top_k_rejects_invalid_hyper_parameters(options: dict[str, object]) -> None:
    with pytest.raises(ScenarioError, match=r"^top-k\.(density|values): "):
        COMPRESSORS["top-k"](**options)


# ------------------------------------------------------------------------------------------------------------------ chunks


@examples(100)
@given(
    x=hnp.arrays(np.float32, st.integers(1, 200), elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 2.5, -3.0, 1e-40])),
    length=st.integers(1, 80),
    density=st.floats(0.01, 1),
)
def test_each_chunk_sends_its_largest_coordinates(x: F32, length: int, density: float) -> None:
    expected = []
    for start in range(0, len(x), length):
        part = x[start : start + length]
        order = sorted(range(len(part)), key=lambda i: (-abs(float(part[i])), i))
        selection = order[: max(1, round(density * len(part)))]
        expected += [start + i for i in sorted(selection) if part[i] != 0]
    op, ctx = TopK(density, chunk=length), make_context(len(x))
    sections, update = op.encode(x, ctx)
    assert isinstance(update, SparseUpdate)
    assert update.indices.tolist() == expected
    assert update.values.tobytes() == x[expected].tobytes()
    assert op.decode(sections, ctx).to_dense().tobytes() == update.to_dense().tobytes()


def test_long_chunks_send_their_largest_coordinates() -> None:
    """Chunks of more than 1024 coordinates are selected by counting, in compiled code."""
    x = draw_gaussian(3 * 4096 + 100)
    update = TopK(1 / 64, chunk=4096).encode(x, make_context(len(x)))[1]
    chunks = [np.abs(x[start : start + 4096]) for start in range(0, len(x), 4096)]
    thresholds = [np.sort(chunk)[-max(1, round(len(chunk) / 64))] for chunk in chunks]
    expected = [4096 * c + i for c, chunk in enumerate(chunks) for i in np.flatnonzero(chunk >= thresholds[c]).tolist()]
    assert isinstance(update, SparseUpdate)
    assert update.indices.tolist() == expected
    assert len(expected) == 3 * 64 + 2


def test_codec_id_of_top_k_depends_on_chunks() -> None:
    assert (TopK.codec, TopK().codec, TopK(chunk=64).codec, ErrorFeedback(TopK(chunk=64)).codec) == (2, 2, 15, 15)


@pytest.mark.parametrize(
    ("op", "size", "expected"),
    [
        (TopK(1 / 64, chunk=4096), 8192, 1 / 64),
        (TopK(0.1, chunk=16), 40, 1 / 8),
        (TopK(0.1, "ternary", chunk=16), 40, 1 / 8 / 5),
        (TopK(0.1, chunk=16), 8, 1 / 8),
    ],
)
def test_contraction_of_chunks_is_that_of_the_sparsest_chunk(op: TopK, size: int, expected: float) -> None:
    """Two of 16 coordinates are sent by a whole chunk, and one of the last 8."""
    assert op.contraction(ParameterLayout.from_size(size)) == pytest.approx(expected)


def test_contraction_of_chunks_is_reached_by_equal_coordinates() -> None:
    op, x = TopK(0.1, chunk=16), np.ones(48, np.float32)
    error = np.square(x - op.encode(x, make_context(48))[1].to_dense()).sum()
    assert error == pytest.approx((1 - op.contraction(ParameterLayout.from_size(48))) * 48)


def test_chunk_longer_than_the_vector_is_rejected() -> None:
    layout = ParameterLayout(("w", "b"), ((10, 10), (10,)))
    with pytest.raises(FieldError, match=r"^top-k\.chunk: got 4096, expected at most 110, the number of coordinates"):
        ErrorFeedback(Scheduled(TopK(chunk=4096))).check_layout(layout)
    with pytest.raises(FieldError, match=r"^top-k\.chunk: got 64, expected at most 10,"):
        PerLayer(TopK(chunk=64), separate=True).check_layout(layout)
    PerLayer(TopK(chunk=64)).check_layout(layout)


@pytest.mark.parametrize("chunk", [0, 2**16 + 1, 2.5, "all"])
def test_invalid_chunk_is_rejected(chunk: object) -> None:
    with pytest.raises(ScenarioError, match=r"^top-k\.chunk: expected a whole number from 1 to 65536"):
        COMPRESSORS["top-k"](chunk=chunk)


def test_decoder_rejects_chunks_of_another_density() -> None:
    sections, _ = TopK(0.5, chunk=10).encode(np.ones(100, np.float32), make_context(100))
    with pytest.raises(WireError, match="bytes of positions, expected"):
        TopK(0.1, chunk=10).decode(sections, make_context(100))
