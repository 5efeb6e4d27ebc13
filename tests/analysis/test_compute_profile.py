"""Computation of runs: floating-point operations of training, and memory copies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsgd.analysis import compare, load_methods, load_run
from fedsgd.analysis.pricing import price
from fedsgd.data import Examples
from fedsgd.data.base import Dataset
from fedsgd.errors import ReportError
from fedsgd.models import Mlp
from fedsgd.models.builder import build_task
from fedsgd.system.machine import memcpy_seconds
from fedsgd.training.flops import count_training_flops
from tests.analysis.helpers import PRICING_MODEL, edit_summary


def test_training_flops_equal_those_of_the_layers(runs: Path) -> None:
    """64 → 64 → 10: two operations for each weight forward, for its gradient, and for the gradient of all but the first input."""
    run = load_run(runs / "dense-0")
    assert run.summary["work"]["flops_rule"] == "counted"
    assert run.summary["work"]["flops_per_example"] == 2 * 2 * (64 * 64 + 64 * 10) + 2 * 64 * 10


def test_module_without_countable_layers_costs_six_flops_per_parameter() -> None:
    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(3))
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("a second forward pass")
            return x * self.w

    examples = Examples(np.ones((20, 3), dtype=np.float32), np.zeros(20, dtype=np.int64))
    task = build_task(Mlp(), Dataset(examples, examples, 3), 0, module=Scale())
    assert count_training_flops(task, examples) == (18.0, "six a parameter"), "elementwise operations are not counted"
    assert count_training_flops(task, examples) == (18.0, "six a parameter"), "a module that fails does not fail a finished run"


@pytest.mark.parametrize("work", [None, {}, {"flops_per_example": 0}, {"flops_per_example": "x"}, {"flops_per_example": True}])
def test_run_without_training_flops_is_compared_but_not_priced(runs: Path, tmp_path: Path, work: Any) -> None:
    shutil.copytree(runs / "topk-0", tmp_path / "run")
    edit_summary(tmp_path / "run", work=work)
    assert compare(load_methods([tmp_path / "run"])).rows[0].rounds.median == 6
    with pytest.raises(ReportError, match=r"has no work\.flops_per_example; run the scenario again"):
        price(load_run(tmp_path / "run"), [PRICING_MODEL])


def test_memcpy_seconds_grow_with_the_size() -> None:
    small, large = memcpy_seconds(10_000), memcpy_seconds(5_000_000)
    assert 1e-9 <= small < large
    assert 4 * 5_000_000 / large < 1e12, "faster than any memory"
    assert memcpy_seconds(0) > 0
