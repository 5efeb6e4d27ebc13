"""Schedules against factors by hand and against torch."""

from __future__ import annotations

import pytest
import torch

from fedsgd.optim import SCHEDULES, SGD
from fedsgd.optim.schedules import (
    CosineSchedule,
    ExponentialSchedule,
    InverseSqrtSchedule,
    Schedule,
    StepSchedule,
    WarmUpSchedule,
)


def test_schedules_at_time_one_have_factor_one() -> None:
    assert [StepSchedule(every=2, gamma=0.5).factor(r) for r in range(1, 7)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert [ExponentialSchedule(gamma=0.5).factor(r) for r in range(1, 5)] == [1, 0.5, 0.25, 0.125]
    for name in set(SCHEDULES) - {"warm-up"}:
        assert SCHEDULES[name]().factor(1) == 1
    assert SGD(lr=0.2, schedule=ExponentialSchedule(gamma=0.5)).learning_rate(3) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (CosineSchedule(length=4), [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0]),
        (CosineSchedule(length=2, floor=0.2), [1, 0.6, 0.2, 0.2]),
        (InverseSqrtSchedule(), [1, 0.5**0.5, 3**-0.5, 0.5]),
        (WarmUpSchedule(length=4), [0.25, 0.5, 0.75, 1, 1, 1]),
        (WarmUpSchedule(length=1), [1, 1]),
        (WarmUpSchedule(length=3, then=ExponentialSchedule(gamma=0.5)), [1 / 3, 2 / 3, 1, 0.5, 0.25]),
    ],
    ids=str,
)
def test_schedule_equals_factors_by_hand(schedule: Schedule, factors: list[float]) -> None:
    assert [schedule.factor(t) for t in range(1, len(factors) + 1)] == pytest.approx(factors, abs=1e-12)


def test_cosine_schedule_equals_that_of_torch() -> None:
    torch_optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(torch_optimizer, T_max=20, eta_min=0.03)
    optimizer = SGD(lr=0.3, schedule=CosineSchedule(length=20, floor=0.1))
    for round in range(1, 22):
        assert optimizer.learning_rate(round) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        torch_optimizer.step()
        scheduler.step()
