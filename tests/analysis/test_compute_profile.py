"""Computation of runs: floating-point operations of training, and memory copies."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fedsgd.analysis import compare, load_methods, load_run
from fedsgd.analysis.pricing import price
from fedsgd.data import Examples
from fedsgd.data.base import Dataset
from fedsgd.errors import ReportError
from fedsgd.models import CharGpt, Mlp
from fedsgd.models.builder import build_task
from fedsgd.system.machine import memcpy_seconds
from fedsgd.training.flops import _disable_fused_layers, _FlopCounter, count_training_flops
from tests.analysis.helpers import PRICING_MODEL, edit_summary


@pytest.mark.slow
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


def test_attention_of_char_gpt_is_counted_as_matrix_products() -> None:
    """A use of a weight takes 6 operations, and attention 3 · 2 products of T² · width, forward and backward, at each layer."""
    layers, width, length, characters = 2, 16, 10, 7
    texts = np.zeros((3, length), dtype=np.int64)
    dataset = Dataset(Examples(texts, texts), Examples(texts, texts), characters)
    task = build_task(CharGpt(layers=layers, heads=2, width=width, context=12), dataset, 0)
    weights = 12 * layers * width**2 + characters * width
    expected = 6 * weights * length + layers * 3 * 2 * 2 * length**2 * width
    assert count_training_flops(task, dataset.train) == (expected, "counted")
    assert torch.backends.cuda.flash_sdp_enabled()


def test_module_that_cannot_train_keeps_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = Examples(np.zeros((4, 1, 8, 8), dtype=np.float32), np.arange(4))
    task = build_task(Mlp(), Dataset(examples, examples, classes=4), 0)
    task.module.eval()
    monkeypatch.setattr(task.module, "forward", None)
    assert count_training_flops(task, examples) == (6 * task.layout.size, "six a parameter")
    assert not task.module.training


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, groups=3), torch.nn.BatchNorm2d(6), torch.nn.Flatten()), (4, 3, 8, 8)),
        (torch.nn.LSTM(5, 7, num_layers=2), (3, 6, 5)),
        (torch.nn.TransformerEncoderLayer(8, 2, 16), (3, 6, 8)),
    ],
)
def test_counter_has_the_sum_of_pytorch_counter(module: torch.nn.Module, shape: tuple[int, ...]) -> None:
    sums = []
    for counter in (_FlopCounter(), FlopCounterMode(display=False)):
        with _disable_fused_layers(), counter:
            output = module(torch.ones(shape))
            (output[0] if isinstance(output, tuple) else output).sum().backward()
        sums.append(counter.n_flops if isinstance(counter, _FlopCounter) else counter.get_total_flops())
    assert sums[0] == sums[1] > 0


@pytest.mark.nightly
def test_run_imports_neither_the_compiler_of_pytorch_nor_scikit_learn() -> None:
    """Each takes more than a second of every process."""
    code = (
        "import sys, fedsgd; fedsgd.run(fedsgd.Scenario(name='digits', rounds=1));"
        "print([name for name in ('torch._dynamo', 'sklearn') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
