"""Laws of all registered partitioners on random labels, and tests of each partitioner."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.config.component import FieldError
from fedsgd.data import PARTITIONERS, Dataset, Examples, Partition, Partitioner, partition_dataset, partition_examples
from fedsgd.data.datasets.synthetic import Synthetic
from fedsgd.data.generated import generate_clients
from fedsgd.data.partitioners.base import _fill_empty_clients, split_proportionally
from fedsgd.data.partitioners.contiguous import Contiguous
from fedsgd.data.partitioners.dirichlet import Dirichlet
from fedsgd.data.partitioners.flwr_datasets import FlwrDatasets
from fedsgd.data.partitioners.iid import Iid
from fedsgd.data.partitioners.natural import NaturalPartition
from fedsgd.data.partitioners.pathological import Pathological
from fedsgd.data.partitioners.quantity import QuantitySkew
from fedsgd.data.partitioners.shards import Shards
from fedsgd.data.partitioners.skewed import LabelAndQuantitySkew
from fedsgd.errors import DataError
from fedsgd.testing.partitioner_laws import covered_examples, valid_partition
from tests.effort import examples, nightly_unless

NAMES = list(PARTITIONERS)
LABELS = np.random.default_rng(0).integers(0, 10, 6000)


SLOW = {"flwr-datasets"}
"""Partitioners of another library, which obey the laws but may be slow."""


def make_examples(labels: np.ndarray, writer: np.ndarray | None = None) -> Examples:
    """Return examples with these labels; by default each example has its own writer."""
    return Examples(np.zeros((len(labels), 1), np.float32), labels, None, np.arange(len(labels)) if writer is None else writer)


LABELLED = make_examples(LABELS)


def make_partitioner(name: str, clients: int, labels: np.ndarray) -> Partitioner:
    """Return a registered partitioner with settings that allow as many clients as examples."""
    settings: dict[str, dict[str, Any]] = {
        "shards": {"shards_per_client": 1},
        "pathological": {"classes_per_client": len(np.unique(labels))},
        "flwr-datasets": {"partitioner": "IidPartitioner"},
    }
    return PARTITIONERS[name](clients=clients, **settings.get(name, {}))


@pytest.mark.sampled
@pytest.mark.parametrize("name", NAMES)
@examples(20)
@given(data=st.data())
def test_partition_covers_all_examples_without_empty_clients(name: str, data: st.DataObject) -> None:
    labels = np.array(data.draw(st.lists(st.integers(-3, 5), min_size=1, max_size=80)))
    clients = data.draw(st.integers(1, len(labels)))
    partitioner, examples = make_partitioner(name, clients, labels), make_examples(labels)
    valid_partition(partitioner, examples)
    covered_examples(partitioner, examples)


@pytest.mark.sampled
@pytest.mark.parametrize("name", [name for name in NAMES if name != "contiguous"])
def test_partitions_of_other_seeds_differ(name: str) -> None:
    partitioner = make_partitioner(name, 50, LABELS)
    first, second = (partition_examples(partitioner, LABELLED, seed) for seed in (1, 2))
    assert not (first.order == second.order).all()


@pytest.mark.parametrize("name", NAMES)
def test_more_clients_than_examples_raise_error(name: str) -> None:
    with pytest.raises(DataError, match="11 clients cannot share 10 examples"):
        partition_examples(make_partitioner(name, 11, np.zeros(10, int)), make_examples(np.zeros(10, int)), 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", nightly_unless(("iid", "dirichlet", "skewed").__contains__, [name for name in NAMES if name not in SLOW])
)
def test_partition_of_a_hundred_thousand_clients_has_no_empty_client(name: str) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 300_000)
    partition = partition_examples(PARTITIONERS[name](clients=100_000), make_examples(labels), 0)
    assert len(partition) == 100_000
    assert partition.sizes().min() >= 1
    assert partition.sizes().sum() == 300_000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targets", [np.linspace(0, 1, 30), np.zeros((30, 2), int)], ids=["floats", "two columns"])
def test_targets_without_classes_raise_error_if_labels_are_needed(name: str, targets: np.ndarray) -> None:
    partitioner = make_partitioner(name, 3, LABELS)
    if partitioner.needs_labels:
        with pytest.raises(DataError, match=rf'"{name}" splits by class label'):
            partition_examples(partitioner, make_examples(targets), 0)
    else:
        assert partition_examples(partitioner, make_examples(targets), 0).sizes().sum() == 30


def test_iid_sizes_differ_by_one_at_most() -> None:
    sizes = partition_examples(Iid(clients=7), LABELLED, 0).sizes()
    assert sizes.max() - sizes.min() <= 1


def test_shards_clients_have_few_classes_and_equal_sizes() -> None:
    """With 100 clients and 200 shards of 300 examples, as in McMahan et al., a shard has one class, rarely two."""
    labels = np.repeat(np.arange(10), 6000)[np.random.default_rng(0).permutation(60_000)]
    partition = partition_examples(Shards(clients=100), make_examples(labels), 0)
    assert set(partition.sizes().tolist()) == {600}
    classes = [len(np.unique(labels[partition.rows(c)])) for c in range(100)]
    assert max(classes) <= 2
    assert sum(c == 2 for c in classes) > 80


def test_shards_more_than_examples_raise_error() -> None:
    with pytest.raises(DataError, match="6 clients × 2 shards are 12 shards, but there are 10 examples"):
        partition_examples(Shards(clients=6), make_examples(np.zeros(10, int)), 0)


def test_dirichlet_small_alpha_concentrates_classes() -> None:
    def largest_share(alpha: float) -> float:
        partition = partition_examples(Dirichlet(clients=10, alpha=alpha), LABELLED, 0)
        counts = np.array([np.bincount(LABELS[partition.rows(c)], minlength=10) for c in range(10)])
        return float((counts.max(axis=0) / counts.sum(axis=0)).mean())

    assert largest_share(0.05) > 0.7
    assert largest_share(1000.0) < 0.13


@pytest.mark.slow
def test_dirichlet_shares_have_the_mean_and_variance_of_theory() -> None:
    """For one class and 20 clients, a client's share has mean 1/20 and variance (1/20)(19/20)/(20α + 1)."""
    labels = np.zeros(20_000, dtype=np.int64)
    shares = (
        np.array([partition_examples(Dirichlet(clients=20, alpha=0.5), make_examples(labels), s).sizes() for s in range(200)])
        / 20_000
    )
    assert shares.mean() == pytest.approx(0.05)
    assert shares.var() == pytest.approx(0.05 * 0.95 / 11, rel=0.1)


def test_empty_clients_get_examples_of_the_largest() -> None:
    """One of five clients has all examples, and each other client gets one of them."""
    partition = partition_examples(Dirichlet(clients=5, alpha=1e-9), make_examples(np.zeros(12, int)), 3)
    assert sorted(partition.sizes().tolist()) == [1, 1, 1, 1, 8]


def test_partition_from_assignment_matches_hand_computed_rows() -> None:
    partition = Partition.from_assignment(np.array([1, 0, 2, 1]), 3)
    assert [partition.rows(c).tolist() for c in range(3)] == [[1], [0, 3], [2]]


def test_dirichlet_each_class_has_its_own_draw() -> None:
    partition = partition_examples(Dirichlet(clients=5, alpha=0.3), LABELLED, 0)
    counts = np.array([np.bincount(LABELS[partition.rows(c)], minlength=10) for c in range(5)])
    favourites = counts.argmax(axis=0)
    assert len(set(favourites.tolist())) > 1


def test_shards_have_random_examples_of_a_class() -> None:
    rows = partition_examples(Shards(clients=4), make_examples(np.zeros(400, int)), 0).rows(0)
    assert (np.diff(rows) > 1).sum() > 20, "two contiguous shards would have one gap at most"


def test_empty_clients_get_last_example_of_the_largest_lowest_client() -> None:
    """Sizes are 3, 0, 3, 2, 0, 0. Client 1 gets an example of 0, client 4 of 2, and client 5, with sizes of 2, of 0."""
    assignment = np.array([0, 0, 0, 2, 2, 2, 3, 3])
    assert _fill_empty_clients(assignment, 6).tolist() == [0, 5, 1, 2, 2, 4, 3, 3]
    assert assignment.tolist() == [0, 0, 0, 2, 2, 2, 3, 3]


def test_dirichlet_clients_get_random_examples_of_a_class() -> None:
    rows = partition_examples(Dirichlet(clients=4, alpha=100.0), make_examples(np.zeros(400, int)), 0).rows(0)
    assert (np.diff(rows) > 1).sum() > 20


def count_classes(partition: Partition, labels: np.ndarray) -> np.ndarray:
    """Return the number of examples of each class at each client, [N, K]."""
    return np.array([np.bincount(labels[partition.rows(c)], minlength=10) for c in range(len(partition))])


def test_split_proportionally_matches_hand_computed_clients() -> None:
    assert split_proportionally(np.array([0.5, 0.0, 0.25, 0.25]), 8).tolist() == [0, 0, 0, 0, 2, 2, 3, 3]
    assert split_proportionally(np.array([1.0]), 3).tolist() == [0, 0, 0]


def test_quantity_sizes_are_log_normal_and_classes_are_equal() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 200_000)
    partition = partition_examples(QuantitySkew(clients=300, sigma=1.5), make_examples(labels), 0)
    logs = np.log(partition.sizes())
    assert logs.std() == pytest.approx(1.5, rel=0.12)
    assert abs(float(((logs - logs.mean()) ** 3).mean() / logs.std() ** 3)) < 0.4, (
        "the logarithm of the sizes is normal, so it is not skewed"
    )
    largest = int(partition.sizes().argmax())
    assert count_classes(partition, labels)[largest] / partition.sizes()[largest] == pytest.approx(np.full(10, 0.1), abs=0.02)


@pytest.mark.parametrize(("clients", "classes"), [(10, 2), (7, 3), (100, 1), (33, 4), (5, 10)])
def test_pathological_clients_have_set_number_of_classes(clients: int, classes: int) -> None:
    counts = (
        count_classes(partition_examples(Pathological(clients=clients, classes_per_client=classes), LABELLED, 0), LABELS) > 0
    )
    assert set(counts.sum(axis=1).tolist()) == {classes}
    n_clients = counts.sum(axis=0)
    assert n_clients.max() - n_clients.min() <= 1


def test_pathological_classes_are_divided_evenly_and_pairs_vary() -> None:
    counts = count_classes(partition_examples(Pathological(clients=50), LABELLED, 0), LABELS)
    for class_counts in counts.T:
        assert np.ptp(class_counts[class_counts > 0]) <= 1
    assert len({tuple(np.flatnonzero(row)) for row in counts}) > 20


def test_pathological_clients_get_random_examples_of_a_class() -> None:
    rows = partition_examples(Pathological(clients=4, classes_per_client=1), make_examples(np.zeros(400, int)), 0).rows(0)
    assert (np.diff(rows) > 1).sum() > 20


@pytest.mark.parametrize(
    ("clients", "classes", "message"),
    [
        (10, 11, "classes_per_client: got 11, expected at most 10"),
        (3, 2, "data.partition.clients: got 3 clients with 2 classes each, expected at least the 10 classes"),
    ],
)
def test_pathological_impossible_settings_raise_error(clients: int, classes: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        partition_examples(Pathological(clients=clients, classes_per_client=classes), LABELLED, 0)


def test_skewed_sizes_and_mixtures_are_independent() -> None:
    """For any alpha, the sizes are log-normal with sigma, and a client's mixture is as concentrated as Dirichlet(alpha)."""
    labels = np.random.default_rng(0).integers(0, 10, 200_000)
    for alpha, low, high in ((0.1, 0.6, 0.9), (100.0, 0.1, 0.15)):
        partition = partition_examples(LabelAndQuantitySkew(clients=200, alpha=alpha, sigma=0.8), make_examples(labels), 0)
        assert np.log(partition.sizes()).std() == pytest.approx(0.8, rel=0.15)
        counts = count_classes(partition, labels)
        assert low < float((counts.max(axis=1) / counts.sum(axis=1)).mean()) < high
    equal = partition_examples(LabelAndQuantitySkew(clients=200, alpha=0.1, sigma=1e-9), make_examples(labels), 0).sizes()
    assert equal.max() / equal.min() < 1.1, "sizes are equal although each client has few classes"


def test_skewed_extreme_settings_give_valid_partition() -> None:
    partition = partition_examples(LabelAndQuantitySkew(clients=20, alpha=1e-6, sigma=5.0), LABELLED, 0)
    assert partition.sizes().min() >= 1
    assert partition.sizes().sum() == len(LABELS)


@pytest.mark.parametrize("name", ["quantity", "skewed"])
def test_huge_sigma_leaves_one_example_to_all_clients_but_one(name: str) -> None:
    sizes = np.sort(partition_examples(PARTITIONERS[name](clients=50, sigma=1e6), LABELLED, 0).sizes())
    assert sizes[:-1].tolist() == [1] * 49


def test_dirichlet_alpha_beyond_float32_raises_error() -> None:
    with pytest.raises(FieldError, match=r"alpha: expected a number above 0 and at most 3.4e38"):
        Dirichlet(clients=50, alpha=1e308)


OWNERS = np.array([7, 7, 2, 9, 2, 7, 9, 4])


def test_natural_clients_are_owners_in_ascending_order() -> None:
    partition = partition_examples(NaturalPartition(), make_examples(np.zeros(8, int), OWNERS), 0)
    assert [partition.rows(c).tolist() for c in range(4)] == [[2, 4], [7], [0, 1, 5], [3, 6]]


def test_natural_owners_stay_together_with_fewer_clients() -> None:
    partition = partition_examples(NaturalPartition(clients=2), make_examples(np.zeros(8, int), OWNERS), 0)
    owners = [set(OWNERS[partition.rows(c)].tolist()) for c in range(2)]
    assert [len(names) for names in owners] == [2, 2]
    assert not owners[0] & owners[1]


def test_natural_without_enough_owners_raises_error() -> None:
    with pytest.raises(DataError, match="the dataset has no owners"):
        partition_examples(NaturalPartition(), Examples(np.zeros((3, 1)), np.zeros(3, int)), 0)
    with pytest.raises(DataError, match="5 clients cannot share 4 owners"):
        partition_examples(NaturalPartition(clients=5), make_examples(np.zeros(8, int), OWNERS), 0)


# --------------------------------------------------------------------------------------------------------- flwr-datasets


def make_flwr_partitioner(partitioner: str, clients: int | None = 10, **arguments: object) -> FlwrDatasets:
    """Return the adapter of a partitioner of flwr-datasets."""
    return FlwrDatasets(clients=clients, partitioner=partitioner, arguments=arguments)


def test_flwr_iid_examples_are_shuffled() -> None:
    labels = np.sort(LABELS)
    counts = count_classes(partition_examples(make_flwr_partitioner("IidPartitioner"), make_examples(labels), 0), labels)
    assert counts.min() > 30


@pytest.mark.slow
def test_flwr_dirichlet_receives_label_and_seed() -> None:
    partitions = [
        partition_examples(make_flwr_partitioner("DirichletPartitioner", alpha=0.1), LABELLED, seed) for seed in (0, 0, 1)
    ]
    counts = count_classes(partitions[0], LABELS)
    assert (counts.max(axis=0) / counts.sum(axis=0)).mean() > 0.4
    assert (partitions[0].order == partitions[1].order).all()
    assert partitions[0].sizes().tolist() != partitions[2].sizes().tolist()


@pytest.mark.slow
def test_flwr_natural_id_clients_are_owners() -> None:
    writer = np.arange(len(LABELS)) % 17
    partition = partition_examples(make_flwr_partitioner("NaturalIdPartitioner", None), make_examples(LABELS, writer), 0)
    assert len(partition) == 17
    assert all(len(np.unique(writer[partition.rows(c)])) == 1 for c in range(17))


@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")
def test_flwr_shards_omit_examples() -> None:
    partition = partition_examples(
        make_flwr_partitioner("ShardPartitioner", num_shards_per_partition=2, shard_size=20), LABELLED, 0
    )
    assert partition.sizes().tolist() == [40] * 10
    assert len(set(partition.order.tolist())) == 400


DAILY_FLWR_PARTITIONERS = ("DistributionPartitioner", "ExponentialPartitioner", "InnerDirichletPartitioner")


@pytest.mark.slow
@pytest.mark.parametrize(
    "partitioner",
    nightly_unless(
        lambda adapter: adapter.partitioner in DAILY_FLWR_PARTITIONERS,
        [
            make_flwr_partitioner("ContinuousPartitioner", strictness=0.5),
            make_flwr_partitioner(
                "DistributionPartitioner",
                distribution_array=[[0.5, 0.5]] * 10,
                num_unique_labels_per_partition=2,
                preassigned_num_samples_per_label=5,
            ),
            make_flwr_partitioner("ExponentialPartitioner", 4),
            make_flwr_partitioner("GroupedNaturalIdPartitioner", None, group_size=600),
            make_flwr_partitioner("InnerDirichletPartitioner", None, partition_sizes=[600] * 10, alpha=0.5),
            make_flwr_partitioner("LinearPartitioner"),
            make_flwr_partitioner(
                "PathologicalPartitioner", num_classes_per_partition=3, class_assignment_mode="deterministic"
            ),
            make_flwr_partitioner("SizePartitioner", None, partition_sizes=[600] * 10),
            make_flwr_partitioner("SquarePartitioner"),
        ],
    ),
    ids=lambda adapter: adapter.partitioner,
)
def test_flwr_partitioner_by_rows_assigns_examples(partitioner: FlwrDatasets) -> None:
    partition = partition_examples(partitioner, LABELLED, 0)
    assert len(partition) == (4 if partitioner.partitioner.startswith("Exponential") else 10)
    assert len(set(partition.order.tolist())) == len(partition.order) > 0.9 * len(LABELS)


def test_flwr_function_argument_accepts_import_path() -> None:
    partition = partition_examples(
        make_flwr_partitioner("IdToSizeFncPartitioner", 3, partition_id_to_size_fn="numpy:exp"), LABELLED, 0
    )
    assert np.diff(partition.sizes()).min() > 0


@pytest.mark.parametrize(
    ("partitioner", "error", "message"),
    [
        (
            make_flwr_partitioner("DirichletPartitionr"),
            FieldError,
            'partitioner: got "DirichletPartitionr", did you mean "DirichletPartitioner"',
        ),
        (make_flwr_partitioner("VerticalEvenPartitioner"), FieldError, 'partitioner: got "VerticalEvenPartitioner"'),
        (make_flwr_partitioner("DirichletPartitioner"), FieldError, "arguments: DirichletPartitioner does not take .*alpha"),
        (make_flwr_partitioner("IidPartitioner", sigma=3), FieldError, "arguments: IidPartitioner does not take .*sigma"),
        (
            make_flwr_partitioner("DirichletPartitioner", alpha=1.0, min_partition_size=9000),
            DataError,
            "DirichletPartitioner: ",
        ),
    ],
    ids=["misspelt", "by columns", "missing argument", "unknown argument", "error of the library"],
)
def test_flwr_partitioner_with_invalid_settings_raises_error(
    partitioner: FlwrDatasets, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        partition_examples(partitioner, LABELLED, 0)


@pytest.mark.parametrize(
    ("partitioner", "message"),
    [
        (make_flwr_partitioner("IidPartitioner", num_partitions=3), "makes 3 partitions, but `clients` is 10"),
        (make_flwr_partitioner("IidPartitioner", num_partitions=20), "makes 20 partitions, but `clients` is 10"),
        (make_flwr_partitioner("NaturalIdPartitioner", 6500), "clients cannot share 6000 examples"),
        (make_flwr_partitioner("IidPartitioner", None, num_partitions=6001), "6001 clients cannot share 6000 examples"),
        (make_flwr_partitioner("NaturalIdPartitioner", 10), "makes 6000 partitions, but `clients` is 10"),
    ],
)
def test_flwr_partitions_of_another_number_raise_error(partitioner: FlwrDatasets, message: str) -> None:
    with pytest.raises(DataError, match=message):
        partition_examples(partitioner, LABELLED, 0)


@dataclass(frozen=True)
class CarelessPartitioner(Partitioner):
    """Partitioner that assigns examples to clients above N, or to too few clients."""

    name: ClassVar[str] = "careless"
    assignment: tuple[int, ...] = ()

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> np.ndarray:
        return np.array(self.assignment)


@pytest.mark.parametrize("assignment", [(0, 1, 2, 3), (0, 1, -1, -1), (-1, -1, -1, -1)])
def test_partitioner_with_wrong_number_of_clients_raises_error(assignment: tuple[int, ...]) -> None:
    with pytest.raises(
        DataError, match=r'"careless" assigns \d examples to \d clients, expected 3 clients with an example each'
    ):
        partition_examples(CarelessPartitioner(clients=3, assignment=assignment), make_examples(np.zeros(4, int)), 0)


def test_flwr_overlapping_partitions_raise_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr_datasets.partitioner import IidPartitioner

    monkeypatch.setattr(IidPartitioner, "load_partition", lambda self, client: {"index": [3, 4, client]})
    with pytest.raises(DataError, match="IidPartitioner assigns 30 examples, but only 10 distinct examples"):
        partition_examples(make_flwr_partitioner("IidPartitioner"), LABELLED, 0)


def test_flwr_without_extra_raises_error_with_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    with pytest.raises(DataError, match=r'flwr_datasets is not installed: .* python -m pip install "\.\[huggingface\]"'):
        partition_examples(make_flwr_partitioner("IidPartitioner"), LABELLED, 0)


# ------------------------------------------------------------------------------------------------------------- held out


def make_dataset(labels: np.ndarray, writer: np.ndarray | None = None, test_writer: np.ndarray | None = None) -> Dataset:
    """Return a dataset with these training labels; the test labels are the first of them."""

    def make_part(n: int, part_writer: np.ndarray | None) -> Examples:
        return Examples(np.zeros((n, 1), np.float32), labels[:n], None, part_writer)

    return Dataset(make_part(len(labels), writer), make_part(5 if test_writer is None else len(test_writer), test_writer), 10)


@pytest.mark.sampled
@pytest.mark.parametrize("name", NAMES)
def test_held_out_examples_are_a_share_of_each_client(name: str) -> None:
    data, partitioner = make_dataset(LABELS, np.arange(len(LABELS))), make_partitioner(name, 60, LABELS)
    partition = partition_examples(partitioner, data.train, 3)
    train, test = partition_dataset(data, partitioner, 0.25, 3)
    assert test is not None
    for client in range(60):
        rows, train_rows, test_rows = (set(p.rows(client).tolist()) for p in (partition, train.partition, test.partition))
        assert train_rows | test_rows == rows
        assert not train_rows & test_rows
        expected = max(1, round(0.25 * len(rows))) if len(rows) > 1 else 0
        assert len(test_rows) == expected or len(rows) - len(test_rows) == 1


def test_share_that_holds_out_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.held_out: got 0\.5, expected 0: none of the 10 clients has two examples"):
        partition_dataset(make_dataset(np.arange(10)), Iid(clients=10), 0.5, 0)
    with pytest.raises(DataError, match=r"data\.held_out: got 0\.5, expected 0: none of the 7 clients has two examples"):
        generate_clients(Synthetic(clients=7, examples=1), 0.5, 0)


def test_client_with_one_example_has_no_test_example() -> None:
    train, test = partition_dataset(make_dataset(np.arange(10)), Iid(clients=6), 0.9, 0)
    assert test is not None
    assert train.partition.sizes().tolist() == [1] * 6
    assert sorted(test.partition.sizes().tolist()) == [0, 0, 1, 1, 1, 1]


def test_held_out_examples_are_random() -> None:
    _, test = partition_dataset(make_dataset(LABELS), Iid(clients=1), 0.5, 0)
    assert test is not None
    assert 2500 < int(np.median(test.partition.rows(0))) < 3500
    _, other_test = partition_dataset(make_dataset(LABELS), Iid(clients=1), 0.5, 1)
    assert other_test is not None
    assert test.partition.rows(0).tolist() != other_test.partition.rows(0).tolist()


def test_clients_get_test_examples_of_their_owners() -> None:
    writer, test_writer = np.array([5, 5, 1, 10**15, 10**15]), np.array([10**15, 1, 3, 10**15])
    data = make_dataset(np.zeros(5, int), writer, test_writer)
    _, test = partition_dataset(data, NaturalPartition(), 0.0, 0)
    assert test is not None
    assert [test.partition.rows(c).tolist() for c in range(3)] == [[1], [], [0, 3]]
    assert test.examples is data.test
    assert partition_dataset(data, Iid(clients=2), 0.0, 0)[1] is None, "examples of an owner are at several clients"
    assert partition_dataset(make_dataset(np.zeros(5, int)), Iid(clients=2), 0.0, 0)[1] is None, "no owners"


def test_contiguous_parts_are_consecutive_and_of_equal_size() -> None:
    examples, clients = make_examples(LABELS[:103]), 7
    partitions = [partition_examples(Contiguous(clients=clients), examples, seed) for seed in (1, 2)]
    rows = [partitions[0].rows(client) for client in range(clients)]
    assert np.concatenate(rows).tolist() == list(range(103))
    assert {len(part) for part in rows} == {14, 15}
    assert (partitions[0].bounds == partitions[1].bounds).all(), "the seed changes nothing"


def test_pathological_partition_with_sigma_has_the_least_examples_and_log_normal_shares() -> None:
    """The numbers of a class's examples, less the least number, have log-normal proportions."""
    partitioner = Pathological(clients=100, classes_per_client=2, sigma=2.0, min_examples=5)
    partition = partition_examples(partitioner, LABELLED, 3)
    counts = np.array([np.bincount(LABELS[partition.rows(client)], minlength=10) for client in range(100)])
    assert ((counts == 0) | (counts >= 5)).all()
    assert ((counts > 0).sum(axis=1) == 2).all()
    assert counts.sum() == len(LABELS)
    additions = np.sort(counts[counts > 0] - 5)
    assert additions[-20:].sum() > additions.sum() / 2, "a tenth of the shares is most of a log-normal sum with sigma 2"
    even = partition_examples(Pathological(clients=100, classes_per_client=2, min_examples=5), LABELLED, 3).sizes()
    assert even.max() - even.min() < 20


def test_pathological_partition_with_too_many_least_examples_raises_error() -> None:
    partitioner = Pathological(clients=100, classes_per_client=2, min_examples=500)
    with pytest.raises(DataError, match=r"^data\.partition\.min_examples: got 500 for each of 20 clients of a class, expected"):
        partition_examples(partitioner, LABELLED, 0)
