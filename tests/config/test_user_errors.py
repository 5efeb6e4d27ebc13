"""Component classes of the user that raise or break their contract: one line with the key and the class."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from fedsgd.aggregation import AggregationContext, Aggregator
from fedsgd.aggregation.result_check import check_result
from fedsgd.compression import CodecContext
from fedsgd.compression.operators.per_layer import LayerRule, PerLayer
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.plain import MemorylessScheme
from fedsgd.compression.updates import DenseUpdate
from fedsgd.config.user_errors import describe_result, describe_user_error, find_user_class, wrap_user_errors
from fedsgd.data import Dataset, Examples, Partitioner
from fedsgd.errors import FedsgdError, RunError, ScenarioError
from fedsgd.experiment.runner import run
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.optim import Optimizer, ScaledStep, Schedule
from fedsgd.sampling import CohortSampler, DurationModel, SampledCohort, Sampler, SamplingPool
from fedsgd.scenario.scenario import Scenario

Make = Callable[[dict[str, Any]], Scenario]
N, COHORT = 8, 4
LOCATION = r"\(test_user_errors.py:\d+, in"
"""Place of the user's last frame in a message, as a regular expression."""


@dataclass(frozen=True)
class BadSampler(Sampler):
    """Sampler that draws the clients `cohort` and raises in round 2."""

    name: ClassVar[str] = "bad-sampler"

    cohort: tuple[int, ...] = (0, 1, 2, 3)

    def bind(self, pool: SamplingPool) -> CohortSampler:
        def draw(round: int, size: int) -> SampledCohort:
            assert 1 // (round - 2)
            return SampledCohort(self.cohort)

        return draw


@dataclass(frozen=True)
class BadPartitioner(Partitioner):
    """Partitioner whose array has `missing` entries too few, the dtype `kind`, and clients from `first` on."""

    name: ClassVar[str] = "bad-partitioner"

    missing: int = 0
    kind: str = "int64"
    first: int = 0

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> Any:
        return (np.arange(len(examples) - self.missing) % N + self.first).astype(np.dtype(self.kind))


@dataclass(frozen=True)
class BadOperator(TopK):
    """Operator that fails at client 3."""

    name: ClassVar[str] = "bad-operator"

    def encode(self, x: Any, ctx: CodecContext) -> Any:
        if ctx.client == 3:
            raise ZeroDivisionError("no")
        return super().encode(x, ctx)


@dataclass(frozen=True)
class BadDurations(DurationModel):
    """Durations that are NaN."""

    name: ClassVar[str] = "bad-durations"

    def reply_seconds(self, seed: int, round: int, client: int, steps: int) -> float:
        return float("nan")


@dataclass(frozen=True)
class BadAggregator(Aggregator):
    """Aggregator whose result has the fault `fault`."""

    name: ClassVar[str] = "bad-aggregator"

    fault: str = "2d"

    def aggregate(self, state: Any, updates: Any, ctx: AggregationContext) -> Any:
        zeros = np.zeros(ctx.layout.size, dtype=np.float32)
        results: dict[str, Any] = {
            "2d": (zeros[None], state),
            "long": (np.append(zeros, zeros[:1]), state),
            "integers": (zeros.astype(np.int64), state),
            "scalar": (0.0, state),
            "array": zeros,
            "none": None,
            "state list": (zeros, [1]),
            "state entry": (zeros, {"a": [1]}),
            "float64": (zeros.astype(np.float64), {"a": zeros}),
        }
        return results[self.fault]


@dataclass(frozen=True)
class ShortOperator(TopK):
    """Operator whose `decode` drops the last coordinate."""

    name: ClassVar[str] = "short-operator"

    def decode(self, sections: Any, ctx: CodecContext) -> Any:
        return DenseUpdate(super().decode(sections, ctx).to_dense()[:-1])


@dataclass(frozen=True)
class DoubledSchedule(Schedule):
    """Schedule whose factor is 2."""

    name: ClassVar[str] = "doubled-schedule"

    def factor(self, t: int) -> float:
        return 2.0


@dataclass(frozen=True)
class TupleOptimizer(Optimizer):
    """Optimizer that returns a plain tuple."""

    name: ClassVar[str] = "tuple-optimizer"

    def update_rule(self, g: Any, buffers: Any, lr: float) -> Any:
        return g, -lr


@dataclass(frozen=True)
class BadOptimizer(Optimizer):
    """SGD that fails as soon as the schedule has lowered the learning rate."""

    name: ClassVar[str] = "bad-optimizer"

    def update_rule(self, g: Any, buffers: Any, lr: float) -> ScaledStep:
        if lr < self.lr:
            raise ZeroDivisionError("no")
        return ScaledStep(g, -lr)


def data() -> Dataset:
    rng = np.random.default_rng(0)
    examples = Examples(rng.standard_normal((64, 64), dtype=np.float32), np.arange(64) % 10)
    return Dataset(examples, examples, 10)


def run_error(scenario: Scenario) -> str:
    with pytest.raises(FedsgdError) as error:
        run(scenario, data=data())
    return str(error.value)


@pytest.mark.parametrize(
    ("cohort", "problem"),
    [
        ((0, 1, 2, 8), "drew client 8, expected 0 to 7"),
        ((0, 1, 1, 2), "drew client 1 twice, expected distinct clients, ascending"),
        ((0, 2, 1, 3), "drew client 1 after client 2, expected distinct clients, ascending"),
        ((0, 1), "drew 2 of 4 clients, expected 4; a sampler that may draw fewer has always_full: ClassVar[bool] = False"),
        ((0, 1, 2, 3, 4), "drew 5 of 4 clients, expected 4"),
    ],
)
def test_sampler_with_an_invalid_cohort_is_refused_with_key_and_class(
    scenario: Make, cohort: tuple[int, ...], problem: str
) -> None:
    sampler = {"name": f"{__name__}:BadSampler", "cohort": list(cohort)}
    assert (
        run_error(scenario({"server.sampler": sampler}))
        == f"round 1, server: server.sampler ({__name__}:BadSampler): {problem}"
    )


def test_sampler_that_raises_is_named_with_the_round(scenario: Make) -> None:
    text = run_error(scenario({"server.sampler": f"{__name__}:BadSampler"}))
    cause = rf"ZeroDivisionError: integer division or modulo by zero {LOCATION} draw\)"
    assert re.fullmatch(rf"round 2, server: server.sampler \({__name__}:BadSampler\): {cause}", text)


@pytest.mark.parametrize(
    ("settings", "got"),
    [({"missing": 1}, "int64 of shape [63]"), ({"kind": "float64"}, "float64 of shape [64]")],
)
def test_partitioner_with_a_wrong_array_is_refused_with_both_arrays(scenario: Make, settings: dict[str, Any], got: str) -> None:
    text = run_error(scenario({"data.partition": {"name": f"{__name__}:BadPartitioner", "clients": N, **settings}}))
    assert text.startswith(
        f"data.partition ({__name__}:BadPartitioner): assign_clients returned {got}, expected int64 of shape [64]"
    )


def test_partitioner_with_a_negative_client_is_refused(scenario: Make) -> None:
    text = run_error(scenario({"data.partition": {"name": f"{__name__}:BadPartitioner", "clients": N, "first": -2}}))
    problem = "assign_clients returned client -2, expected numbers from 0 on, or −1 for no client"
    assert text == f"data.partition ({__name__}:BadPartitioner): {problem}"


def test_partitioner_that_raises_is_named(scenario: Make) -> None:
    text = run_error(scenario({"data.partition": {"name": f"{__name__}:BadPartitioner", "clients": N, "kind": "x"}}))
    cause = rf"TypeError: data type 'x' not understood {LOCATION} assign_clients\)"
    assert re.fullmatch(rf"data.partition \({__name__}:BadPartitioner\): {cause}", text)


@pytest.mark.slow
def test_compressor_that_raises_at_a_client_is_named(scenario: Make) -> None:
    text = run_error(scenario({"uplink.compressor": f"{__name__}:BadOperator", "server.cohort": N}))
    cause = rf"ZeroDivisionError: no {LOCATION} encode\)"
    assert re.fullmatch(rf"round 1, client 3: uplink.compressor \({__name__}:BadOperator\): {cause}", text)


def test_nan_duration_is_refused(scenario: Make) -> None:
    text = run_error(scenario({"participation.durations": f"{__name__}:BadDurations", "participation.deadline": 5}))
    assert text.startswith(f"round 1, server: participation.durations ({__name__}:BadDurations): client ")
    assert text.endswith(" takes nan seconds, expected a number of at least 0")


def test_error_of_a_fedsgd_class_passes_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), wrap_user_errors("uplink.compressor", TopK(0.1)):
        raise ZeroDivisionError
    with pytest.raises(ScenarioError), wrap_user_errors("uplink.compressor", BadOperator(0.1)):
        raise ZeroDivisionError
    with pytest.raises(RunError), wrap_user_errors("uplink.compressor", BadOperator(0.1), 1):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("2d", "(ndarray of float32 and shape [1, {p}], state), expected an array of float32 and shape [{p}]"),
        ("long", "(ndarray of float32 and shape [{p1}], state), expected an array of float32 and shape [{p}]"),
        ("integers", "(ndarray of int64 and shape [{p}], state), expected an array of float32 and shape [{p}]"),
        ("scalar", "(float 0.0, state), expected an array of float32 and shape [{p}]"),
        ("array", "ndarray of float32 and shape [{p}], expected (array of shape [{p}], dict of arrays)"),
        ("none", "None, expected (array of shape [{p}], dict of arrays)"),
        ("state list", "(aggregate, list), expected a dict of arrays as the next state"),
        ("state entry", "a state whose entry 'a' is list, expected an array"),
    ],
)
def test_aggregator_with_a_wrong_result_is_refused_with_key_and_class(fault: str, problem: str) -> None:
    aggregator = BadAggregator(fault)
    ctx = AggregationContext(0, 7, ParameterLayout.from_size(12), N, MemorylessScheme(TopK(0.1)))
    with pytest.raises(RunError) as error:
        check_result(aggregator, aggregator.aggregate({}, [], ctx), 12, 7)
    expected = problem.format(p=12, p1=13)
    assert str(error.value) == f"round 7, server: server.aggregator ({__name__}:BadAggregator): aggregate returned {expected}"


def test_aggregator_with_float64_and_a_state_is_accepted() -> None:
    result = np.zeros(12), {"a": np.zeros(3)}
    assert check_result(BadAggregator(), result, 12, 1) is result


def test_server_checks_the_result_of_the_users_aggregator(scenario: Make) -> None:
    text = run_error(scenario({"server.aggregator": f"{__name__}:BadAggregator"}))
    assert text.startswith(f"round 1, server: server.aggregator ({__name__}:BadAggregator): aggregate returned (ndarray of ")


@pytest.mark.parametrize("engine", ["sequential", "captured", "stacked"])
def test_client_optimizer_that_raises_in_a_round_is_named(scenario: Make, engine: str) -> None:
    optimizer = {"name": f"{__name__}:BadOptimizer", "schedule": {"name": "step", "every": 1, "gamma": 0.5}}
    text = run_error(scenario({"client.optimizer": optimizer, "engine.name": engine}))
    cause = rf"client.optimizer \({__name__}:BadOptimizer\): ZeroDivisionError: no {LOCATION} update_rule\)"
    assert re.fullmatch(rf"round 2, client \d: {cause}", text)


def test_server_optimizer_that_raises_in_a_round_is_named(scenario: Make) -> None:
    optimizer = {"name": f"{__name__}:BadOptimizer", "schedule": {"name": "step", "every": 1, "gamma": 0.5}}
    text = run_error(scenario({"server.optimizer": optimizer}))
    cause = rf"server.optimizer \({__name__}:BadOptimizer\): ZeroDivisionError: no {LOCATION} update_rule\)"
    assert re.fullmatch(rf"round 2, server: {cause}", text)


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("uplink.compressor", {"uplink.compressor": f"{__name__}:ShortOperator"}),
        ("uplink.compressor", {"uplink.compressor": f"{__name__}:ShortOperator", "uplink.error_feedback": "persist"}),
        ("downlink.compressor", {"downlink.policy": "error-feedback", "downlink.compressor": f"{__name__}:ShortOperator"}),
        ("client.optimizer.schedule", {"client.optimizer.schedule": f"{__name__}:DoubledSchedule"}),
        ("server.optimizer.schedule", {"server.optimizer.schedule": f"{__name__}:DoubledSchedule"}),
        ("server.optimizer", {"server.optimizer": f"{__name__}:TupleOptimizer"}),
    ],
)
def test_component_that_fails_its_trial_ends_the_run_before_round_1(scenario: Make, key: str, settings: dict[str, Any]) -> None:
    text = run_error(scenario(settings))
    assert text.startswith(f"{key} ({__name__}:")
    assert " returned " in text


def test_user_class_in_a_tuple_of_rules_is_found() -> None:
    assert find_user_class(PerLayer(rules=(LayerRule("*", TopK(0.1)),))) is None
    assert find_user_class(PerLayer(rules=(LayerRule("*", BadOperator(0.1)),))) == f"{__name__}:BadOperator"


@pytest.mark.parametrize("function", [json.loads, ParameterLayout.from_size], ids=["library", "fedsgd"])
def test_location_is_the_last_frame_outside_fedsgd_and_libraries(function: Any) -> None:
    with pytest.raises(TypeError) as error:
        function(object())
    assert re.search(rf" {LOCATION} test_location_\w+\)$", describe_user_error(error.value))


def test_error_without_a_users_frame_has_no_location() -> None:
    assert describe_user_error(ValueError("no traceback\nof two lines")) == "ValueError: no traceback of two lines"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        ((1, None), "(int, None)"),
        ((1,) * 5, "tuple"),
        ([1], "list"),
        (np.float64(0.5), "float64 np.float64(0.5)"),
        (np.zeros((2, 3)), "ndarray of float64 and shape [2, 3]"),
        ("a\nb", "str 'a\\nb'"),
    ],
)
def test_returned_value_is_described_in_one_line(value: Any, text: str) -> None:
    assert describe_result(value) == text
