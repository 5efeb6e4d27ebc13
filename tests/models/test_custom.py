"""Modules of the user: functions that a scenario names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fedsgd.config.component import FieldError
from fedsgd.data import Dataset
from fedsgd.errors import ModelError
from fedsgd.models.builder import build_task
from fedsgd.models.custom import CustomModule

USER_MODULE = """
import torch
from torch import Tensor, nn
from torch.nn import functional

def make_model(width=4):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))

def half_loss(output, target):
    return nn.functional.cross_entropy(output, target) / 2

def confidence(output, target):
    return (output.softmax(1).max(1).values > 0.9).float()

def failing_factory():
    raise TypeError("mistake of the user")

number = 3
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a user's module file that one test can import; return its name."""
    (tmp_path / "own_model.py").write_text(USER_MODULE)
    (tmp_path / "broken_model.py").write_text("def make_model(:")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_model", raising=False)
    return "own_model"


def test_custom_module_with_loss_and_metric_builds_task(user_module: str, blobs: Dataset) -> None:
    metrics = {"confidence": f"{user_module}:confidence"}
    model = CustomModule(f"{user_module}:half_loss", metrics, {"width": 6}, module=f"{user_module}:make_model")
    task = build_task(model, blobs, 0)
    assert task.layout.size == 8 * 6 + 6 + 18 + 3
    assert set(task.metrics) == {"accuracy", "confidence"}
    output, target = torch.eye(3), torch.tensor([0, 1, 2])
    assert float(task.loss(output, target)) == pytest.approx(float(torch.nn.functional.cross_entropy(output, target)) / 2)


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ({"module": "own_model"}, "module", 'expected "my_package.my_module:name"'),
        ({"module": "nowhere_to_be_found:make"}, "module", 'cannot import "nowhere_to_be_found"'),
        ({"module": "own_model:make_modle"}, "module", 'has no "make_modle", did you mean "make_model"'),
        ({"module": ".own_model:make_model"}, "module", 'expected "my_package.my_module:name"'),
        ({"module": "broken_model:make_model"}, "module", 'cannot import "broken_model": SyntaxError'),
        ({"module": "own_model:number"}, "module", "is 3, expected a function or another callable"),
        ({"module": "own_model:make_model", "arguments": {"depth": 2}}, "arguments", "does not take"),
        ({"module": "own_model:make_model", "loss": "own_model:nope"}, "loss", 'has no "nope"'),
        ({"module": "own_model:make_model", "metrics": {"m": "own_model:nope"}}, "metrics.m", 'has no "nope"'),
        ({"module": "own_model:make_model", "metrics": {"m": "torch.nn:L1Loss"}}, "metrics.m", "is the class L1Loss, expected"),
        ({"module": "own_model:make_model", "loss": "torch.nn:L1Loss"}, "loss", "is the class L1Loss, expected a function"),
    ],
)
@pytest.mark.usefixtures("user_module")
def test_custom_module_with_invalid_path_raises_error_with_key(
    blobs: Dataset, settings: dict[str, object], field: str, message: str
) -> None:
    with pytest.raises(FieldError, match=message) as error:
        build_task(CustomModule(**settings), blobs, 0)
    assert error.value.field == field


def test_custom_module_with_failing_factory_raises_error_with_cause(user_module: str, blobs: Dataset) -> None:
    with pytest.raises(ModelError, match="module: cannot be built: TypeError: mistake of the user"):
        build_task(CustomModule(module=f"{user_module}:failing_factory"), blobs, 0)
