"""Stragglers: number, work, and independence of everything but seed, round and cohort."""

from __future__ import annotations

import pickle
from collections import Counter
from functools import partial

import numpy as np
import pytest

from fedsgd.numerics.rng import derive_generator
from fedsgd.sampling import Sampler, SamplingPool, StragglerModel, count_stragglers
from fedsgd.sampling.uniform import Uniform
from fedsgd.sampling.weighted import Weighted

N = 30


def make_model(share: float = 0.9, drops: bool = False, work: int = 20, seed: int = 3, **keys: object) -> StragglerModel:
    sampler = keys.get("sampler", Uniform())
    assert isinstance(sampler, Sampler)
    return StragglerModel(share, drops, work, sampler, SamplingPool(seed, N, partial(np.asarray, np.arange(1, N + 1))), 10)


@pytest.mark.parametrize(("share", "expected"), [(0.1, 1), (0.5, 5), (0.9, 9), (0.05, 0), (0.99, 10), (0.34, 3)])
def test_number_of_stragglers_is_the_cohort_less_the_rounded_rest(share: float, expected: int) -> None:
    assert count_stragglers(share, 10) == expected


def test_stragglers_and_their_work_equal_an_independent_draw() -> None:
    model = make_model()
    for round in (1, 2, 7):
        cohort = sorted(derive_generator(3, "cohort", round).choice(N, size=10, replace=False).tolist())
        chosen = derive_generator(3, "stragglers", round).choice(10, size=9, replace=False)
        stragglers = {cohort[i] for i in chosen}
        expected = {c: int(derive_generator(3, "stragglers/work", round, c).integers(1, 21)) for c in stragglers}
        assert {c: model.work_of(round, c) for c in range(N)} == {c: expected.get(c) for c in range(N)}


def test_straggler_work_is_uniform_from_one_to_all() -> None:
    model = make_model(work=4)
    works = Counter(model.work_of(round, client) for round in range(1, 201) for client in range(N))
    del works[None]
    assert sorted(works) == [1, 2, 3, 4]
    assert sum(works.values()) == 200 * 9
    chi_square = sum((n - 450) ** 2 / 450 for n in works.values())
    assert chi_square < 16.3  # 0.999 quantile of three degrees of freedom


@pytest.mark.slow
def test_every_client_straggles_in_its_share_of_rounds() -> None:
    model = make_model(share=0.5)
    counts = np.array([sum(model.work_of(round, client) is not None for round in range(1, 401)) for client in range(N)])
    assert counts.sum() == 400 * 5
    assert abs(counts - 400 / 6).max() < 5 * np.sqrt(400 / 6)


def test_policy_changes_neither_stragglers_nor_work() -> None:
    keeping, dropping = make_model(), make_model(drops=True)
    for client in range(N):
        assert keeping.work_of(4, client) == dropping.work_of(4, client)
        assert not keeping.is_dropped(4, client)
        assert dropping.is_dropped(4, client) == (dropping.work_of(4, client) is not None)


@pytest.mark.parametrize("sampler", [Uniform(), Weighted()])
def test_pickled_model_draws_equal_stragglers(sampler: Sampler) -> None:
    model = make_model(sampler=sampler)
    before = [model.work_of(5, client) for client in range(N)]
    data = pickle.dumps(model)
    assert [pickle.loads(data).work_of(5, client) for client in range(N)] == before
    assert len(data) < 2000, "neither data nor bound samplers are pickled"


def test_stragglers_depend_on_seed_and_round() -> None:
    draws = {
        tuple(make_model(share=0.5, seed=seed).work_of(round, client) is not None for client in range(N))
        for seed in (0, 1)
        for round in (1, 2, 3)
    }
    assert len(draws) == 6
