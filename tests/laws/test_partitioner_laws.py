"""The law suite of partitioners, over their registry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsgd.data import PARTITIONERS, Partition, partition
from fedsgd.data.partitioners.base import _repair
from fedsgd.data.partitioners.dirichlet import Dirichlet
from fedsgd.data.partitioners.iid import Iid
from fedsgd.data.partitioners.shards import Shards
from fedsgd.errors import DataError

NAMES = list(PARTITIONERS)
LABELS = np.random.default_rng(0).integers(0, 10, 6000)


def sole_shard(name: str) -> dict[str, int]:
    """Settings under which as many clients as examples are possible."""
    return {"shards_per_client": 1} if name == "shards" else {}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_an_exact_cover_without_empty_clients(name: str, data: st.DataObject, seed: int) -> None:
    labels = np.array(data.draw(st.lists(st.integers(-3, 5), min_size=1, max_size=80)))
    clients = data.draw(st.integers(1, len(labels)))
    split = partition(PARTITIONERS[name](clients=clients, **sole_shard(name)), labels, seed)
    assert len(split) == clients
    assert sorted(split.order.tolist()) == list(range(len(labels)))
    assert split.sizes().min() >= 1
    assert np.concatenate([split.rows(c) for c in range(clients)]).tolist() == split.order.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_function_of_the_seed_alone(name: str) -> None:
    member = PARTITIONERS[name](clients=50)
    first = partition(member, LABELS, 1)
    np.random.default_rng(5).random(100)
    again, other = partition(member, LABELS, 1), partition(member, LABELS, 2)
    assert (first.order == again.order).all()
    assert (first.bounds == again.bounds).all()
    assert not (first.order == other.order).all()


@pytest.mark.parametrize("name", NAMES)
def test_more_clients_than_examples_is_an_error(name: str) -> None:
    with pytest.raises(DataError, match="11 clients cannot share 10 examples"):
        partition(PARTITIONERS[name](clients=11), np.zeros(10, int), 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_thousand_clients_can_be_dealt_to(name: str) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 300_000)
    split = partition(PARTITIONERS[name](clients=100_000), labels, 0)
    assert len(split) == 100_000
    assert split.sizes().min() >= 1
    assert split.sizes().sum() == 300_000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targets", [np.linspace(0, 1, 30), np.zeros((30, 2), int)], ids=["floats", "two columns"])
def test_targets_that_are_no_classes_are_refused_or_never_looked_at(name: str, targets: np.ndarray) -> None:
    member = PARTITIONERS[name](clients=3)
    if member.by_class:
        with pytest.raises(DataError, match=rf'"{name}" splits by class label'):
            partition(member, targets, 0)
    else:
        assert partition(member, targets, 0).sizes().tolist() == [10, 10, 10]


def test_iid_sizes_differ_by_one_at_most() -> None:
    sizes = partition(Iid(clients=7), LABELS, 0).sizes()
    assert sizes.max() - sizes.min() <= 1


def test_shards_give_few_classes_and_equal_sizes() -> None:
    """McMahan: 100 clients, 200 shards of 300; a shard of sorted labels holds one class, rarely two."""
    labels = np.repeat(np.arange(10), 6000)[np.random.default_rng(0).permutation(60_000)]
    split = partition(Shards(clients=100), labels, 0)
    assert set(split.sizes().tolist()) == {600}
    classes = [len(np.unique(labels[split.rows(c)])) for c in range(100)]
    assert max(classes) <= 2
    assert sum(c == 2 for c in classes) > 80


def test_more_shards_than_examples_is_an_error() -> None:
    with pytest.raises(DataError, match="6 clients × 2 shards are 12 shards, but there are 10 examples"):
        partition(Shards(clients=6), np.zeros(10, int), 0)


def test_a_small_alpha_concentrates_and_a_large_one_evens_out() -> None:
    def largest_share(alpha: float) -> float:
        split = partition(Dirichlet(clients=10, alpha=alpha), LABELS, 0)
        counts = np.array([np.bincount(LABELS[split.rows(c)], minlength=10) for c in range(10)])
        return float((counts.max(axis=0) / counts.sum(axis=0)).mean())

    assert largest_share(0.05) > 0.7
    assert largest_share(1000.0) < 0.13


def test_dirichlet_shares_have_the_mean_and_variance_of_theory() -> None:
    """One class, 20 clients: a client's share has mean 1/20 and variance (1/20)(19/20)/(20α + 1)."""
    labels = np.zeros(20_000, dtype=np.int64)
    shares = np.array([partition(Dirichlet(clients=20, alpha=0.5), labels, s).sizes() for s in range(200)]) / 20_000
    assert shares.mean() == pytest.approx(0.05)
    assert shares.var() == pytest.approx(0.05 * 0.95 / 11, rel=0.1)


def test_empty_clients_are_repaired_from_the_largest() -> None:
    """Everything to one of five clients: each other gets one of its last examples, in ascending order."""
    split = partition(Dirichlet(clients=5, alpha=1e-9), np.zeros(12, int), 3)
    assert sorted(split.sizes().tolist()) == [1, 1, 1, 1, 8]


def test_of_owners_by_hand() -> None:
    split = Partition.of_owners(np.array([1, 0, 2, 1]), 3)
    assert [split.rows(c).tolist() for c in range(3)] == [[1], [0, 3], [2]]


def test_each_class_is_divided_by_a_draw_of_its_own() -> None:
    split = partition(Dirichlet(clients=5, alpha=0.3), LABELS, 0)
    counts = np.array([np.bincount(LABELS[split.rows(c)], minlength=10) for c in range(5)])
    favourites = counts.argmax(axis=0)
    assert len(set(favourites.tolist())) > 1


def test_which_examples_of_a_class_share_a_shard_is_random() -> None:
    rows = partition(Shards(clients=4), np.zeros(400, int), 0).rows(0)
    assert (np.diff(rows) > 1).sum() > 20, "two contiguous shards would leave one gap at most"


def test_repair_takes_the_last_example_of_the_largest_client_the_lowest_of_equals() -> None:
    """Sizes 3, 0, 3, 2, 0, 0: client 1 takes from 0, then 4 from 2, then, all being of size 2, 5 from 0."""
    owner = np.array([0, 0, 0, 2, 2, 2, 3, 3])
    assert _repair(owner, 6).tolist() == [0, 5, 1, 2, 2, 4, 3, 3]
    assert owner.tolist() == [0, 0, 0, 2, 2, 2, 3, 3]


def test_which_examples_of_a_class_a_client_gets_is_random() -> None:
    rows = partition(Dirichlet(clients=4, alpha=100.0), np.zeros(400, int), 0).rows(0)
    assert (np.diff(rows) > 1).sum() > 20
