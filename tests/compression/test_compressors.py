"""Exact small numbers and oracles of the compressors; what holds for all of them is in laws/."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsgd.compression import COMPRESSORS, CodecContext, ErrorFeedback, MemorylessScheme, SparseUpdate
from fedsgd.compression.operators.randk import RandK, random_support
from fedsgd.compression.operators.sparsifier import top_k_size
from fedsgd.compression.operators.topk import TopK, top_k
from fedsgd.errors import NonFiniteError, ScenarioError, WireError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout


def context(size: int, round: int = 1, client: int = 0) -> CodecContext:
    return CodecContext(0, round, client, ParameterLayout.from_size(size))


def f32(*values: float) -> F32:
    return np.array(values, dtype=np.float32)


@settings(max_examples=300)
@given(
    x=hnp.arrays(np.float32, st.integers(1, 200), elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 2.5, -3.0, 1e-40])),
    k=st.integers(1, 250),
)
def test_top_k_is_what_a_stable_sort_gives(x: F32, k: int) -> None:
    order = sorted(range(len(x)), key=lambda i: (-abs(float(x[i])), i))
    expected = sorted(i for i in order[:k] if x[i] != 0)
    indices, values = top_k(x, k)
    assert indices.tolist() == expected
    assert values.tobytes() == x[indices].tobytes()


def test_k_is_rounded_over_the_whole_vector_and_at_least_one() -> None:
    assert [top_k_size(d, 199_210) for d in (0.01, 1e-9, 1.0)] == [1992, 1, 199_210]


@pytest.mark.parametrize(("density", "energy"), [(0.001, 0.01270), (0.01, 0.08449), (0.1, 0.43929)])
def test_top_k_of_a_gaussian_keeps_the_energy_that_theory_says(density: float, energy: float) -> None:
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    kept = TopK(density).encode(x, context(len(x)))[1].to_dense()
    assert np.square(kept, dtype=np.float64).sum() / np.square(x, dtype=np.float64).sum() == pytest.approx(energy, rel=0.01)


def test_ternary_top_k_loses_exactly_what_its_docstring_says() -> None:
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    update = TopK(0.05, "ternary").encode(x, context(1000))[1]
    top = np.sort(np.abs(x).astype(np.float64))[-50:]
    expected = np.square(x, dtype=np.float64).sum() - top.sum() ** 2 / 50
    assert np.square(x - update.to_dense().astype(np.float64)).sum() == pytest.approx(expected, rel=1e-6)


def test_fewer_non_zeros_than_k_are_not_filled_up() -> None:
    update = TopK(0.5, "ternary").encode(f32(0, 4, 0, -2, 0, 0), context(6))[1]
    assert update.to_dense().tolist() == [0, 3, 0, -3, 0, 0]
    assert update.n_coordinates == 2


def test_more_coordinates_than_k_are_refused() -> None:
    sections, _ = TopK(0.5).encode(np.ones(10, np.float32), context(10))
    with pytest.raises(WireError, match="5 indices, expected 0 to 2"):
        TopK(0.2).decode(sections, context(10))


def test_rand_k_draws_anew_for_each_round_and_client_and_every_pair_alike() -> None:
    supports = {tuple(random_support(5, context(500, r, c)).tolist()) for r in range(1, 21) for c in range(5)}
    assert len(supports) == 100
    pairs = np.zeros((8, 8))
    for r in range(4000):
        chosen = random_support(2, context(8, r))
        pairs[chosen[0], chosen[1]] += 1
    observed = pairs[np.triu_indices(8, 1)]
    from scipy.stats import chisquare

    assert chisquare(observed).pvalue > 1e-4


def test_the_shared_support_never_changes() -> None:
    """The wire depends on it: a new version must draw the same positions from the same context."""
    assert random_support(5, CodecContext(0, 1, 0, ParameterLayout.from_size(1000))).tolist() == SUPPORT


SUPPORT = [267, 296, 732, 735, 987]


def test_rand_k_has_exactly_the_variance_of_theory() -> None:
    """E|C(x) − x|² = (P/k − 1)|x|², here over all supports of a tiny vector by exhaustion of the contexts drawn."""
    x = np.random.default_rng(3).standard_normal(40).astype(np.float32)
    errors = [np.square(RandK(0.25).encode(x, context(40, r))[1].to_dense() - x).sum() for r in range(6000)]
    assert np.mean(errors) == pytest.approx(3 * np.square(x).sum(), rel=0.03)


def test_error_feedback_by_hand() -> None:
    """k = 1 of 3: what is left out comes back, in exact binary fractions."""
    scheme, state = ErrorFeedback(TopK(1 / 3)), {}
    sent = []
    for x in (f32(4, 2, 1), f32(0, 1, 0), f32(0, 0, 1.5)):
        out = scheme.send(x, state, context(3))
        sent.append(scheme.decode(out.sections, context(3)).to_dense().tolist())
        state = dict(out.state)
    assert sent == [[4, 0, 0], [0, 3, 0], [0, 0, 2.5]]
    assert state["residual"].tolist() == [0, 0, 0]


def test_a_lost_reply_leaves_everything_in_the_residual() -> None:
    scheme = ErrorFeedback(TopK(1 / 3))
    first = scheme.send(f32(4, 2, 1), {}, context(3))
    assert first.state_if_lost["residual"].tolist() == [4, 2, 1]
    assert first.state["residual"].tolist() == [0, 2, 1]
    second = scheme.send(f32(1, 0, 0), first.state_if_lost, context(3))
    assert scheme.decode(second.sections, context(3)).to_dense().tolist() == [5, 0, 0]


def test_send_writes_to_nothing_it_was_given() -> None:
    x, residual = f32(4, 2, 1), f32(1, 1, 1)
    ErrorFeedback(TopK(1 / 3)).send(x, {"residual": residual}, context(3))
    assert x.tolist() == [4, 2, 1]
    assert residual.tolist() == [1, 1, 1]


def test_plain_remembers_nothing() -> None:
    sent = MemorylessScheme(TopK(1 / 3)).send(f32(4, 2, 1), {}, context(3))
    assert sent.state == sent.state_if_lost == {}


def test_adding_multiplies_in_the_type_of_the_sum() -> None:
    third = np.float32(1 / 3)
    out = np.zeros(2, dtype=np.float64)
    SparseUpdate(np.array([1]), np.array([third]), 2).add_to(out, 0.1)
    assert out.tolist() == [0.0, float(third) * 0.1]


@pytest.mark.parametrize(
    "bad", [{"density": 0.0}, {"density": 1.5}, {"density": "x"}, {"values": "float64"}, {"density": float("nan")}]
)
def test_bad_hyper_parameters_cannot_exist(bad: dict[str, object]) -> None:
    with pytest.raises(ScenarioError, match=r"^top-k\.(density|values): "):
        COMPRESSORS["top-k"](**bad)


def test_scaling_that_leaves_float32_names_round_and_client() -> None:
    with pytest.raises(NonFiniteError, match=r"round 3, client 4: scaling the update by P/k = 2 leaves"):
        RandK(0.5).encode(np.full(4, 3e38, np.float32), context(4, 3, 4))
