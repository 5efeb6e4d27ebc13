"""Registry of samplers and duration models, and cohorts that must not change. The laws are in tests/laws/test_sampler_laws.py."""

from __future__ import annotations

import tomllib

import pytest
import tomli_w

from fedsgd.sampling import (
    DURATIONS,
    SAMPLERS,
    Sampler,
)
from fedsgd.sampling.cyclic import Cyclic
from fedsgd.sampling.uniform import Uniform
from fedsgd.sampling.weighted import Weighted
from fedsgd.scenario.parsing import dump_table, parse_table
from tests.sampling.pools import SamplingSection, make_pool_of_sizes


def test_member_round_trips_through_toml() -> None:
    required_keys = {"trace": {"file": "f.csv"}}
    for key, registry in (("sampler", SAMPLERS), ("durations", DURATIONS)):
        for name in registry:
            section = parse_table(SamplingSection, {key: {"name": name, **required_keys.get(name, {})}})
            assert type(getattr(section, key)) is registry[name]
            assert parse_table(SamplingSection, tomllib.loads(tomli_w.dumps(dump_table(section)))) == section


@pytest.mark.parametrize(
    ("sampler", "cohort"),
    [
        (Uniform(), (12, 15, 24, 30, 39, 50, 64, 67, 86, 90)),
        (Weighted(), (13, 17, 38, 55, 56, 62, 80, 85, 87, 95)),
        (Weighted(exponent=0.5), (13, 17, 30, 40, 44, 55, 56, 73, 85, 87)),
        (Cyclic(), (4, 10, 12, 27, 28, 45, 55, 77, 86, 97)),
    ],
    ids=str,
)
def test_cohort_equals_that_of_earlier_versions(sampler: Sampler, cohort: tuple[int, ...]) -> None:
    """Digests of runs depend on cohorts: here round 3 of 100 clients with 1 to 100 examples, seed 0."""
    assert sampler.bind(make_pool_of_sizes(*range(1, 101)))(3, 10).cohort == cohort
