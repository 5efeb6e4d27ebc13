"""Convolutional networks for images [height, width] or [channels, height, width]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsgd.errors import ModelError
from fedsgd.models.base import Model

if TYPE_CHECKING:
    from torch import nn


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width) of images; ModelError for examples that are none."""
    if len(shape) not in (2, 3):
        raise ModelError(f"expected images [height, width] or [channels, height, width], the examples have shape {list(shape)}")
    channels, height, width = shape if len(shape) == 3 else (1, *shape)
    return channels, height, width


def stacked(shape: tuple[int, ...], features: list[nn.Module], widths: list[int], classes: int) -> nn.Module:
    """Feature layers, then fully connected ones of these widths with ReLU, then one linear layer."""
    import torch
    from torch import nn

    image = image_shape(shape)
    as_image: list[nn.Module] = [nn.Unflatten(1, (1, image[1]))] if len(shape) == 2 else []
    try:
        sizes = [nn.Sequential(*features)(torch.zeros(1, *image)).numel(), *widths]
    except RuntimeError:
        raise ModelError(f"images of {image[1]}×{image[2]} are too small for its pooling") from None
    dense: list[nn.Module] = []
    for n_in, n_out in zip(sizes, widths, strict=False):
        dense += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*as_image, *features, nn.Flatten(), *dense, nn.Linear(sizes[-1], classes))


@dataclass(frozen=True)
class Cnn(Model):
    """McMahan et al.'s CNN: 5×5×32, pool, 5×5×64, pool, 512, ReLU throughout; 1,663,370 parameters on MNIST."""

    name: ClassVar[str] = "cnn"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        channels, _, _ = image_shape(shape)
        first = [nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
        second = [nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
        return stacked(shape, [*first, *second], [512], classes)


@dataclass(frozen=True)
class LeNet(Model):
    """5×5×6, pool, 5×5×16, pool, 120, 84, with ReLU: the tutorial network of PyTorch and Flower; 62,006 parameters on CIFAR-10.

    After LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998), with ReLU and max pooling. The fastest of the image models here.
    """

    name: ClassVar[str] = "lenet"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        channels, _, _ = image_shape(shape)
        first = [nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2)]
        second = [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
        return stacked(shape, [*first, *second], [120, 84], classes)


@dataclass(frozen=True)
class CifarCnn(Model):
    """5×5×64, pool, 5×5×64, pool, 384, 192, with ReLU: 1,756,426 parameters on CIFAR-10.

    The layers of TensorFlow's CIFAR-10 tutorial without its local response normalisation, from which McMahan et al. took
    theirs. They crop to 24×24 and so have about 10⁶ parameters; here images are whole. Pools are 3×3 with stride 2.
    """

    name: ClassVar[str] = "cifar-cnn"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        channels, _, _ = image_shape(shape)
        first = [nn.Conv2d(channels, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
        second = [nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
        return stacked(shape, [*first, *second], [384, 192], classes)
