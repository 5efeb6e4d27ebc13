"""Clipping, the arguments that steps write to, units of schedules, and server steps of SGD."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsgd.aggregation.server_step import compute_server_step
from fedsgd.optim import SGD
from fedsgd.optim.schedules import ExponentialSchedule


def test_clipping_precedes_weight_decay() -> None:
    w, g = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])
    direction, alpha = SGD(lr=1.0, clip_norm=1.0, weight_decay=0.5).step(w, g, {}, 1.0)
    assert (alpha * direction).tolist() == pytest.approx([-0.6 - 0.5, -0.8])
    short = torch.tensor([0.3, 0.4])
    assert SGD(clip_norm=1.0).step(w, short.clone(), {}, 1.0).direction.tolist() == short.tolist()


def test_schedule_over_rounds_and_steps_counts_its_unit() -> None:
    schedule = ExponentialSchedule(gamma=0.5)
    rates = {
        unit: [
            SGD(lr=1.0, schedule=schedule, schedule_over=unit).learning_rate(round, step, 3)
            for round in (1, 2)
            for step in (1, 2, 3)
        ]
        for unit in ("rounds", "steps", "local-steps")
    }
    assert rates["rounds"] == [1, 1, 1, 0.5, 0.5, 0.5]
    assert rates["steps"] == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert rates["local-steps"] == [1, 0.5, 0.25, 1, 0.5, 0.25]


def test_server_step_of_sgd_with_rate_one_adds_the_update() -> None:
    w, update = np.float32([1, 2]), np.float32([0.25, -0.5])
    after, step, state = compute_server_step(SGD(lr=1.0), w, update, {}, 1)
    assert after.tolist() == [1.25, 1.5]
    assert step.tolist() == [0.25, -0.5], "the step itself, since after - w may be rounded"
    assert state == {}
    assert w.tolist() == [1, 2]
