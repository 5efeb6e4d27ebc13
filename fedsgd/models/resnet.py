"""Residual networks for small images, without batch statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsgd.component import Count, FieldError
from fedsgd.models.base import Model
from fedsgd.models.convolutional import as_image, image_shape

if TYPE_CHECKING:
    from torch import nn

WIDTHS = (16, 32, 64)
BLOCKS = 3


@dataclass(frozen=True)
class ResNet20(Model):
    """The ResNet-20 of He et al. with group norm in place of batch norm: 269,722 parameters on CIFAR-10.

    He et al. 2016, section 4.2: a 3×3 convolution, three stages of three blocks with 16, 32 and 64 channels, shortcuts
    without parameters, global mean. Group norm (Wu and He 2018) keeps no statistics over batches, which are not gradients and
    differ between clients (Hsieh et al. 2020 show what that does); groups: into how many each layer's channels are split.
    Convolutions start as in He et al. 2015.
    """

    name: ClassVar[str] = "resnet-20"

    groups: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if WIDTHS[0] % self.groups:
            raise FieldError(self.name, "groups", f"got {self.groups}, expected a divisor of {WIDTHS[0]}")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        from fedsgd.models.layers import Residual

        channels, _, _ = image_shape(shape)
        layers = [*as_image(shape), *self._convolution(channels, WIDTHS[0], 1), nn.ReLU()]
        before = WIDTHS[0]
        for width in WIDTHS:
            for _ in range(BLOCKS):
                stride = width // before
                body = [*self._convolution(before, width, stride), nn.ReLU(), *self._convolution(width, width, 1)]
                layers.append(Residual(nn.Sequential(*body), stride, width - before))
                before = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))

    def _convolution(self, n_in: int, n_out: int, stride: int) -> list[nn.Module]:
        from torch import nn

        convolution = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        return [convolution, nn.GroupNorm(self.groups, n_out)]
