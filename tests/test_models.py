"""Parameter counts, initial values, and modules that a scenario names."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsgd.component import FieldError
from fedsgd.data import Dataset, Examples
from fedsgd.errors import ModelError
from fedsgd.layout import Layout
from fedsgd.models import MODELS, Mlp, TwoNN, UserModule, make_task

OWN = """
import torch
from torch import nn

def make_model(width=4):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))

def halved(output, target):
    return nn.functional.cross_entropy(output, target) / 2

def confident(output, target):
    return (output.softmax(1).max(1).values > 0.9).float()

def fails():
    raise TypeError("my own mistake")

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module file, importable for one test."""
    (tmp_path / "own_model.py").write_text(OWN)
    (tmp_path / "broken_model.py").write_text("def make_model(:")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_model", raising=False)
    return "own_model"


def images(side: int) -> Dataset:
    some = Examples(np.zeros((2, side, side), np.float32), np.zeros(2, np.int64))
    return Dataset(some, some, 10)


@pytest.mark.parametrize(
    ("name", "side", "parameters"),
    [("2nn", 28, 199_210), ("softmax", 28, 7850), ("mlp", 8, 64 * 64 + 64 + 650), ("mlp", 28, 50_890)],
)
def test_parameter_counts(name: str, side: int, parameters: int) -> None:
    assert make_task(MODELS[name](), images(side), 0).layout.size == parameters


def test_initial_parameters_are_a_function_of_the_seed_and_leave_torch_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b, c = (make_task(TwoNN(), images(8), seed).initial for seed in (0, 0, 1))
    assert a.tobytes() == b.tobytes() != c.tobytes()
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_parameters_do_not_depend_on_the_number_of_threads() -> None:
    """orthogonal_ factorises a matrix, whose rounding differs between thread counts."""
    from tests import orthogonal

    digests, before = set(), torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        digests.add(make_task(UserModule(module=f"{orthogonal.__name__}:make"), images(8), 0).initial.tobytes())
    torch.set_num_threads(before)
    assert len(digests) == 1


def test_a_module_of_the_users_own_with_loss_and_metric(own: str, blobs: Dataset) -> None:
    model = UserModule(f"{own}:halved", {"confident": f"{own}:confident"}, f"{own}:make_model", {"width": 6})
    task = make_task(model, blobs, 0)
    assert task.layout.size == 8 * 6 + 6 + 18 + 3
    assert set(task.metrics) == {"accuracy", "confident"}
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
        ({"module": "own_model:number"}, "module", "is 3, expected something to call"),
        ({"module": "own_model:make_model", "arguments": {"depth": 2}}, "arguments", "does not take"),
        ({"module": "own_model:make_model", "loss": "own_model:nope"}, "loss", 'has no "nope"'),
        ({"module": "own_model:make_model", "metrics": {"m": "own_model:nope"}}, "metrics.m", 'has no "nope"'),
    ],
)
def test_what_cannot_be_imported_is_named(
    own: str, blobs: Dataset, settings: dict[str, object], field: str, message: str
) -> None:
    with pytest.raises(FieldError, match=message) as error:
        make_task(UserModule(**settings), blobs, 0)
    assert error.value.field == field


def test_a_factory_that_fails_is_named_with_its_error(own: str, blobs: Dataset) -> None:
    with pytest.raises(ModelError, match="module: cannot be built: TypeError: my own mistake"):
        make_task(UserModule(module=f"{own}:fails"), blobs, 0)


def test_a_classifier_needs_classes() -> None:
    some = Examples(np.zeros((2, 8), np.float32), np.zeros(2, np.float32))
    with pytest.raises(ModelError, match="not class labels"):
        make_task(Mlp(), Dataset(some, some, None), 0)


def test_layouts() -> None:
    layout = Layout(("a", "b", "c"), ((2, 3), (4,), ()))
    assert layout.size == 11
    assert layout.offsets == (0, 6, 10, 11)
    assert [layout.locate(i) for i in (0, 5, 6, 10)] == ["a[0, 0]", "a[1, 2]", "b[0]", "c[0]"]
    with pytest.raises(ModelError, match="same name"):
        Layout(("a", "a"), ((1,), (1,)))
    with pytest.raises(ModelError, match="0 trainable parameters"):
        Layout((), ())
