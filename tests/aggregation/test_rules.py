"""Hostile updates, and each rule compared with its obvious form in numpy and with Flower's strategy.

The laws of all rules are in `fedsgd.testing`, and tests/testing/test_registry.py checks them.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg
from flwr.serverapp.strategy import Krum as FlowerKrum
from flwr.serverapp.strategy import MultiKrum as FlowerMultiKrum

from fedsgd.aggregation import AGGREGATORS, Aggregator, WeightedMean, weighted_sum
from fedsgd.aggregation.clipping import CenteredClipping, NormClipping
from fedsgd.aggregation.coordinate_wise import Median, TrimmedMean
from fedsgd.aggregation.geometric_median import GeometricMedian
from fedsgd.aggregation.krum import Krum, MultiKrum
from fedsgd.aggregation.mean import MeanOfSenders
from fedsgd.compression import CompressionOperator
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.eden import Eden
from fedsgd.compression.operators.per_layer import PerLayer
from fedsgd.compression.operators.qsgd import QSGD
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.operators.topk import TopK
from fedsgd.config.component import FieldError
from fedsgd.numerics.arrays import F32
from tests.aggregation.helpers import RULES, aggregate, draw_updates, encode_cohort
from tests.flower.grid import identity

N, SIZE = 9, 40
OPERATORS: tuple[CompressionOperator, ...] = (Dense(), TopK(0.1), TopK(1.0), Sign(), QSGD(), Eden(), PerLayer(TopK(0.2)))
each_rule = pytest.mark.parametrize("rule", RULES, ids=str)


def decode_all(updates: list[F32], operator: CompressionOperator) -> np.ndarray:
    """Return the decoded updates [n, P]."""
    cohort, ctx = encode_cohort(updates, operator)
    return np.array([ctx.decode(update).to_dense() for update in cohort], dtype=np.float64)


def test_every_rule_of_the_registry_that_no_scheme_owns_is_tested() -> None:
    assert {name for name in AGGREGATORS if AGGREGATORS[name].scheme_type is None} == {rule.name for rule in RULES}


# ----------------------------------------------------------------------------------------------------------- hostile updates


@each_rule
@pytest.mark.parametrize("size", [10.0, 1e3])
@pytest.mark.parametrize("attack", ["constant", "opposite", "scattered"])
def test_tolerated_hostile_updates_move_the_aggregate_by_at_most_the_radius(rule: Aggregator, size: float, attack: str) -> None:
    n_hostile = min(rule.tolerated(N), N - 1)
    honest = draw_updates(N - n_hostile, SIZE)
    directions = {"constant": np.ones((N, SIZE)), "opposite": -np.tile(honest[0], (N, 1))}
    direction = directions.get(attack, np.random.default_rng(1).standard_normal((N, SIZE)))
    hostile = [(size * direction[i]).astype(np.float32) for i in range(n_hostile)]
    distance = np.linalg.norm(aggregate(rule, [*hostile, *honest]) - np.mean(honest, axis=0))
    assert distance < 8  # honest updates have norms of about 1.1, and radii of the rules are at most 6


@pytest.mark.parametrize(
    ("rule", "n_hostile"),
    [
        (WeightedMean(), 1), (MeanOfSenders(), 1), (Median(), 5), (TrimmedMean(0.25), 3), (Krum(2), 7), (MultiKrum(2), 7),
        (GeometricMedian(), 5), (NormClipping(), 5),
    ],
)  # fmt: skip
def test_one_hostile_update_more_breaks_the_rule(rule: Aggregator, n_hostile: int) -> None:
    hostile = [np.full(SIZE, 1e9, dtype=np.float32)] * n_hostile
    assert np.linalg.norm(aggregate(rule, [*hostile, *draw_updates(N - n_hostile, SIZE)])) > 1e6


# ------------------------------------------------------------------------------------------- the obvious forms, for each rule


def krum_scores(x: np.ndarray, hostile: int) -> list[float]:
    distances = np.square(x[:, None] - x[None]).sum(axis=2)
    return [np.sort(np.delete(row, i))[: len(x) - hostile - 2].sum() for i, row in enumerate(distances)]


def mean_over_senders(values: np.ndarray, is_sent: np.ndarray) -> np.ndarray:
    return values.sum(axis=0) / np.maximum(is_sent.sum(axis=0), 1)


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_rules_equal_their_obvious_form(operator: CompressionOperator) -> None:
    updates = draw_updates(N, SIZE)
    x = decode_all(updates, operator)
    norms = np.linalg.norm(x, axis=1)
    is_sent = (x != 0) | (not isinstance(operator, TopK | PerLayer))  # other operators send zeros
    selected = np.argsort(krum_scores(x, 2), kind="stable")
    expected = {
        WeightedMean(): x.mean(axis=0),
        Median(): np.median(x, axis=0),
        TrimmedMean(0.25): np.sort(x, axis=0)[2:-2].mean(axis=0),
        Krum(2): x[selected[0]],
        MultiKrum(2): x[selected[:7]].mean(axis=0),
        MultiKrum(2, 3): x[selected[:3]].mean(axis=0),
        NormClipping(0.8): (x * np.minimum(1, 0.8 / norms)[:, None]).mean(axis=0),
        NormClipping(): (x * np.minimum(1, np.median(norms) / norms)[:, None]).mean(axis=0),
        NormClipping(mean_over="senders"): mean_over_senders(x * np.minimum(1, np.median(norms) / norms)[:, None], is_sent),
        CenteredClipping(0.8): (x * np.minimum(1, 0.8 / norms)[:, None]).mean(axis=0),
    }
    for rule, aggregate_expected in expected.items():
        np.testing.assert_allclose(
            aggregate(rule, updates, operator), aggregate_expected, rtol=1e-5, atol=1e-6, err_msg=str(rule)
        )


@pytest.mark.parametrize("operator", [Dense(), TopK(0.1)], ids=str)
def test_geometric_median_has_the_smallest_sum_of_distances(operator: CompressionOperator) -> None:
    updates, weights = draw_updates(N, SIZE), np.arange(1, N + 1) / 45
    x = decode_all(updates, operator)
    z = aggregate(GeometricMedian(), updates, operator, list(weights)).astype(np.float64)

    def cost(point: np.ndarray) -> float:
        return float((weights * np.linalg.norm(x - point, axis=1)).sum())

    rng = np.random.default_rng(0)
    steps = [scale * rng.standard_normal(SIZE) for scale in (1e-3, 1e-2, 1e-1) for _ in range(100)]
    assert all(cost(z) <= cost(z + step) + 1e-9 for step in [*steps, *(x - z)])


def test_geometric_median_of_three_points_of_a_line_is_the_middle_one() -> None:
    updates = [np.array([value, 0], dtype=np.float32) for value in (0, 1, 1e6)]
    np.testing.assert_allclose(aggregate(GeometricMedian(), updates), [1, 0], atol=1e-3)


def test_mean_of_senders_divides_by_the_weight_of_the_clients_that_sent_the_coordinate() -> None:
    updates = [np.array(values, dtype=np.float32) for values in ([4, 3, 0, 0], [2, 0, 0, 8], [0, 6, 0, 4])]
    mean = aggregate(MeanOfSenders(), updates, TopK(0.5), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(mean, [(2 + 0.5) / 0.75, (1.5 + 1.5) / 0.75, 0, 6])


def test_clipped_mean_of_senders_divides_by_the_weight_of_the_clients_that_sent_the_coordinate() -> None:
    """The norms are 5, √68 and √52, so the second update is scaled by √52 / √68."""
    updates = [np.array(values, dtype=np.float32) for values in ([4, 3, 0, 0], [2, 0, 0, 8], [0, 6, 0, 4])]
    mean = aggregate(NormClipping(mean_over="senders"), updates, TopK(0.5), [0.5, 0.25, 0.25])
    factor = np.sqrt(52 / 68)
    np.testing.assert_allclose(mean, [(2 + 0.5 * factor) / 0.75, (1.5 + 1.5) / 0.75, 0, (2 * factor + 1) / 0.5], rtol=1e-6)


def test_mean_of_senders_of_groups_divides_each_group_by_its_own_weights() -> None:
    updates = draw_updates(3, SIZE)
    by_tensor, whole = (aggregate(MeanOfSenders(), updates, op) for op in (PerLayer(TopK(0.2)), TopK(0.2)))
    np.testing.assert_allclose(by_tensor, whole)


def test_centered_clipping_starts_at_the_last_aggregate() -> None:
    rule, updates = CenteredClipping(0.1), draw_updates(N, SIZE)
    cohort, ctx = encode_cohort(updates)
    points = [np.zeros(SIZE)]
    state = rule.init_state(ctx.layout)
    for _ in range(30):
        point, state = rule.aggregate(state, iter(cohort), ctx)
        points.append(point.astype(np.float64))
    assert all(np.linalg.norm(b - a) <= 0.1 + 1e-6 for a, b in pairwise(points))
    x = np.array(updates, dtype=np.float64)
    differences = x - points[-2]
    clipped = differences * np.minimum(1, 0.1 / np.linalg.norm(differences, axis=1))[:, None]
    np.testing.assert_allclose(points[-1], points[-2] + clipped.mean(axis=0), atol=1e-6)


def test_weighted_rules_use_the_weights() -> None:
    updates, weights = draw_updates(3, SIZE), [0.5, 0.25, 0.25]
    x = np.array(updates, dtype=np.float64)
    cohort, ctx = encode_cohort(updates, weights=weights)
    np.testing.assert_allclose(weighted_sum(cohort, ctx), np.average(x, axis=0, weights=weights), atol=1e-7)
    for rule in (NormClipping(1e6), CenteredClipping(1e6)):
        np.testing.assert_allclose(aggregate(rule, updates, weights=weights), np.average(x, axis=0, weights=weights), atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ Flower's strategies


@pytest.mark.parametrize("operator", [Dense(), TopK(0.1), QSGD()], ids=str)
@pytest.mark.parametrize(
    ("rule", "strategy"),
    [
        (Median(), FedMedian()),
        (TrimmedMean(0.25), FedTrimmedAvg(beta=0.25)),
        (Krum(2), FlowerKrum(num_malicious_nodes=2)),
        (MultiKrum(2, 3), FlowerMultiKrum(num_malicious_nodes=2, num_nodes_to_select=3)),
    ],
    ids=["median", "trimmed-mean", "krum", "multi-krum"],
)
def test_rule_agrees_with_the_strategy_of_flower(rule: Aggregator, strategy: FedAvg, operator: CompressionOperator) -> None:
    updates = draw_updates(N, SIZE)
    replies = []
    for x in decode_all(updates, operator).astype(np.float32):
        content = RecordDict({"arrays": ArrayRecord([x]), "metrics": MetricRecord({"num-examples": 1})})
        with identity(1):
            replies.append(Message(content, dst_node_id=1, message_type="train"))
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    np.testing.assert_allclose(aggregate(rule, updates, operator), arrays.to_numpy_ndarrays()[0], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Krum(3), "got 3, expected at most 2 in a cohort of 8"),
        (MultiKrum(3), "got 3, expected at most 2 in a cohort of 8"),
        (MultiKrum(1, 8), "got 8, expected at most 7"),
    ],
)
def test_krum_that_does_not_fit_the_cohort_is_refused(rule: Aggregator, message: str) -> None:
    rule.check_cohort(9)
    with pytest.raises(FieldError, match=message):
        rule.check_cohort(8)


def test_trim_of_half_of_the_values_is_refused() -> None:
    with pytest.raises(FieldError, match=r"below 0\.5"):
        TrimmedMean(0.5)
