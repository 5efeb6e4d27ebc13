"""Component classes of the user that raise or break their contract: one line with the key and the class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from fedsgd.compression import CodecContext
from fedsgd.compression.operators.topk import TopK
from fedsgd.config.user_errors import wrap_user_errors
from fedsgd.data import Dataset, Examples, Partitioner
from fedsgd.errors import FedsgdError, RunError, ScenarioError
from fedsgd.experiment.runner import run
from fedsgd.sampling import CohortSampler, DurationModel, SampledCohort, Sampler, SamplingPool
from fedsgd.scenario.scenario import Scenario

Make = Callable[[dict[str, Any]], Scenario]
N, COHORT = 8, 4


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
    """Partitioner whose array has `missing` entries too few, and the dtype `kind`."""

    name: ClassVar[str] = "bad-partitioner"

    missing: int = 0
    kind: str = "int64"

    def assign_clients(self, examples: Examples, rng: np.random.Generator) -> Any:
        return (np.arange(len(examples) - self.missing) % N).astype(np.dtype(self.kind))


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
    cause = "ZeroDivisionError: integer division or modulo by zero"
    assert text == f"round 2, server: server.sampler ({__name__}:BadSampler): {cause}"


@pytest.mark.parametrize(
    ("settings", "got"),
    [({"missing": 1}, "int64 of shape [63]"), ({"kind": "float64"}, "float64 of shape [64]")],
)
def test_partitioner_with_a_wrong_array_is_refused_with_both_arrays(scenario: Make, settings: dict[str, Any], got: str) -> None:
    text = run_error(scenario({"data.partition": {"name": f"{__name__}:BadPartitioner", "clients": N, **settings}}))
    assert text.startswith(
        f"data.partition ({__name__}:BadPartitioner): assign_clients returned {got}, expected int64 of shape [64]"
    )


def test_partitioner_that_raises_is_named(scenario: Make) -> None:
    text = run_error(scenario({"data.partition": {"name": f"{__name__}:BadPartitioner", "clients": N, "kind": "x"}}))
    assert text == f"data.partition ({__name__}:BadPartitioner): TypeError: data type 'x' not understood"


def test_compressor_that_raises_at_a_client_is_named(scenario: Make) -> None:
    text = run_error(scenario({"uplink.compressor": f"{__name__}:BadOperator", "server.cohort": N}))
    assert text == f"round 1, client 3: uplink.compressor ({__name__}:BadOperator): ZeroDivisionError: no"


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
