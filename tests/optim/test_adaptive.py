"""Server optimizers against their rules in float64; their aliases, and their rejection on clients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedsgd.aggregation.server_step import compute_server_step
from fedsgd.config.component import FieldError
from fedsgd.optim import OPTIMIZERS, SGD, Momentum, Optimizer, PyTorchMomentum
from fedsgd.optim.adaptive import FedAdagrad, FedAdam, FedYogi
from fedsgd.scenario.sections import ClientConfig

UpdateRule = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def fedavgm(x: np.ndarray, m: np.ndarray, v: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    m = 0.8 * m + d
    return x + 0.5 * m, m, v


def momentum(x: np.ndarray, m: np.ndarray, v: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    m = 0.8 * m + 0.5 * d
    return x + m, m, v


def fedadagrad(x: np.ndarray, m: np.ndarray, v: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    v = v + d**2
    return x + 0.5 * d / (np.sqrt(v) + 0.1), m, v


def fedadam(x: np.ndarray, m: np.ndarray, v: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    m, v = 0.8 * m + 0.2 * d, 0.95 * v + 0.05 * d**2
    return x + 0.5 * m / (np.sqrt(v) + 0.1), m, v


def fedyogi(x: np.ndarray, m: np.ndarray, v: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    m, v = 0.8 * m + 0.2 * d, v - 0.05 * d**2 * np.sign(v - d**2)
    return x + 0.5 * m / (np.sqrt(v) + 0.1), m, v


@pytest.mark.parametrize(
    ("optimizer", "rule"),
    [
        (PyTorchMomentum(lr=0.5, momentum=0.8), fedavgm),
        (Momentum(lr=0.5, momentum=0.8), momentum),
        (FedAdagrad(lr=0.5, tau=0.1), fedadagrad),
        (FedAdam(lr=0.5, beta1=0.8, beta2=0.95, tau=0.1), fedadam),
        (FedYogi(lr=0.5, beta1=0.8, beta2=0.95, tau=0.1), fedyogi),
    ],
    ids=lambda value: value.name if isinstance(value, Optimizer) else "",
)
def test_server_optimizer_over_39_rounds_equals_its_rule_in_float64(optimizer: Optimizer, rule: UpdateRule) -> None:
    """m and v start at 0 and τ², as in Reddi et al. 2021. Updates differ in size, so that v matters."""
    rng = np.random.default_rng(0)
    x, m, v = np.zeros(5), np.zeros(5), np.full(5, 0.1**2)
    weights, state = np.zeros(5, np.float32), {}
    for round in range(1, 40):
        update = (rng.standard_normal(5) * 10.0 ** rng.integers(-3, 2, 5)).astype(np.float32)
        weights, _, state = compute_server_step(optimizer, weights, update, state, round)
        x, m, v = rule(x, m, v, update.astype(np.float64))
        assert weights == pytest.approx(x, rel=2e-5, abs=1e-6)


def test_fedadam_in_round_one_moves_each_coordinate_by_nearly_the_learning_rate() -> None:
    """Without bias correction, m = 0.1Δ and v = τ² + 0.01Δ² after round 1: η · 0.1|Δ|/(0.1|Δ| + τ) for a large Δ."""
    after, _, _ = compute_server_step(
        FedAdam(lr=0.3, beta2=0.99, tau=1e-6), np.zeros(2, np.float32), np.float32([5, -0.02]), {}, 1
    )
    assert after == pytest.approx([0.3, -0.3], rel=1e-3)


def test_aliases_of_server_optimizers_are_not_listed() -> None:
    assert OPTIMIZERS["fedavg"] is SGD
    assert OPTIMIZERS["fedavgm"] is PyTorchMomentum
    assert "fedavgm" not in list(OPTIMIZERS)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if OPTIMIZERS[name].server_only])
def test_server_optimizer_on_a_client_is_rejected(name: str) -> None:
    with pytest.raises(
        FieldError, match=rf'optimizer.name: got "{name}", which is for the server, expected one of: "adam", "adamw"'
    ):
        ClientConfig(optimizer=OPTIMIZERS[name]())
