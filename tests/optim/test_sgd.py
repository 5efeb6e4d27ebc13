"""Momentum forms on a parabola by exact numbers, and all rules against torch.optim bit for bit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsgd.optim import SGD, Momentum, Nesterov, Optimizer, PyTorchMomentum

WORKED_EXAMPLE = [4, 2.3, 0.31, -1.543, -2.9021, -3.54487, -3.414389, -2.6140783, -1.37098301, 0.021999353]


def descend(optimizer: Optimizer, rates: list[float], start: float = 5.0) -> list[float]:
    """Return the path of steps on L = x², whose gradient is 2x."""
    w = torch.tensor([start], dtype=torch.float64)
    buffers, path = optimizer.init(w), []
    for lr in rates:
        direction, alpha = optimizer.step(w, 2 * w, buffers, lr)
        w.add_(direction, alpha=alpha)
        path.append(float(w))
    return path


def test_momentum_on_a_parabola_equals_the_worked_example() -> None:
    x, v, exact = Fraction(5), Fraction(0), []
    for _ in range(10):
        v = Fraction(9, 10) * v - Fraction(1, 10) * 2 * x
        x += v
        exact.append(float(x))
    assert exact == pytest.approx(WORKED_EXAMPLE, abs=1e-12)
    assert descend(Momentum(lr=0.1, momentum=0.9), [0.1] * 10) == pytest.approx(exact, abs=1e-12)


def test_sgd_on_a_parabola_is_geometric() -> None:
    assert descend(SGD(), [0.1] * 5) == pytest.approx([5 * 0.8**t for t in range(1, 6)])


def test_momentum_forms_with_a_constant_learning_rate_agree() -> None:
    assert descend(Momentum(), [0.1] * 30) == pytest.approx(descend(PyTorchMomentum(), [0.1] * 30), rel=1e-12)


def test_momentum_forms_with_a_changed_learning_rate_differ() -> None:
    """One step at 0.1, one at 0.01: "momentum" repeats 0.9 of the old step, "momentum-pytorch" 0.09 of it."""
    rates = [0.1, 0.01]
    assert descend(Momentum(), rates) == pytest.approx([4, 4 + 0.9 * -1 - 0.01 * 8])
    assert descend(PyTorchMomentum(), rates) == pytest.approx([4, 4 - 0.01 * (0.9 * 10 + 8)])


def test_nesterov_on_a_parabola_equals_two_steps_by_hand() -> None:
    assert descend(Nesterov(), [0.1, 0.1]) == pytest.approx([5 - 0.1 * 19, 3.1 - 0.1 * (6.2 + 0.9 * (9 + 6.2))])


def make_module() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 33), nn.Tanh(), nn.Linear(33, 10))


def make_examples() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.standard_normal((256, 1, 8, 8), dtype=np.float32)), torch.from_numpy(rng.integers(0, 10, 256))


def train(optimizer: Optimizer, steps: int) -> np.ndarray:
    """Return the parameters after training with an optimizer on one flat vector, as in an engine."""
    module, (x, y) = make_module(), make_examples()
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


def train_with_torch(steps: int, **options: float | bool) -> np.ndarray:
    """Return the parameters after training with torch.optim.SGD."""
    module, (x, y) = make_module(), make_examples()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, foreach=False, **options)
    for step in range(steps):
        rows = slice(step % 16 * 16, step % 16 * 16 + 16)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).numpy()


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (SGD(lr=0.05), {}),
        (SGD(lr=0.05, weight_decay=0.01), {"weight_decay": 0.01}),
        (PyTorchMomentum(lr=0.05), {"momentum": 0.9}),
        (PyTorchMomentum(lr=0.05, weight_decay=0.01), {"momentum": 0.9, "weight_decay": 0.01}),
        (Nesterov(lr=0.05), {"momentum": 0.9, "nesterov": True}),
    ],
    ids=["sgd", "decay", "momentum", "momentum-decay", "nesterov"],
)
def test_optimizer_over_400_steps_has_the_bits_of_torch(optimizer: Optimizer, options: dict[str, float]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert train(optimizer, 400).tobytes() == train_with_torch(400, **options).tobytes()
    finally:
        torch.set_num_threads(threads)
