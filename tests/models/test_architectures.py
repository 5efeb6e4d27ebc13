"""Built-in models: parameter counts, initial values, and comparison with functional torch."""

from __future__ import annotations

from collections.abc import Callable

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


def make_images(*shape: int, classes: int | None = 10) -> Dataset:
    """Return a dataset of two black images."""
    examples = Examples(np.zeros((2, *shape), np.float32), np.zeros(2, np.int64))
    return Dataset(examples, examples, classes)


def make_characters(length: int, vocabulary: int) -> Dataset:
    """Return a dataset of two sequences of characters."""
    examples = Examples(np.zeros((2, length), np.int64), np.zeros((2, length), np.int64))
    return Dataset(examples, examples, vocabulary)


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "data", "parameters"),
    [
        ("2nn", make_images(28, 28), 199_210),
        ("softmax", make_images(28, 28), 7850),
        ("mlp", make_images(8, 8), 64 * 64 + 64 + 650),
        ("mlp", make_images(28, 28), 50_890),
        ("cnn", make_images(28, 28), 1_663_370),
        ("cnn", make_images(1, 28, 28), 1_663_370),
        ("lenet", make_images(3, 32, 32), 62_006),
        ("cifar-cnn", make_images(3, 32, 32), 4_864 + 102_464 + 1_573_248 + 73_920 + 1_930),
        ("cifar-cnn", make_images(3, 24, 24), 1_068_298),
        ("resnet-20", make_images(3, 32, 32), 269_722),
        ("char-lstm", make_characters(80, 65), 815_945),
        ("char-lstm", make_characters(5, 90), 798_720 + 265 * 90),
        ("char-gpt", make_characters(64, 65), 804_096),
        ("char-gpt", make_characters(9, 12), 128 * (12 + 64 + 12 * 4 * 128 + 2 * 4 + 1)),
    ],
)
def test_model_has_known_number_of_parameters(name: str, data: Dataset, parameters: int) -> None:
    assert build_task(MODELS[name](), data, 0).layout.size == parameters


@pytest.mark.sampled
@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (3, 32, 32), (3, 33, 20)], ids=str)
@pytest.mark.parametrize("name", ["softmax", "mlp", "2nn", "cnn", "lenet", "cifar-cnn", "resnet-20"])
def test_model_of_images_returns_one_score_for_each_class(name: str, shape: tuple[int, ...]) -> None:
    module = build_task(MODELS[name](), make_images(*shape, classes=7), 0).module
    assert module(torch.zeros(4, *shape)).shape == (4, 7)


@pytest.mark.parametrize("name", ["char-lstm", "char-gpt"])
def test_character_model_returns_scores_at_each_position(name: str) -> None:
    task = build_task(MODELS[name](), make_characters(9, 12), 0)
    output = task.module(torch.arange(18).reshape(2, 9) % 12)
    assert output.shape == (2, 12, 9)
    changed = task.module(torch.tensor([[*range(8), 0]]))
    earlier, last = (changed[0] - output[0]).detach()[:, :8], (changed[0] - output[0]).detach()[:, 8]
    assert float(earlier.abs().max()) < 1e-6, "a later character must not change an earlier position"
    assert float(last.abs().max()) > 1e-3


def test_accuracy_of_sequence_is_share_of_correct_positions() -> None:
    output = torch.eye(3).expand(2, 3, 3)
    assert accuracy(output, torch.tensor([[0, 1, 2], [0, 0, 0]])).tolist() == pytest.approx([1, 1 / 3])
    assert accuracy(torch.eye(3), torch.tensor([0, 2, 2])).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("cnn", make_images(8), r"expected images .*, the examples have shape \[8\]"),
        ("resnet-20", make_images(8), r"expected images"),
        ("lenet", make_images(3, 8, 8), "^lenet: images of 8×8 are too small for its convolutions and pooling"),
        ("char-lstm", make_images(28, 28), r"expected sequences of characters"),
        ("char-gpt", make_images(28, 28), r"^char-gpt: expected sequences of characters"),
        (
            "char-gpt",
            make_characters(65, 12),
            r"^char-gpt: the examples have 65 characters, expected at most 64 \(model.context\); .* set model.context = 65$",
        ),
    ],
)
def test_model_with_examples_of_another_shape_raises_error(name: str, data: Dataset, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_task(MODELS[name](), data, 0)


def test_residual_block_shortcut_skips_pixels_and_pads_channels() -> None:
    block = ResidualBlock(nn.Conv2d(2, 3, 1, stride=2, bias=False), stride=2, new_channels=1)
    nn.init.zeros_(block.body.weight)
    x = torch.arange(18.0).reshape(1, 2, 3, 3)
    out = block(x)
    assert out[0, 0].tolist() == [[0, 2], [6, 8]]
    assert out[0, 1].tolist() == [[9, 11], [15, 17]]
    assert not out[0, 2].any()


@pytest.mark.slow
def test_resnet_groups_that_do_not_divide_channels_raise_error() -> None:
    with pytest.raises(FieldError, match="groups: got 3, expected a divisor of 16"):
        MODELS["resnet-20"](groups=3)
    assert build_task(MODELS["resnet-20"](groups=16), make_images(3, 32, 32), 0).layout.size == 269_722


def test_initial_parameters_depend_on_seed_and_keep_global_generator() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a, b, c = (build_task(TwoNN(), make_images(8, 8), seed).initial_parameters for seed in (0, 0, 1))
    assert a.tobytes() == b.tobytes() != c.tobytes()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_initial_parameters_do_not_depend_on_number_of_threads() -> None:
    """`orthogonal_` factorises a matrix, and the rounding of a factorisation depends on the number of threads."""
    from tests.models import orthogonal

    digests, n_threads = set(), torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        digests.add(
            build_task(CustomModule(module=f"{orthogonal.__name__}:make"), make_images(8, 8), 0).initial_parameters.tobytes()
        )
    torch.set_num_threads(n_threads)
    assert len(digests) == 1


def test_classifier_without_classes_raises_error() -> None:
    examples = Examples(np.zeros((2, 8), np.float32), np.zeros(2, np.float32))
    with pytest.raises(ModelError, match="not class labels"):
        build_task(Mlp(), Dataset(examples, examples, None), 0)


def build_with_random_parameters(name: str, data: Dataset, **settings: object) -> tuple[nn.Module, list[Tensor]]:
    """Return a module with random parameters, and its parameters in order."""
    module = build_task(MODELS[name](**settings), data, 0).module
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.from_numpy(np.random.default_rng(p.numel()).standard_normal(p.shape).astype(np.float32) / 8))
    return module, [p.detach() for p in module.parameters()]


def apply_dense(x: Tensor, parameters: list[Tensor]) -> Tensor:
    """Apply linear layers with ReLU between them."""
    x = x.flatten(1)
    for i in range(0, len(parameters), 2):
        x = functional.linear(x.relu() if i else x, parameters[i], parameters[i + 1])
    return x


IMAGES = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "settings", "layers"), [("softmax", {}, 1), ("mlp", {"hidden": [9, 7, 5]}, 4), ("2nn", {}, 3)]
)
def test_perceptron_equals_linear_layers_with_relu(name: str, settings: dict[str, object], layers: int) -> None:
    module, weights = build_with_random_parameters(name, make_images(3, 32, 32), **settings)
    assert len(weights) == 2 * layers
    assert torch.equal(module(IMAGES), apply_dense(IMAGES, weights))


PADDING_AND_POOL: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "cnn": (2, lambda x: functional.max_pool2d(x, 2)),
    "lenet": (0, lambda x: functional.max_pool2d(x, 2)),
    "cifar-cnn": (2, lambda x: functional.max_pool2d(x, 3, 2, 1)),
}


@pytest.mark.parametrize("name", list(PADDING_AND_POOL))
def test_convolutional_network_equals_functional_layers(name: str) -> None:
    padding, pool = PADDING_AND_POOL[name]
    module, w = build_with_random_parameters(name, make_images(3, 32, 32))
    x = pool(functional.conv2d(IMAGES, w[0], w[1], padding=padding).relu())
    x = pool(functional.conv2d(x, w[2], w[3], padding=padding).relu())
    assert module(IMAGES).detach().numpy() == pytest.approx(apply_dense(x, w[4:]).numpy(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [2, 8])
def test_resnet_equals_functional_layers_of_he_et_al(groups: int) -> None:
    """The paper's section 4.2 has 6n + 2 = 20 layers, stride 2 at stages two and three, shortcut A, ReLU after the sum."""
    module, w = build_with_random_parameters("resnet-20", make_images(3, 32, 32), groups=groups)
    parameters = iter(w)

    def convolution(x: Tensor, stride: int) -> Tensor:
        x = functional.conv2d(x, next(parameters), stride=stride, padding=1)
        return functional.group_norm(x, groups, next(parameters), next(parameters))

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
    expected = functional.linear(x.mean(dim=(2, 3)), next(parameters), next(parameters))
    assert not list(parameters)
    assert module(IMAGES).detach().numpy() == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_resnet_convolutions_are_initialised_as_in_he_et_al_2015() -> None:
    task = build_task(MODELS["resnet-20"](), make_images(3, 32, 32), 0)
    for name, positions, shape in task.layout.list_slices():
        if len(shape) == 4:
            assert task.initial_parameters[positions].std() == pytest.approx((2 / (shape[0] * 9)) ** 0.5, rel=0.12), name


def test_char_lstm_state_reaches_the_last_position() -> None:
    module, _ = build_with_random_parameters("char-lstm", make_characters(9, 12))
    with torch.no_grad():
        texts = torch.tensor([[0, *range(1, 9)], [5, *range(1, 9)], [0, *range(1, 9)]])
        output = module(texts)
    assert float((output[0] - output[1])[:, 8].abs().max()) > 1e-6, "the first character changes the last position"
    assert torch.equal(output[0], output[2]), "other sequences of the batch change nothing"


@pytest.mark.parametrize("bias", [False, True])
def test_char_gpt_equals_encoder_layers_of_pytorch_with_a_causal_mask(bias: bool) -> None:
    """Layers with the norm first, GELU and no dropout are the blocks of GPT-2; the scores are products with the embedding."""
    settings = {"layers": 3, "heads": 2, "width": 12, "context": 11, "bias": bias}
    module, weights = build_with_random_parameters("char-gpt", make_characters(9, 7), **settings)
    texts, parameters = torch.from_numpy(np.random.default_rng(0).integers(0, 7, (4, 9))), iter(weights)
    characters, positions = next(parameters), next(parameters)
    x = characters[texts] + positions[:9]
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    for _ in range(3):
        layer = nn.TransformerEncoderLayer(12, 2, 48, 0.0, functional.gelu, batch_first=True, norm_first=True, bias=bias)
        names = ("norm1.", "self_attn.in_proj_", "self_attn.out_proj.", "norm2.", "linear1.", "linear2.")
        ends = ("weight", "bias") if bias else ("weight",)
        layer.load_state_dict({f"{name}{end}": next(parameters) for name in names for end in ends})
        x = layer(x, mask, is_causal=True)
    norm = [next(parameters) for _ in range(1 + bias)]
    assert not list(parameters)
    expected = functional.layer_norm(x, (12,), *norm) @ characters.T
    assert module(texts).detach().numpy() == pytest.approx(expected.transpose(1, 2).detach().numpy(), rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_char_gpt_initial_weights_are_those_of_gpt_2() -> None:
    """Radford et al. 2019, section 2.3: layers before a residual sum are divided by the square root of the number of sums."""
    task = build_task(MODELS["char-gpt"](layers=8, bias=True), make_characters(9, 65), 0)
    for name, positions, shape in task.layout.list_slices():
        values = task.initial_parameters[positions]
        if len(shape) == 2:
            std = 0.02 / 4 if name.endswith("output.weight") else 0.02
            assert values.std() == pytest.approx(std, rel=0.05), name
            assert abs(values.mean()) < 0.05 * std, name
        else:
            assert set(values.tolist()) == {float("norm.weight" in name)}, name
    assert sum(name.endswith("output.weight") for name in task.layout.names) == 16


def test_char_gpt_heads_that_do_not_divide_width_raise_error() -> None:
    with pytest.raises(FieldError, match=r"^char-gpt.heads: got 3, expected a divisor of the width 128$"):
        MODELS["char-gpt"](heads=3)
