"""Trial of a user's optimizers and schedules before round 1: one step, and the factors of the first times."""

from __future__ import annotations

from numbers import Real
from typing import Any

from fedsgd.config.registry import is_builtin
from fedsgd.config.user_errors import describe_result, find_user_class, make_component_error, wrap_user_errors
from fedsgd.optim.base import Optimizer, ScaledStep
from fedsgd.optim.schedules import Schedule

MAX_TIMES = 1000
"""Maximum number of times at which a schedule is tried."""
ROUNDING = 1e-9
"""Distance from [0, 1] that rounding may give to a factor."""


def try_optimizer(key: str, optimizer: Optimizer, size: int, last_time: int) -> None:
    """Try the user's classes in an optimizer: its schedule, and one step of its rule.

    Args:
        key: dotted key of the optimizer in the scenario.
        optimizer: optimizer of clients or of the server.
        size: P, number of parameters.
        last_time: last time of the run at which the schedule is used.

    Raises:
        ScenarioError: a class breaks its contract or raises an error; the message names key, class and method.
    """
    if find_user_class(optimizer.schedule):
        _try_schedule(f"{key}.schedule", optimizer.schedule, min(last_time, MAX_TIMES))
    if not is_builtin(type(optimizer)):
        with wrap_user_errors(key, optimizer):
            problem = _find_step_problem(optimizer, size)
        if problem:
            raise make_component_error(key, optimizer, problem)


def _try_schedule(key: str, schedule: Schedule, last_time: int) -> None:
    """Raise ScenarioError unless each factor until `last_time` is a number in [0, 1]."""
    for t in range(1, last_time + 1):
        with wrap_user_errors(key, schedule):
            factor: Any = schedule.factor(t)
            is_valid = _is_number(factor) and -ROUNDING <= factor <= 1 + ROUNDING
        if not is_valid:
            got = f"factor({t}) returned {describe_result(factor)}"
            raise make_component_error(key, schedule, f"{got}, expected a number from 0 to 1")


def _find_step_problem(optimizer: Optimizer, size: int) -> str | None:
    """Return the problem of an optimizer's first step, None for a valid step."""
    import torch

    w, g = torch.full((size,), 0.5), torch.linspace(-1, 1, size)
    buffers: Any = optimizer.init(w)
    if not isinstance(buffers, dict):
        return f"init returned {describe_result(buffers)}, expected a dict of tensors by name"
    for name, buffer in buffers.items():
        if not isinstance(buffer, torch.Tensor):
            return f"init returned a dict whose entry {name!r} is {describe_result(buffer)}, expected a tensor"
    step: Any = optimizer.step(w, g, buffers, optimizer.learning_rate(round=1))
    if not isinstance(step, ScaledStep):
        return f"update_rule returned {describe_result(step)}, expected ScaledStep(direction, alpha)"
    direction: Any = step.direction
    if not isinstance(direction, torch.Tensor) or direction.shape != w.shape or not direction.is_floating_point():
        got = f"update_rule returned a ScaledStep with direction {describe_result(direction)}"
        return f"{got}, expected a tensor of {w.dtype} and shape {list(w.shape)}"
    for name, factor in (("alpha", step.alpha), ("decay", step.decay)):
        if not _is_number(factor):
            return f"update_rule returned a ScaledStep with {name} {describe_result(factor)}, expected a number"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
