"""Checks of a module, a loss and metrics that a user passes in Python."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from fedsgd.data import Dataset
from fedsgd.errors import ModelError
from fedsgd.models import Mlp
from fedsgd.models.builder import build_task


def are_correct(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"module": nn.Linear}, r"model: got the class Linear, expected an instance of torch.nn.Module: call it, Linear\(\)"),
        ({"module": lambda: nn.Linear(8, 3)}, "model: got a function, expected an instance of torch.nn.Module: call it"),
        ({"module": "own:make"}, r'got the text "own:make", .*\[model\] module = "package.module:function"'),
        (
            {"module": nn.Sequential(nn.LazyLinear(3))},
            "model: 0.weight is not initialised yet; run the lazy module once before",
        ),
        ({"module": {"weight": 1}}, "model: got a dict, expected an instance of torch.nn.Module$"),
        ({"loss": nn.L1Loss}, r"loss: got the class L1Loss, expected a function of .*, or an instance: L1Loss\(\)"),
        ({"loss": "mse"}, r'loss: got the text "mse", .*\[model\] loss = "package.module:function"'),
        ({"loss": 0.5}, "loss: got a float, expected a function"),
        ({"metrics": [are_correct]}, "metrics: got a list, expected a dictionary of functions by name"),
        ({"metrics": are_correct}, "metrics: got a function, expected a dictionary"),
        ({"metrics": "accuracy"}, 'metrics: got the text "accuracy", expected a dictionary'),
        ({"metrics": {"top": "accuracy"}}, r'metric "top": got the text "accuracy", .*\[model\] metrics.top = "package'),
        ({"metrics": {"top": nn.L1Loss}}, r'metric "top": got the class L1Loss, .*: L1Loss\(\)'),
        ({"metrics": {3: are_correct}}, "metrics: got the name 3, expected a text"),
    ],
)
def test_module_loss_and_metrics_of_another_type_raise_error(arguments: dict[str, Any], message: str, blobs: Dataset) -> None:
    with pytest.raises(ModelError, match=message) as error:
        build_task(Mlp(), blobs, 0, **arguments)
    assert "\n" not in str(error.value)
