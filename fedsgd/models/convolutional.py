"""Convolutional networks for images [height, width] or [channels, height, width]."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsgd.errors import ModelError
from fedsgd.models.base import Model

if TYPE_CHECKING:
    from torch import nn


def parse_image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (channels, height, width) of images. ModelError for examples of another shape."""
    if len(shape) not in (2, 3):
        raise ModelError(f"expected images [height, width] or [channels, height, width], the examples have shape {list(shape)}")
    channels, height, width = shape if len(shape) == 3 else (1, *shape)
    return channels, height, width


def add_channel_axis(shape: tuple[int, ...]) -> list[nn.Module]:
    """Return the layers that give images without channels a channel axis."""
    from torch import nn

    return [nn.Unflatten(1, (1, shape[0]))] if len(shape) == 2 else []


def _build_cnn(
    shape: tuple[int, ...], classes: int, channels: tuple[int, int], padding: int, pool: nn.Module, widths: tuple[int, ...]
) -> nn.Module:
    """Build two 5×5 convolutions with ReLU and pooling, fully connected layers of `widths` with ReLU, and a linear layer."""
    import torch
    from torch import nn

    image = parse_image_shape(shape)
    features: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise((image[0], *channels)):
        features += [nn.Conv2d(n_in, n_out, 5, padding=padding), nn.ReLU(), pool]
    try:
        n_features = nn.Sequential(*features)(torch.zeros(1, *image)).numel()
    except RuntimeError:
        raise ModelError(f"images of {image[1]}×{image[2]} are too small for its convolutions and pooling") from None
    dense: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise((n_features, *widths)):
        dense += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*add_channel_axis(shape), *features, nn.Flatten(), *dense, nn.Linear(widths[-1], classes))


@dataclass(frozen=True)
class Cnn(Model):
    """McMahan et al.'s CNN: 5×5×32, pool, 5×5×64, pool, 512, ReLU throughout; 1,663,370 parameters on MNIST."""

    name: ClassVar[str] = "cnn"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        return _build_cnn(shape, classes, (32, 64), 2, nn.MaxPool2d(2), (512,))


@dataclass(frozen=True)
class LeNet(Model):
    """5×5×6, pool, 5×5×16, pool, 120, 84, with ReLU: the tutorial network of PyTorch and Flower; 62,006 parameters on CIFAR-10.

    Like LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998), but with ReLU and max pooling. The fastest convolutional model here.
    """

    name: ClassVar[str] = "lenet"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        return _build_cnn(shape, classes, (6, 16), 0, nn.MaxPool2d(2), (120, 84))


@dataclass(frozen=True)
class CifarCnn(Model):
    """5×5×64, pool, 5×5×64, pool, 384, 192, with ReLU: 1,756,426 parameters on CIFAR-10.

    The layers of TensorFlow's CIFAR-10 tutorial, the source of McMahan et al.'s model, without local response normalisation.
    McMahan et al. crop images to 24×24, which gives about 10⁶ parameters; here images are whole. Pools are 3×3 with stride 2.
    """

    name: ClassVar[str] = "cifar-cnn"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        return _build_cnn(shape, classes, (64, 64), 2, nn.MaxPool2d(3, 2, padding=1), (384, 192))
