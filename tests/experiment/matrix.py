"""Small modules as users write them, with the outcome that plain PyTorch defines: the cases of `tests/experiment/test_matrix.py`.

Functions of this module without arguments build the modules, so that a run directory can name them.
"""

from __future__ import annotations

import copy
import itertools
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy import random as numpy_global
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

WIDTH, CLASSES, N_TRAIN, N_TEST, T = 8, 3, 64, 130, 5
Arrays = tuple[NDArray[Any], NDArray[Any]]

# --------------------------------------------------------------------------------------------------------------------- data


def clouds() -> Arrays:
    """Return Gaussian clouds of three classes, [n, 8] and [n]."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, N_TRAIN + N_TEST)
    return (rng.normal(size=(len(y), WIDTH)) + 2 * np.eye(CLASSES, WIDTH)[y]).astype(np.float32), y


def two_clouds() -> Arrays:
    x, y = clouds()
    return x, (y > 0).astype(np.int64)


def column_labels() -> Arrays:
    x, y = clouds()
    return x, y[:, None]


def column_of_two() -> Arrays:
    x, y = two_clouds()
    return x, y[:, None]


def words() -> Arrays:
    """Return sequences of five words out of seven, labelled by the first word."""
    x = np.random.default_rng(1).integers(0, 7, (N_TRAIN + N_TEST, T))
    return x, x[:, 0] % CLASSES


def next_words() -> Arrays:
    """Return sequences whose label at each position is the class of the next word."""
    x = np.random.default_rng(1).integers(0, 7, (N_TRAIN + N_TEST, T + 1))
    return x[:, :-1], x[:, 1:] % CLASSES


def targets() -> Arrays:
    """Return the data of a regression: one number an example, [n, 1]."""
    x, _ = clouds()
    return x, (x[:, :1] * 2 + 1).astype(np.float32)


def flat_targets() -> Arrays:
    x, y = targets()
    return x, y[:, 0]


# ------------------------------------------------------------------------------------------------------------------ modules


def perceptron(middle: Callable[[], nn.Module] = nn.Identity) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 12), middle(), nn.ReLU(), nn.Linear(12, CLASSES))


class InputTransform(nn.Module):
    """Perceptron that applies `change` to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron()

    def change(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(self.change(x))
        return y


class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.relu(self.b(torch.relu(self.a(x)))))
        return y


class TwoNames(nn.Module):
    """Module with one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second, self.out = self.first, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.relu(self.second(torch.relu(self.first(x)))))
        return y


def frozen_layer() -> nn.Module:
    net = perceptron()
    net[0].requires_grad_(False)
    return net


class RandomProjection(InputTransform):
    """Module with a constant buffer of random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(WIDTH, WIDTH))

    def change(self, x: Tensor) -> Tensor:
        y: Tensor = x @ self.projection
        return y


def spectral_norm() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(WIDTH, 12)), nn.ReLU(), nn.Linear(12, CLASSES))


def spectral_parametrization() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(WIDTH, 12)), nn.ReLU(), nn.Linear(12, CLASSES))


def weight_norm() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(WIDTH, 12)), nn.ReLU(), nn.Linear(12, CLASSES))


def batch_norm() -> nn.Module:
    return perceptron(lambda: nn.BatchNorm1d(12))


def cumulative_batch_norm() -> nn.Module:
    return perceptron(lambda: nn.BatchNorm1d(12, momentum=None))


def layer_norm() -> nn.Module:
    return perceptron(lambda: nn.LayerNorm(12))


def instance_norm() -> nn.Module:
    norm = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Linear(WIDTH, 12), nn.Unflatten(1, (3, 4)), norm, nn.Flatten(), nn.ReLU(), nn.Linear(12, CLASSES))


class Normaliser(InputTransform):
    """Module that subtracts the mean of the inputs so far; buffers hold the mean and its number of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def change(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += len(x)
            self.mean += (x.detach() - self.mean).sum(0) / self.count
        y: Tensor = x - self.mean
        return y


def dropout() -> nn.Module:
    return perceptron(lambda: nn.Dropout(0.3))


class NumpyNoise(InputTransform):
    def change(self, x: Tensor) -> Tensor:
        return x * float(numpy_global.uniform(0.8, 1.2)) if self.training else x


class PythonNoise(InputTransform):
    def change(self, x: Tensor) -> Tensor:
        return x * random.uniform(0.8, 1.2) if self.training else x


class NumpyStart(InputTransform):
    """Module with initial weights from NumPy's global generator."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.net[0].weight.copy_(torch.from_numpy(numpy_global.randn(12, WIDTH).astype(np.float32)))


class OwnGenerator(InputTransform):
    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def change(self, x: Tensor) -> Tensor:
        return x * float(self.rng.uniform(0.8, 1.2)) if self.training else x


class Counter(InputTransform):
    """Module that scales by its number of calls, which an attribute counts."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def change(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.1 * (self.calls % 3))


class SlowCounter(InputTransform):
    """Module with another scale from the fourth training step on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def change(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x * (1.0 if self.calls < 4 else 0.3)


class Shadow(InputTransform):
    """Module that evaluates a frozen copy, an average of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.shadow = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            y: Tensor = self.shadow(x)
            return y
        with torch.no_grad():
            for average, current in zip(self.shadow.parameters(), self.net.parameters(), strict=True):
                average.mul_(0.5).add_(current, alpha=0.5)
        return super().forward(x)


class ShadowBuffer(nn.Module):
    """Module that evaluates an average of the weights in a buffer, equal to the weights before the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(WIDTH, CLASSES)
        self.register_buffer("average", self.net.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return functional.linear(x, self.average, self.net.bias)
        self.average.lerp_(self.net.weight.detach(), 0.2)
        y: Tensor = self.net(x)
        return y


class SharedDictionaries(InputTransform):
    """Module whose two parts share a dictionary, with a hook that writes into another dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.context: dict[str, Tensor] = {}
        self.net[0].context = self.context
        statistics: dict[str, Tensor] = {}
        self.statistics = statistics
        self.net[0].register_forward_hook(lambda module, inputs, output: statistics.__setitem__("mean", output.mean()))

    def forward(self, x: Tensor) -> Tensor:
        self.context["scale"] = x.detach().mean()
        hidden = torch.relu(self.net[0](x) * (1 + self.net[0].context["scale"]))
        y: Tensor = self.net[3](hidden) + self.statistics["mean"]
        return y


MISSING = object()


class SentinelAttribute(InputTransform):
    def __init__(self) -> None:
        super().__init__()
        self.scale = MISSING

    def change(self, x: Tensor) -> Tensor:
        return x if self.scale is MISSING else x * 0


GENERATOR = np.random.default_rng(0)


class GlobalGenerator(InputTransform):
    def change(self, x: Tensor) -> Tensor:
        return x * float(GENERATOR.uniform(0.5, 1.5)) if self.training else x


class UnseededNoise(InputTransform):
    def change(self, x: Tensor) -> Tensor:
        return x * float(np.random.default_rng().uniform(0.5, 1.5)) if self.training else x


class UnseededStart(InputTransform):
    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.net[0].bias.copy_(torch.from_numpy(np.random.default_rng().random(12, dtype=np.float32)))


class PlainProjection(InputTransform):
    """Module with a random tensor that is not a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = torch.randn(WIDTH, WIDTH)

    def change(self, x: Tensor) -> Tensor:
        return x @ self.projection


class HiddenProjection(InputTransform):
    """Module with a random buffer outside the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(WIDTH, WIDTH), persistent=False)

    def change(self, x: Tensor) -> Tensor:
        y: Tensor = x @ self.projection
        return y


class Table(InputTransform):
    """Module with a constant table outside the state dict, equal in every instance."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0.5, 1.5, WIDTH), persistent=False)
        self.rows = np.arange(WIDTH)

    def change(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.table
        return y


class EvaluationBuffer(InputTransform):
    """Module with a buffer that evaluation changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def change(self, x: Tensor) -> Tensor:
        if not self.training:
            self.mean += x.mean(0)
        return x - self.mean


class IteratorAttribute(InputTransform):
    def __init__(self) -> None:
        super().__init__()
        self.scales = itertools.cycle([1.0, 0.5])

    def change(self, x: Tensor) -> Tensor:
        return x * next(self.scales)


class Uncopyable(Normaliser):
    """Module that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class TwoPolicies(nn.Module):
    """Module with batch norm and with another buffer that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.normaliser, self.norm = Normaliser(), nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.normaliser(self.norm(x))
        return y


class DataDependentBranch(nn.Module):
    """Module with two layers; a batch uses one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x) if x.sum() > 30 else self.b(x)
        return y


def one_logit() -> nn.Module:
    return nn.Linear(WIDTH, 1)


def one_logit_flat() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 1), nn.Flatten(0))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm, self.out = nn.Embedding(7, 6), nn.LSTM(6, 8, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.lstm(self.words(x))[0][:, -1])
        return y


class Sequences(Recurrent):
    """Module with classes at each position, [B, C, T]."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.lstm(self.words(x))[0]).transpose(1, 2)
        return y


class ClassesLast(Recurrent):
    """Module with classes at each position, [B, T, C]."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.lstm(self.words(x))[0])
        return y


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(7, 8), nn.Linear(8, CLASSES)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        e = self.words(x)
        y: Tensor = self.out(self.attention(e, e, e)[0].mean(1))
        return y


def bag_of_words() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(7, 6), nn.Linear(6, CLASSES))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, WIDTH)), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(24, CLASSES)
    )


# ------------------------------------------------------------------------------------------------------------------- losses


def bce_column(output: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(output, target.float().reshape(output.shape))


def column_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target[:, 0])


def places_last(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.transpose(1, 2), target)


weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]))
summed = nn.CrossEntropyLoss(reduction="sum")
smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)
squares = nn.MSELoss()


class Temperature(nn.Module):
    """Loss with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.zeros(1))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output * self.t.exp(), target)


temperature = Temperature()


class Centred(nn.Module):
    """Loss with a buffer that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(CLASSES))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        value = functional.cross_entropy(output - self.mean, target)
        if torch.is_grad_enabled():
            self.mean += 0.1 * (output.detach().mean(0) - self.mean)
        return value


centred = Centred()

# -------------------------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """Module, data and settings of a run, with the expected outcome.

    Attributes:
        make: function that builds the module.
        data: function that returns all examples; the first `N_TRAIN` are for training.
        loss: name of a loss in this file; None: cross-entropy.
        settings: settings of the scenario by dotted key, of [model] and [client].
        refused: pattern of the error that refuses the run before round 1; None: the run finishes.
        accuracy: whether the built-in accuracy is defined for the outputs.
    """

    make: Callable[[], nn.Module]
    data: Callable[[], Arrays] = clouds
    loss: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    refused: str | None = None
    accuracy: bool = True


def policies(make: Callable[[], nn.Module], key: str, *policy_names: str) -> dict[str, Case]:
    """Return a case for each policy of batch norm or buffers."""
    return {f"{make.__name__}, {key} {name}": Case(make, settings={f"model.{key}": name}) for name in policy_names}


CASES: dict[str, Case] = {
    "perceptron": Case(perceptron),
    "tied": Case(TiedWeights),
    "one module under two names": Case(TwoNames),
    "frozen random layer": Case(frozen_layer),
    "random buffer": Case(RandomProjection),
    "spectral norm, refused": Case(spectral_norm, refused=r"training changes the buffers 0\.weight_u"),
    **policies(spectral_norm, "buffers", "mean", "local"),
    **policies(spectral_parametrization, "buffers", "mean"),
    "weight norm": Case(weight_norm),
    "batch norm, refused": Case(batch_norm, refused="1 is a BatchNorm1d with running statistics"),
    **policies(batch_norm, "batch_norm", "mean", "local", "frozen", "group", "batch"),
    **policies(cumulative_batch_norm, "batch_norm", "mean", "local"),
    "layer norm": Case(layer_norm),
    "instance norm, refused": Case(instance_norm, refused=r"training changes the buffers 2\.running_mean"),
    **policies(instance_norm, "buffers", "mean"),
    "normaliser, refused": Case(Normaliser, refused="training changes the buffers mean, count"),
    **policies(Normaliser, "buffers", "mean", "local"),
    "frozen shadow, refused": Case(Shadow, refused=r"training changes"),
    **policies(Shadow, "buffers", "mean", "local"),
    **policies(ShadowBuffer, "buffers", "mean"),
    "shared state": Case(SharedDictionaries),
    "sentinel": Case(SentinelAttribute),
    "constant table": Case(Table),
    "generator of the file": Case(GlobalGenerator, refused="equal training steps of two copies"),
    "unseeded generator": Case(UnseededNoise, refused="equal training steps of two copies"),
    "unseeded initialisation": Case(UnseededStart, refused="differs each time"),
    "random tensor that is no buffer": Case(PlainProjection, refused=r"PlainProjection\.projection is drawn at random"),
    "random buffer that is not persistent": Case(HiddenProjection, refused="buffer projection is drawn at random"),
    "buffer that evaluation changes": Case(EvaluationBuffer, refused="evaluation changes mean"),
    "iterator": Case(IteratorAttribute, refused=r"IteratorAttribute\.scales is an iterator"),
    "module that cannot be copied": Case(Uncopyable, settings={"model.buffers": "mean"}),
    "batch norm mean, buffers local": Case(TwoPolicies, settings={"model.batch_norm": "mean", "model.buffers": "local"}),
    "batch norm local, buffers mean": Case(TwoPolicies, settings={"model.batch_norm": "local", "model.buffers": "mean"}),
    "dropout": Case(dropout),
    "numpy noise": Case(NumpyNoise),
    "Python noise": Case(PythonNoise),
    "numpy initialisation": Case(NumpyStart),
    "generator of its own": Case(OwnGenerator),
    "counter": Case(Counter),
    "slow counter": Case(SlowCounter),
    "branch on the batch": Case(DataDependentBranch, settings={"client.optimizer.name": "momentum-pytorch", "client.optimizer.weight_decay": 0.1}),
    "one logit": Case(one_logit, two_clouds, "bce_column"),
    "one logit, flat": Case(one_logit_flat, two_clouds, "bce_column"),
    "one logit, labels as a column": Case(one_logit, column_of_two, "bce_column"),
    "labels as a column": Case(perceptron, column_labels, "column_cross_entropy"),
    "sequences": Case(Sequences, next_words),
    "sequences, classes last": Case(ClassesLast, next_words, "places_last", refused="accuracy"),
    "LSTM": Case(Recurrent, words),
    "attention": Case(Attention, words),
    "bag of words": Case(bag_of_words, words),
    "convolution": Case(convolution),
    "class weights": Case(perceptron, loss="weighted"),
    "sum of losses": Case(perceptron, loss="summed", settings={"client.optimizer.lr": 0.02}),
    "label smoothing": Case(perceptron, loss="smoothed"),
    "loss with a parameter, refused": Case(perceptron, loss="temperature", refused="the loss Temperature has parameters of its own"),
    "loss with a parameter": Case(perceptron, loss="temperature", settings={"model.loss_parameters": True}),
    "loss with a parameter, batch norm local": Case(
        batch_norm, loss="temperature", settings={"model.loss_parameters": True, "model.batch_norm": "local"}
    ),
    "loss with a buffer, local": Case(perceptron, loss="centred", settings={"model.buffers": "local"}, refused="of the loss"),
    "loss with a buffer, refused": Case(perceptron, loss="centred", refused=r"training changes the buffer loss\.mean"),
    "loss with a buffer": Case(perceptron, loss="centred", settings={"model.buffers": "mean"}),
    "regression": Case(one_logit, targets, "squares", accuracy=False),
    "regression, broadcast": Case(one_logit, flat_targets, "squares", refused=r"\[.*1\]"),
}  # fmt: skip
