"""Planted faults: the law that is meant for each must reject it, and no law before it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from fedsgd.compression.operators.sign import Sign
from fedsgd.config.component import Component
from fedsgd.errors import LawError
from fedsgd.testing import (
    Law,
    check_aggregator,
    check_compressor,
    check_durations,
    check_optimizer,
    check_partitioner,
    check_sampler,
    check_schedule,
    list_laws,
    parametrize_laws,
)
from tests.testing import planted
from tests.testing.accepted import ACCEPTED, PoissonSampler

CASES: list[tuple[Callable[..., None], Component, str]] = [
    (check, component, law)
    for check, cases in (
        (check_aggregator, planted.AGGREGATORS),
        (check_partitioner, planted.PARTITIONERS),
        (check_sampler, planted.SAMPLERS),
        (check_optimizer, planted.OPTIMIZERS),
        (check_schedule, planted.SCHEDULES),
        (check_durations, planted.DURATIONS),
    )
    for component, law in cases
]


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("check", "component", "law"), CASES, ids=[f"{type(component).__name__}-{law}" for _, component, law in CASES]
)
def test_faulty_component_breaks_its_law(check: Callable[..., None], component: Component, law: str) -> None:
    with pytest.raises(LawError, match=rf"^{law}: {re.escape(str(component))}: ") as error:
        check(component)
    assert "\n" not in str(error.value)


@parametrize_laws(*ACCEPTED)
def test_correct_component_obeys_its_law(law: Law) -> None:
    law()


@pytest.mark.slow
def test_sampler_whose_draws_depend_on_the_number_of_clients_obeys_all_other_laws() -> None:
    broken_laws = []
    for law in list_laws(PoissonSampler()):
        try:
            law()
        except LawError:
            broken_laws.append(law.name)
    assert broken_laws == ["memory_of_a_draw"]


@dataclass(frozen=True)
class FailingSign(Sign):
    """Sign whose author reads a table without the entry."""

    name: ClassVar[str] = "failing-sign"

    def max_bytes(self, layout: Any) -> int:
        limits: dict[str, int] = {}
        return limits["vector"]


@pytest.mark.parametrize(
    ("check", "component", "law"),
    [
        (check_compressor, FailingSign(), "boundary_positions"),
        (check_aggregator, planted.FailingMean(), "valid_aggregate"),
    ],
    ids=["compressor", "aggregator"],
)
def test_exception_of_a_component_is_the_cause_of_the_law_error(
    check: Callable[..., None], component: Component, law: str
) -> None:
    with pytest.raises(LawError, match=rf"^{law}: {re.escape(str(component))}: KeyError: ") as error:
        check(component)
    assert isinstance(error.value.__cause__, KeyError)
