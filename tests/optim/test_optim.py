"""Update rules by exact small numbers, against torch.optim bit for bit, and the two momentum forms against each other."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsgd.config.component import FieldError
from fedsgd.optim import OPTIMIZERS, SCHEDULES, SGD, Momentum, Nesterov, Optimizer, PyTorchMomentum, compute_server_step
from fedsgd.optim.adaptive import FedAdagrad, FedAdam, FedYogi
from fedsgd.optim.schedules import (
    CosineSchedule,
    ExponentialSchedule,
    InverseSqrtSchedule,
    Schedule,
    StepSchedule,
    WarmUpSchedule,
)
from fedsgd.scenario.sections import ClientConfig

WORKED_EXAMPLE = [4, 2.3, 0.31, -1.543, -2.9021, -3.54487, -3.414389, -2.6140783, -1.37098301, 0.021999353]


def descend(optimizer: Optimizer, rates: list[float], start: float = 5.0) -> list[float]:
    """The path of L = x², whose gradient is 2x."""
    w = torch.tensor([start], dtype=torch.float64)
    buffers, path = optimizer.init(w), []
    for lr in rates:
        direction, alpha = optimizer.step(w, 2 * w, buffers, lr)
        w.add_(direction, alpha=alpha)
        path.append(float(w))
    return path


def test_momentum_on_a_parabola_is_the_worked_example() -> None:
    x, v, exact = Fraction(5), Fraction(0), []
    for _ in range(10):
        v = Fraction(9, 10) * v - Fraction(1, 10) * 2 * x
        x += v
        exact.append(float(x))
    assert exact == pytest.approx(WORKED_EXAMPLE, abs=1e-12)
    assert descend(Momentum(lr=0.1, momentum=0.9), [0.1] * 10) == pytest.approx(exact, abs=1e-12)


def test_vanilla_sgd_on_a_parabola_is_geometric() -> None:
    assert descend(SGD(), [0.1] * 5) == pytest.approx([5 * 0.8**t for t in range(1, 6)])


def test_the_two_momentum_forms_agree_while_the_step_size_is_constant() -> None:
    assert descend(Momentum(), [0.1] * 30) == pytest.approx(descend(PyTorchMomentum(), [0.1] * 30), rel=1e-12)


def test_the_two_momentum_forms_differ_when_it_changes() -> None:
    """One step at 0.1, one at 0.01: the first form keeps the old step, the second shrinks it tenfold."""
    rates = [0.1, 0.01]
    ours, theirs = descend(Momentum(), rates), descend(PyTorchMomentum(), rates)
    assert ours == pytest.approx([4, 4 + 0.9 * -1 - 0.01 * 8])
    assert theirs == pytest.approx([4, 4 - 0.01 * (0.9 * 10 + 8)])


def test_nesterov_by_hand() -> None:
    assert descend(Nesterov(), [0.1, 0.1]) == pytest.approx([5 - 0.1 * 19, 3.1 - 0.1 * (6.2 + 0.9 * (9 + 6.2))])


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 33), nn.Tanh(), nn.Linear(33, 10))


def examples() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.standard_normal((256, 1, 8, 8), dtype=np.float32)), torch.from_numpy(rng.integers(0, 10, 256))


def trained(optimizer: Optimizer, steps: int) -> np.ndarray:
    """As the engine does it: one flat vector."""
    module, (x, y) = network(), examples()
    parameters = list(module.parameters())
    w = torch.cat([p.detach().reshape(-1) for p in parameters])
    offsets = np.cumsum([0, *(p.numel() for p in parameters)])
    for p, a, b in zip(parameters, offsets[:-1], offsets[1:], strict=True):
        p.data = w[a:b].view(p.shape)
    buffers = optimizer.init(w)
    for step in range(steps):
        rows = slice(step % 16 * 16, step % 16 * 16 + 16)
        gradients = torch.autograd.grad(nn.functional.cross_entropy(module(x[rows]), y[rows]), parameters)
        direction, alpha = optimizer.step(w, torch.cat([g.reshape(-1) for g in gradients]), buffers, optimizer.lr)
        w.add_(direction, alpha=alpha)
    return w.numpy()


def trained_by_torch(steps: int, **options: float | bool) -> np.ndarray:
    module, (x, y) = network(), examples()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, foreach=False, **options)
    for step in range(steps):
        rows = slice(step % 16 * 16, step % 16 * 16 + 16)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).numpy()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SGD(lr=0.05), {}),
        (SGD(lr=0.05, weight_decay=0.01), {"weight_decay": 0.01}),
        (PyTorchMomentum(lr=0.05), {"momentum": 0.9}),
        (PyTorchMomentum(lr=0.05, weight_decay=0.01), {"momentum": 0.9, "weight_decay": 0.01}),
        (Nesterov(lr=0.05), {"momentum": 0.9, "nesterov": True}),
    ],
    ids=["sgd", "decay", "momentum", "momentum-decay", "nesterov"],
)
def test_bitwise_torch_optim_over_hundreds_of_steps(ours: Optimizer, theirs: dict[str, float]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert trained(ours, 400).tobytes() == trained_by_torch(400, **theirs).tobytes()
    finally:
        torch.set_num_threads(threads)


def test_clipping_shortens_the_gradient_to_the_norm_before_weight_decay() -> None:
    w, g = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])
    direction, alpha = SGD(lr=1.0, clip_norm=1.0, weight_decay=0.5).step(w, g, {}, 1.0)
    assert (alpha * direction).tolist() == pytest.approx([-0.6 - 0.5, -0.8])
    short = torch.tensor([0.3, 0.4])
    assert SGD(clip_norm=1.0).step(w, short.clone(), {}, 1.0).direction.tolist() == short.tolist()


def test_schedules_start_at_one_and_count_rounds_from_one() -> None:
    assert [StepSchedule(every=2, gamma=0.5).factor(r) for r in range(1, 7)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert [ExponentialSchedule(gamma=0.5).factor(r) for r in range(1, 5)] == [1, 0.5, 0.25, 0.125]
    for name in set(SCHEDULES) - {"warm-up"}:
        assert SCHEDULES[name]().factor(1) == 1
    assert SGD(lr=0.2, schedule=ExponentialSchedule(gamma=0.5)).learning_rate(3) == pytest.approx(0.05)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_step_writes_to_gradient_and_buffers_only(name: str) -> None:
    optimizer = OPTIMIZERS[name](weight_decay=0.1)
    w = torch.tensor([1.0, -2.0])
    optimizer.step(w, torch.tensor([0.5, 0.5]), optimizer.init(w), 0.1)
    assert w.tolist() == [1.0, -2.0]


def test_the_server_with_sgd_at_one_adds_the_update() -> None:
    w, update = np.float32([1, 2]), np.float32([0.25, -0.5])
    after, step, state = compute_server_step(SGD(lr=1.0), w, update, {}, 1)
    assert after.tolist() == [1.25, 1.5]
    assert step.tolist() == [0.25, -0.5], "the step itself, which after - w need not be"
    assert state == {}
    assert w.tolist() == [1, 2]


Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


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
    ("ours", "rule"),
    [
        (PyTorchMomentum(lr=0.5, momentum=0.8), fedavgm),
        (Momentum(lr=0.5, momentum=0.8), momentum),
        (FedAdagrad(lr=0.5, tau=0.1), fedadagrad),
        (FedAdam(lr=0.5, beta1=0.8, beta2=0.95, tau=0.1), fedadam),
        (FedYogi(lr=0.5, beta1=0.8, beta2=0.95, tau=0.1), fedyogi),
    ],
    ids=lambda value: value.name if isinstance(value, Optimizer) else "",
)
def test_server_optimizers_are_their_recurrence_in_float64(ours: Optimizer, rule: Rule) -> None:
    """m and v as Reddi et al. 2021 begin: at 0 and τ². Updates of very different sizes, so that v matters."""
    rng = np.random.default_rng(0)
    x, m, v = np.zeros(5), np.zeros(5), np.full(5, 0.1**2)
    weights, state = np.zeros(5, np.float32), {}
    for round in range(1, 40):
        update = (rng.standard_normal(5) * 10.0 ** rng.integers(-3, 2, 5)).astype(np.float32)
        weights, _, state = compute_server_step(ours, weights, update, state, round)
        x, m, v = rule(x, m, v, update.astype(np.float64))
        assert weights == pytest.approx(x, rel=2e-5, abs=1e-6)


def test_fedadam_at_first_moves_each_coordinate_by_nearly_the_step_size_and_never_corrects_for_bias() -> None:
    """Without bias correction, m = 0.1Δ and v = τ² + 0.01Δ² after the first round: η · 0.1|Δ|/(0.1|Δ| + τ) for a large Δ."""
    after, _, _ = compute_server_step(
        FedAdam(lr=0.3, beta2=0.99, tau=1e-6), np.zeros(2, np.float32), np.float32([5, -0.02]), {}, 1
    )
    assert after == pytest.approx([0.3, -0.3], rel=1e-3)


def test_other_names_of_server_optimizers() -> None:
    assert OPTIMIZERS["fedavg"] is SGD
    assert OPTIMIZERS["fedavgm"] is PyTorchMomentum
    assert "fedavgm" not in list(OPTIMIZERS)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if OPTIMIZERS[name].server_only])
def test_server_optimizers_are_refused_on_the_client(name: str) -> None:
    with pytest.raises(
        FieldError, match=rf'optimizer.name: got "{name}", which is for the server, expected one of: "momentum"'
    ):
        ClientConfig(optimizer=OPTIMIZERS[name]())


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
def test_schedules_by_hand(schedule: Schedule, factors: list[float]) -> None:
    assert [schedule.factor(t) for t in range(1, len(factors) + 1)] == pytest.approx(factors, abs=1e-12)


def test_a_cosine_is_that_of_torch() -> None:
    torch_optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(torch_optimizer, T_max=20, eta_min=0.03)
    ours = SGD(lr=0.3, schedule=CosineSchedule(length=20, floor=0.1))
    for round in range(1, 22):
        assert ours.learning_rate(round) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        torch_optimizer.step()
        theirs.step()


def test_what_a_schedule_counts() -> None:
    halving = ExponentialSchedule(gamma=0.5)
    rates = {
        over: [
            SGD(lr=1.0, schedule=halving, schedule_over=over).learning_rate(round, step, 3)
            for round in (1, 2)
            for step in (1, 2, 3)
        ]
        for over in ("rounds", "steps", "local-steps")
    }
    assert rates["rounds"] == [1, 1, 1, 0.5, 0.5, 0.5]
    assert rates["steps"] == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert rates["local-steps"] == [1, 0.5, 0.25, 1, 0.5, 0.25]


@pytest.mark.parametrize("name", list(SCHEDULES))
@given(t=st.integers(1, 10**6))
def test_factors_are_shares_of_the_step_size(name: str, t: int) -> None:
    assert 0 <= SCHEDULES[name]().factor(t) <= 1
