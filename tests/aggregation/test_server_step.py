"""Step of the server's optimizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsgd.aggregation.server_step import compute_server_step
from fedsgd.optim import SGD, AdamW, DiLoCo, Momentum, Optimizer
from fedsgd.optim.adaptive import FedAdam

OPTIMIZERS = [SGD(lr=1.0), SGD(lr=0.3, weight_decay=0.1), Momentum(lr=0.5), FedAdam(lr=0.1), AdamW(lr=0.1)]


def test_diloco_has_the_bits_of_nesterov_momentum_in_torch_with_the_settings_of_the_paper() -> None:
    """The gradient of the outer step is the negative mean update: Douillard et al. 2023, algorithm 1."""
    rng, state = np.random.default_rng(0), {}
    weights = rng.standard_normal(100, dtype=np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    torch_optimizer = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    for round in range(1, 21):
        update = rng.standard_normal(100, dtype=np.float32)
        parameter.grad = torch.from_numpy(-update)
        torch_optimizer.step()
        weights, _, state = compute_server_step(DiLoCo(), weights, update, state, round)
        assert weights.tobytes() == parameter.detach().numpy().tobytes()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_server_step_in_the_memory_of_the_update_equals_the_step_in_new_memory(optimizer: Optimizer) -> None:
    rng = np.random.default_rng(0)
    weights, update = (rng.standard_normal(100, dtype=np.float32) for _ in range(2))
    copies = weights.copy(), update.copy()
    expected_weights, step, expected_state = compute_server_step(optimizer, weights, update, {}, 1)
    assert step is not None
    assert np.array_equal(weights, copies[0])
    assert np.array_equal(update, copies[1])
    next_weights, no_step, state = compute_server_step(
        optimizer, weights, update, {}, 1, overwrite_update=True, needs_step=False
    )
    assert no_step is None
    assert next_weights.tobytes() == expected_weights.tobytes()
    assert {name: value.tobytes() for name, value in state.items()} == {
        name: value.tobytes() for name, value in expected_state.items()
    }
    assert np.array_equal(weights, copies[0])
