"""Laws of optimizers and schedules. w: parameters [P]; g: gradient [P]; η: learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsgd.aggregation.server_step import compute_server_step
from fedsgd.certification.law import Law, make_law
from fedsgd.certification.operator_laws import require
from fedsgd.certification.simulate_rounds import rebuild
from fedsgd.data import Dataset, Examples
from fedsgd.models import Mlp
from fedsgd.models.builder import build_task
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.rng import derive_generator
from fedsgd.optim import Optimizer, ScaledStep, Schedule
from fedsgd.testing.component_laws import arrange_laws
from fedsgd.training import LocalTraining, TrainingEngine, TrainingJob
from fedsgd.training.captured import Captured
from fedsgd.training.sequential import Sequential
from fedsgd.training.stacked import Stacked

if TYPE_CHECKING:
    from torch import Tensor

    from fedsgd.optim.base import Buffers

SIZE, N_STEPS = 12, 6
SHAPES = ((12,), (3, 4), (2, 3, 2), ())
"""Shapes of parameters; a rule is elementwise."""
ROUNDING = 1e-5
"""Allowed error of a step that is rounded in another order, relative to its norm."""
ENGINE_LR, BATCH_SIZE, N_CLIENTS, EXAMPLES_PER_CLIENT = 0.05, 8, 3, 24
"""Settings of the training that compares engines."""
UPDATE_TOLERANCE, MODEL_TOLERANCE = 1e-4, 1e-6
"""Allowed error of an engine that rounds sums in another order, relative to the norm of the update and of the model."""
TIMES = (*range(1, 200), 10**3, 10**4, 10**6)
"""Times t at which schedules are checked."""


def draw_vectors(purpose: str, n: int, shape: Sequence[int] = (SIZE,)) -> list[Tensor]:
    """Return n float32 tensors of standard Gaussian numbers."""
    import torch

    rng = derive_generator(0, f"laws/optimizer/{purpose}")
    return [torch.from_numpy(np.asarray(rng.standard_normal(tuple(shape), dtype=np.float32))) for _ in range(n)]


def _make_steps(optimizer: Optimizer, w: Tensor, gradients: Sequence[Tensor], lr: float) -> tuple[Tensor, Buffers]:
    """Return the parameters and the buffers after a step with each gradient."""
    w, buffers = w.clone(), optimizer.init(w)
    for g in gradients:
        optimizer.step(w, g.clone(), buffers, lr).add_to(w)
    return w, buffers


def _first_step(optimizer: Optimizer, w: Tensor, g: Tensor, lr: float) -> Tensor:
    return optimizer.step(w, g.clone(), optimizer.init(w), lr).compute_difference(w)


def _read_bits(tensor: Tensor) -> bytes:
    bits: bytes = tensor.numpy().tobytes()
    return bits


def _require_close(law: str, optimizer: Optimizer, case: str, actual: Tensor, expected: Tensor) -> None:
    error, norm = float((actual - expected).norm()), float(expected.norm())
    require(error <= ROUNDING * norm, law, optimizer, f"{case}: |difference| = {error:.3g} of |step| = {norm:.3g}")


# ------------------------------------------------------------------------------------------------------------------ optimizers


def valid_step(optimizer: Optimizer) -> None:
    """A step is a finite tensor in the shape and type of w, and a number; buffers keep their names, and shape and type of w."""
    import torch

    law = "valid_step"
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float64):
            w, *gradients = (x.to(dtype) for x in draw_vectors("valid", 1 + N_STEPS, shape))
            buffers = optimizer.init(w)
            names = set(buffers)
            for g in gradients:
                step: Any = optimizer.step(w, g, buffers, optimizer.lr)
                is_step = isinstance(step, ScaledStep) and all(isinstance(x, float | int) for x in (step.alpha, step.decay))
                require(is_step, law, optimizer, f"step returned {type(step).__name__}, expected ScaledStep(tensor, number)")
                tensors = {"direction": step.direction, **{f'buffer "{name}"': value for name, value in buffers.items()}}
                for name, tensor in tensors.items():
                    figures = f"{name} has {tensor.dtype} and shape {tuple(tensor.shape)}, expected {dtype} and {shape} of w"
                    require(tensor.dtype == dtype and tuple(tensor.shape) == shape, law, optimizer, figures)
                    require(bool(torch.isfinite(tensor).all()), law, optimizer, f"{name} is not finite")
                require(set(buffers) == names, law, optimizer, f"buffers {sorted(buffers)}, expected {sorted(names)} of init")


def equal_steps(optimizer: Optimizer) -> None:
    """Equal optimizers make steps of equal bits; all state is in the buffers, so that clients can take turns."""
    w, *gradients = draw_vectors("equal", 1 + N_STEPS)
    other_w, *other_gradients = draw_vectors("other", 1 + N_STEPS)
    expected, _ = _make_steps(rebuild(optimizer), w, gradients, optimizer.lr)
    w, buffers, other_buffers = w.clone(), optimizer.init(w), optimizer.init(other_w)
    for g, other_g in zip(gradients, other_gradients, strict=True):
        optimizer.step(w, g, buffers, optimizer.lr).add_to(w)
        optimizer.step(other_w, other_g, other_buffers, optimizer.lr)
    figures = "steps of two clients in turns differ from those of one client alone: state is kept outside the buffers"
    require(_read_bits(w) == _read_bits(expected), "equal_steps", optimizer, figures)


def unchanged_arguments(optimizer: Optimizer) -> None:
    """A step does not write to the parameters."""
    w, *gradients = draw_vectors("unchanged", 1 + N_STEPS)
    original, buffers = _read_bits(w), optimizer.init(w)
    for g in gradients:
        optimizer.step(w, g, buffers, optimizer.lr)
        require(_read_bits(w) == original, "unchanged_arguments", optimizer, "writes to w; the caller adds the step")


def zero_gradient(optimizer: Optimizer) -> None:
    """With parameters and gradients of zero, the parameters stay zero."""
    import torch

    w, _ = _make_steps(optimizer, torch.zeros(SIZE), [torch.zeros(SIZE)] * N_STEPS, optimizer.lr)
    require(not bool((w != 0).any()), "zero_gradient", optimizer, f"w is {w[:3].tolist()}... after {N_STEPS} steps")


def descent(optimizer: Optimizer) -> None:
    """Without weight decay, the first step is against the gradient: its inner product with g is negative."""
    rule = replace(optimizer, weight_decay=0.0)
    w, g = draw_vectors("descent", 2)
    product = float((_first_step(rule, w, g, optimizer.lr) * g).sum())
    require(product < 0, "descent", optimizer, f"the inner product of the first step and the gradient is {product:.3g}")


def learning_rate(optimizer: Optimizer) -> None:
    """The first step is proportional to η, the argument of `step`; `learning_rate` is η · factor, from 0 to `lr`."""
    law, (w, g) = "learning_rate", draw_vectors("rate", 2)
    whole, half, zero = (_first_step(optimizer, w, g, lr) for lr in (1.0, 0.5, 0.0))
    _require_close(law, optimizer, "the first step with η = 1, and twice that with η = 0.5", 2 * half, whole)
    require(not bool((zero != 0).any()), law, optimizer, "the first step with η = 0 is not zero")
    for round in (1, 2, 10, 1000):
        for step in (1, 5):
            rate = optimizer.learning_rate(round, step, 5)
            figures = f"η is {rate!r} in round {round}, step {step}, expected 0 to lr = {optimizer.lr}"
            require(math.isfinite(rate) and 0 <= rate <= optimizer.lr, law, optimizer, figures)


def clipping(optimizer: Optimizer) -> None:
    """With `clip_norm`, the step is that of the gradient scaled to this norm; shorter gradients are not changed."""
    w, g = draw_vectors("clipping", 2)
    for share in (0.25, 4.0):
        max_norm = share * float(g.norm())
        clipped_step = _first_step(replace(optimizer, clip_norm=max_norm), w, g, optimizer.lr)
        expected = _first_step(replace(optimizer, clip_norm=None), w, g * min(1.0, share), optimizer.lr)
        case = f"clip_norm of {share:g} times the norm of the gradient"
        _require_close("clipping", optimizer, case, clipped_step, expected)


def weight_decay(optimizer: Optimizer) -> None:
    """Weight decay λ adds λw to the clipped gradient; with `decouples_weight_decay`, it adds −ηλw to the step."""
    w, g = draw_vectors("decay", 2)
    rule, is_decoupled = replace(optimizer, weight_decay=0.0, clip_norm=None), optimizer.decouples_weight_decay
    decayed_step = _first_step(replace(rule, weight_decay=0.5), w, g, optimizer.lr)
    expected = _first_step(rule, w, g if is_decoupled else g + 0.5 * w, optimizer.lr)
    if is_decoupled:
        expected.sub_(w, alpha=0.5 * optimizer.lr)
    _require_close("weight_decay", optimizer, "weight_decay = 0.5", decayed_step, expected)


def elementwise(optimizer: Optimizer) -> None:
    """After clipping, the step of a coordinate depends on the gradients and the parameter of this coordinate alone."""
    import torch

    rule = replace(optimizer, clip_norm=None)
    w, *gradients = draw_vectors("elementwise", 1 + N_STEPS)
    whole, _ = _make_steps(rule, w, gradients, optimizer.lr)
    parts = [_make_steps(rule, w[part], [g[part] for g in gradients], optimizer.lr)[0] for part in (slice(5), slice(5, SIZE))]
    _require_close("elementwise", optimizer, "steps of two parts of the vector", torch.cat(parts), whole)
    matrix, _ = _make_steps(rule, w.view(3, 4), [g.view(3, 4) for g in gradients], optimizer.lr)
    _require_close("elementwise", optimizer, "steps of a matrix of the same coordinates", matrix.reshape(-1), whole)


def server_steps(optimizer: Optimizer) -> None:
    """At the server, steps with a state of arrays [P] between rounds are those with buffers."""
    w, *gradients = draw_vectors("server", 1 + N_STEPS)
    weights, state = w.numpy(), dict[str, F32]()
    expected, buffers = w.clone(), optimizer.init(w)
    for round, g in enumerate(gradients, start=1):
        weights, _, state = compute_server_step(optimizer, weights, np.negative(g.numpy()), state, round)
        optimizer.step(expected, g.clone(), buffers, optimizer.learning_rate(round)).add_to(expected)
        figures = f"round {round}: the model differs from that of steps with buffers"
        require(weights.tobytes() == _read_bits(expected), "server_steps", optimizer, figures)


def equal_engines(optimizer: Optimizer) -> None:
    """Clients get equal updates from all engines: equal bits from "captured" with exact updates, else up to rounding."""
    rng = derive_generator(0, "laws/optimizer/data")
    n = N_CLIENTS * EXAMPLES_PER_CLIENT
    y = rng.integers(0, 3, n)
    x = (rng.standard_normal((n, 6)) + 2 * np.eye(3, 6)[y]).astype(np.float32)
    data = Dataset(Examples(x, y), Examples(x[:BATCH_SIZE], y[:BATCH_SIZE]), classes=3)
    task = build_task(Mlp(hidden=(8,)), data, 0)
    training = LocalTraining(replace(optimizer, lr=ENGINE_LR), 2, None, BATCH_SIZE)
    jobs = [
        TrainingJob(0, 1, client, task.initial_parameters, Examples(x, y, np.arange(client, n, N_CLIENTS)))
        for client in range(N_CLIENTS)
    ]
    sizes = [BATCH_SIZE]
    expected = _train(Sequential(task, training), jobs)
    engines: dict[str, TrainingEngine] = {
        "captured, exact": Captured(task, training, data.train, sizes, "exact"),
        "captured, fused": Captured(task, training, data.train, sizes, "fused"),
        "stacked, fused": Stacked(task, training, data.train, sizes, "fused", N_CLIENTS),
    }
    model_norm = float(np.linalg.norm(task.initial_parameters))
    for name, engine in engines.items():
        for client, update in _train(engine, jobs).items():
            error, norm = (float(np.linalg.norm(vector)) for vector in (update - expected[client], expected[client]))
            limit = 0.0 if name == "captured, exact" else UPDATE_TOLERANCE * norm + MODEL_TOLERANCE * model_norm
            figures = f'client {client}: the update of "{name}" differs from that of "sequential" by {error:.3g}'
            require(error <= limit, "equal_engines", optimizer, f"{figures}, its norm is {norm:.3g}")


def _train(engine: TrainingEngine, jobs: Sequence[TrainingJob]) -> dict[int, F32]:
    """Return the update of each client."""
    return {result.client: result.update for result in engine.train(jobs)}


def _run(optimizer: Optimizer) -> None:
    w, *gradients = draw_vectors("run", 1 + N_STEPS)
    _make_steps(rebuild(optimizer), w, gradients, optimizer.lr)


OPTIMIZER_LAWS = (
    valid_step,
    unchanged_arguments,
    equal_steps,
    zero_gradient,
    descent,
    learning_rate,
    clipping,
    weight_decay,
    elementwise,
    server_steps,
)
"""Laws of every optimizer."""


def list_optimizer_laws(optimizer: Optimizer) -> list[Law]:
    """Return the laws of an optimizer."""
    functions = [*OPTIMIZER_LAWS, *(() if optimizer.server_only else (equal_engines,))]
    return arrange_laws(optimizer, [make_law(law, optimizer) for law in functions], lambda: _run(optimizer))


# ------------------------------------------------------------------------------------------------------------------- schedules


def valid_factors(schedule: Schedule) -> None:
    """The factor at every time t = 1, 2, ... is a number in [0, 1]."""
    for t in TIMES:
        factor: Any = schedule.factor(t)
        is_factor = isinstance(factor, float | int | np.floating) and bool(0 <= factor <= 1)
        require(is_factor, "valid_factors", schedule, f"the factor at t = {t:,} is {factor!r}, expected 0 to 1")


def equal_factors(schedule: Schedule) -> None:
    """The factor depends on the settings and t alone, in any order of calls."""
    factors = {t: schedule.factor(t) for t in TIMES}
    copy = rebuild(schedule)
    for t in TIMES[::-1]:
        figures = f"the factor at t = {t:,} is {factors[t]!r}, then {copy.factor(t)!r}"
        require(copy.factor(t) == factors[t], "equal_factors", schedule, figures)


def list_schedule_laws(schedule: Schedule) -> list[Law]:
    """Return the laws of a schedule."""
    laws = [make_law(law, schedule) for law in (valid_factors, equal_factors)]
    return arrange_laws(schedule, laws, lambda: [rebuild(schedule).factor(t) for t in TIMES])
