"""Residual networks for small images, without batch statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsgd.config.component import FieldError, PositiveInt
from fedsgd.config.registry import import_by_path
from fedsgd.models.base import Model
from fedsgd.models.convolutional import add_channel_axis, parse_image_shape

if TYPE_CHECKING:
    from torch import nn

STAGE_WIDTHS = (16, 32, 64)
BLOCKS_PER_STAGE = 3


@dataclass(frozen=True)
class ResNet20(Model):
    """The ResNet-20 of He et al. with group norm in place of batch norm: 269,722 parameters on CIFAR-10.

    He et al. 2016, section 4.2: a 3×3 convolution, three stages of three blocks with 16, 32 and 64 channels, shortcuts
    without parameters, global mean. Convolutions are initialised as in He et al. 2015. Group norm (Wu and He 2018) has no
    batch statistics, which are not gradients and differ between clients (effects: Hsieh et al. 2020).

    Attributes:
        groups: number of channel groups in each layer, a divisor of 16.
    """

    name: ClassVar[str] = "resnet-20"

    groups: PositiveInt = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if STAGE_WIDTHS[0] % self.groups:
            raise FieldError(self.name, "groups", f"got {self.groups}, expected a divisor of {STAGE_WIDTHS[0]}")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        ResidualBlock = import_by_path("fedsgd.models.layers:ResidualBlock")

        channels, _, _ = parse_image_shape(shape)
        layers = [*add_channel_axis(shape), *self._build_convolution(channels, STAGE_WIDTHS[0], 1), nn.ReLU()]
        n_in = STAGE_WIDTHS[0]
        for width in STAGE_WIDTHS:
            for _ in range(BLOCKS_PER_STAGE):
                stride = width // n_in
                body = [*self._build_convolution(n_in, width, stride), nn.ReLU(), *self._build_convolution(width, width, 1)]
                layers.append(ResidualBlock(nn.Sequential(*body), stride, width - n_in))
                n_in = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, classes))

    def _build_convolution(self, n_in: int, n_out: int, stride: int) -> list[nn.Module]:
        from torch import nn

        convolution = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        return [convolution, nn.GroupNorm(self.groups, n_out)]
