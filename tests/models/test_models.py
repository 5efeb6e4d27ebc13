"""Parameter counts, initial values, and modules that a scenario names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsgd.config.component import FieldError
from fedsgd.data import Dataset, Examples
from fedsgd.errors import ModelError
from fedsgd.models import MODELS, Mlp, accuracy
from fedsgd.models.builder import build_task
from fedsgd.models.custom import CustomModule
from fedsgd.models.layers import ResidualBlock
from fedsgd.models.perceptrons import TwoNN
from fedsgd.numerics.parameter_layout import ParameterLayout

OWN = """
import torch
from torch import Tensor, nn
from torch.nn import functional

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


def images(*shape: int, classes: int | None = 10) -> Dataset:
    some = Examples(np.zeros((2, *shape), np.float32), np.zeros(2, np.int64))
    return Dataset(some, some, classes)


def characters(length: int, vocabulary: int) -> Dataset:
    some = Examples(np.zeros((2, length), np.int64), np.zeros((2, length), np.int64))
    return Dataset(some, some, vocabulary)


@pytest.mark.parametrize(
    ("name", "data", "parameters"),
    [
        ("2nn", images(28, 28), 199_210),
        ("softmax", images(28, 28), 7850),
        ("mlp", images(8, 8), 64 * 64 + 64 + 650),
        ("mlp", images(28, 28), 50_890),
        ("cnn", images(28, 28), 1_663_370),
        ("cnn", images(1, 28, 28), 1_663_370),
        ("lenet", images(3, 32, 32), 62_006),
        ("cifar-cnn", images(3, 32, 32), 4_864 + 102_464 + 1_573_248 + 73_920 + 1_930),
        ("cifar-cnn", images(3, 24, 24), 1_068_298),
        ("resnet-20", images(3, 32, 32), 269_722),
        ("char-lstm", characters(80, 65), 815_945),
        ("char-lstm", characters(5, 90), 798_720 + 265 * 90),
    ],
)
def test_parameter_counts(name: str, data: Dataset, parameters: int) -> None:
    assert build_task(MODELS[name](), data, 0).layout.size == parameters


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (3, 32, 32), (3, 33, 20)], ids=str)
@pytest.mark.parametrize("name", ["softmax", "mlp", "2nn", "cnn", "lenet", "cifar-cnn", "resnet-20"])
def test_images_of_any_usual_shape_become_one_score_a_class(name: str, shape: tuple[int, ...]) -> None:
    module = build_task(MODELS[name](), images(*shape, classes=7), 0).module
    assert module(torch.zeros(4, *shape)).shape == (4, 7)


def test_characters_become_scores_at_each_place() -> None:
    task = build_task(MODELS["char-lstm"](), characters(9, 12), 0)
    output = task.module(torch.arange(18).reshape(2, 9) % 12)
    assert output.shape == (2, 12, 9)
    changed = task.module(torch.tensor([[*range(8), 0]]))
    earlier, last = (changed[0] - output[0]).detach()[:, :8], (changed[0] - output[0]).detach()[:, 8]
    assert float(earlier.abs().max()) < 1e-6, "a later character has no say in an earlier place"
    assert float(last.abs().max()) > 1e-3


def test_accuracy_of_sequences_is_the_share_of_their_places() -> None:
    output = torch.eye(3).expand(2, 3, 3)
    assert accuracy(output, torch.tensor([[0, 1, 2], [0, 0, 0]])).tolist() == pytest.approx([1, 1 / 3])
    assert accuracy(torch.eye(3), torch.tensor([0, 2, 2])).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("cnn", images(8), r"expected images .*, the examples have shape \[8\]"),
        ("resnet-20", images(8), r"expected images"),
        ("lenet", images(3, 8, 8), "^lenet: images of 8×8 are too small for its pooling"),
        ("char-lstm", images(28, 28), r"expected sequences of characters"),
    ],
)
def test_data_that_a_model_cannot_take_are_refused(name: str, data: Dataset, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_task(MODELS[name](), data, 0)


def test_residual_shortcuts_skip_pixels_and_fill_up_channels() -> None:
    block = ResidualBlock(nn.Conv2d(2, 3, 1, stride=2, bias=False), stride=2, new_channels=1)
    nn.init.zeros_(block.body.weight)
    x = torch.arange(18.0).reshape(1, 2, 3, 3)
    out = block(x)
    assert out[0, 0].tolist() == [[0, 2], [6, 8]]
    assert out[0, 1].tolist() == [[9, 11], [15, 17]]
    assert not out[0, 2].any()


def test_groups_divide_the_channels() -> None:
    with pytest.raises(FieldError, match="groups: got 3, expected a divisor of 16"):
        MODELS["resnet-20"](groups=3)
    assert build_task(MODELS["resnet-20"](groups=16), images(3, 32, 32), 0).layout.size == 269_722


def test_initial_parameters_are_a_function_of_the_seed_and_leave_torch_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b, c = (build_task(TwoNN(), images(8, 8), seed).initial_parameters for seed in (0, 0, 1))
    assert a.tobytes() == b.tobytes() != c.tobytes()
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_parameters_do_not_depend_on_the_number_of_threads() -> None:
    """orthogonal_ factorises a matrix, whose rounding differs between thread counts."""
    from tests.models import orthogonal

    digests, before = set(), torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        digests.add(
            build_task(CustomModule(module=f"{orthogonal.__name__}:make"), images(8, 8), 0).initial_parameters.tobytes()
        )
    torch.set_num_threads(before)
    assert len(digests) == 1


def test_a_module_of_the_users_own_with_loss_and_metric(own: str, blobs: Dataset) -> None:
    metrics = {"confident": f"{own}:confident"}
    model = CustomModule(f"{own}:halved", metrics, {"width": 6}, module=f"{own}:make_model")
    task = build_task(model, blobs, 0)
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
        ({"module": "own_model:number"}, "module", "is 3, expected a function or another callable"),
        ({"module": "own_model:make_model", "arguments": {"depth": 2}}, "arguments", "does not take"),
        ({"module": "own_model:make_model", "loss": "own_model:nope"}, "loss", 'has no "nope"'),
        ({"module": "own_model:make_model", "metrics": {"m": "own_model:nope"}}, "metrics.m", 'has no "nope"'),
        ({"module": "own_model:make_model", "metrics": {"m": "torch.nn:L1Loss"}}, "metrics.m", "is the class L1Loss, expected"),
        ({"module": "own_model:make_model", "loss": "torch.nn:L1Loss"}, "loss", "is the class L1Loss, expected a function"),
    ],
)
def test_what_cannot_be_imported_is_named(
    own: str, blobs: Dataset, settings: dict[str, object], field: str, message: str
) -> None:
    with pytest.raises(FieldError, match=message) as error:
        build_task(CustomModule(**settings), blobs, 0)
    assert error.value.field == field


def test_a_factory_that_fails_is_named_with_its_error(own: str, blobs: Dataset) -> None:
    with pytest.raises(ModelError, match="module: cannot be built: TypeError: my own mistake"):
        build_task(CustomModule(module=f"{own}:fails"), blobs, 0)


def test_a_classifier_needs_classes() -> None:
    some = Examples(np.zeros((2, 8), np.float32), np.zeros(2, np.float32))
    with pytest.raises(ModelError, match="not class labels"):
        build_task(Mlp(), Dataset(some, some, None), 0)


def test_layouts() -> None:
    layout = ParameterLayout(("a", "b", "c"), ((2, 3), (4,), ()))
    assert layout.size == 11
    assert layout.offsets == (0, 6, 10, 11)
    assert [layout.describe_position(i) for i in (0, 5, 6, 10)] == ["a[0, 0]", "a[1, 2]", "b[0]", "c[0]"]
    with pytest.raises(ModelError, match="same name"):
        ParameterLayout(("a", "a"), ((1,), (1,)))
    with pytest.raises(ModelError, match="0 trainable parameters"):
        ParameterLayout((), ())


# --------------------------------------------------------------------- architectures, against functional torch with the same weights


def parameters_of(name: str, data: Dataset, **settings: object) -> tuple[nn.Module, list[Tensor]]:
    module = build_task(MODELS[name](**settings), data, 0).module
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.from_numpy(np.random.default_rng(p.numel()).standard_normal(p.shape).astype(np.float32) / 8))
    return module, [p.detach() for p in module.parameters()]


def dense(x: Tensor, rest: list[Tensor]) -> Tensor:
    """Linear layers with ReLU between them."""
    x = x.flatten(1)
    for i in range(0, len(rest), 2):
        x = functional.linear(x.relu() if i else x, rest[i], rest[i + 1])
    return x


IMAGES = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "settings", "layers"), [("softmax", {}, 1), ("mlp", {"hidden": [9, 7, 5]}, 4), ("2nn", {}, 3)]
)
def test_perceptrons_have_relu_between_their_layers(name: str, settings: dict[str, object], layers: int) -> None:
    module, weights = parameters_of(name, images(3, 32, 32), **settings)
    assert len(weights) == 2 * layers
    assert torch.equal(module(IMAGES), dense(IMAGES, weights))


POOLED: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "cnn": (2, lambda x: functional.max_pool2d(x, 2)),
    "lenet": (0, lambda x: functional.max_pool2d(x, 2)),
    "cifar-cnn": (2, lambda x: functional.max_pool2d(x, 3, 2, 1)),
}


@pytest.mark.parametrize("name", list(POOLED))
def test_convolutional_networks_are_convolution_relu_pool_twice_then_dense(name: str) -> None:
    padding, pool = POOLED[name]
    module, w = parameters_of(name, images(3, 32, 32))
    x = pool(functional.conv2d(IMAGES, w[0], w[1], padding=padding).relu())
    x = pool(functional.conv2d(x, w[2], w[3], padding=padding).relu())
    assert module(IMAGES).detach().numpy() == pytest.approx(dense(x, w[4:]).numpy(), abs=1e-5)


@pytest.mark.parametrize("groups", [2, 8])
def test_resnet_is_that_of_he_et_al(groups: int) -> None:
    """Section 4.2: 6n + 2 = 20 layers, strides 2 at the second and third stage, shortcut option A, ReLU after the sum."""
    module, w = parameters_of("resnet-20", images(3, 32, 32), groups=groups)
    rest = iter(w)

    def convolution(x: Tensor, stride: int) -> Tensor:
        x = functional.conv2d(x, next(rest), stride=stride, padding=1)
        return functional.group_norm(x, groups, next(rest), next(rest))

    x, sides = convolution(IMAGES, 1).relu(), []
    for width in (16, 32, 64):
        for _ in range(3):
            stride = width // x.shape[1]
            padded = torch.cat(
                [x[:, :, ::stride, ::stride], x.new_zeros(len(x), width - x.shape[1], *[32 * 16 // width] * 2)], 1
            )
            x = (convolution(convolution(x, stride).relu(), 1) + padded).relu()
            sides.append(x.shape[2])
    assert sides == [32] * 3 + [16] * 3 + [8] * 3
    expected = functional.linear(x.mean(dim=(2, 3)), next(rest), next(rest))
    assert not list(rest)
    assert module(IMAGES).detach().numpy() == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-4)


def test_resnet_convolutions_start_as_in_he_et_al_2015() -> None:
    task = build_task(MODELS["resnet-20"](), images(3, 32, 32), 0)
    for name, where, shape in task.layout.list_slices():
        if len(shape) == 4:
            assert task.initial_parameters[where].std() == pytest.approx((2 / (shape[0] * 9)) ** 0.5, rel=0.12), name


def test_the_character_lstm_remembers_along_the_text() -> None:
    module, _ = parameters_of("char-lstm", characters(9, 12))
    with torch.no_grad():
        texts = torch.tensor([[0, *range(1, 9)], [5, *range(1, 9)], [0, *range(1, 9)]])
        output = module(texts)
    assert float((output[0] - output[1])[:, 8].abs().max()) > 1e-6, "the first character matters at the last place"
    assert torch.equal(output[0], output[2]), "and who else is in the batch does not"


def normalised(policy: str, blobs: Dataset) -> nn.Module:
    made = nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Sequential(nn.Linear(32, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    )
    with torch.no_grad():
        made[1].weight.mul_(3)
        made[2][1].bias.add_(1)
    return build_task(Mlp(batch_norm=policy), blobs, 0, module=made).module


def test_batch_norm_by_each_batch_keeps_nothing(blobs: Dataset) -> None:
    module = normalised("batch", blobs)
    assert not dict(module.named_buffers())
    x = torch.from_numpy(blobs.train.x)
    with torch.no_grad():
        assert torch.equal(module.train()(x), module.eval()(x))
        hidden = module[1](module[0](x))
    assert hidden.mean(0).numpy() == pytest.approx(0, abs=1e-5)
    assert hidden.std(0).numpy() == pytest.approx(3, rel=0.01)


def test_group_norm_takes_its_place_and_its_parameters(blobs: Dataset) -> None:
    module = normalised("group", blobs)
    assert [(n.num_groups, n.num_channels) for n in module.modules() if isinstance(n, nn.GroupNorm)] == [(2, 32), (1, 6)]
    assert module[1].weight.detach().tolist() == [3.0] * 32
    assert module[2][1].bias.detach().tolist() == [1.0] * 6
    x = torch.from_numpy(blobs.train.x)
    with torch.no_grad():
        assert module(x)[:1].numpy() == pytest.approx(module(x[:1]).numpy(), abs=1e-5)


def test_batch_norm_is_refused_unless_somebody_decides(blobs: Dataset) -> None:
    with pytest.raises(ModelError, match=r'set model.batch_norm to "group", "batch", "mean", "local" or "frozen"'):
        normalised("refuse", blobs)


def per_example(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"module": nn.Linear}, r"module: got the class Linear, expected an instance of torch.nn.Module: call it, Linear\(\)"),
        ({"module": lambda: nn.Linear(8, 3)}, "module: got a function, expected an instance of torch.nn.Module: call it"),
        ({"module": "own:make"}, r'got the text "own:make", .*\[model\] module = "package.module:function"'),
        ({"module": {"weight": 1}}, "module: got a dict, expected an instance of torch.nn.Module$"),
        ({"loss": nn.L1Loss}, r"loss: got the class L1Loss, expected a function of .*, or an instance: L1Loss\(\)"),
        ({"loss": "mse"}, r'loss: got the text "mse", .*\[model\] loss = "package.module:function"'),
        ({"loss": 0.5}, "loss: got a float, expected a function"),
        ({"metrics": [per_example]}, "metrics: got a list, expected a dictionary of functions by name"),
        ({"metrics": per_example}, "metrics: got a function, expected a dictionary"),
        ({"metrics": "accuracy"}, 'metrics: got the text "accuracy", expected a dictionary'),
        ({"metrics": {"top": "accuracy"}}, r'metric "top": got the text "accuracy", .*\[model\] metrics.top = "package'),
        ({"metrics": {"top": nn.L1Loss}}, r'metric "top": got the class L1Loss, .*: L1Loss\(\)'),
        ({"metrics": {3: per_example}}, "metrics: got the name 3, expected a text"),
    ],
)
def test_module_loss_and_metrics_of_another_kind_are_refused(given: dict[str, Any], message: str, blobs: Dataset) -> None:
    with pytest.raises(ModelError, match=message) as refused:
        build_task(Mlp(), blobs, 0, **given)
    assert "\n" not in str(refused.value)
