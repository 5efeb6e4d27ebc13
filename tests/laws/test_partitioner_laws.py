"""The law suite of partitioners, over their registry."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsgd.config.component import FieldError
from fedsgd.data import PARTITIONERS, Dataset, Examples, Partition, Partitioner, partition_dataset, partition_examples
from fedsgd.data.partitioners.base import _fill_empty_clients, split_proportionally
from fedsgd.data.partitioners.dirichlet import Dirichlet
from fedsgd.data.partitioners.flwr_datasets import FlwrDatasets
from fedsgd.data.partitioners.iid import Iid
from fedsgd.data.partitioners.natural import NaturalPartition
from fedsgd.data.partitioners.pathological import Pathological
from fedsgd.data.partitioners.quantity import QuantitySkew
from fedsgd.data.partitioners.shards import Shards
from fedsgd.data.partitioners.skewed import LabelAndQuantitySkew
from fedsgd.errors import DataError

NAMES = list(PARTITIONERS)
LABELS = np.random.default_rng(0).integers(0, 10, 6000)


SLOW = {"flwr-datasets"}
"""Somebody else's code: held to the laws, but not to our speed."""


def examples(labels: np.ndarray, owner: np.ndarray | None = None) -> Examples:
    return Examples(np.zeros((len(labels), 1), np.float32), labels, None, np.arange(len(labels)) if owner is None else owner)


LABELLED = examples(LABELS)


def member(name: str, clients: int, labels: np.ndarray) -> Partitioner:
    """With settings under which as many clients as examples are possible."""
    needed: dict[str, dict[str, Any]] = {
        "shards": {"shards_per_client": 1},
        "pathological": {"classes_per_client": len(np.unique(labels))},
        "flwr-datasets": {"partitioner": "IidPartitioner"},
    }
    return PARTITIONERS[name](clients=clients, **needed.get(name, {}))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_an_exact_cover_without_empty_clients(name: str, data: st.DataObject, seed: int) -> None:
    labels = np.array(data.draw(st.lists(st.integers(-3, 5), min_size=1, max_size=80)))
    clients = data.draw(st.integers(1, len(labels)))
    split = partition_examples(member(name, clients, labels), examples(labels), seed)
    assert len(split) == clients
    assert sorted(split.order.tolist()) == list(range(len(labels)))
    assert split.sizes().min() >= 1
    assert np.concatenate([split.rows(c) for c in range(clients)]).tolist() == split.order.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_function_of_the_seed_alone(name: str) -> None:
    dealer = member(name, 50, LABELS)
    first = partition_examples(dealer, LABELLED, 1)
    np.random.default_rng(5).random(100)
    again, other = partition_examples(dealer, LABELLED, 1), partition_examples(dealer, LABELLED, 2)
    assert (first.order == again.order).all()
    assert (first.bounds == again.bounds).all()
    assert not (first.order == other.order).all()


@pytest.mark.parametrize("name", NAMES)
def test_more_clients_than_examples_is_an_error(name: str) -> None:
    with pytest.raises(DataError, match="11 clients cannot share 10 examples"):
        partition_examples(member(name, 11, np.zeros(10, int)), examples(np.zeros(10, int)), 0)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SLOW])
def test_a_hundred_thousand_clients_can_be_dealt_to(name: str) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 300_000)
    split = partition_examples(PARTITIONERS[name](clients=100_000), examples(labels), 0)
    assert len(split) == 100_000
    assert split.sizes().min() >= 1
    assert split.sizes().sum() == 300_000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targets", [np.linspace(0, 1, 30), np.zeros((30, 2), int)], ids=["floats", "two columns"])
def test_targets_that_are_no_classes_are_refused_or_never_looked_at(name: str, targets: np.ndarray) -> None:
    dealer = member(name, 3, LABELS)
    if dealer.needs_labels:
        with pytest.raises(DataError, match=rf'"{name}" splits by class label'):
            partition_examples(dealer, examples(targets), 0)
    else:
        assert partition_examples(dealer, examples(targets), 0).sizes().sum() == 30


def test_iid_sizes_differ_by_one_at_most() -> None:
    sizes = partition_examples(Iid(clients=7), LABELLED, 0).sizes()
    assert sizes.max() - sizes.min() <= 1


def test_shards_give_few_classes_and_equal_sizes() -> None:
    """McMahan: 100 clients, 200 shards of 300; a shard of sorted labels holds one class, rarely two."""
    labels = np.repeat(np.arange(10), 6000)[np.random.default_rng(0).permutation(60_000)]
    split = partition_examples(Shards(clients=100), examples(labels), 0)
    assert set(split.sizes().tolist()) == {600}
    classes = [len(np.unique(labels[split.rows(c)])) for c in range(100)]
    assert max(classes) <= 2
    assert sum(c == 2 for c in classes) > 80


def test_more_shards_than_examples_is_an_error() -> None:
    with pytest.raises(DataError, match="6 clients × 2 shards are 12 shards, but there are 10 examples"):
        partition_examples(Shards(clients=6), examples(np.zeros(10, int)), 0)


def test_a_small_alpha_concentrates_and_a_large_one_evens_out() -> None:
    def largest_share(alpha: float) -> float:
        split = partition_examples(Dirichlet(clients=10, alpha=alpha), LABELLED, 0)
        counts = np.array([np.bincount(LABELS[split.rows(c)], minlength=10) for c in range(10)])
        return float((counts.max(axis=0) / counts.sum(axis=0)).mean())

    assert largest_share(0.05) > 0.7
    assert largest_share(1000.0) < 0.13


def test_dirichlet_shares_have_the_mean_and_variance_of_theory() -> None:
    """One class, 20 clients: a client's share has mean 1/20 and variance (1/20)(19/20)/(20α + 1)."""
    labels = np.zeros(20_000, dtype=np.int64)
    shares = (
        np.array([partition_examples(Dirichlet(clients=20, alpha=0.5), examples(labels), s).sizes() for s in range(200)])
        / 20_000
    )
    assert shares.mean() == pytest.approx(0.05)
    assert shares.var() == pytest.approx(0.05 * 0.95 / 11, rel=0.1)


def test_empty_clients_are_repaired_from_the_largest() -> None:
    """Everything to one of five clients: each other gets one of its last examples, in ascending order."""
    split = partition_examples(Dirichlet(clients=5, alpha=1e-9), examples(np.zeros(12, int)), 3)
    assert sorted(split.sizes().tolist()) == [1, 1, 1, 1, 8]


def test_of_owners_by_hand() -> None:
    split = Partition.from_assignment(np.array([1, 0, 2, 1]), 3)
    assert [split.rows(c).tolist() for c in range(3)] == [[1], [0, 3], [2]]


def test_each_class_is_divided_by_a_draw_of_its_own() -> None:
    split = partition_examples(Dirichlet(clients=5, alpha=0.3), LABELLED, 0)
    counts = np.array([np.bincount(LABELS[split.rows(c)], minlength=10) for c in range(5)])
    favourites = counts.argmax(axis=0)
    assert len(set(favourites.tolist())) > 1


def test_which_examples_of_a_class_share_a_shard_is_random() -> None:
    rows = partition_examples(Shards(clients=4), examples(np.zeros(400, int)), 0).rows(0)
    assert (np.diff(rows) > 1).sum() > 20, "two contiguous shards would leave one gap at most"


def test_repair_takes_the_last_example_of_the_largest_client_the_lowest_of_equals() -> None:
    """Sizes 3, 0, 3, 2, 0, 0: client 1 takes from 0, then 4 from 2, then, all being of size 2, 5 from 0."""
    owner = np.array([0, 0, 0, 2, 2, 2, 3, 3])
    assert _fill_empty_clients(owner, 6).tolist() == [0, 5, 1, 2, 2, 4, 3, 3]
    assert owner.tolist() == [0, 0, 0, 2, 2, 2, 3, 3]


def test_which_examples_of_a_class_a_client_gets_is_random() -> None:
    rows = partition_examples(Dirichlet(clients=4, alpha=100.0), examples(np.zeros(400, int)), 0).rows(0)
    assert (np.diff(rows) > 1).sum() > 20


def table(split: Partition, labels: np.ndarray) -> np.ndarray:
    """Examples of each class that each client has [N, C]."""
    return np.array([np.bincount(labels[split.rows(c)], minlength=10) for c in range(len(split))])


def test_cut_by_hand() -> None:
    assert split_proportionally(np.array([0.5, 0.0, 0.25, 0.25]), 8).tolist() == [0, 0, 0, 0, 2, 2, 3, 3]
    assert split_proportionally(np.array([1.0]), 3).tolist() == [0, 0, 0]


def test_quantity_sizes_are_log_normal_and_classes_are_alike() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 200_000)
    split = partition_examples(QuantitySkew(clients=300, sigma=1.5), examples(labels), 0)
    logs = np.log(split.sizes())
    assert logs.std() == pytest.approx(1.5, rel=0.12)
    assert abs(float(((logs - logs.mean()) ** 3).mean() / logs.std() ** 3)) < 0.4, (
        "not skewed: it is the logarithm that is normal"
    )
    largest = int(split.sizes().argmax())
    assert table(split, labels)[largest] / split.sizes()[largest] == pytest.approx(np.full(10, 0.1), abs=0.02)


@pytest.mark.parametrize(("clients", "classes"), [(10, 2), (7, 3), (100, 1), (33, 4), (5, 10)])
def test_pathological_clients_have_so_many_classes_and_classes_as_many_clients(clients: int, classes: int) -> None:
    counts = table(partition_examples(Pathological(clients=clients, classes_per_client=classes), LABELLED, 0), LABELS) > 0
    assert set(counts.sum(axis=1).tolist()) == {classes}
    holders = counts.sum(axis=0)
    assert holders.max() - holders.min() <= 1


def test_pathological_classes_are_divided_evenly_and_pairs_vary() -> None:
    counts = table(partition_examples(Pathological(clients=50), LABELLED, 0), LABELS)
    for of_class in counts.T:
        assert np.ptp(of_class[of_class > 0]) <= 1
    assert len({tuple(np.flatnonzero(row)) for row in counts}) > 20


def test_which_examples_of_a_class_a_pathological_client_gets_is_random() -> None:
    rows = partition_examples(Pathological(clients=4, classes_per_client=1), examples(np.zeros(400, int)), 0).rows(0)
    assert (np.diff(rows) > 1).sum() > 20


@pytest.mark.parametrize(
    ("clients", "classes", "message"),
    [
        (10, 11, "11 classes for each client, but the dataset has 10"),
        (3, 2, "3 clients × 2 classes cannot hold the 10 classes"),
    ],
)
def test_pathological_splits_that_cannot_be_are_errors(clients: int, classes: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        partition_examples(Pathological(clients=clients, classes_per_client=classes), LABELLED, 0)


def test_skewed_sets_sizes_and_mixtures_by_themselves() -> None:
    """Sizes as log-normal as asked for whatever alpha is; a client's mixture as concentrated as Dirichlet(alpha) has it."""
    labels = np.random.default_rng(0).integers(0, 10, 200_000)
    for alpha, low, high in ((0.1, 0.6, 0.9), (100.0, 0.1, 0.15)):
        split = partition_examples(LabelAndQuantitySkew(clients=200, alpha=alpha, sigma=0.8), examples(labels), 0)
        assert np.log(split.sizes()).std() == pytest.approx(0.8, rel=0.15)
        counts = table(split, labels)
        assert low < float((counts.max(axis=1) / counts.sum(axis=1)).mean()) < high
    equal = partition_examples(LabelAndQuantitySkew(clients=200, alpha=0.1, sigma=1e-9), examples(labels), 0).sizes()
    assert equal.max() / equal.min() < 1.1, "equal sizes, though each client has few classes"


def test_skewed_survives_extreme_settings() -> None:
    split = partition_examples(LabelAndQuantitySkew(clients=20, alpha=1e-6, sigma=5.0), LABELLED, 0)
    assert split.sizes().min() >= 1
    assert split.sizes().sum() == len(LABELS)


@pytest.mark.parametrize("name", ["quantity", "skewed"])
def test_a_sigma_beyond_all_measure_leaves_one_example_to_each_but_one(name: str) -> None:
    sizes = np.sort(partition_examples(PARTITIONERS[name](clients=50, sigma=1e6), LABELLED, 0).sizes())
    assert sizes[:-1].tolist() == [1] * 49


def test_an_alpha_that_floats_cannot_hold_is_an_error() -> None:
    with pytest.raises(FieldError, match=r"alpha: expected a number above 0 and at most 3.4e38"):
        Dirichlet(clients=50, alpha=1e308)


OWNERS = np.array([7, 7, 2, 9, 2, 7, 9, 4])


def test_natural_clients_are_owners_in_their_order() -> None:
    split = partition_examples(NaturalPartition(), examples(np.zeros(8, int), OWNERS), 0)
    assert [split.rows(c).tolist() for c in range(4)] == [[2, 4], [7], [0, 1, 5], [3, 6]]


def test_natural_owners_stay_whole_in_fewer_clients() -> None:
    split = partition_examples(NaturalPartition(clients=2), examples(np.zeros(8, int), OWNERS), 0)
    owners = [set(OWNERS[split.rows(c)].tolist()) for c in range(2)]
    assert [len(o) for o in owners] == [2, 2]
    assert not owners[0] & owners[1]


def test_natural_without_owners_or_with_too_few_is_an_error() -> None:
    with pytest.raises(DataError, match="the dataset has no owners"):
        partition_examples(NaturalPartition(), Examples(np.zeros((3, 1)), np.zeros(3, int)), 0)
    with pytest.raises(DataError, match="5 clients cannot share 4 owners"):
        partition_examples(NaturalPartition(clients=5), examples(np.zeros(8, int), OWNERS), 0)


# --------------------------------------------------------------------------------------------------------- flwr-datasets


def flwr(partitioner: str, clients: int | None = 10, **arguments: object) -> FlwrDatasets:
    return FlwrDatasets(clients=clients, partitioner=partitioner, arguments=arguments)


def test_flwr_iid_is_shuffled_though_the_library_only_cuts() -> None:
    labels = np.sort(LABELS)
    counts = table(partition_examples(flwr("IidPartitioner"), examples(labels), 0), labels)
    assert counts.min() > 30


def test_flwr_dirichlet_gets_label_and_seed() -> None:
    splits = [partition_examples(flwr("DirichletPartitioner", alpha=0.1), LABELLED, seed) for seed in (0, 0, 1)]
    counts = table(splits[0], LABELS)
    assert (counts.max(axis=0) / counts.sum(axis=0)).mean() > 0.4
    assert (splits[0].order == splits[1].order).all()
    assert splits[0].sizes().tolist() != splits[2].sizes().tolist()


def test_flwr_natural_ids_are_owners_and_their_number_is_found() -> None:
    owner = np.arange(len(LABELS)) % 17
    split = partition_examples(flwr("NaturalIdPartitioner", None), examples(LABELS, owner), 0)
    assert len(split) == 17
    assert all(len(np.unique(owner[split.rows(c)])) == 1 for c in range(17))


@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")
def test_flwr_shards_leave_examples_to_nobody() -> None:
    split = partition_examples(flwr("ShardPartitioner", num_shards_per_partition=2, shard_size=20), LABELLED, 0)
    assert split.sizes().tolist() == [40] * 10
    assert len(set(split.order.tolist())) == 400


@pytest.mark.parametrize(
    "made",
    [
        flwr("ContinuousPartitioner", strictness=0.5),
        flwr(
            "DistributionPartitioner",
            distribution_array=[[0.5, 0.5]] * 10,
            num_unique_labels_per_partition=2,
            preassigned_num_samples_per_label=5,
        ),
        flwr("ExponentialPartitioner", 4),
        flwr("GroupedNaturalIdPartitioner", None, group_size=600),
        flwr("InnerDirichletPartitioner", None, partition_sizes=[600] * 10, alpha=0.5),
        flwr("LinearPartitioner"),
        flwr("PathologicalPartitioner", num_classes_per_partition=3, class_assignment_mode="deterministic"),
        flwr("SizePartitioner", None, partition_sizes=[600] * 10),
        flwr("SquarePartitioner"),
    ],
    ids=lambda made: made.partitioner,
)
def test_flwr_partitioners_by_rows_all_fit(made: FlwrDatasets) -> None:
    split = partition_examples(made, LABELLED, 0)
    assert len(split) == (4 if made.partitioner.startswith("Exponential") else 10)
    assert len(set(split.order.tolist())) == len(split.order) > 0.9 * len(LABELS)


def test_flwr_functions_and_arrays_are_given_as_toml_can() -> None:
    split = partition_examples(flwr("IdToSizeFncPartitioner", 3, partition_id_to_size_fn="numpy:exp"), LABELLED, 0)
    assert np.diff(split.sizes()).min() > 0


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (
            flwr("DirichletPartitionr"),
            FieldError,
            'partitioner: got "DirichletPartitionr", did you mean "DirichletPartitioner"',
        ),
        (flwr("VerticalEvenPartitioner"), FieldError, 'partitioner: got "VerticalEvenPartitioner"'),
        (flwr("DirichletPartitioner"), FieldError, "arguments: DirichletPartitioner does not take .*alpha"),
        (flwr("IidPartitioner", sigma=3), FieldError, "arguments: IidPartitioner does not take .*sigma"),
        (flwr("DirichletPartitioner", alpha=1.0, min_partition_size=9000), DataError, "DirichletPartitioner: "),
    ],
    ids=["misspelt", "by columns", "argument missing", "argument unknown", "refused by the library"],
)
def test_flwr_partitioners_that_cannot_be_made_are_named(made: FlwrDatasets, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        partition_examples(made, LABELLED, 0)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (flwr("IidPartitioner", num_partitions=3), "makes 3 partitions, but `clients` is 10"),
        (flwr("IidPartitioner", num_partitions=20), "makes 20 partitions, but `clients` is 10"),
        (flwr("NaturalIdPartitioner", 6500), "clients cannot share 6000 examples"),
        (flwr("IidPartitioner", None, num_partitions=6001), "6001 clients cannot share 6000 examples"),
        (flwr("NaturalIdPartitioner", 10), "makes 6000 partitions, but `clients` is 10"),
    ],
)
def test_flwr_partitions_of_another_number_than_asked_for_are_an_error(made: FlwrDatasets, message: str) -> None:
    with pytest.raises(DataError, match=message):
        partition_examples(made, LABELLED, 0)


@dataclass(frozen=True)
class Careless(Partitioner):
    """Gives examples to clients that there are not, or to fewer than there are."""

    name: ClassVar[str] = "careless"
    given: tuple[int, ...] = ()

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> np.ndarray:
        return np.array(self.given)


@pytest.mark.parametrize("given", [(0, 1, 2, 3), (0, 1, -1, -1), (-1, -1, -1, -1)])
def test_a_partitioner_that_miscounts_its_clients_is_found_out(given: tuple[int, ...]) -> None:
    with pytest.raises(
        DataError, match=r'"careless" assigns \d examples to \d clients, expected 3 clients with an example each'
    ):
        partition_examples(Careless(clients=3, given=given), examples(np.zeros(4, int)), 0)


def test_flwr_partitions_that_overlap_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr_datasets.partitioner import IidPartitioner

    monkeypatch.setattr(IidPartitioner, "load_partition", lambda self, client: {"index": [3, 4, client]})
    with pytest.raises(DataError, match="IidPartitioner: 30 examples assigned, but only 10 distinct examples"):
        partition_examples(flwr("IidPartitioner"), LABELLED, 0)


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    with pytest.raises(DataError, match=r'flwr_datasets is not installed: python -m pip install "fedsgd\[huggingface\]"'):
        partition_examples(flwr("IidPartitioner"), LABELLED, 0)


# ------------------------------------------------------------------------------------------------------------- held out


def dataset(labels: np.ndarray, owner: np.ndarray | None = None, test_owner: np.ndarray | None = None) -> Dataset:
    def part(n: int, who: np.ndarray | None) -> Examples:
        return Examples(np.zeros((n, 1), np.float32), labels[:n], None, who)

    return Dataset(part(len(labels), owner), part(5 if test_owner is None else len(test_owner), test_owner), 10)


@pytest.mark.parametrize("name", NAMES)
def test_held_out_examples_are_a_share_of_each_clients_own(name: str) -> None:
    data, dealer = dataset(LABELS, np.arange(len(LABELS))), member(name, 60, LABELS)
    whole = partition_examples(dealer, data.train, 3)
    train, test = partition_dataset(data, dealer, 0.25, 3)
    assert test is not None
    for client in range(60):
        own, kept, held = (set(p.rows(client).tolist()) for p in (whole, train.partition, test.partition))
        assert kept | held == own
        assert not kept & held
        assert len(held) == (max(1, round(0.25 * len(own))) if len(own) > 1 else 0) or len(own) - len(held) == 1


def test_a_client_with_one_example_trains_on_it() -> None:
    train, test = partition_dataset(dataset(np.arange(10)), Iid(clients=6), 0.9, 0)
    assert test is not None
    assert train.partition.sizes().tolist() == [1] * 6
    assert sorted(test.partition.sizes().tolist()) == [0, 0, 1, 1, 1, 1]


def test_which_examples_are_held_out_is_random() -> None:
    _, test = partition_dataset(dataset(LABELS), Iid(clients=1), 0.5, 0)
    assert test is not None
    assert 2500 < int(np.median(test.partition.rows(0))) < 3500
    _, other = partition_dataset(dataset(LABELS), Iid(clients=1), 0.5, 1)
    assert other is not None
    assert test.partition.rows(0).tolist() != other.partition.rows(0).tolist()


def test_clients_are_tested_on_the_test_examples_of_their_owners() -> None:
    owner, test_owner = np.array([5, 5, 1, 10**15, 10**15]), np.array([10**15, 1, 3, 10**15])
    data = dataset(np.zeros(5, int), owner, test_owner)
    _, test = partition_dataset(data, NaturalPartition(), 0.0, 0)
    assert test is not None
    assert [test.partition.rows(c).tolist() for c in range(3)] == [[1], [], [0, 3]]
    assert test.examples is data.test
    assert partition_dataset(data, Iid(clients=2), 0.0, 0)[1] is None, "owners are torn apart"
    assert partition_dataset(dataset(np.zeros(5, int)), Iid(clients=2), 0.0, 0)[1] is None, "no owners"
