"""Losses and metrics that fail in the trial before round 1: the message names the function and its shapes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fedsgd
from fedsgd.cli.terminal.run_tables import print_result
from fedsgd.data import Dataset, Examples
from fedsgd.errors import ModelError
from fedsgd.scenario.scenario import parse_scenario

RAW = {"name": "f", "rounds": 1, "data": {"name": "digits", "partition": {"name": "iid", "clients": 2}}}


def examples(y: Any, classes: int | None) -> Dataset:
    x = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    return Dataset(Examples(x, y), Examples(x, y), classes)


def run_error(y: Any, classes: int | None, outputs: int, **functions: Any) -> str:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(ModelError) as error:
            fedsgd.run(
                parse_scenario(RAW), data=examples(y, classes), model=fedsgd.CustomModel(nn.Linear(3, outputs), **functions)
            )
    assert "\n" not in str(error.value)
    return str(error.value)


LABELS = np.arange(40) % 2


def test_failing_metric_is_named_with_shapes() -> None:
    message = run_error(LABELS, 2, 2, metrics={"m": lambda o, t: 1 / 0})
    assert message == 'metric "m" cannot be computed (output [B, 2], targets int64 [B]): ZeroDivisionError: division by zero'


def test_failing_loss_is_named_with_shapes() -> None:
    message = run_error(LABELS, 2, 2, loss=lambda o, t: 1 / 0)
    assert message == "the loss cannot be computed (output [B, 2], targets int64 [B]): ZeroDivisionError: division by zero"


def test_cross_entropy_on_a_column_of_labels_advises_flattening() -> None:
    message = run_error(LABELS[:, None], 2, 2)
    assert message.startswith("the loss cannot be computed (output [B, 2], targets int64 [B, 1]): ")
    assert message.endswith("; labels are [B, 1], flatten them: y.reshape(-1)")
    torch.manual_seed(0)
    fedsgd.run(parse_scenario(RAW), data=examples(LABELS[:, None].reshape(-1), 2), model=nn.Linear(3, 2))


BCE = functional.binary_cross_entropy_with_logits


@pytest.mark.parametrize(
    ("y", "classes", "advised"),
    [
        (LABELS, 2, lambda output, target: BCE(output.reshape(target.shape), target.float())),
        (LABELS.astype(np.float32), None, lambda output, target: BCE(output.reshape(target.shape), target)),
    ],
)
def test_one_logit_with_flat_targets_advises_a_common_shape(
    y: Any, classes: int | None, advised: Callable[[Tensor, Tensor], Tensor]
) -> None:
    message = run_error(y, classes, 1, loss=BCE)
    number = "" if classes is None else ".float()"
    assert message.startswith(f"the loss cannot be computed (output [B, 1], targets {y.dtype} [B]): ValueError: Target size")
    assert message.endswith(
        f"; give both the same shape, as in lambda output, target: loss(output.reshape(target.shape), target{number})"
    )
    fedsgd.run(parse_scenario(RAW), data=examples(y, classes), model=fedsgd.CustomModel(module=nn.Linear(3, 1), loss=advised))


def test_squared_error_that_broadcasts_is_refused_without_a_warning() -> None:
    message = run_error(LABELS.astype(np.float32), None, 1, loss=functional.mse_loss)
    assert message.startswith("the loss would compare each output with the targets of all examples")


@pytest.mark.parametrize("name", ["", "  ", "a\nb"])
def test_metric_with_an_unprintable_name_is_refused(name: str) -> None:
    assert "expected printable text, such as accuracy" in run_error(LABELS, 2, 2, metrics={name: lambda o, t: o[:, 0]})


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["u"], "training changes the buffer u, which is no gradient and would"),
        (["u", "v"], "training changes the buffers u, v, which are no gradients and would"),
        (["u", "v", "w", "x"], "training changes the buffers u, v, w and 1 more, which are no gradients and would"),
    ],
)
def test_changed_buffers_are_named_in_singular_or_plural(names: list[str], problem: str) -> None:
    class Counts(nn.Linear):
        """Layer that adds 1 to its buffers in training."""

        def __init__(self) -> None:
            super().__init__(3, 2)
            for name in names:
                self.register_buffer(name, torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            """Return the outputs."""
            if self.training:
                for name in names:
                    getattr(self, name).add_(1)
            return super().forward(x)

    with pytest.raises(ModelError) as error:
        fedsgd.run(parse_scenario(RAW), data=examples(LABELS, 2), model=Counts())
    assert problem in str(error.value)


@pytest.mark.slow
def test_metric_never_finite_is_named_in_summary_and_closing_table(capsys: pytest.CaptureFixture[str]) -> None:
    def late(output: Tensor, target: Tensor) -> Tensor:
        counts.append(1)
        return torch.full((len(target),), float("nan") if len(counts) < 12 else 1.0)

    counts: list[int] = []
    metrics = {"void": lambda o, t: torch.full((len(t),), float("nan")), "late": late}
    torch.manual_seed(0)
    raw = {**RAW, "rounds": 20}
    result = fedsgd.run(
        parse_scenario(raw), data=examples(LABELS, 2), model=fedsgd.CustomModel(module=nn.Linear(3, 2), metrics=metrics)
    )
    assert result.summary["never_finite_metrics"] == ["void"]
    print_result(result)
    assert "void was never finite\n" in capsys.readouterr().out
