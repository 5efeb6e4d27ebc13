"""Update rules by exact small numbers, against torch.optim bit for bit, and the two momentum forms against each other."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsgd.optim import (
    OPTIMIZERS,
    SCHEDULES,
    SGD,
    Exponential,
    Momentum,
    Nesterov,
    Optimizer,
    PyTorchMomentum,
    Step,
    server_step,
)

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
    assert [Step(every=2, gamma=0.5).factor(r) for r in range(1, 7)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert [Exponential(gamma=0.5).factor(r) for r in range(1, 5)] == [1, 0.5, 0.25, 0.125]
    for name in SCHEDULES:
        assert SCHEDULES[name]().factor(1) == 1
    assert SGD(lr=0.2, schedule=Exponential(gamma=0.5)).rate(3) == pytest.approx(0.05)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_step_writes_to_gradient_and_buffers_only(name: str) -> None:
    optimizer = OPTIMIZERS[name](weight_decay=0.1)
    w = torch.tensor([1.0, -2.0])
    optimizer.step(w, torch.tensor([0.5, 0.5]), optimizer.init(w), 0.1)
    assert w.tolist() == [1.0, -2.0]


def test_the_server_with_sgd_at_one_adds_the_update() -> None:
    w, update = np.float32([1, 2]), np.float32([0.25, -0.5])
    after, state = server_step(SGD(lr=1.0), w, update, {}, 1)
    assert after.tolist() == [1.25, 1.5]
    assert state == {}
    assert w.tolist() == [1, 2]


def test_server_momentum_is_fedavgm() -> None:
    """Against a few lines of float64: v ← βv + Δ; w ← w + ηv."""
    w, v, state = np.zeros(3, np.float32), np.zeros(3), {}
    exact = np.zeros(3)
    rng = np.random.default_rng(0)
    for round in range(1, 20):
        update = rng.standard_normal(3).astype(np.float32)
        w, state = server_step(Momentum(lr=0.5, momentum=0.8), w, update, state, round)
        v = 0.8 * v + 0.5 * update.astype(np.float64)
        exact += v
    assert w == pytest.approx(exact, rel=1e-5)
