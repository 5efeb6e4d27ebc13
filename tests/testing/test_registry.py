"""Laws of all registered components. The laws of compressors are in tests/laws/test_compressor_laws.py, for more settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsgd.aggregation import AGGREGATORS, Aggregator
from fedsgd.aggregation.blocks import CohortAggregator
from fedsgd.compression import CompressionOperator, Compressor, MemorylessScheme
from fedsgd.compression.operators.eden import Eden
from fedsgd.compression.operators.per_layer import PerLayer
from fedsgd.compression.operators.qsgd import QSGD
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.operators.topk import TopK
from fedsgd.data import PARTITIONERS, Partitioner
from fedsgd.data.partitioners.flwr_datasets import FlwrDatasets
from fedsgd.data.partitioners.natural import NaturalPartition
from fedsgd.optim import OPTIMIZERS, SCHEDULES, SGD, Momentum, PyTorchMomentum
from fedsgd.optim.schedules import CosineSchedule, ExponentialSchedule, StepSchedule, WarmUpSchedule
from fedsgd.sampling import DURATIONS, SAMPLERS, SamplingPool
from fedsgd.sampling.availability_trace import TraceSampler
from fedsgd.sampling.client_durations import LogNormalDurations
from fedsgd.sampling.weighted import Weighted
from fedsgd.testing import Law, LawError, check_sampler, parametrize_laws
from fedsgd.testing.aggregator_laws import coordinate_blocks
from fedsgd.testing.component_laws import list_component_laws
from tests.aggregation.helpers import RULES
from tests.laws.members import operators, schemes

SERVER_HALVES = [AGGREGATORS[name]() for name in AGGREGATORS if AGGREGATORS[name].scheme_type is not None]
SPECIAL_PARTITIONERS: dict[str, Partitioner] = {"flwr-datasets": FlwrDatasets(clients=7, partitioner="IidPartitioner")}
PARTITIONER_MEMBERS = [SPECIAL_PARTITIONERS.get(name) or PARTITIONERS[name](clients=7) for name in PARTITIONERS]
SAMPLER_MEMBERS = [SAMPLERS[name]() for name in SAMPLERS if name != "trace"]
OPTIMIZER_MEMBERS = [OPTIMIZERS[name]() for name in OPTIMIZERS]
SCHEDULE_MEMBERS = [SCHEDULES[name]() for name in SCHEDULES]
DURATION_MEMBERS = [DURATIONS[name]() for name in DURATIONS]


@pytest.mark.sampled
@parametrize_laws(*RULES, *SERVER_HALVES)
def test_aggregator_obeys_its_law(law: Law) -> None:
    law()


@pytest.mark.sampled
@pytest.mark.parametrize("operator", [TopK(1.0), Sign(), QSGD(), Eden(), PerLayer(TopK(0.2))], ids=str)
@pytest.mark.parametrize("rule", [rule for rule in RULES if isinstance(rule, CohortAggregator)], ids=str)
def test_blocks_of_few_coordinates_give_the_same_aggregate(rule: Aggregator, operator: CompressionOperator) -> None:
    coordinate_blocks(rule, MemorylessScheme(operator))


@pytest.mark.sampled
@parametrize_laws(*PARTITIONER_MEMBERS, PARTITIONERS["iid"](clients=1), NaturalPartition())
def test_partitioner_obeys_its_law(law: Law) -> None:
    law()


@pytest.mark.sampled
@parametrize_laws(*SAMPLER_MEMBERS, Weighted(exponent=0.0), Weighted(exponent=0.5))
def test_sampler_obeys_its_law(law: Law) -> None:
    law()


def test_trace_sampler_with_a_pool_obeys_its_laws(tmp_path: Path) -> None:
    lines = "".join(f"{client},{1 + client % 5},{2000 - client}\n" for client in range(20))
    (tmp_path / "trace.csv").write_text(f"client,first_round,last_round\n{lines}")
    pool = SamplingPool(0, 20, lambda: np.full(20, 5), tmp_path)
    check_sampler(TraceSampler(file="trace.csv"), pool=pool)
    with pytest.raises(LawError, match=r"trace\.csv not found") as error:
        check_sampler(TraceSampler(file="trace.csv"))
    assert str(error.value).startswith("valid_cohort: TraceSampler(")


@pytest.mark.sampled
@parametrize_laws(
    *OPTIMIZER_MEMBERS,
    SGD(lr=3.0, weight_decay=0.1, clip_norm=0.5),
    Momentum(lr=0.5, schedule=ExponentialSchedule(0.5), schedule_over="steps"),
    PyTorchMomentum(weight_decay=0.01, clip_norm=1.0, schedule=CosineSchedule(3), schedule_over="local-steps"),
)
def test_optimizer_obeys_its_law(law: Law) -> None:
    law()


@pytest.mark.sampled
@parametrize_laws(*SCHEDULE_MEMBERS, StepSchedule(1, 0.5), CosineSchedule(7, 0.25), WarmUpSchedule(3, StepSchedule(2)))
def test_schedule_obeys_its_law(law: Law) -> None:
    law()


@parametrize_laws(*DURATION_MEMBERS, LogNormalDurations(1.0, 0.0, 0.2, 0.1))
def test_duration_model_obeys_its_law(law: Law) -> None:
    law()


@pytest.mark.parametrize("member", [*operators(), *schemes()], ids=str)
def test_compressor_obeys_the_laws_of_components(member: Compressor) -> None:
    for law in list_component_laws(member):
        law()
