"""Trial of optimizers and schedules before round 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from fedsgd.errors import ScenarioError
from fedsgd.optim import OPTIMIZERS, SCHEDULES, SGD, Optimizer, ScaledStep, Schedule
from fedsgd.optim.schedules import WarmUpSchedule
from fedsgd.optim.trial import MAX_TIMES, try_optimizer


@dataclass(frozen=True)
class ScriptedSchedule(Schedule):
    """Schedule whose factor at time `at` is `value`, and 1 at all others."""

    name: ClassVar[str] = "scripted-schedule"

    at: int = 1
    value: Any = 1.0

    def factor(self, t: int) -> Any:
        if t == self.at and self.value == "raise":
            raise KeyError(t)
        value = float("nan") if self.value == "nan" else self.value
        return value if t == self.at else 1.0


@dataclass(frozen=True)
class ScriptedOptimizer(Optimizer):
    """SGD, except in the part named `fault`."""

    name: ClassVar[str] = "scripted-optimizer"

    fault: str = ""

    def init(self, w: Any) -> Any:
        return {"init none": None, "init list": {"a": [1]}}.get(self.fault, {})

    def update_rule(self, g: Any, buffers: Any, lr: float) -> Any:
        if self.fault == "raise":
            return g.undefined
        return {
            "none": None,
            "tensor": -lr * g,
            "tuple": (g, -lr),
            "swapped": ScaledStep(-lr, g),  # type: ignore[arg-type]
            "short": ScaledStep(g[:-1], -lr),
            "integers": ScaledStep(g.int(), -lr),
            "alpha": ScaledStep(g, g.sum()),
            "decay": ScaledStep(g, -lr, g.sum()),
        }.get(self.fault, ScaledStep(g, -lr))


def error_of(optimizer: Optimizer, last_time: int = 5) -> str:
    with pytest.raises(ScenarioError) as error:
        try_optimizer("client.optimizer", optimizer, 8, last_time)
    return str(error.value)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("init none", "init returned None, expected a dict of tensors by name"),
        ("init list", "init returned a dict whose entry 'a' is list, expected a tensor"),
        ("none", "update_rule returned None, expected ScaledStep(direction, alpha)"),
        ("tensor", "update_rule returned Tensor of torch.float32 and shape [8], expected ScaledStep(direction, alpha)"),
        ("tuple", "update_rule returned (Tensor, float), expected ScaledStep(direction, alpha)"),
        (
            "swapped",
            "update_rule returned a ScaledStep with direction float -0.1, expected a tensor of torch.float32 and shape [8]",
        ),
        (
            "short",
            "update_rule returned a ScaledStep with direction Tensor of torch.float32 and shape [7], "
            "expected a tensor of torch.float32 and shape [8]",
        ),
        (
            "integers",
            "update_rule returned a ScaledStep with direction Tensor of torch.int32 and shape [8], "
            "expected a tensor of torch.float32 and shape [8]",
        ),
        (
            "alpha",
            "update_rule returned a ScaledStep with alpha Tensor of torch.float32 and shape [], expected a number",
        ),
        (
            "decay",
            "update_rule returned a ScaledStep with decay Tensor of torch.float32 and shape [], expected a number",
        ),
    ],
)
def test_optimizer_with_a_fault_is_refused_with_key_class_and_method(fault: str, problem: str) -> None:
    assert error_of(ScriptedOptimizer(fault=fault)) == f"client.optimizer ({__name__}:ScriptedOptimizer): {problem}"


def test_optimizer_that_raises_is_refused_with_file_and_method() -> None:
    text = error_of(ScriptedOptimizer(fault="raise"))
    cause = "AttributeError: 'Tensor' object has no attribute 'undefined'"
    assert text.startswith(f"client.optimizer ({__name__}:ScriptedOptimizer): {cause} (test_trial.py:")
    assert text.endswith(", in update_rule)")


@pytest.mark.parametrize(
    ("value", "got"),
    [(-0.5, "float -0.5"), (2, "int 2"), ("nan", "float nan"), ("a", "str 'a'"), (None, "None"), (True, "bool True")],
)
def test_schedule_outside_the_unit_interval_is_refused_with_the_time(value: Any, got: str) -> None:
    for schedule, t in ((ScriptedSchedule(3, value), 3), (WarmUpSchedule(2, ScriptedSchedule(3, value)), 4)):
        expected = f"factor({t}) returned {got}, expected a number from 0 to 1"
        assert error_of(SGD(schedule=schedule)) == f"client.optimizer.schedule ({__name__}:ScriptedSchedule): {expected}"


def test_schedule_is_tried_until_the_last_time_only() -> None:
    schedule = ScriptedSchedule(6, "raise")
    try_optimizer("client.optimizer", SGD(schedule=schedule), 8, 5)
    text = error_of(SGD(schedule=schedule), 6)
    assert text.startswith(f"client.optimizer.schedule ({__name__}:ScriptedSchedule): KeyError: 6 (test_trial.py:")
    try_optimizer("client.optimizer", SGD(schedule=ScriptedSchedule(MAX_TIMES + 1, "raise")), 8, 10**9)
    error_of(SGD(schedule=ScriptedSchedule(MAX_TIMES, "raise")), 10**9)


def test_user_subclass_of_each_built_in_class_passes() -> None:
    def as_user_class(cls: type) -> Any:
        return dataclass(frozen=True)(type(f"User{cls.__name__}", (cls,), {"__module__": __name__, "__doc__": "Subclass."}))

    for name in OPTIMIZERS:
        try_optimizer("server.optimizer", as_user_class(OPTIMIZERS[name])(), 8, 5)
    for name in SCHEDULES:
        try_optimizer("client.optimizer", SGD(schedule=as_user_class(SCHEDULES[name])()), 8, 2000)
