"""Synthetic clients: reproducibility, and the distribution of the paper."""

from __future__ import annotations

import numpy as np
import pytest

from fedsgd.data.datasets.synthetic import Synthetic
from fedsgd.errors import ScenarioError
from tests.data.samples import have_equal_arrays


def test_synthetic_examples_depend_on_seed_and_client_only() -> None:
    few, many = Synthetic(clients=3), Synthetic(clients=10**9, test_clients=7)
    reversed_order = [many.examples_of(client, 5) for client in (2, 1, 0)][::-1]
    for client, examples in enumerate(reversed_order):
        assert have_equal_arrays(few.examples_of(client, 5), examples)
        assert not have_equal_arrays(few.examples_of(client, 6), examples)
    assert not have_equal_arrays(reversed_order[0], reversed_order[1])
    assert not have_equal_arrays(few.examples_of(10**8, 5), many.examples_of(10**8 + 3, 5)), "numbers must not repeat"


def test_synthetic_examples_have_known_values() -> None:
    """A change of these examples changes every published run. If a new version of numpy changes them, update the figures."""
    x, y = Synthetic().examples_of(123_456, 7).arrays()
    assert (x.dtype, x.shape, y.dtype, y.shape) == (np.float32, (50, 60), np.int64, (50,))
    assert x[0, :3].tolist() == pytest.approx([-0.33073, -0.610542, 0.184676], abs=1e-6)
    assert y[:8].tolist() == [2, 2, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("iid", [False, True])
def test_synthetic_labels_follow_the_model_of_the_client(iid: bool) -> None:
    source = Synthetic(iid=iid)
    for client in range(20):
        variables, (x, y) = source.draw_client(client, 3), source.examples_of(client, 3).arrays()
        scores = np.exp(x.astype(np.float64) @ variables.W.T + variables.b)
        assert (y == (scores / scores.sum(axis=1, keepdims=True)).argmax(axis=1)).all()


def test_synthetic_first_examples_do_not_depend_on_their_number() -> None:
    few, many = (Synthetic(examples=n).examples_of(4, 0).arrays() for n in (3, 30))
    assert few[0].tobytes() == many[0][:3].tobytes()
    assert few[1].tolist() == many[1][:3].tolist()


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.5, 2.0), (4.0, 0.25)])
def test_synthetic_variables_have_means_and_variances_of_the_paper(alpha: float, beta: float) -> None:
    """For m clients and variance s, the standard error is √(s/m) of the mean and s·√(2/m) of the variance; five are allowed."""
    m, source = 2000, Synthetic(alpha=alpha, beta=beta, examples=1)
    clients = [source.draw_client(client, 11) for client in range(m)]
    for values, variance in ((np.array([c.u for c in clients]), alpha), (np.array([c.B for c in clients]), beta)):
        assert abs(values.mean()) <= 5 * np.sqrt(variance / m)
        assert abs(values.var() - variance) <= 5 * variance * np.sqrt(2 / m)
    deviations = {
        "W": np.array([(c.W - c.u).ravel() for c in clients]),
        "b": np.array([c.b - c.u for c in clients]),
        "v": np.array([c.v - c.B for c in clients]),
    }
    for name, values in deviations.items():
        assert abs(values.mean()) <= 5 / np.sqrt(values.size), name
        assert abs(values.var() - 1) <= 5 * np.sqrt(2 / values.size), name
    assert [values.shape[1] for values in deviations.values()] == [600, 10, 60]


def test_synthetic_examples_have_mean_of_client_and_variances_of_the_paper() -> None:
    n, source = 20_000, Synthetic(examples=20_000)
    deviations = source.examples_of(1, 0).x - source.draw_client(1, 0).v
    variance = np.arange(1, 61) ** -1.2
    assert (np.abs(deviations.mean(axis=0)) <= 5 * np.sqrt(variance / n)).all()
    assert (np.abs(deviations.var(axis=0) - variance) <= 5 * variance * np.sqrt(2 / n)).all()
    assert np.abs(np.corrcoef(deviations.T) - np.eye(60)).max() <= 6 / np.sqrt(n)


def test_synthetic_iid_clients_have_one_model_and_mean_zero() -> None:
    source = Synthetic(iid=True, alpha=3, beta=3)
    first, second = source.draw_client(0, 0), source.draw_client(1, 0)
    assert first.W.tobytes() == second.W.tobytes()
    assert first.b.tobytes() == second.b.tobytes()
    assert not first.v.any()
    assert not have_equal_arrays(source.examples_of(0, 0), source.examples_of(1, 0))
    assert abs(first.W.var() - 1) < 5 * np.sqrt(2 / 600)
    assert source.draw_client(0, 1).W.tobytes() != first.W.tobytes()


def test_synthetic_alpha_changes_no_label() -> None:
    """A property of the paper's distribution: see the docstring of `Synthetic`."""
    labels = [Synthetic(alpha=alpha).examples_of(2, 0).y.tolist() for alpha in (0, 1, 100)]
    assert labels[0] == labels[1] == labels[2]


def test_synthetic_log_normal_sizes_have_the_distribution_of_the_authors() -> None:
    """The logarithm of the additional examples is N(4, 2²), apart from rounding down."""
    source = Synthetic(sizes="log-normal")
    sizes = source.sizes_of(np.arange(20_000), seed=1)
    additions = np.log(sizes - source.examples + 0.5)
    assert sizes.min() >= 50
    assert abs(float(np.median(additions)) - 4.0) < 0.06
    assert abs(float(np.quantile(additions, 0.8413)) - 6.0) < 0.1
    assert float(np.mean(sizes == source.examples)) == pytest.approx(0.0228, abs=0.005)  # P(z < −2): fewer than one


def test_synthetic_client_has_the_number_of_examples_that_its_size_gives() -> None:
    source = Synthetic(clients=6, sizes="log-normal", size_mean=2.0, size_sigma=1.0)
    sizes = source.sizes_of(np.arange(6), seed=4)
    assert len(set(sizes.tolist())) > 3
    assert [len(source.examples_of(client, 4)) for client in range(6)] == sizes.tolist()
    assert source.sizes_of(np.array([5, 1]), 4).tolist() == [sizes[5], sizes[1]]
    small = Synthetic(clients=6).examples_of(2, 4)
    assert small.x[:50].tobytes() == source.examples_of(2, 4).x[:50].tobytes()


def test_synthetic_sizes_that_overflow_raise_error() -> None:
    with pytest.raises(ScenarioError, match=r"size_sigma: got 20, with which a client has .* expected fewer than 10,000,000"):
        Synthetic(sizes="log-normal", size_sigma=20.0).sizes_of(np.arange(100), 0)
