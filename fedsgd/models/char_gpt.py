"""Transformer for next-character prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsgd.config.component import FieldError, PositiveInt
from fedsgd.config.registry import import_by_path
from fedsgd.errors import ModelError
from fedsgd.models.base import Model

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CharGpt(Model):
    """Decoder-only transformer of characters (Vaswani et al. 2017, Radford et al. 2019); 804,096 parameters for 65 characters.

    Each block adds causal self-attention and a perceptron of width 4·width with GELU to its input. Both follow a layer norm.
    Positions are learned. The output layer shares the weights of the character embedding. Without `bias`, K characters give
    width·(K + context + 12·layers·width + 2·layers + 1) parameters. The defaults are the CPU setting of Karpathy's nanoGPT.

    Inputs are characters [B, T], numbers below K, with T at most `context`. Outputs are scores of the next character at each
    position, [B, K, T], from the characters up to the position. Weights start normal with standard deviation 0.02, biases at 0,
    as in nanoGPT. The last weights before a residual sum start with 0.02 / sqrt(2·layers) (Radford et al. 2019, section 2.3).

    Attributes:
        layers: number of blocks.
        heads: number of attention heads of a block, a divisor of `width`.
        width: number of features of a position.
        context: largest number of characters in a sequence, which is the number of learned positions.
        bias: True for biases in linear layers and layer norms.
    """

    name: ClassVar[str] = "char-gpt"

    layers: PositiveInt = 4
    heads: PositiveInt = 4
    width: PositiveInt = 128
    context: PositiveInt = 64
    bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise FieldError(self.name, "heads", f"got {self.heads}, expected a divisor of the width {self.width}")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        CharTransformer = import_by_path("fedsgd.models.transformer_layers:CharTransformer")

        if len(shape) != 1:
            raise ModelError(f"expected sequences of characters [T], the examples have shape {list(shape)}")
        if shape[0] > self.context:
            problem = f"the examples have {shape[0]} characters, expected at most {self.context} (model.context)"
            raise ModelError(f"{problem}; shorten the windows of the data, or set model.context = {shape[0]}")
        module: nn.Module = CharTransformer(classes, self.layers, self.heads, self.width, self.context, bias=self.bias)
        return module
